import pytest

from optima.errors import DataError, UsageError
from optima.recipe.schema import DataSection
from optima.seeding import digest
from optima.tasks import TASKS
from optima.tasks.dealing import Dealing
from optima.tasks.loading import Split, load_problems
from optima.tasks.two_hop import CITIES, LOOKS, MAX_PROBLEMS, PEOPLE, THINGS, generate
from optima.types import Problem


def _problems(
    split: Split = "train", n: int = 500, seed: int = 0, n_agents: int = 2
) -> tuple[Problem, ...]:
    data = DataSection(n_train=n, n_test=n)
    return load_problems(TASKS["two_hop"], data, split, n_agents=n_agents, seed=seed).problems[:n]


@pytest.mark.parametrize(
    ("seed", "n_agents", "expected"),
    [
        (0, 2, "0bf4a92d059247c5"),
        (0, 3, "5647239b7e907b79"),
        (1, 2, "d76c1b5b9fad5fa2"),
        (1, 3, "75cd59102eea2e65"),
    ],
)
def test_the_same_seed_gives_the_same_problems_on_every_machine(
    seed: int, n_agents: int, expected: str
) -> None:
    problems = _problems(seed=seed, n_agents=n_agents)
    rows = [problem.model_dump_json(exclude={"choices"}) for problem in problems]
    assert digest(*rows) == expected


def test_train_and_test_share_no_owner_with_a_thing_whatever_the_seeds() -> None:
    train = {p.evidence[0].text for seed in range(3) for p in _problems("train", 2000, seed)}
    test = {p.evidence[0].text for seed in range(3) for p in _problems("test", 1000, seed)}
    assert not train & test


def test_problems_differ_and_a_longer_split_begins_like_a_shorter_one() -> None:
    problems = _problems(n=3000)
    assert len({problem.problem_id for problem in problems}) == 3000
    assert problems[:100] == _problems(n=100)


@pytest.mark.parametrize("n_agents", [2, 3, 4])
def test_the_answer_needs_both_hops_and_they_lie_with_different_agents(n_agents: int) -> None:
    problems = _problems(n_agents=n_agents)
    for problem in problems:
        first, second = problem.evidence
        assert first.agent != second.agent
        assert first.text in problem.contexts[first.agent]
        assert second.text in problem.contexts[second.agent]
        assert problem.golds[0] in CITIES
        assert second.text.endswith(f" {problem.golds[0]}.")
        item = problem.question.removeprefix("In which city does the owner of the ")
        assert sum(item.removesuffix(" live?") in context for context in problem.contexts) == 1
        assert sum(problem.golds[0] in context for context in problem.contexts) == 1
        assert len(problem.contexts) == n_agents
        assert all(context.count(".") == 4 for context in problem.contexts)
    assert {tuple(f.agent for f in problem.evidence) for problem in problems} == {(0, 1)}


def test_a_limit_of_words_leaves_out_what_no_one_needs() -> None:
    loaded = {
        limit: load_problems(
            TASKS["two_hop"], DataSection(max_context_words=limit), "test", n_agents=3, seed=0
        ).problems
        for limit in (20, None)
    }
    assert any(len(context.split()) > 20 for p in loaded[None] for context in p.contexts)
    for short, whole in zip(loaded[20], loaded[None], strict=True):
        assert all(len(context.split()) <= 20 for context in short.contexts)
        assert all(fact.text in short.contexts[fact.agent] for fact in short.evidence)
        for less, more in zip(short.contexts, whole.contexts, strict=True):
            assert less == more or len(more.split()) > 20


def test_a_split_has_its_default_size_even_where_fewer_are_sampled_from_it() -> None:
    data = DataSection(n_train=5, n_test=5)
    sizes = [
        len(load_problems(TASKS["two_hop"], data, split, n_agents=2, seed=0).problems)
        for split in ("train", "test")
    ]
    assert sizes == [2000, 200]
    more = DataSection(n_train=2001, n_test=5)
    loaded = load_problems(TASKS["two_hop"], more, "train", n_agents=2, seed=0)
    assert len(loaded.problems) == 2001


def test_the_vocabulary_has_no_repeats_and_no_city_is_a_person() -> None:
    for words in (PEOPLE, CITIES, LOOKS, THINGS):
        assert len(set(words)) == len(words)
    assert not set(PEOPLE) & set(CITIES)
    assert all(city.isalpha() for city in CITIES)
    assert not {"Alice", "Bob", "Carol"} & set(PEOPLE)


def test_as_many_problems_as_can_be_made_are_made_and_not_one_more() -> None:
    assert next(generate("test", MAX_PROBLEMS["test"], Dealing(2, 0))).task == "two_hop"
    with pytest.raises(UsageError, match="5001 is more than the 5000 problems"):
        next(generate("test", MAX_PROBLEMS["test"] + 1, Dealing(2, 0)))


def test_asking_for_too_many_or_for_files_is_refused() -> None:
    with pytest.raises(UsageError, match="n_test"):
        _problems("test", 6000)
    data = DataSection(path="somewhere")
    with pytest.raises(DataError, match="made by code"):
        load_problems(TASKS["two_hop"], data, "train", n_agents=2, seed=0)

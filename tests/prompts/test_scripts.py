"""Scripted conversations on generated problems and on real rows: what every one must keep."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from optima.errors import UsageError
from optima.prompts.scripts import scripted_utterances
from optima.recipe.schema import DataSection
from optima.tasks import get_task
from optima.tasks.answers import marked_answers
from optima.tasks.loading import load_problems
from optima.types import AnswerStyle, Fact, Problem

NAMES = ("Alice", "Bob", "Carol", "Dan")
N_FRAME_WORDS_MAX = 45
N_PROBLEMS = 150


@cache
def problems_of(task_name: str, shared_data: Path, n_agents: int = 2) -> tuple[Problem, ...]:
    if task_name == "two_hop":
        data = DataSection(n_train=N_PROBLEMS)
    else:
        data = DataSection(path=str(shared_data / task_name))
    loaded = load_problems(get_task(task_name), data, "train", n_agents=n_agents, seed=5)
    return tuple(problem for problem in loaded.problems if problem.evidence)[:N_PROBLEMS]


def script(problem: Problem, is_terse: bool, n_agents: int = 2, seed: int = 0) -> tuple[str, ...]:
    task = get_task(problem.task)
    return scripted_utterances(
        problem,
        answer_style=task.answer_style,
        names=NAMES[:n_agents],
        is_terse=is_terse,
        seed=seed,
    )


def n_words(utterances: Sequence[str]) -> int:
    return sum(len(text.split()) for text in utterances)


WITH_EVIDENCE = ("two_hop", "hotpot_qa", "mwh_qa", "trivia_qa", "cbt", "gsm8k", "math")


@pytest.mark.parametrize("is_terse", [True, False])
@pytest.mark.parametrize("task_name", WITH_EVIDENCE)
def test_only_the_last_two_utterances_mark_and_they_mark_the_gold(
    task_name: str, is_terse: bool, shared_data: Path
) -> None:
    style: AnswerStyle = get_task(task_name).answer_style
    problems = problems_of(task_name, shared_data)
    assert problems
    for problem in problems:
        utterances = script(problem, is_terse)
        marked = [marked_answers(text, style) for text in utterances]
        assert [len(found) for found in marked[:-2]] == [0] * (len(utterances) - 2)
        assert [len(found) for found in marked[-2:]] == [1, 1], utterances
        metric = get_task(task_name).metric
        assert metric.same(marked[-1][0], marked[-2][0])
        assert metric.same(marked[-1][0], problem.golds[0])


@pytest.mark.parametrize("is_terse", [True, False])
@pytest.mark.parametrize("n_agents", [2, 3, 4])
@pytest.mark.parametrize("task_name", ["two_hop", "hotpot_qa", "mwh_qa"])
def test_agents_state_their_own_facts_or_what_was_said_and_all_facts_are_said(
    task_name: str, n_agents: int, is_terse: bool, shared_data: Path
) -> None:
    for problem in problems_of(task_name, shared_data, n_agents):
        heard = ""
        for index, text in enumerate(script(problem, is_terse, n_agents)):
            for fact in problem.evidence:
                is_own = fact.agent == index % n_agents
                assert is_own or fact.text not in text or fact.text in heard, (index, text)
            heard += text
        assert all(fact.text in heard for fact in problem.evidence)


@pytest.mark.parametrize("is_terse", [True, False])
@pytest.mark.parametrize("n_agents", [2, 3, 4])
@pytest.mark.parametrize("task_name", WITH_EVIDENCE)
def test_utterances_differ_start_with_one_space_and_carry_no_names_label(
    task_name: str, n_agents: int, is_terse: bool, shared_data: Path
) -> None:
    for problem in problems_of(task_name, shared_data, n_agents):
        utterances = script(problem, is_terse, n_agents)
        assert len(set(utterances)) == len(utterances)
        for text in utterances:
            assert text == f" {text.strip()}"
            assert not any(f"{name}:" in text for name in NAMES[:n_agents])


@pytest.mark.parametrize("task_name", WITH_EVIDENCE)
def test_wordy_frames_are_short_and_wordy_scripts_cost_a_few_times_the_terse(
    task_name: str, shared_data: Path
) -> None:
    terse, wordy = 0, 0
    for problem in problems_of(task_name, shared_data):
        long, short = script(problem, is_terse=False), script(problem, is_terse=True)
        n_facts = n_words([fact.text for fact in problem.evidence])
        assert all(len(text.split()) <= N_FRAME_WORDS_MAX + n_facts for text in long)
        assert len(long) == len(short)
        wordy, terse = wordy + n_words(long), terse + n_words(short)
    assert 2 <= wordy / terse <= 5


@pytest.mark.parametrize("task_name", ["two_hop", "hotpot_qa"])
def test_two_agents_need_at_most_four_turns(task_name: str, shared_data: Path) -> None:
    problems = problems_of(task_name, shared_data)
    assert {len(script(problem, is_terse=False)) for problem in problems} <= {2, 3, 4}


def exchange(*facts: tuple[int, str], question: str = "Where does the owner live?") -> Problem:
    evidence = tuple(Fact(agent=agent, text=text) for agent, text in facts)
    return Problem(
        problem_id="x", task="two_hop", question=question, golds=("Oslo",), evidence=evidence,
        contexts=("notes", "notes"),
    )  # fmt: skip


OWNS, LIVES = "Ann owns the lamp.", "Ann lives in Oslo."


def test_second_link_waits_until_the_first_was_said() -> None:
    utterances = script(exchange((1, OWNS), (0, LIVES)), is_terse=True)
    assert [OWNS in text for text in utterances] == [False, True, False, False]
    assert [LIVES in text for text in utterances] == [False, False, True, False]
    assert utterances[0].endswith(("?", "."))


def test_fact_about_what_the_question_names_is_said_at_once() -> None:
    problem = exchange((1, OWNS), (0, LIVES), question="Does the owner of the lamp know Ann?")
    assert LIVES in script(problem, is_terse=True)[0]


def test_one_agent_with_all_facts_answers_at_once() -> None:
    assert len(script(exchange((0, OWNS), (0, LIVES)), is_terse=False)) == 2


def test_many_agents_who_lack_facts_do_not_repeat_each_other() -> None:
    names = tuple(f"Agent{index}" for index in range(9))
    for is_terse in (True, False):
        utterances = scripted_utterances(
            exchange((8, OWNS), (7, LIVES)),
            answer_style="tag",
            names=names,
            is_terse=is_terse,
            seed=0,
        )
        assert len(utterances) == 18
        assert len(set(utterances)) == 18


def debate(fact: str, is_terse: bool, contexts: tuple[str, ...] = ()) -> tuple[str, ...]:
    problem = Problem(
        problem_id="y",
        task="math",
        question="?",
        golds=(r"\frac{1}{2}",),
        contexts=contexts,
        evidence=(Fact(agent=0, text=fact),),
    )
    return scripted_utterances(
        problem,
        answer_style="boxed",
        names=NAMES[:2],
        is_terse=is_terse,
        seed=0,
    )


def test_boxes_of_a_solution_are_opened_so_that_one_mark_is_left() -> None:
    first = debate(r"So $x = \boxed{\frac{1}{2}}$, not $\boxed{\{3\}}$.", is_terse=False)[0]
    assert r"So $x = \frac{1}{2}$, not $\{3\}$." in first
    assert marked_answers(first, "boxed") == [r"\frac{1}{2}"]


def test_terse_solution_keeps_calculations_only() -> None:
    first = debate("He has 3 * 4 = 12 eggs. He eats (12 - 2) / 20 = 0.5 of them.", is_terse=True)[0]
    assert "3 * 4 = 12, (12 - 2) / 20 = 0.5." in first
    assert "eggs" not in first


def test_terse_solution_cuts_through_no_formula() -> None:
    fact = "We try this. Then \\begin{align*}\nx &= 1 - y \\\\\n&= a.\n\\end{align*}\nSo it is."
    first = debate(fact, is_terse=True)[0]
    assert r"\begin{align*}" in first
    assert "We try" not in first


def test_names_labels_inside_facts_lose_their_colon() -> None:
    assert "Alice 3 eggs, Bob 4" in debate("Alice: 3 eggs, Bob : 4", is_terse=False)[0]


def test_scripts_are_drawn_from_the_seed_and_the_problem(shared_data: Path) -> None:
    problems = problems_of("two_hop", shared_data)
    drawn = {seed: [script(p, is_terse=False, seed=seed) for p in problems] for seed in (1, 2)}
    assert drawn[1] == [script(p, is_terse=False, seed=1) for p in problems]
    assert drawn[1] != drawn[2]
    confirmations = {utterances[-1].split("<A>")[0] for utterances in drawn[1]}
    assert len(confirmations) == 3


def test_problem_without_evidence_or_with_evidence_of_nobody_is_refused() -> None:
    with pytest.raises(UsageError, match="no gold evidence"):
        script(exchange(), is_terse=True)
    with pytest.raises(UsageError, match="only 2 talk"):
        script(exchange((2, OWNS)), is_terse=True)


@pytest.mark.parametrize("is_terse", [True, False])
@pytest.mark.parametrize("task_name", WITH_EVIDENCE)
def test_an_agent_alone_says_all_facts_and_the_gold_at_once(
    task_name: str, is_terse: bool, shared_data: Path
) -> None:
    style: AnswerStyle = get_task(task_name).answer_style
    for problem in problems_of(task_name, shared_data, n_agents=1):
        (text,) = script(problem, is_terse, n_agents=1)
        (mark,) = marked_answers(text, style)
        assert get_task(task_name).metric.same(mark, problem.golds[0])
        if get_task(task_name).setting == "information_exchange":
            assert all(fact.text in text for fact in problem.evidence)

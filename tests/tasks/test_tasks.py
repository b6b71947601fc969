"""Every benchmark on its real rows."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optima.errors import UsageError
from optima.recipe.schema import DataSection
from optima.tasks import TASKS, get_metric, get_task
from optima.tasks.choices import choice_letter
from optima.tasks.dealing import NO_CONTEXT, Dealing
from optima.tasks.judging import Judge, Judgement
from optima.tasks.loading import LoadedProblems, Split, load_problems, told_to_one
from optima.tasks.metrics import EXACT_MATCH, F1, MATH
from optima.tasks.task import (
    MalformedRowError,
    RoleSet,
    Task,
    describe,
    file_names,
    shown,
)
from optima.tasks.texts import normalise_text
from optima.types import Problem
from tests.tasks.rows import ROWS

SPLITS: tuple[Split, ...] = ("train", "test")
WRONG = {"f1": "zzz qqq", "exact_match": "-98765", "math": "x^{17}+91234"}


def _data(shared_data: Path, name: str, **fields: Any) -> DataSection:
    if TASKS[name].generate is not None:
        return DataSection(n_train=200, n_test=50)
    return DataSection(path=str(shared_data / name), **fields)


def _load(
    shared_data: Path, name: str, split: Split = "train", n_agents: int = 2, **fields: Any
) -> LoadedProblems:
    data = _data(shared_data, name, **fields)
    return load_problems(TASKS[name], data, split, n_agents=n_agents, seed=0)


def _parse(name: str, row: dict[str, Any], n_agents: int = 2) -> Problem:
    parse = TASKS[name].parse
    assert parse is not None
    return parse(row, Dealing(n_agents, seed=0))


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_gold_scores_one_and_wrong_scores_zero(task: Task, shared_data: Path) -> None:
    problems = [p for s in SPLITS for p in _load(shared_data, task.name, s).problems]
    problems = problems if task.metric != MATH else problems[::20]
    with Judge() as judge:
        golds = [Judgement(gold, p.golds, p.choices) for p in problems for gold in p.golds]
        assert judge.score_many(task.metric, golds) == [1.0] * len(golds)
        wrong = judge.score_many(
            task.metric, [Judgement(WRONG[task.metric.name], p.golds, p.choices) for p in problems]
        )
    assert wrong == [0.0] * len(problems)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_problems_have_what_their_setting_needs(task: Task, shared_data: Path) -> None:
    for n_agents in (2, 3):
        for split in SPLITS:
            loaded = _load(shared_data, task.name, split, n_agents)
            assert not [row for row in loaded.skipped if row.kind == "malformed"]
            assert len({p.problem_id for p in loaded.problems}) == len(loaded.problems)
            for problem in loaded.problems:
                assert problem.task == task.name
                assert problem.problem_id.startswith(f"{task.name}-")
                is_exchange = task.setting == "information_exchange"
                assert len(problem.contexts) == (n_agents if is_exchange else 0)
                assert all(problem.contexts)
                for fact in problem.evidence:
                    assert fact.text.strip()
                    if problem.contexts:
                        assert fact.text in problem.contexts[fact.agent]
            assert any(p.evidence for p in loaded.problems) == task.has_evidence


def _paragraphs_of(row: dict[str, Any]) -> tuple[dict[str, str], list[tuple[str, int]]]:
    """Return the text of each title and the facts of a row, read apart from our own parser."""
    context, facts = row["context"], row["supporting_facts"]
    if isinstance(context, dict):
        context = list(zip(context["title"], context["sentences"], strict=True))
        facts = list(zip(facts["title"], facts["sent_id"], strict=True))
    texts = {title: " ".join(s.strip() for s in told if s.strip()) for title, told in context}
    return texts, [(title, index) for title, index in facts]


@pytest.mark.parametrize("name", ["hotpot_qa", "mwh_qa"])
@pytest.mark.parametrize("n_agents", [2, 3, 4])
def test_evidence_is_never_in_one_hand(name: str, n_agents: int, shared_data: Path) -> None:
    if not shared_data.is_dir():
        pytest.skip(f"no benchmark rows in {shared_data}")
    for split in SPLITS:
        loaded = _load(shared_data, name, split, n_agents=n_agents)
        lines = (shared_data / name / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        skipped = {row.row for row in loaded.skipped}
        rows = [json.loads(line) for n, line in enumerate(lines, start=1) if n not in skipped]
        for problem, row in zip(loaded.problems, rows, strict=True):
            texts, facts = _paragraphs_of(row)
            supporting = {texts[title] for title, _ in facts}
            owners = {
                text: [text in context for context in problem.contexts] for text in supporting
            }
            assert all(sum(held) == 1 for held in owners.values())
            n_hands = len({held.index(True) for held in owners.values()})
            assert n_hands == min(n_agents, len(supporting)) > 1
            assert len({fact.agent for fact in problem.evidence}) == n_hands


def _hop_row(**change: Any) -> dict[str, Any]:
    return {
        "question": "q",
        "answer": "Rome",
        "context": [
            ["Lamp", ["The lamp is old.", "It is Ann's."]],
            ["Cup", ["A cup."]],
            ["Ann", ["Ann lives in Rome.", "  "]],
            ["Bob", ["Bob lives in Bern."]],
        ],
        "supporting_facts": [["Lamp", 1], ["Ann", 0]],
        **change,
    }


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"supporting_facts": [["Lamp", 1], ["Ann", 9]]}, ["It is Ann's.", "Ann lives in Rome."]),
        ({"supporting_facts": [["Lamp", 7], ["Ann", 0]]}, ["It is Ann's.", "Ann lives in Rome."]),
        ({"supporting_facts": [["Lamp", 7], ["Ann", 7]]}, ["It is Ann's.", "Ann lives in Rome."]),
        ({"supporting_facts": [["Lamp", 1], ["Ann", 1]]}, ["It is Ann's.", "Ann lives in Rome."]),
        (
            {"supporting_facts": [["Lamp", 7], ["Lamp", 0], ["Ann", 0]]},
            ["The lamp is old.", "Ann lives in Rome."],
        ),
        (
            {"supporting_facts": [[" lamp", 1], ["\uff21nn\u00a0", 0]]},
            ["It is Ann's.", "Ann lives in Rome."],
        ),
        (
            {"context": [["A &amp; B", ["One."]], ["C", ["Two."]]],
             "supporting_facts": [["A & B", 0], ["C", 0]]},
            ["One.", "Two."],
        ),
        (  # a repeated paragraph is one, two texts under one title are two
            {"context": [["A", ["One."]], ["C", ["Two."]], ["A", [" One. "]], ["A", ["No.", "3."]]],
             "supporting_facts": [["A", 0], ["C", 0], ["A", 1]]},
            ["One.", "Two.", "3."],
        ),
        (  # one paragraph alone supports: it is cut
            {"supporting_facts": [["Lamp", 0], ["Lamp", 1]]},
            ["The lamp is old.", "It is Ann's."],
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["hotpot_qa", "mwh_qa"])
@pytest.mark.parametrize("n_agents", [2, 3, 4])
def test_evidence_of_odd_rows_is_in_several_hands(
    n_agents: int, name: str, change: dict[str, Any], facts: list[str]
) -> None:
    parse = TASKS[name].parse
    assert parse is not None
    for seed in range(20):
        problem = parse(_hop_row(**change), Dealing(n_agents, seed))
        assert [fact.text for fact in problem.evidence] == facts
        assert len({fact.agent for fact in problem.evidence}) == min(n_agents, len(facts))
        for fact in problem.evidence:
            assert [fact.text in context for context in problem.contexts].count(True) == 1
            assert fact.text in problem.contexts[fact.agent]


def test_an_empty_paragraph_is_dealt_to_nobody() -> None:
    context = [["Lamp", ["Ann's."]], ["No", []], ["Nil", [" "]], ["Ann", ["Rome."]]]
    problem = _parse("hotpot_qa", _hop_row(context=context, supporting_facts=[["Ann", 0]]))
    assert sorted(problem.contexts) == ["Ann: Rome.", "Lamp: Ann's."]
    with pytest.raises(MalformedRowError, match="'No' is not in the context, or has no text"):
        _parse("hotpot_qa", _hop_row(context=context, supporting_facts=[["No", 0], ["Ann", 0]]))


@pytest.mark.parametrize("name", ["hotpot_qa", "mwh_qa"])
def test_trimmed_contexts_keep_the_evidence(name: str, shared_data: Path) -> None:
    for problem in _load(shared_data, name, max_context_words=60).problems:
        for agent, context in enumerate(problem.contexts):
            facts = [fact for fact in problem.evidence if fact.agent == agent]
            assert all(fact.text in context for fact in facts)
            n_evidence_words = sum(len(fact.text.split()) for fact in facts)
            # titles of evidence paragraphs come on top; a sole distractor may be one long sentence
            assert len(context.split()) <= max(60, n_evidence_words + 30) or not facts


def test_the_same_deal_whatever_the_order_of_rows(shared_data: Path, tmp_path: Path) -> None:
    lines = (shared_data / "hotpot_qa/train.jsonl").read_bytes().splitlines()[:50]
    (tmp_path / "train.jsonl").write_bytes(b"\n".join(reversed(lines)))
    data = DataSection(path=str(tmp_path))
    turned = load_problems(TASKS["hotpot_qa"], data, "train", n_agents=2, seed=0).problems
    assert _load(shared_data, "hotpot_qa").problems[:50] == turned[::-1]


def test_both_forms_of_a_hotpot_row_give_the_same_problem() -> None:
    row = ROWS["hotpot_qa"]
    context, facts = row["context"], row["supporting_facts"]
    pairs = [list(p) for p in zip(context["title"], context["sentences"], strict=True)]
    golds = [list(p) for p in zip(facts["title"], facts["sent_id"], strict=True)]
    listed = {**row, "context": pairs, "supporting_facts": golds}
    encoded = {**row, "context": json.dumps(pairs), "supporting_facts": json.dumps(golds)}
    named = {**row, "context": {"title": context["title"], "content": context["sentences"]}}
    for form in (listed, encoded, named):
        assert _parse("hotpot_qa", form) == _parse("hotpot_qa", row)


def _trivia_row(**change: Any) -> dict[str, Any]:
    return {
        "question": "Who made the lamp?",
        "answer": {"value": "Ann", "aliases": ["Ann Lee", "Ann"]},
        "search_results": {
            "description": [f"Snippet {k} names Ann. It ..." for k in range(5)],
            "search_context": [f"Document {k} is long.\n\nAnn made it." for k in range(5)],
            "title": [f"Title {k}" for k in range(5)],
        },
        "entity_pages": {
            "wiki_context": ["Ann made lamps. Many.\n \nThen she stopped.", "Lamps glow."],
            "title": ["Ann", "Lamp"],
        },
        **change,
    }


def test_trivia_deals_the_descriptions_of_search_results_in_turn() -> None:
    told = [_parse("trivia_qa", _trivia_row(), n).contexts for n in (2, 3)]
    snippets = _trivia_row()["search_results"]["description"]
    for contexts, sizes in zip(told, ([2, 3], [1, 2, 2]), strict=True):
        assert sorted(len(context.splitlines()) for context in contexts) == sizes
        lines = [line for context in contexts for line in context.splitlines()]
        assert sorted(lines) == sorted(snippets)
        facts = _parse("trivia_qa", _trivia_row(), len(contexts)).evidence
        assert [fact.agent for fact in facts] == list(range(len(contexts)))
        assert all(fact.text in contexts[fact.agent] and "Ann" in fact.text for fact in facts)
        assert lines != snippets  # shuffled


def test_trivia_deals_whole_documents_when_asked() -> None:
    parse = TASKS["trivia_qa"].parse
    assert parse is not None
    whole = parse(_trivia_row(), Dealing(2, 0, passages="document"))
    assert "Title 3: Document 3 is long. Ann made it." in "\n".join(whole.contexts)
    page: dict[str, Any] = {
        "search_results": {"description": [], "search_context": [], "title": []}
    }
    short = parse(_trivia_row(**page), Dealing(2, 0))
    assert sorted(short.contexts) == ["Ann: Ann made lamps. Many.", "Lamp: Lamps glow."]
    whole = parse(_trivia_row(**page), Dealing(2, 0, passages="document"))
    assert "Ann: Ann made lamps. Many. Then she stopped." in whole.contexts


def test_trivia_snippets_are_short_and_documents_long_in_the_rows_at_hand(
    shared_data: Path,
) -> None:
    parse = TASKS["trivia_qa"].parse
    assert parse is not None
    lines = (shared_data / "trivia_qa/train.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, lines):
        if row["search_results"]["description"]:
            n_words = sum(len(context.split()) for context in _parse("trivia_qa", row).contexts)
            assert n_words < 200
            long = parse(row, Dealing(2, 0, passages="document")).contexts
            assert sum(len(context.split()) for context in long) > 2 * n_words


def test_trivia_rows_without_search_results_use_their_wikipedia_pages(shared_data: Path) -> None:
    rows = [
        json.loads(line) for line in (shared_data / "trivia_qa/train.jsonl").open(encoding="utf-8")
    ]
    for row in rows:
        problem = _parse("trivia_qa", row)
        assert problem.golds[0] == row["answer"]["value"].strip()
        assert NO_CONTEXT not in problem.contexts


def test_joined_trivia_rows_load_under_their_own_file_names(shared_data: Path) -> None:
    loaded = _load(shared_data, "trivia_qa", train_file="joined_train.jsonl")
    assert len(loaded.problems) == 873
    assert sum(bool(p.evidence) for p in loaded.problems) > 800


def test_each_task_goes_by_its_name_and_tells_what_it_is() -> None:
    assert [task.name for task in TASKS.values()] == list(TASKS)
    told = {name for name, task in TASKS.items() if task.setting == "information_exchange"}
    assert told == {"hotpot_qa", "mwh_qa", "trivia_qa", "cbt", "two_hop"}
    assert {name for name in told if TASKS[name].metric is not F1} == set()
    assert {name for name, task in TASKS.items() if task.has_evidence is not True} == {
        "arc",
        "mmlu",
    }
    assert {name for name, task in TASKS.items() if task.answer_style == "boxed"} == {
        "math",
        "gsm8k",
    }
    original = {name: task.n_original_test for name, task in TASKS.items()}
    assert {name for name, n in original.items() if n == 1000} == told - {"two_hop"}
    assert {original[name] for name in ("two_hop", "math", "gsm8k", "arc", "mmlu")} == {None}


def test_problem_names_its_task_and_has_an_id_of_all_that_it_asks() -> None:
    listed = list(zip(*ROWS["hotpot_qa"]["context"].values(), strict=True))
    changes: dict[str, list[dict[str, Any]]] = {
        "hotpot_qa": [
            {"question": "Who?"},
            {"answer": "Bob"},
            {"context": [*listed, ["A", ["b"]]]},
        ],
        "trivia_qa": [
            *({"question": "Who?"}, {"answer": {"value": "Bob", "aliases": []}}),
            {"search_results": {"description": ["Ann?"], "title": ["t"], "search_context": ["x"]}},
        ],
        "cbt": [{"question": "He XXXXX ."}, {"answer": "Bob"}, {"options": ["Ann", "Bob", "Eve"]}],
        "math": [{"problem": "r"}, {"solution": "So $\\boxed{4}$."}],
        "gsm8k": [{"question": "r"}, {"answer": "One.\n#### 2"}],
        "arc": [{"question": "r"}, {"answerKey": "A"}],
        "mmlu": [{"question": "r"}, {"answer": 0}, {"choices": ["x", "z"]}],
    }
    changes["mwh_qa"] = changes["hotpot_qa"]
    assert changes.keys() == ROWS.keys()
    for name, row in ROWS.items():
        problems = [_parse(name, {**row, **change}) for change in ({}, *changes[name])]
        assert {problem.task for problem in problems} == {name}
        assert all(problem.problem_id.startswith(f"{name}-") for problem in problems)
        assert len({problem.problem_id for problem in problems}) == len(problems)


def test_long_answer_is_cut_in_a_message() -> None:
    assert shown("x" * 80) == repr("x" * 80)
    assert shown("x" * 81) == repr("x" * 77) + "..."


def test_long_value_is_cut_in_a_message() -> None:
    assert describe("x" * 58) == repr("x" * 58)  # of 60 characters with its quotes
    assert describe("x" * 59) == "'" + "x" * 56 + "..."
    assert describe(None) == "missing"


def test_cbt_gives_each_agent_its_half_and_shows_the_candidates() -> None:
    row = {
        "sentences": ["Ann  took the lamp .", " ", "It was old .", "A lamp glows .", "Bob slept ."],
        "question": "He saw the XXXXX .",
        "options": [" lamp ", "cup"],
        "answer": "lamp ",
    }
    problem = _parse("cbt", row)
    assert problem.contexts == ("Ann took the lamp . It was old .", "A lamp glows . Bob slept .")
    assert problem.question == (
        "Which word belongs in the place of XXXXX? He saw the XXXXX .\nCandidates: lamp, cup"
    )
    assert (problem.golds, problem.choices) == (("lamp",), ())
    facts = [(fact.agent, fact.text) for fact in problem.evidence]
    assert facts == [(0, "Ann took the lamp ."), (1, "A lamp glows .")]


def test_gsm8k_gold_and_rationale() -> None:
    solution = "He pays 2*3=$<<2*3=6>>6.\n\nIn all <<6*200=1200>>1,200.\n#### 1,200"
    problem = _parse("gsm8k", {"question": "q?", "answer": solution})
    assert problem.golds == ("1,200",)
    assert [fact.text for fact in problem.evidence] == ["He pays 2*3=$6.", "In all 1,200."]
    with Judge() as judge:
        for answer in ("1200", "$1,200", "1200.00", "1,200 dollars"):
            assert judge.score(EXACT_MATCH, answer, problem.golds) == 1.0
        for answer in ("120", "1,200,000", "12 00", "1200 or 1300"):
            assert judge.score(EXACT_MATCH, answer, problem.golds) == 0.0


def test_gsm8k_gold_stands_behind_the_last_mark() -> None:
    assert _parse("gsm8k", {"question": "q", "answer": "Not #### 3.\n#### 4"}).golds == ("4",)


def test_math_gold_is_the_last_box_and_the_evidence_the_solution() -> None:
    solution = r"First $\boxed{1}$, so $\boxed{\frac{1}{2}}$, a $\boxed{\text{number}}$."
    problem = _parse("math", {"problem": "p", "solution": solution, "level": "Level ?"})
    assert problem.golds == (r"\frac{1}{2}",)
    assert problem.evidence[0].text == solution


def test_arc_choices_are_shown_and_answered_by_letter() -> None:
    row = {
        "question": "Which?",
        "choices": {"text": ["x y", "wet palms", "z"], "label": ["1", "2", "3"]},
        "answerKey": "2",
    }
    problem = _parse("arc", row)
    assert problem.question == "Which?\nA. x y\nB. wet palms\nC. z"
    assert problem.golds == ("B", "wet palms")
    assert problem.choices == ("x y", "wet palms", "z")
    with Judge() as judge:
        for answer in ("B", "b", "(B)", "B.", "B. wet palms", "Wet palms."):
            assert judge.score(EXACT_MATCH, answer, problem.golds, problem.choices) == 1.0
        for answer in ("A", "2", "A. wet palms", "x y", "C", "B. x y"):
            assert judge.score(EXACT_MATCH, answer, problem.golds, problem.choices) == 0.0
    official = {
        "question": {
            "stem": "Which?",
            "choices": [
                {"text": text, "label": label}
                for text, label in zip(["x y", "wet palms", "z"], "123", strict=True)
            ],
        },
        "answerKey": "2",
    }
    assert _parse("arc", official) == problem
    row["choices"]["label"] = [1, " 2 ", 3]  # type: ignore[index]
    assert _parse("arc", row | {"answerKey": 2}) == problem


@pytest.mark.parametrize("name", ["arc", "mmlu"])
def test_choices_score_by_letter_and_by_text(name: str, shared_data: Path) -> None:
    judge = Judge()
    for problem in _load(shared_data, name, "test").problems:
        for letter, choice in zip("ABCDE", problem.choices, strict=False):
            score = float(letter == problem.golds[0])
            answers = [letter, f"({letter.lower()})", f"Option {letter}", f"{letter}. {choice}"]
            # a choice "c" can only be read as C, and two equal ones cannot be told apart
            if choice_letter(choice) is None and problem.choices.count(choice) == 1:
                answers += [choice, f"The answer is {choice}"]
            for answer in answers:
                got = judge.score(EXACT_MATCH, answer, problem.golds, problem.choices)
                assert got == score, (answer, problem)


def test_a_choice_that_reads_like_a_letter_is_answered_by_its_own_letter_only() -> None:
    row = {"question": "Vitamin?", "choices": ["B", "C", "D", "K"], "answer": 1}
    assert _parse("mmlu", row).golds == ("B",)
    same = {"question": "Of 10?", "choices": ["10%", "10", "9", "1"], "answer": 1}
    assert _parse("mmlu", same).golds == ("B",)
    assert _parse("mmlu", {"train": {**row, "answer": "D"}}).golds == ("D",)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("hotpot_qa", {"question": ""}, "'question'"),
        ("hotpot_qa", {"answer": None}, "'answer' is missing"),
        ("hotpot_qa", {"context": 3}, "'context'"),
        ("hotpot_qa", {"context": "["}, "is not JSON"),
        ("hotpot_qa", {"context": '{"title": ["a"], "title": []}'}, "'title' is given twice"),
        ("hotpot_qa", {"supporting_facts": {"title": ["nowhere"], "sent_id": [0]}}, "'nowhere'"),
        ("hotpot_qa", {"supporting_facts": [["x", "0"]]}, "index '0'"),
        ("hotpot_qa", {"supporting_facts": [["x", -1]]}, "index -1"),
        ("hotpot_qa", {"context": [["x", "no list"]]}, "paragraph 'x' is 'no list'"),
        ("hotpot_qa", {"context": [["x", []]]}, "no paragraph with a text"),
        ("mwh_qa", {"supporting_facts": []}, "no supporting fact"),
        ("trivia_qa", {"answer": {"value": "x"}}, "'aliases'"),
        ("trivia_qa", {"search_results": None, "entity_pages": None}, "neither search_results nor"),
        ("cbt", {"answer": "absent"}, "is not one of the options"),
        ("cbt", {"question": "no blank"}, "XXXXX"),
        ("cbt", {"sentences": ["one ."]}, "too few"),
        ("hotpot_qa", {"context": {"title": ["x"]}}, "'context' does not have two lists of equal"),
        ("hotpot_qa", {"context": {"sentences": [["x"]]}}, "does not have two lists of equal"),
        ("gsm8k", {"answer": "no mark"}, "####"),
        ("gsm8k", {"answer": "x #### many"}, "not a number"),
        ("math", {"solution": "none"}, "boxed"),
        ("arc", {"answerKey": "Z"}, "'Z'"),
        ("arc", {"answerKey": "AB"}, "'AB'"),
        ("arc", {"answerKey": ["A", "B"]}, "'answerKey' is"),
        ("arc", {"choices": {"text": ["a", "b"], "label": ["A", "A"]}, "answerKey": "A"}, "one of"),
        ("arc", {"choices": {"text": ["a", None], "label": ["A", "B"]}}, "list of texts"),
        ("arc", {"choices": {"text": ["a", "b"], "label": ["A", None]}}, "list of labels"),
        ("arc", {"choices": {"text": ["a"], "label": []}}, "equally long"),
        ("arc", {"answerKey": True}, "True, not a non-empty text"),
        ("arc", {"choices": ["a", "b"]}, "'choices' is .*, not an object"),
        ("arc", {"question": {"stem": "q", "choices": 3}}, "'choices' is 3, not a list of objects"),
        ("arc", {"question": {"stem": "q", "choices": [3]}}, "not a list of objects"),
        ("arc", {"choices": {"text": ["a"], "label": ["A"]}, "answerKey": "A"}, "too few"),
        (
            "arc",
            {"choices": {"text": ["a"] * 27, "label": [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "1"]}},
            "too many",
        ),
        ("mmlu", {"answer": 4}, "not an index"),
        ("mmlu", {"answer": "4"}, "not an index"),
        ("mmlu", {"answer": "AB"}, "'AB', not an index"),
        ("mmlu", {"answer": "BC"}, "'BC', not an index"),
        ("mmlu", {"answer": True}, "True, not an index"),
        ("mmlu", {"answer": ["A"]}, "not an index"),
        ("mmlu", {"answer": None}, "no gold answer"),
        ("mmlu", {"choices": ["a", "", "b", "c"]}, "empty"),
    ],
)
def test_a_malformed_row_says_why(name: str, change: dict[str, Any], reason: str) -> None:
    assert _parse(name, ROWS[name])
    with pytest.raises(MalformedRowError, match=reason):
        _parse(name, {**ROWS[name], **change})


def test_names_and_their_spellings() -> None:
    assert get_task("trival_qa") is TASKS["trivia_qa"]
    assert all(task.name == name for name, task in TASKS.items())
    with pytest.raises(UsageError, match="did you mean hotpot_qa"):
        get_task("hotpotqa")
    assert get_task("optima.tasks.arc_mmlu:ARC").metric is EXACT_MATCH
    with pytest.raises(UsageError, match="of type Metric, where an object of type Task"):
        get_task("optima.tasks.metrics:F1")
    with pytest.raises(ValueError, match="setting: must be one of information_exchange, debate"):
        replace(TASKS["arc"], setting="talk")  # type: ignore[arg-type]


def test_metrics_go_by_their_names_or_their_places() -> None:
    assert get_metric("f1") is F1
    assert get_metric("optima.tasks.metrics:MATH") is MATH
    with pytest.raises(UsageError, match=r"^'optima.*:ARC': .* of type Task, where an .* Metric"):
        get_metric("optima.tasks.arc_mmlu:ARC")
    with pytest.raises(UsageError, match="metric f2: take one of f1, exact_match, math or package"):
        get_metric("f2")


def test_prompts_go_by_the_place_of_two_agents_and_are_one_for_more(tmp_path: Path) -> None:
    roles = RoleSet(("solver", "critic"), "debater", tmp_path, "first")
    assert [roles.template(agent, 2) for agent in range(2)] == ["solver", "critic"]
    assert [roles.template(agent, 3) for agent in range(3)] == ["debater"] * 3
    assert roles.names() == ("solver", "critic", "debater")
    assert RoleSet(("a", "b"), "c") == RoleSet(("a", "b"), "c", None, "all")


def test_files_of_a_split_are_lines_or_lists_or_tables_or_shards_of_it() -> None:
    assert file_names("dev", "test") == (
        *("dev.jsonl", "dev.json", "dev.parquet", "dev-*.parquet"),
        *("test.jsonl", "test.json", "test.parquet", "test-*.parquet"),
    )


def test_golds_with_several_words_are_compared_as_squad_does(shared_data: Path) -> None:
    problem = _load(shared_data, "mwh_qa").problems[0]
    with Judge() as judge:
        assert judge.score(F1, normalise_text(problem.golds[0]), problem.golds) == 1.0


def test_fields_that_hold_json_with_endless_numbers_make_a_malformed_row() -> None:
    facts = f'[["Lamp", {"1" * 5000}], ["Ann", 0]]'
    with pytest.raises(MalformedRowError, match="'supporting_facts' is not JSON"):
        _parse("hotpot_qa", _hop_row(supporting_facts=facts))


def test_agent_alone_is_not_told_that_another_would_have_had_no_passage() -> None:
    row = {
        "question": "Who made it?",
        "answer": {"value": "Ann", "aliases": []},
        "search_results": {"description": ["Ann made it."], "title": ["t"]},
    }
    dealt = _parse("trivia_qa", row)
    assert sorted(dealt.contexts) == [NO_CONTEXT, "Ann made it."]
    assert told_to_one(dealt).contexts == ("Ann made it.",)


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("two_hop", "mwh_qa")])
def test_each_task_opens_with_a_row_that_it_reads(name: str) -> None:
    file, place = {"arc": ("arc_mmlu", 1), "mmlu": ("arc_mmlu", 2)}.get(name, (name, 1))
    opening = importlib.import_module(f"optima.tasks.{file}").__doc__ or ""
    problem = _parse(name, json.loads(opening.split("\n\n")[place]))
    assert problem.golds
    assert problem.question

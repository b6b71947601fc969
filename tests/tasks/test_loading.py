import copy
import gzip
import json
import logging
import os
import re
import sys
import types
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optima.errors import DataError
from optima.recipe.schema import DataSection
from optima.tasks import TASKS
from optima.tasks.dealing import Dealing
from optima.tasks.loading import (
    LoadedProblems,
    SkippedRow,
    Split,
    load_problems,
    load_splits,
    parse_rows,
    sample_problems,
    take_in_turn,
)
from optima.tasks.rows import RawRow, find_files
from optima.tasks.task import HubSource, Task
from optima.types import Problem
from tests.tasks.rows import HUB_ROW, ROWS

GSM8K = TASKS["gsm8k"]


def _row(k: int) -> dict[str, Any]:
    return {"question": f"What is {k} and 1?", "answer": f"{k}+1={k + 1}\n#### {k + 1}"}


def _load(path: Path, split: Split = "train", **fields: Any) -> LoadedProblems:
    data = DataSection(path=str(path), **fields)
    return load_problems(GSM8K, data, split, n_agents=2, seed=0)


def _write_lines(file: Path, lines: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines), encoding="utf-8")


def test_all_file_forms_give_the_same_problems(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [_row(k) for k in range(7)]
    lines = [json.dumps(row) for row in rows]
    _write_lines(tmp_path / "a/train.jsonl", ["\ufeff" + lines[0], "", *lines[1:]])
    _write_lines(tmp_path / "b/train.json", [json.dumps(rows)])
    _write_lines(tmp_path / "c/train.json", [json.dumps({"data": rows})])
    _write_lines(tmp_path / "d/train.json", lines)
    _write_lines(tmp_path / "f/train.json", [json.dumps({"Data": rows})])  # as TriviaQA's own
    (tmp_path / "e").mkdir()
    for part, chunk in enumerate((rows[:4], rows[4:])):
        table = pyarrow.Table.from_pylist(chunk)
        parquet.write_table(table, tmp_path / f"e/train-0000{part}-of-00002.parquet")
    loaded = [_load(tmp_path / name).problems for name in "abcdef"]
    assert len(loaded[0]) == 7
    assert all(problems == loaded[0] for problems in loaded)


def test_part_of_a_split_that_is_missing_or_no_file_is_named(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").Table.from_pylist([_row(1)])
    parts = [tmp_path / f"train-0000{part}-of-00002.parquet" for part in range(2)]
    parquet.write_table(table, parts[0])
    with pytest.raises(DataError) as said:
        _load(tmp_path)
    assert str(said.value) == (
        f"{tmp_path}: holds 1 of the 2 parts of train that end with -of-00002; fetch the others"
    )
    for make in (Path.mkdir, os.mkfifo, lambda path: path.symlink_to("nowhere")):
        make(parts[1])
        with pytest.raises(DataError, match=r"of-00002\.parquet: is no file \(a directory, a pipe"):
            _load(tmp_path)
        parts[1].rmdir() if parts[1].is_dir() else parts[1].unlink()
    parquet.write_table(table, parts[1])
    assert _load(tmp_path).n_rows == 2


def test_malformed_row_of_parquet_is_named_by_its_place(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    wrong = {"question": "q", "answer": "no mark"}
    table = pyarrow.Table.from_pylist([_row(1), wrong, wrong])
    parquet.write_table(table, tmp_path / "train.parquet")
    places = [row.reason.partition(":")[0] for row in _load(tmp_path, max_malformed=0.9).skipped]
    assert places == ["train.parquet[1]", "train.parquet[2]"]


def test_one_object_a_file_below_a_directory_as_math_is_released(tmp_path: Path) -> None:
    for subject in ("geometry", "algebra"):
        row = {"problem": subject, "solution": r"\boxed{1}", "level": "Level ?", "type": subject}
        _write_lines(tmp_path / f"train/{subject}/1.json", [json.dumps(row)])
    data = DataSection(path=str(tmp_path))
    loaded = load_problems(TASKS["math"], data, "train", n_agents=2, seed=0)
    assert [problem.question for problem in loaded.problems] == ["algebra", "geometry"]


def test_malformed_rows_are_named_and_skipped_up_to_the_limit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [json.dumps(_row(k)) for k in range(8)]
    _write_lines(tmp_path / "train.jsonl", [*lines, "[1, 2]", '{"question": "cut off'])
    with caplog.at_level(logging.INFO):
        loaded = _load(tmp_path, max_malformed=0.2)
    assert len(loaded.problems) == 8
    assert loaded.n_rows == 10
    assert [(row.row, row.kind) for row in loaded.skipped] == [(9, "malformed"), (10, "malformed")]
    assert "2 rows skipped (malformed): row 9: train.jsonl line 9: [1, 2] is no" in caplog.text
    assert "train.jsonl line 10: is not JSON" in caplog.text
    assert "8 problems of 10 rows (2 malformed, 0 duplicate, 0 excluded)" in caplog.text
    with pytest.raises(DataError, match=r"2 of 10 rows are malformed.*max_malformed=0\.1.*row 9"):
        _load(tmp_path, max_malformed=0.1)


def test_bytes_that_are_no_utf8_are_a_malformed_row(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(json.dumps(_row(1)).encode() + b'\n{"q": "\xff"}\n')
    assert [row.row for row in _load(tmp_path, max_malformed=0.5).skipped] == [2]


@pytest.mark.parametrize(("n_rows", "more"), [(5, False), (6, True)])
def test_of_many_malformed_rows_the_first_are_named(
    n_rows: int, more: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _write_lines(tmp_path / "train.jsonl", [json.dumps(_row(1)), *["3"] * n_rows])
    _load(tmp_path, max_malformed=1.0)
    assert "row 6: train.jsonl line 6" in caplog.text
    (said,) = caplog.messages
    assert said.endswith("; and 1 more" if more else "line 6: 3 is not an object of fields")


def test_field_that_is_nested_too_deeply_is_a_malformed_row() -> None:
    row = {**ROWS["hotpot_qa"], "context": "[" * 100_000}
    rows = [RawRow("here", row), RawRow("there", ROWS["hotpot_qa"])]
    loaded = parse_rows(TASKS["hotpot_qa"], rows, Dealing(2, seed=0))
    assert loaded.skipped == (SkippedRow(1, "malformed", "here: is nested too deeply"),)
    assert len(loaded.problems) == 1


def test_a_repeated_row_is_kept_once_and_counted_apart(tmp_path: Path) -> None:
    lines = [json.dumps(_row(k)) for k in (1, 2, 1)]
    _write_lines(tmp_path / "train.jsonl", lines)
    loaded = _load(tmp_path, max_malformed=0.0)
    assert len(loaded.problems) == 2
    (row,) = loaded.skipped
    assert (row.row, row.kind, row.reason) == (3, "duplicate", "train.jsonl line 3: same as row 1")


def test_ids_depend_on_content_only(tmp_path: Path) -> None:
    lines = [json.dumps(_row(k)) for k in range(5)]
    _write_lines(tmp_path / "train.jsonl", lines)
    _write_lines(tmp_path / "test.jsonl", lines[::-1])
    ids = [problem.problem_id for problem in _load(tmp_path).problems]
    assert [problem.problem_id for problem in _load(tmp_path, "test").problems] == ids[::-1]
    assert ids[0] == "gsm8k-987043f87bdf6e16"


def test_missing_places_say_what_is_expected_where(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.path: .*nowhere is not a directory"):
        _load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no train file of gsm8k; one of train\.jsonl.*train_file"):
        _load(tmp_path)
    _write_lines(tmp_path / "other.jsonl", ["{}"])
    with pytest.raises(DataError, match=r"data\.train_file: .*mine\.jsonl does not exist.*other"):
        _load(tmp_path, train_file="mine.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.jsonl", "", "train.jsonl: is empty"),
        ("train.json", "", "train.json: is empty"),
        ("train.parquet", "", "train.parquet: is empty"),
        ("train.jsonl", "\n \n", "no problem in 0 rows; check data.path"),
        ("train.json", "[" * 100_000, "nested too deeply"),
        ("train.json", "\ufeff{", "is not JSON"),
        ("train.json", "{", "is not JSON"),
        ("train.json", "3", "is not a list of rows"),
        ("train.json", '[{"question": 1}, {"a": 1, "a": 2}]', "key 'a' is given twice in {'a': 2}"),
        ("train.parquet", "nonsense", "cannot be read as parquet"),
    ],
)
def test_unreadable_files_are_one_clear_error(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    _write_lines(tmp_path / name, [content])
    with pytest.raises(DataError, match=message):
        _load(tmp_path)


def test_a_hundred_thousand_malformed_rows_are_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _write_lines(tmp_path / "train.jsonl", [json.dumps(_row(1)), *["{}"] * 100_000])
    with caplog.at_level(logging.DEBUG):
        _load(tmp_path, max_malformed=1.0)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "100000 rows skipped (malformed): row 2: train.jsonl line 2: " in warnings[0]
    assert warnings[0].endswith("; and 99995 more")
    assert len(caplog.records) == 2
    with pytest.raises(DataError, match="100000 of 100001 rows are malformed") as caught:
        _load(tmp_path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"question": "\\ud800", "answer": "#### 1"}', "has a lone surrogate"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"question": ["q"], "answer": "#### 1"}', r"field 'question' is \['q'\], not a non-.*"),
        ('{"question": "q", "answer": 3}', "field 'answer' is 3, not a non-empty text"),
        ("null", "null is not an object of fields"),
        ('{"question": "q" "answer": "#### 1"}', r"is not JSON \(.*delimiter.*\)"),
        ('{"question": "q", "answer": "#### 1' + "9" * 5000 + '"', r"is not JSON \(.*\)"),
        ("9" * 5000, r"is not JSON \(.*\)"),
        (
            '{"question": "q", "answer": "#### 1", "answer": "#### 2"}',
            r"is not JSON \(the key 'answer' is given twice in {.*\)",
        ),
        (
            '{"question": "q", "answer": "#### 1", "more": [{"a": 1, "a": 1}]}',
            r"is not JSON \(the key 'a' is given twice in {'a': 1}\)",
        ),
    ],
)
def test_a_row_that_is_no_problem_is_counted_with_its_place(
    line: str, reason: str, tmp_path: Path
) -> None:
    rows = [json.dumps(_row(k)) for k in range(3)]
    _write_lines(tmp_path / "train.jsonl", [rows[0], line, *rows[1:]])
    loaded = _load(tmp_path, max_malformed=0.5)
    assert len(loaded.problems) == 3
    (skipped,) = loaded.skipped
    assert (skipped.row, skipped.kind) == (2, "malformed")
    assert re.fullmatch(f"train.jsonl line 2: {reason}", skipped.reason)


@given(
    name=st.sampled_from(list(ROWS)),
    place=st.integers(0, 99),
    value=st.recursive(
        st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.text(max_size=5)
        | st.sampled_from(["A", "AB", "\ud800", "#### 3", "\\boxed{}", "<unk>", "[[1, 2]]"]),
        lambda inner: st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["title", "text", "label", "value"]), inner),
        max_leaves=8,
    ),
)  # fmt: skip
@settings(max_examples=500)
def test_a_row_with_any_value_at_any_place_is_a_problem_or_counted(
    name: str, place: int, value: Any
) -> None:
    row = copy.deepcopy(ROWS[name])
    assert parse_rows(TASKS[name], [RawRow("here", row)], Dealing(2, seed=0)).problems
    places = [(row, key) for key in row]
    places += [(inner, key) for inner in row.values() if isinstance(inner, dict) for key in inner]
    where, key = places[place % len(places)]
    where[key] = value
    loaded = parse_rows(TASKS[name], [RawRow("here", row)], Dealing(2, seed=0))
    assert len(loaded.problems) + len(loaded.skipped) == 1
    for problem in loaded.problems:
        assert all(gold.strip() for gold in problem.golds)
        problem.model_dump_json().encode()


def test_line_ends_of_windows_and_a_byte_order_mark_change_nothing(tmp_path: Path) -> None:
    lines = [json.dumps(_row(k)) for k in range(3)]
    _write_lines(tmp_path / "plain/train.jsonl", lines)
    _write_lines(tmp_path / "other/x", [])
    (tmp_path / "other/train.jsonl").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert _load(tmp_path / "plain").problems == _load(tmp_path / "other").problems


def test_places_that_are_no_files_of_rows_are_said(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").mkdir()
    with pytest.raises(DataError, match=r"train\.jsonl: is no file \(a directory"):
        _load(tmp_path)
    with pytest.raises(DataError, match=r"data\.train_file: .*train\.jsonl is a directory"):
        _load(tmp_path, train_file="train.jsonl")
    (tmp_path / "rows.jsonl").write_bytes(gzip.compress(json.dumps(_row(1)).encode()))
    with pytest.raises(DataError, match=r"rows\.jsonl: is packed \(gzip\); unpack it"):
        _load(tmp_path, train_file="rows.jsonl")
    with pytest.raises(DataError, match=r"is a file; set data\.path=\S+ .*data\.train_file=rows"):
        _load(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        *(("hotpot_qa", stem) for stem in ("validation", "dev")),
        *(("mwh_qa", stem) for stem in ("dev", "validation")),
        *(("trivia_qa", stem) for stem in ("validation", "dev")),
        *((name, "test") for name in ("cbt", "math", "gsm8k", "arc", "mmlu")),
    ],
)
def test_of_three_splits_the_one_with_answers_is_taken(
    name: str, taken: str, tmp_path: Path
) -> None:
    for stem in {"train", "test", "validation", taken}:
        _write_lines(tmp_path / f"{stem}.jsonl", ["{}"])
    data = DataSection(path=str(tmp_path))
    if taken == "dev":
        (tmp_path / "validation.jsonl").unlink()
    assert [file.stem for file in find_files(TASKS[name], data, "test")] == [taken]


@pytest.mark.parametrize("withheld", ["<unk>", "", None, " <UNK> "])
def test_answers_that_a_split_withholds_are_refused(withheld: str | None, tmp_path: Path) -> None:
    row = {
        "question": "q",
        "answer": {"value": withheld, "aliases": []},
        "search_results": {"description": ["One."]},
    }
    known = {**row, "answer": {"value": "one", "aliases": ["<unk>", "1"]}}
    _write_lines(tmp_path / "test.jsonl", [json.dumps(row)] * 3)
    _write_lines(tmp_path / "train.jsonl", [json.dumps(row), *[json.dumps(known)] * 3])
    trivia_qa = TASKS["trivia_qa"]
    data = DataSection(path=str(tmp_path))
    with pytest.raises(
        DataError, match=r"3 of 3 rows have no gold answer.*data\.test_file \(row 1"
    ):
        load_problems(trivia_qa, data, "test", n_agents=2, seed=0)
    data = DataSection(path=str(tmp_path), max_malformed=0.5)
    loaded = load_problems(trivia_qa, data, "train", n_agents=2, seed=0)
    assert [problem.golds for problem in loaded.problems] == [("one", "1")]
    assert [row.kind for row in loaded.skipped] == ["withheld", "duplicate", "duplicate"]
    assert loaded.counts().endswith("2 duplicate, 0 excluded, 1 without a gold answer)")


@pytest.mark.parametrize("name", ["hotpot_qa", "mwh_qa", "cbt", "gsm8k", "math", "arc", "mmlu"])
def test_rows_of_every_task_whose_answer_is_withheld_are_known(name: str) -> None:
    field = {"math": "solution", "arc": "answerKey"}.get(name, "answer")
    row: dict[str, Any] = {
        "question": "XXXXX", "problem": "p", field: None, "sentences": ["a", "b"], "options": [],
        "choices": ["a", "b"] if name == "mmlu" else {"text": ["a", "b"], "label": ["A", "B"]},
        "context": {"title": [], "sentences": []}, "supporting_facts": {"title": [], "sent_id": []},
    }  # fmt: skip
    for withheld in (None, "", "<unk>"):
        raw = RawRow("here", {**row, field: withheld})
        (skipped,) = parse_rows(TASKS[name], [raw], Dealing(2, seed=0)).skipped
        assert (skipped.kind, field in skipped.reason) == ("withheld", True)


@pytest.mark.parametrize(
    ("name", "trained", "tested", "is_shared"),
    [
        ("gsm8k", {"answer": "#### 1,000"}, {"answer": "By heart.\n#### $1000.00"}, True),
        ("gsm8k", {"answer": "#### 1,000"}, {"answer": "#### 1001"}, False),
        ("mmlu", {"choices": ["a", "b", "c"]}, {"choices": ["C", "b", "a"], "answer": 2}, True),
        ("mmlu", {"choices": ["a", "b", "c"]}, {"choices": ["c", "b", "a"], "answer": 1}, False),
        ("mmlu", {"choices": ["a", "b", "c"]}, {"choices": ["a", "b", "d"]}, False),
        ("math", {"solution": r"\boxed{\frac12}"}, {"solution": r"\boxed{\dfrac{1}{2}}"}, True),
        ("math", {"solution": r"\boxed{x}"}, {"solution": r"\boxed{y}"}, False),
        ("trivia_qa", {"aliases": []}, {"aliases": ["A. Lee"]}, True),
        ("trivia_qa", {"value": "Ann"}, {"value": "Bob"}, False),
    ],
)
def test_a_trained_problem_is_known_in_another_order_and_notation(
    name: str, trained: dict[str, Any], tested: dict[str, Any], is_shared: bool, tmp_path: Path
) -> None:
    def row(changes: dict[str, Any]) -> dict[str, Any]:
        question = {"question": "What is it?", "problem": "What is it?", "answer": 0}
        if name != "trivia_qa":
            return question | changes
        answer = {"value": "Ann", "aliases": [], **changes}
        told = {"title": ["T"], "description": ["Ann made it. It is old."]}
        return question | {"answer": answer, "search_results": told}

    for split, changes in (("train", trained), ("test", tested)):
        _write_lines(tmp_path / f"{split}.jsonl", [json.dumps(row(changes))])
    data = DataSection(path=str(tmp_path), overlap="drop")
    splits = partial(load_splits, TASKS[name], data, n_agents=2, seed=0)
    if is_shared:
        with pytest.raises(DataError, match="no problem is left"):
            splits()
    else:
        assert len(splits()[0].problems) == 1


def test_test_problems_that_are_trained_on_are_refused_dropped_or_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [_row(k) for k in range(6)]
    again = {"question": rows[3]["question"].upper() + " ", "answer": "By heart.\n#### 4"}
    _write_lines(tmp_path / "train.jsonl", [json.dumps(row) for row in rows])
    _write_lines(tmp_path / "test.jsonl", [json.dumps(row) for row in (rows[1], again, _row(9))])

    def load(**fields: Any) -> tuple[LoadedProblems, LoadedProblems]:
        data = DataSection(path=str(tmp_path), **fields)
        return load_splits(GSM8K, data, n_agents=2, seed=0)

    with pytest.raises(
        DataError, match=r"data\.overlap: 2 of 3 test problems .*What is 1 and 1"
    ) as e:
        load()
    assert "data.overlap=drop" in str(e.value)
    train, test = load(overlap="drop")
    assert [len(train.problems), len(test.problems)] == [4, 3]
    said = (
        "gsm8k: 2 of 3 test problems stand in the train split too, such as 'What is 1 and 1?'; "
        "'WHAT IS 3 AND 1?': "
    )
    assert caplog.messages == [said + "left out of the training"]
    assert [len(split.problems) for split in load(overlap="keep")] == [6, 3]
    assert caplog.messages[1:] == [said + "kept, scores tell little"]
    with pytest.raises(DataError, match="6 of 6 test problems"):
        load(test_file="train.jsonl")
    with pytest.raises(DataError, match="no problem is left"):
        load(test_file="train.jsonl", overlap="drop")


def test_an_agent_alone_is_told_what_two_would_be_told_together(tmp_path: Path) -> None:
    for name in ("hotpot_qa", "gsm8k"):
        _write_lines(tmp_path / name / "train.jsonl", [json.dumps(ROWS[name])])
        data = DataSection(path=str(tmp_path / name))
        (two,), (one,) = (
            load_problems(TASKS[name], data, "train", n_agents=n, seed=0).problems for n in (2, 1)
        )
        assert one.contexts == (("\n".join(two.contexts),) if two.contexts else ())
        assert [(f.agent, f.text) for f in one.evidence] == [(0, f.text) for f in two.evidence]
        told = {"contexts": two.contexts, "evidence": two.evidence}
        assert one.model_copy(update=told) == two


def test_the_first_problems_of_the_test_split_may_be_asked_alone(tmp_path: Path) -> None:
    for split in ("train", "test"):
        _write_lines(tmp_path / f"{split}.jsonl", [json.dumps(_row(k)) for k in range(5)])
    assert len(_load(tmp_path, first_test=2).problems) == 5
    whole = _load(tmp_path, "test").problems
    assert _load(tmp_path, "test", first_test=2).problems == whole[:2]
    assert _load(tmp_path, "test", first_test=9).problems == whole
    data = DataSection(n_test=4, first_test=3)
    made = load_problems(TASKS["two_hop"], data, "test", n_agents=2, seed=0)
    assert len(made.problems) == 3
    few = DataSection(path=str(tmp_path), first_test=2, overlap="keep")
    splits = load_splits(GSM8K, few, n_agents=2, seed=0)
    assert [len(split.problems) for split in splits] == [5, 2]


def test_mmlu_is_trained_without_the_questions_of_arc(
    shared_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = DataSection(path=str(shared_data / "mmlu"))
    with caplog.at_level(logging.INFO):
        loaded = load_problems(TASKS["mmlu"], data, "train", n_agents=2, seed=0)
    # 358 different questions of arc/train stand in mmlu/train, in 361 rows; 4 are in arc/test too
    assert sum(row.kind == "excluded" for row in loaded.skipped) == 361
    assert f"questions of {(shared_data / 'arc').resolve()}" in caplog.text
    arc = {
        problem.question.splitlines()[0]
        for split in ("train", "test")
        for problem in load_problems(
            TASKS["arc"],
            DataSection(path=str(shared_data / "arc")),
            split,
            n_agents=2,
            seed=0,
        ).problems
    }
    assert not arc & {problem.question.splitlines()[0] for problem in loaded.problems}
    row = {"question": "q", "choices": ["x", "y"], "answer": 0}
    _write_lines(tmp_path / "mmlu/auxiliary_train.jsonl", [json.dumps(row)])
    alone = DataSection(path=str(tmp_path / "mmlu"))
    assert len(load_problems(TASKS["mmlu"], alone, "train", n_agents=2, seed=0).problems) == 1
    assert "NOT left out" in caplog.text


def test_samples_are_seeded_nested_and_independent_of_row_order(
    caplog: pytest.LogCaptureFixture,
) -> None:
    problems = parse_rows(
        GSM8K, (RawRow("here", _row(k)) for k in range(300)), Dealing(2, seed=0)
    ).problems
    drawn = sample_problems(problems, 100, seed=0, stage="iter_0")
    assert len(drawn) == 100
    assert list(drawn) == sorted(drawn, key=problems.index)
    turned = sample_problems(problems[::-1], 100, seed=0, stage="iter_0")
    assert turned == drawn[::-1]
    assert set(drawn) <= set(sample_problems(problems, 200, seed=0, stage="iter_0"))
    assert drawn != sample_problems(problems, 100, seed=1, stage="iter_0")
    assert drawn != sample_problems(problems, 100, seed=0, stage="iter_1")
    ids = [int(problem.golds[0]) for problem in sample_problems(problems, 5, seed=0, stage="x")]
    assert ids == [
        136,
        161,
        231,
        266,
        297,
    ]  # from release to release, or a resumed run would go on with others
    for n in (None, 300):
        assert sample_problems(problems, n, seed=0, stage="x") == problems
    assert not caplog.records
    assert sample_problems(problems, 301, seed=0, stage="x") == problems
    assert caplog.messages == ["x: 301 problems asked for, 300 there; taking all"]


def _fake_hub(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    module = types.ModuleType("datasets")
    module.load_dataset = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_the_hub_is_asked_for_id_configuration_split_and_revision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def load(dataset_id: str, config: str, *, split: str, revision: str | None) -> list[Any]:
        asked.append((dataset_id, config, split, revision))
        return [_row(1), {"question": "q"}]

    _fake_hub(monkeypatch, load)
    load_problems(GSM8K, DataSection(max_malformed=0.5), "test", n_agents=2, seed=0)
    data = DataSection(hub_id="mine/gsm8k", hub_revision="abc", max_malformed=0.5)
    loaded = load_problems(GSM8K, data, "train", n_agents=2, seed=0)
    assert len(loaded.problems) == 1
    assert loaded.skipped[0].reason.startswith("mine/gsm8k/main train[1]: field 'answer'")
    pinned = replace(GSM8K, hub=HubSource("openai/gsm8k", ("main",), "train", "test", "1a2b"))
    for hub_id in (None, "mine/gsm8k"):  # which has other commits
        data = DataSection(hub_id=hub_id, max_malformed=0.5)
        load_problems(pinned, data, "test", n_agents=2, seed=0)
    data = DataSection(
        hub_configs=("a", "b"), train_split="fit", test_split="exam", max_malformed=0.5
    )
    for split in ("train", "test"):
        load_problems(GSM8K, data, split, n_agents=2, seed=0)
    assert asked == [
        ("openai/gsm8k", "main", "test", None),
        ("mine/gsm8k", "main", "train", "abc"),
        ("openai/gsm8k", "main", "test", "1a2b"),
        ("mine/gsm8k", "main", "test", None),
        ("openai/gsm8k", "a", "fit", None),
        ("openai/gsm8k", "b", "fit", None),
        ("openai/gsm8k", "a", "exam", None),
        ("openai/gsm8k", "b", "exam", None),
    ]


def test_two_wiki_comes_from_a_hub_dataset_without_a_loading_script(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def load(dataset_id: str, config: str, *, split: str, revision: str | None) -> list[Any]:
        asked.append((dataset_id, config, split))
        return [HUB_ROW]

    _fake_hub(monkeypatch, load)
    loaded = load_problems(TASKS["mwh_qa"], DataSection(), "test", n_agents=2, seed=0)
    assert asked == [("framolfese/2WikiMultihopQA", "default", "validation")]
    assert loaded.problems[0].golds == ("Ann",)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let the installed datasets keep what it makes in a folder of the test."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("column", ["sentences", "content"])
def test_the_pinned_datasets_reads_two_wiki_from_parquet(column: str, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    context = {"title": HUB_ROW["context"]["title"], column: HUB_ROW["context"]["sentences"]}
    folder = tmp_path / "copy"
    (folder / "data").mkdir(parents=True)
    table = pyarrow.Table.from_pylist([{**HUB_ROW, "context": context}])
    for split in ("train", "validation"):
        parquet.write_table(table, folder / f"data/{split}-00000-of-00001.parquet")
    data = DataSection(hub_id=str(folder))
    mwh_qa = TASKS["mwh_qa"]
    loaded = load_problems(mwh_qa, data, "test", n_agents=2, seed=0)
    listed = {
        **HUB_ROW,
        "context": list(zip(*HUB_ROW["context"].values(), strict=True)),
        "supporting_facts": list(zip(*HUB_ROW["supporting_facts"].values(), strict=True)),
    }
    official = parse_rows(mwh_qa, [RawRow("here", listed)], Dealing(2, seed=0))
    assert loaded.problems == official.problems
    wrong = DataSection(hub_id=str(folder), test_split="exam")
    with pytest.raises(DataError, match=r"cannot be loaded .*data\.train_split, data\.test_split"):
        load_problems(mwh_qa, wrong, "test", n_agents=2, seed=0)


def test_an_unreachable_hub_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        raise errors.pop()

    _fake_hub(monkeypatch, load)
    errors = [ConnectionError(), ConnectionError("no route\nmore lines")]
    for reason in ("no route", r"ConnectionError\(\)"):
        with pytest.raises(DataError, match=rf"gsm8k/main train.*{reason}\); .*data\.path"):
            load_problems(GSM8K, DataSection(), "train", n_agents=2, seed=0)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match="pip install datasets"):
        load_problems(GSM8K, DataSection(), "train", n_agents=2, seed=0)


def test_every_benchmark_names_its_hub_source_and_files() -> None:
    for task in TASKS.values():
        assert (task.parse is None) != (task.generate is None)
        if task.parse is not None:
            assert task.hub is not None
            assert task.train_files
            assert task.test_files


def _own(*problems: Any) -> Task:
    """Return a task of another package that makes these problems."""
    return replace(TASKS["two_hop"], source="own 1.0", generate=lambda *_: iter(problems))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"golds": ()}, "problem p has no gold answer"),
        ({"golds": ("x", " ")}, "problem p has no gold answer, or an empty one"),
        ({"contexts": ("a",)}, "problem p has 1 contexts for 2 agents"),
        ({"contexts": ("a", "b")}, None),
        ({"contexts": ("a", "b", "c")}, "problem p has 3 contexts for 2 agents"),
    ],
)
def test_problem_that_another_package_makes_is_checked(
    change: dict[str, Any], message: str | None
) -> None:
    made = Problem(
        **{"problem_id": "p", "task": "theirs", "question": "?", "golds": ("x",), **change}
    )
    if message is None:
        (problem,) = load_problems(_own(made), DataSection(), "train", n_agents=2, seed=0).problems
        assert problem == made.model_copy(update={"task": "two_hop"})
        return
    with pytest.raises(DataError, match=message):
        load_problems(_own(made), DataSection(), "train", n_agents=2, seed=0)


def test_another_package_is_told_the_split_the_number_and_how_to_deal() -> None:
    told: list[tuple[Any, ...]] = []

    def generate(*words: Any) -> Any:
        told.append(words)
        return iter([Problem(problem_id="p", task="two_hop", question="?", golds=("x",))])

    data = DataSection(n_train=3, n_test=2)
    for split in ("train", "test"):
        task = replace(TASKS["two_hop"], source="own 1.0", generate=generate)
        load_problems(task, data, split, n_agents=2, seed=5)
    assert told == [("train", 3, Dealing(2, seed=5)), ("test", 2, Dealing(2, seed=5))]


def test_what_another_package_makes_is_one_problem_an_id() -> None:
    first, second = (
        Problem(problem_id=key, task="two_hop", question=key, golds=("x",)) for key in "pq"
    )
    for made, message in (
        ((first, second, first), "problems 1 and 3 have one problem_id, 'p'"),
        ((), "it made no problem"),
        ((first, {}), "a dict was made, not a Problem"),
    ):
        with pytest.raises(DataError, match=rf"own 1.0\): its generate fails .*{message}"):
            load_problems(_own(*made), DataSection(), "test", n_agents=2, seed=0)


def test_rows_of_one_id_are_a_repetition_only_if_they_are_one_problem() -> None:
    task = replace(
        GSM8K, source="own 1.0", parse=lambda row, _: Problem(
            problem_id=row["id"], task="gsm8k", question=row["q"], golds=("1",)
        ),
    )  # fmt: skip

    def parsed(*questions: str) -> LoadedProblems:
        rows = [RawRow(f"line {k}", {"id": "p", "q": q}) for k, q in enumerate(questions, 1)]
        return parse_rows(task, rows, Dealing(2, 0))

    loaded = parsed("a", "A ")
    assert [row.reason for row in loaded.skipped] == ["line 2: same as row 1"]
    with pytest.raises(DataError, match=r"line 2: task gsm8k .* the problem_id 'p' of row 1"):
        parsed("a", "b")


def test_rows_that_another_package_leaves_out_are_counted_and_its_mistakes_named(
    tmp_path: Path,
) -> None:
    for split in ("train", "test"):
        _write_lines(tmp_path / f"{split}.jsonl", [json.dumps(_row(k)) for k in range(3)])
    data = DataSection(path=str(tmp_path))

    def load(exclude: Any, split: Split = "train") -> LoadedProblems:
        task = replace(GSM8K, source="own 1.0", exclude=exclude)
        return load_problems(task, data, split, n_agents=2, seed=0)

    asked: list[DataSection] = []

    def exclude(section: DataSection) -> Any:
        asked.append(section)
        return lambda row: "it is known" if "2 and" in row["question"] else None

    loaded = load(exclude)
    assert asked == [data]
    assert loaded.skipped == (SkippedRow(3, "excluded", "it is known"),)
    assert len(load(exclude, "test").problems) == len(load(lambda _: None).problems) == 3
    for wrong in (lambda _: 1 / 0, lambda _: lambda row: row["absent"]):
        with pytest.raises(DataError, match=r"task gsm8k \(own 1.0\): its exclude fails"):
            load(wrong)


def test_problems_come_in_turn_and_again_only_when_all_have_come(
    caplog: pytest.LogCaptureFixture,
) -> None:
    problems = parse_rows(
        GSM8K, (RawRow("here", _row(k)) for k in range(10)), Dealing(2, seed=0)
    ).problems

    def take(t: int, n: int | None = 4, seed: int = 0, backwards: bool = False) -> list[int]:
        taken = take_in_turn(problems, n, t, seed=seed, stage="x", backwards=backwards)
        return [int(problem.golds[0]) for problem in taken]

    first, second, third = take(0), take(1), take(2)
    assert not set(first) & set(second)
    assert len(third) == 4
    assert set(first) | set(second) | set(third) == set(range(1, 11))
    assert len(set(third) & set(first)) == 2  # the order began again
    assert first == sorted(first)  # in the split's own order
    assert set(first) | set(second) | set(take(0, n=2, backwards=True)) == set(range(1, 11))
    assert not set(take(0, n=5, backwards=True)) & set(take(0, n=5))
    assert any(take(0) != take(0, seed=seed) for seed in (1, 2))
    assert take(3, n=None) == take(3, n=10) == list(range(1, 11))
    plain = take_in_turn(problems, 4, 0, seed=0, stage="x")
    assert [int(problem.golds[0]) for problem in plain] == first == [3, 7, 8, 10]
    assert not caplog.records
    assert take(3, n=11) == list(range(1, 11))
    assert caplog.messages == ["x: 11 problems asked for, 10 there; taking all"]

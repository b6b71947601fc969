import json
import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from optima.errors import DataError
from optima.recipe.schema import DataSection
from optima.tasks import TASKS
from optima.tasks.loading import LoadedProblems, Split, load_problems, sample_problems

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
    (tmp_path / "e").mkdir()
    for part, chunk in enumerate((rows[:4], rows[4:])):
        table = pyarrow.Table.from_pylist(chunk)
        parquet.write_table(table, tmp_path / f"e/train-0000{part}-of-00002.parquet")
    loaded = [_load(tmp_path / name).problems for name in "abcde"]
    assert len(loaded[0]) == 7
    assert all(problems == loaded[0] for problems in loaded)


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
    assert "gsm8k train row 9 skipped (malformed): train.jsonl line 9: [1, 2] is no" in caplog.text
    assert "train.jsonl line 10: no JSON" in caplog.text
    assert "8 problems of 10 rows (2 malformed, 0 duplicate, 0 excluded)" in caplog.text
    with pytest.raises(DataError, match=r"2 of 10 rows are malformed.*max_malformed=0\.1.*row 9"):
        _load(tmp_path, max_malformed=0.1)


def test_bytes_that_are_no_utf8_are_a_malformed_row(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(json.dumps(_row(1)).encode() + b'\n{"q": "\xff"}\n')
    assert [row.row for row in _load(tmp_path, max_malformed=0.5).skipped] == [2]


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
    with pytest.raises(DataError, match=r"data\.path: .*nowhere is no directory"):
        _load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no train file of gsm8k; one of train\.jsonl.*train_file"):
        _load(tmp_path)
    _write_lines(tmp_path / "other.jsonl", ["{}"])
    with pytest.raises(DataError, match=r"data\.train_file: .*mine\.jsonl does not exist.*other"):
        _load(tmp_path, train_file="mine.jsonl")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.jsonl", "", "no problem in 0 rows"),
        ("train.json", "{", "no JSON"),
        ("train.json", "3", "no list of rows"),
        ("train.parquet", "nonsense", "no readable parquet"),
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


def test_samples_are_seeded_nested_and_independent_of_row_order(shared_data: Path) -> None:
    problems = _load(shared_data / "gsm8k").problems
    drawn = sample_problems(problems, 100, seed=0, stage="iter_0")
    assert len(drawn) == 100
    assert list(drawn) == sorted(drawn, key=problems.index)
    turned = sample_problems(problems[::-1], 100, seed=0, stage="iter_0")
    assert turned == drawn[::-1]
    assert set(drawn) <= set(sample_problems(problems, 200, seed=0, stage="iter_0"))
    assert drawn != sample_problems(problems, 100, seed=1, stage="iter_0")
    assert drawn != sample_problems(problems, 100, seed=0, stage="iter_1")
    assert sample_problems(problems, None, seed=0, stage="x") == problems
    assert sample_problems(problems, 10**6, seed=0, stage="x") == problems


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
        return [_row(1)]

    _fake_hub(monkeypatch, load)
    load_problems(GSM8K, DataSection(), "test", n_agents=2, seed=0)
    data = DataSection(hub_id="mine/gsm8k", hub_revision="abc")
    loaded = load_problems(GSM8K, data, "train", n_agents=2, seed=0)
    assert len(loaded.problems) == 1
    assert asked == [
        ("openai/gsm8k", "main", "test", None),
        ("mine/gsm8k", "main", "train", "abc"),
    ]


def test_an_unreachable_hub_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route\nmore lines")

    _fake_hub(monkeypatch, load)
    with pytest.raises(DataError, match=r"openai/gsm8k/main train.*no route\); .*data\.path"):
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

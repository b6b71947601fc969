"""ARC's questions among MMLU's, found by their letters and digits."""

import json
import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from optima.recipe.schema import DataSection
from optima.tasks import TASKS
from optima.tasks.arc_mmlu import arc_questions
from optima.tasks.loading import LoadedProblems, load_problems

CHOICES = {"text": ["x", "y"], "label": ["A", "B"]}
ARC: list[dict[str, Any]] = [
    {"question": "Which one, at 5 m, is_it?", "choices": CHOICES, "answerKey": "A"},
    {"question": {"stem": "Official?", "choices": []}, "answerKey": "?"},
    {"question": None, "choices": CHOICES},  # asks nothing, so it is passed over
    {"question": "Last?", "choices": CHOICES, "answerKey": "B"},
]
MMLU = [
    {"question": question, "choices": ["x", "y"], "answer": 0}
    for question in (
        "which ONE at 5m is it",
        "Official",
        "which one at 6 m is it?",
        "\u201cLast\u201d",
    )
]


def _load(path: Path) -> LoadedProblems:
    data = DataSection(path=str(path))
    return load_problems(TASKS["mmlu"], data, "train", n_agents=2, seed=0)


def _write(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    is_list = path.suffix == ".json"
    lines = [json.dumps(rows)] if is_list else [json.dumps(row) for row in rows]
    path.write_text("\n".join(lines), encoding="utf-8")


def test_questions_of_arc_beside_the_rows_are_left_out_of_training_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("auxiliary_train", "test"):
        _write(tmp_path / f"mmlu/{name}.jsonl", [*MMLU[:3], {"train": MMLU[3]}])
    with caplog.at_level(logging.INFO):
        assert len(_load(tmp_path / "mmlu").problems) == 4
    folder = tmp_path / "arc"
    assert caplog.messages[0] == (
        f"mmlu train: no ARC rows in {folder}, so ARC's questions in auxiliary_train are NOT left "
        "out; put the files of arc there"
    )
    _write(folder / "train.jsonl", ARC[:3])
    _write(folder / "ARC-Challenge-Test.json", ARC[3:])
    caplog.clear()
    with caplog.at_level(logging.INFO):
        loaded = _load(tmp_path / "mmlu" / ".." / "mmlu")
    assert f"mmlu train: leaving out the 3 questions of {folder}" in caplog.messages
    assert [problem.question.splitlines()[0] for problem in loaded.problems] == [
        "which one at 6 m is it?"
    ]
    reason = f"the question also stands in {folder}"
    assert [(row.row, row.kind, row.reason) for row in loaded.skipped] == [
        (row, "excluded", reason) for row in (1, 2, 4)
    ]
    tested = load_problems(
        TASKS["mmlu"], DataSection(path=str(tmp_path / "mmlu")), "test", n_agents=2, seed=0
    )
    assert len(tested.problems) == 4


def test_the_hub_is_asked_for_all_of_arc_where_mmlu_comes_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def load(dataset_id: str, config: str, *, split: str, revision: str | None) -> list[Any]:
        asked.append((dataset_id, config, split, revision))
        return [{**ARC[0], "question": f"{config} {split}"}]

    module = types.ModuleType("datasets")
    module.load_dataset = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    found = arc_questions(DataSection())
    assert found is not None
    assert asked == [
        ("allenai/ai2_arc", config, split, None)
        for split in ("train", "validation", "test")
        for config in ("ARC-Challenge", "ARC-Easy")
    ]
    assert len(found.keys) == 6
    assert found.reason({"question": "arc-easy: TEST."}) == (
        "the question also stands in allenai/ai2_arc"
    )
    assert found.reason({"question": "another"}) is None
    assert found.reason({"question": 3}) is None

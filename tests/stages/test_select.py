"""Writing the rows that are trained on."""

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from optima.records import read_records
from optima.stages.train import write_rows
from optima.trainset import is_held_out
from optima.types import TrainingRow


def rows(n: int, length: int = 4) -> Iterator[TrainingRow]:
    for p in range(n):
        yield TrainingRow(
            problem_id=f"p{p}", n=0, agent=0, input_ids=tuple(range(1000, 1000 + length)),
            trained=((1, 3),), n_utterances=1, n_retokenised=p % 2,
        )  # fmt: skip


def context(share: float) -> Any:
    recipe = SimpleNamespace(seed=3, train=SimpleNamespace(eval_share=share))
    return SimpleNamespace(recipe=recipe)


def ids(path: Path) -> list[str]:
    return [row.problem_id for row in read_records(path, TrainingRow)]


def test_rows_are_split_by_problem_in_their_order(tmp_path: Path) -> None:
    counts = write_rows(context(0.25), tmp_path, rows(20))
    out = [f"p{p}" for p in range(20) if is_held_out(f"p{p}", seed=3, share=0.25)]
    assert 0 < len(out) < 20
    assert ids(tmp_path / "eval_rows.jsonl") == out
    assert ids(tmp_path / "rows.jsonl") == [f"p{p}" for p in range(20) if f"p{p}" not in out]
    assert counts == {
        "rows/train": 20.0 - len(out), "rows/eval": float(len(out)), "rows/retokenised": 10.0
    }  # fmt: skip


def test_rows_are_trained_on_where_all_would_be_held_out(tmp_path: Path) -> None:
    counts = write_rows(context(1.0), tmp_path, rows(3))
    assert ids(tmp_path / "rows.jsonl") == ["p0", "p1", "p2"]
    assert ids(tmp_path / "eval_rows.jsonl") == []
    assert (counts["rows/train"], counts["rows/eval"]) == (3.0, 0.0)


def test_rows_are_written_as_they_come(tmp_path: Path) -> None:
    write_rows(context(0.1), tmp_path, rows(2))  # what is imported and built at first use
    tracemalloc.start()
    write_rows(context(0.1), tmp_path, rows(200, length=4_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4e6  # all of them took 27 MB

"""The index of all conversations of some runs, and their chunks."""

import gzip
import json
import shutil
import tracemalloc
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest

from optima.reporting import archive as module
from optima.reporting.archive import ANSWERED, CHOSEN, JUDGED, Archive, StaleError
from optima.runs.reader import Run
from tests.reporting.made import Maker, baselines, training


def _rows(found: Archive) -> list[dict[str, object]]:
    return [row for i in range(found.n_chunks) for row in json.loads(found.chunk(i))["rows"]]


def test_rows_stand_by_problem_then_stage_then_sample(tmp_path: Path) -> None:
    found = Archive([Run(training(tmp_path / "run")), Run(baselines(tmp_path / "base"))])
    columns = found.columns
    by_name = (columns[name].tolist() for name in ("problem", "source", "n"))
    keys = list(zip(*by_name, strict=True))
    assert keys == sorted(keys)
    # three models of four problems; cot once and sc three times about each of the same four
    assert len(found) == 3 * 4 + 4 + 12
    labels = [source.talk.label for source in found.sources]
    assert labels == ["base", "iter_0", "iter_1", "cot", "sc"]


def test_columns_say_what_the_records_say(tmp_path: Path) -> None:
    found = Archive([Run(training(tmp_path / "run"))])
    tokens = found.columns["tokens"].tolist()
    assert tokens == [100, 50, 33, 200, 100, 66, 300, 150, 100, 400, 200, 133]
    assert found.columns["task"].tolist() == [0, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 1]
    assert set(found.columns["flags"].tolist()) == {ANSWERED | JUDGED}
    assert set(found.columns["turns"].tolist()) == {2}


def test_chunks_hold_every_conversation_once_with_its_reward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 1500)  # a few conversations
    found = Archive([Run(training(tmp_path / "run"))])
    assert found.n_chunks > 1
    rows = _rows(found)
    assert len(rows) == len(found)
    for i, row in enumerate(rows):
        c, r = row["c"], row["r"]
        assert isinstance(c, dict)
        assert isinstance(r, dict)
        assert (c["problem_id"], c["n"]) == (r["problem_id"], r["n"])
        assert sum(turn["n_tokens"] for turn in c["turns"]) == found.columns["tokens"][i]
        assert row["l"] is None
    for start, end in zip(found.chunk_starts, found.chunk_starts[1:], strict=False):
        problems = found.columns["problem"]
        assert problems[end - 1] != problems[end]  # no problem is in two chunks
        assert start < end


def test_larger_runs_are_sampled_by_problem_the_same_way_each_time(tmp_path: Path) -> None:
    root = training(tmp_path / "run")
    found = Archive([Run(root)], n_most=7)
    assert len(found) == 6  # two whole problems of three conversations each
    assert found.n_left_out == 6
    again = Archive([Run(root)], n_most=7)
    assert found.columns["problem"].tolist() == again.columns["problem"].tolist()


def test_torn_last_line_and_missing_rewards_are_left_out(tmp_path: Path) -> None:
    root = training(tmp_path / "run", n_iterations=0)
    path = root / "evaluate/base/talk/conversations.jsonl"
    with path.open("a") as file:
        file.write('{"problem_id": "p9", "n"')
    shutil.rmtree(root / "evaluate/base/rank")
    found = Archive([Run(root)])
    assert len(found) == 4
    assert np.isnan(found.columns["task"]).all()
    assert [row["r"] for row in _rows(found)] == [None] * 4


def test_selected_conversations_are_marked(tmp_path: Path) -> None:
    run = Maker(tmp_path / "run")
    run.model("evaluate/base", [1, 0], [10, 20])
    (tmp_path / "run/evaluate/base").rename(tmp_path / "run/iter_0")
    folder = tmp_path / "run/iter_0"
    (folder / "talk").rename(folder / "generate")
    (folder / "select").mkdir()
    first = (folder / "rank/rewards.jsonl").read_text().splitlines()[0]
    (folder / "select/selected.jsonl").write_text(first + "\n")
    found = Archive([Run(tmp_path / "run")])
    assert [source.talk.label for source in found.sources] == ["iter_0 candidates"]
    assert [bool(flags & CHOSEN) for flags in found.columns["flags"]] == [True, False]


def test_chunk_of_a_file_written_anew_is_refused(tmp_path: Path) -> None:
    root = training(tmp_path / "run")
    found = Archive([Run(root)])
    path = root / "evaluate/base/talk/conversations.jsonl"
    copy = path.with_suffix(".tmp")
    copy.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    copy.replace(path)
    with pytest.raises(StaleError):
        found.chunk(0)


def test_header_is_json_whose_columns_unpack_to_one_value_a_row(tmp_path: Path) -> None:
    found = Archive([Run(training(tmp_path / "run"))])
    header = json.loads(json.dumps(found.header()))
    for name, (kind, text) in header["columns"].items():
        values = np.frombuffer(gzip.decompress(b64decode(text)), dtype=f"<{kind}")
        assert values.tolist() == found.columns[name].tolist()
    assert len(json.loads(gzip.decompress(b64decode(header["titles"])))) == 4


def test_index_keeps_numbers_of_a_conversation_and_none_of_its_records(tmp_path: Path) -> None:
    n = 4_000
    run = Maker(tmp_path / "run")
    run.model("evaluate/base", [1.0] * n, [300] * n, n_samples=40)
    tracemalloc.start()
    found = Archive([Run(tmp_path / "run")])
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == n
    # 56 bytes of columns each; an object with its numbers took 400, the lines of rewards 250 more
    assert kept / n < 120
    assert peak / n < 240

"""What a finished stage wrote is compared wherever it is used."""

import errno
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from optima.errors import ModelError, StageError
from optima.runs.directory import RunDir, Stage
from optima.runs.layout import (
    check_model,
    check_run,
    find_cut_weights,
    finished_stages,
    stage_folders,
)
from optima.studies import infer
from optima.studies.infer import find_models, last_model, name_model, read_model
from optima.types import ModelRef
from tests.runs.test_directory import recipe


def cut_last_line(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut_last_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def change_one_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = (cut_last_line, empty, cut_last_byte, change_one_byte, Path.unlink)


def finished_stage(run: RunDir, name: str = "iter_0/select") -> Stage:
    stage = run.stage(name, "inputs")
    if stage.done is None:
        for file in ("rows.jsonl", "more.jsonl"):
            (stage.path / file).write_text("".join(f'{{"row": {i}}}\n' for i in range(10)))
        stage.finish([stage.path / "rows.jsonl", stage.path / "more.jsonl"])
    return stage


@pytest.mark.parametrize(
    "text", ["", "[1, 2]\n", "\0" * 9, "0123456789abcdef iter_9/select\n", None]
)
def test_finished_stage_is_one_whatever_became_of_its_marker(
    text: str | None, tmp_path: Path
) -> None:
    with RunDir(tmp_path / "run", recipe()) as run:
        marker = finished_stage(run).path / "INPUTS"
    written = marker.read_text()
    marker.unlink()
    if text is not None:
        marker.write_text(text)
    assert [done.stage for done in finished_stages(tmp_path / "run")] == ["iter_0/select"]
    with RunDir(tmp_path / "run", recipe()) as run:
        assert run.stage("iter_0/select", "inputs").done
        assert marker.read_text() == written
        assert run.stage("iter_0/select", "others").done is None  # and that one is moved aside


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["rows.jsonl", "more.jsonl"])
def test_output_that_is_not_as_it_was_written_stops_the_run_in_one_line_and_is_made_anew(
    damage: Callable[[Path], None], file: str, tmp_path: Path
) -> None:
    with RunDir(tmp_path / "run", recipe()) as run:
        folder = finished_stage(run).path
    damage(folder / file)
    with RunDir(tmp_path / "run", recipe()) as run, pytest.raises(StageError) as said:
        finished_stage(run)
    assert "\n" not in str(said.value)
    assert str(said.value).startswith(f"{folder / file}: ")
    assert f"move {folder} away and run again" in str(said.value)
    with pytest.raises(StageError, match=file):
        check_run(tmp_path / "run")
    folder.rename(tmp_path / "away")  # the remedy
    with RunDir(tmp_path / "run", recipe()) as run:
        finished_stage(run)
    check_run(tmp_path / "run")


def test_sizes_alone_are_compared_without_reading(tmp_path: Path) -> None:
    with RunDir(tmp_path / "run", recipe()) as run:
        path = finished_stage(run).path / "rows.jsonl"
    change_one_byte(path)
    check_run(tmp_path / "run", reads=False)
    cut_last_line(path)
    with pytest.raises(StageError, match=r"has 99 bytes, 110 when it was written"):
        check_run(tmp_path / "run", reads=False)


def test_digests_of_runs_that_exist_are_compared_too(tmp_path: Path) -> None:
    with RunDir(tmp_path / "run", recipe()) as run:
        stage = run.stage("s", "inputs")
        (stage.path / "out.txt").write_text("made")
        stage.finish([stage.path / "out.txt"])
    path = stage.path / "DONE.json"
    done = json.loads(path.read_text())
    # blake2b of the content, as before sizes were noted
    assert done["outputs"] == {"out.txt": "4d78419c492968b9"}
    del done["sizes"], done["checksum"]
    path.write_text(json.dumps(done))
    check_run(tmp_path / "run")
    (stage.path / "out.txt").write_text("mode")
    with pytest.raises(StageError, match=r"out\.txt: has changed since it was written"):
        check_run(tmp_path / "run")


def weights(n_bytes: int = 64) -> bytes:
    header = json.dumps(
        {"w": {"dtype": "F32", "shape": [n_bytes // 4], "data_offsets": [0, n_bytes]}}
    ).encode()
    return struct.pack("<Q", len(header)) + header + bytes(range(n_bytes))


def trained(root: Path, label: str = "iter_0") -> Path:
    """Finish a training in a run; return its model."""
    with RunDir(root, recipe()) as run:
        stage = run.stage(f"{label}/train", "inputs")
        model = stage.path / "model"
        model.mkdir()
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_bytes(weights())
        (stage.path / "result.json").write_text("{}")
        stage.finish([stage.path / "result.json", model])
    return model


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_model_is_checked_when_it_is_used_and_not_before(
    damage: Callable[[Path], None], file: str, tmp_path: Path
) -> None:
    model = trained(tmp_path / "run")
    check_model(ModelRef(path=str(model)))
    damage(model / file)
    for reads in (True, False):
        check_run(tmp_path / "run", reads=reads)  # a model may be removed to save space
    with pytest.raises(StageError) as said:
        check_model(ModelRef(path=str(model)))
    assert "\n" not in str(said.value)
    assert str(said.value).startswith(f"{model / file}: ")
    assert f"move {model.parent} away and run again" in str(said.value)
    if (model / "config.json").exists():
        with pytest.raises(ModelError, match=r"has a configuration and no weights|run again"):
            find_models(tmp_path / "run")


def test_last_model_of_a_run_needs_no_other(tmp_path: Path) -> None:
    first, second = (trained(tmp_path / "run", label) for label in ("iter_0", "iter_1"))
    (first / "model.safetensors").write_bytes(b"")
    assert last_model(tmp_path / "run").ref == ModelRef(path=str(second))
    assert name_model(str(tmp_path / "run"), "mine").label == "mine"
    with pytest.raises(ModelError, match="iter_0"):
        find_models(tmp_path / "run")


def test_large_weights_are_announced_before_they_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tmp_path / "run")
    caplog.set_level("INFO")
    find_models(tmp_path / "run")
    assert "weights" not in caplog.text
    monkeypatch.setattr(infer, "_MANY_BYTES", 10)
    find_models(tmp_path / "run")
    assert "reading 0.0 GiB of weights" in caplog.text


def test_model_that_is_gone_is_named(tmp_path: Path) -> None:
    model = trained(tmp_path / "run")
    model.rename(tmp_path / "elsewhere")
    with pytest.raises(StageError, match=rf"{model}: is gone; .*move {model.parent} away"):
        check_model(ModelRef(path="org/name", adapter=str(model)))
    check_model(ModelRef(path="org/name"))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (weights()[:-1], "by its own header"),
        (weights() + b"x", "by its own header"),
        (weights()[:20], "by its own header"),
        (weights()[:8], "by its own header"),
        (b"", "is empty"),
    ],
)
def test_cut_weights_of_any_origin_are_refused(content: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(weights())
    assert find_cut_weights(tmp_path) is None
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=what):
        read_model(tmp_path, "base")


@pytest.mark.parametrize("read", [check_run, finished_stages, stage_folders, find_models])
def test_folder_that_cannot_be_looked_into_is_named_and_not_left_out(
    read: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = trained(tmp_path / "run")
    trained(tmp_path / "run", "iter_1")
    read(tmp_path / "run")
    scandir = os.scandir

    def refuse(path: str) -> object:  # the tests may run as root, whom no permission stops
        if os.fspath(path) == os.fspath(model.parent):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError) as said:
        read(tmp_path / "run")
    assert said.value.filename == str(model.parent)


def test_what_is_no_evaluation_of_a_run_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "run"
    with RunDir(root, recipe()) as run:
        run.stage("evaluate/base/talk", "inputs").finish()
        run.stage("evaluate/iter_0/talk", "inputs").finish()
    for name in (".hidden", "iter_0.superseded-1"):
        (root / "evaluate" / name).mkdir()
    check_run(root)
    assert caplog.text == ""
    (root / "evaluate/iter_0").rename(root / "evaluate/iter_0.old")
    (root / "evaluate/notes.txt").write_text("mine")
    check_run(root)
    assert [record.message.partition(": ")[0] for record in caplog.records] == [
        str(root / "evaluate/iter_0.old"), str(root / "evaluate/notes.txt")
    ]  # fmt: skip


def test_index_of_a_format_that_nobody_loads_may_name_what_is_not_there(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "pytorch_model-1.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    found = find_cut_weights(tmp_path)
    assert found is not None
    assert (found.path.name, found.what) == ("pytorch_model-1.bin", "is gone")
    (tmp_path / "model.safetensors").write_bytes(weights())  # as `--exclude "*.bin"` leaves it
    assert find_cut_weights(tmp_path) is None


def test_missing_shard_is_named(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model-1.safetensors").write_bytes(weights())
    with pytest.raises(ModelError, match=r"model-2\.safetensors: is gone"):
        read_model(tmp_path, "base")
    (tmp_path / "model-2.safetensors").write_bytes(weights())
    read_model(tmp_path, "base")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": 1, "b": "c"}}')
    with pytest.raises(ModelError, match="1: is gone"):
        read_model(tmp_path, "base")

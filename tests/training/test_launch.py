"""What a training is started with, over stand-ins for its environment."""

import subprocess
import sys
from pathlib import Path

import pytest

from optima.processes import devices
from optima.processes.devices import Devices
from optima.processes.environment import Environment
from optima.recipe.schema import ModelSection, Recipe, TrainSection
from optima.serving.command import server_argv
from optima.serving.scorer import scorer_argv
from optima.training.jobs import TrainJob
from optima.training.launch import run_training
from optima.types import ModelRef
from tests.fakes import fake_environment

ENV = Environment(prefix=Path("/e"), python=Path("/e/bin/python"))


def _job(tmp_path: Path, device: str, **train: object) -> TrainJob:
    (tmp_path / "rows.jsonl").write_text('{"input_ids": [1, 2]}\n')
    return TrainJob.model_validate(
        {
            "model": ModelRef(path=str(tmp_path)), "rows_path": str(tmp_path / "rows.jsonl"),
            "output_dir": str(tmp_path / "out"), "train": TrainSection.model_validate(train),
            "seed": 0, "device": device,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("on", "has_flags", "expected"),
    [
        (Devices("cpu"), False, "float32"),
        (Devices("cpu"), True, "bfloat16"),
        (Devices("cuda", (0,)), False, "bfloat16"),
    ],
)
def test_processor_without_bfloat16_trains_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on: Devices, has_flags: bool, expected: str
) -> None:
    # Products in bfloat16 take a hundred times as long there.
    monkeypatch.setattr(devices, "_cpu_has_bfloat16", lambda: has_flags)
    run_training(
        _job(tmp_path, on.kind),
        env=fake_environment(tmp_path),
        devices=on,
        log_path=tmp_path / "train.log",
    )
    written = TrainJob.model_validate_json((tmp_path / "out" / "job.json").read_bytes())
    assert written.train.dtype == expected
    recipe = Recipe(method="sft", task="arc", model=ModelSection(path="m"))
    server = server_argv(ModelRef(path="m"), recipe=recipe, devices=on, env=ENV, port=1)
    assert ("float32" in server) == (expected == "float32")
    scorer = scorer_argv(ModelRef(path="m"), recipe=recipe, env=ENV, devices=on)
    assert ("float32" in scorer) == (expected == "float32")


def test_number_format_that_a_recipe_names_is_kept_whatever_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "_cpu_has_bfloat16", lambda: False)
    recipe = Recipe(method="sft", task="arc", model=ModelSection(path="m", dtype="bfloat16"))
    argv = server_argv(ModelRef(path="m"), recipe=recipe, devices=Devices("cpu"), env=ENV, port=1)
    assert argv[argv.index("--dtype") + 1] == "bfloat16"


def test_training_computes_no_attention_by_cudnn(tmp_path: Path) -> None:
    # Its backward gives gradients that are no numbers on H100 (session.avoid_cudnn_attention).
    job = tmp_path / "job.json"
    job.write_text(_job(tmp_path, "cpu").model_dump_json())
    code = (
        "import sys, torch\n"
        "from optima.errors import StageError\n"
        "from optima.training.session import run_job\n"
        "def run(job):\n"
        "    raise StageError(f'cudnn={torch.backends.cuda.cudnn_sdp_enabled()}')\n"
        "print(f'before={torch.backends.cuda.cudnn_sdp_enabled()}')\n"
        "sys.exit(run_job(run, ['--job', sys.argv[1]]))"
    )
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "-c", code, str(job)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "before=True" in done.stdout
    assert "error: cudnn=False\n" in done.stdout


def test_what_a_training_with_other_inputs_left_is_moved_aside_not_deleted(tmp_path: Path) -> None:
    environment, output = fake_environment(tmp_path), tmp_path / "out"

    def train(rate: float) -> None:
        job = _job(tmp_path, "cpu", learning_rate=rate)
        run_training(job, env=environment, devices=Devices("cpu"), log_path=tmp_path / "train.log")

    def left(name: str) -> dict[str, bytes]:
        files = (path for path in (output / name).rglob("*") if path.is_file())
        return {path.name: path.read_bytes() for path in files}

    train(1e-5)
    first, result = left("model"), (output / "result.json").read_bytes()
    train(2e-5)
    assert left("model") != first
    assert left("model.superseded-1") == first
    assert (output / "result.json.superseded-1").read_bytes() == result
    train(2e-5)  # the same again is not repeated
    assert not (output / "model.superseded-2").exists()

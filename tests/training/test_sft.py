"""Real trainings of the 135M model on the CPU (e2e), and what is computed before one starts."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from optima.conversation.loading import load_codec
from optima.errors import RecipeError, StageError
from optima.processes.devices import Devices
from optima.processes.environment import Environment, resolve_environment
from optima.progress import read_progress
from optima.recipe.schema import LoraSection, TrainSection
from optima.records import read_records
from optima.training.jobs import (
    CHECKPOINTS_DIR,
    BatchPlan,
    TrainJob,
    TrainResult,
    accelerate_config,
    n_processes,
    plan_batches,
    resolve_parallelism,
)
from optima.training.launch import (
    n_devices,
    run_training,
    training_argv,
    training_devices,
    training_variables,
)
from optima.types import ModelRef, TrainingRow
from tests.training.rows import training_row, write_rows


def _job(model: Path, tmp_path: Path, **train: object) -> TrainJob:
    options: dict[str, object] = {
        "learning_rate": 1e-4,
        "epochs": 2.0,
        "batch_size": 4,
        "micro_batch_size": 4,
        "gradient_checkpointing": False,
        "max_length": 160,  # two rows of these fit into a pack
        **train,
    }
    codec = load_codec(str(model))
    rows = [training_row(codec, k) for k in range(16)]
    return TrainJob(
        model=ModelRef(path=str(model)),
        rows_path=str(write_rows(tmp_path / "rows.jsonl", rows)),
        eval_rows_path=str(write_rows(tmp_path / "eval.jsonl", rows[:2])),
        output_dir=str(tmp_path / "out"),
        train=TrainSection.model_validate(options),
        seed=5,
        device="cpu",
    )


def _run(job: TrainJob, tmp_path: Path) -> TrainResult:
    return run_training(
        job,
        env=resolve_environment(None, "train"),
        devices=Devices("cpu"),
        log_path=tmp_path / "train.log",
    )


def _check(result: TrainResult, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert (result.n_rows, result.n_eval_rows, result.n_dropped_rows) == (16, 2, 0)
    assert result.n_steps == 8
    assert result.eval_loss is not None
    assert result.eval_loss_before is not None
    assert result.eval_loss < 0.7 * result.eval_loss_before
    rows = list(read_records(tmp_path / "rows.jsonl", TrainingRow))
    assert result.n_tokens == 2 * sum(len(row.input_ids) for row in rows)  # of both epochs
    assert result.n_loss_tokens == 2 * sum(b - a for row in rows for a, b in row.trained)
    assert 0 < result.n_loss_tokens < result.n_tokens
    assert not (out / CHECKPOINTS_DIR).exists()
    progress = read_progress(out)
    assert progress is not None
    assert (progress.n_done, progress.n_total, progress.unit) == (8, 8, "steps")
    assert progress.seconds_left == 0.0
    assert (progress.loss or 0.0) > 0 < (progress.tokens_per_s or 0.0)


@pytest.mark.e2e
def test_full_training_on_packed_rows_lowers_the_loss_and_leaves_a_servable_model(
    smollm2: Path, tmp_path: Path
) -> None:
    job = _job(smollm2, tmp_path, batching="packing")
    result = _run(job, tmp_path)
    _check(result, tmp_path)
    saved = Path(result.model.path)
    assert (saved / "model.safetensors").stat().st_size < 300e6  # bf16 as it came
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (saved / name).read_bytes() == (smollm2 / name).read_bytes()
    config = json.loads((saved / "config.json").read_text())
    started = json.loads((smollm2 / "config.json").read_text())
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "dtype", "architectures"):
        assert config[name] == started[name]
    written = (saved / "model.safetensors").stat().st_mtime_ns
    assert _run(job, tmp_path) == result
    assert (saved / "model.safetensors").stat().st_mtime_ns == written


def _check_saved(result: TrainResult, smollm2: Path, tmp_path: Path, serve: str) -> None:
    saved = tmp_path / "out" / "model"
    assert (saved / "adapter_config.json").exists() == (serve == "adapter")
    assert (saved / "model.safetensors").exists() == (serve == "merged")
    expected = (str(saved), None) if serve == "merged" else (str(smollm2), str(saved))
    assert (result.model.path, result.model.adapter) == expected


@pytest.mark.e2e
def test_lora_training_lowers_the_loss_and_leaves_an_adapter(smollm2: Path, tmp_path: Path) -> None:
    lora = LoraSection(serve="adapter")
    job = _job(
        smollm2, tmp_path, lora=lora, learning_rate=2e-3, batching="length_grouped",
    )  # fmt: skip
    result = _run(job, tmp_path)
    _check(result, tmp_path)
    _check_saved(result, smollm2, tmp_path, "adapter")


@pytest.mark.e2e
def test_killed_lora_training_continues_takes_the_same_number_of_steps_and_is_merged(
    smollm2: Path, tmp_path: Path
) -> None:
    job = _job(smollm2, tmp_path, save_steps=2, lora=LoraSection(), learning_rate=2e-3)
    env = resolve_environment(None, "train")
    log = tmp_path / "train.log"
    # The first attempt is killed by a watcher as soon as a checkpoint is complete.
    watcher = subprocess.Popen(
        ["bash", "-c", f"while ! ls {tmp_path}/out/checkpoints/*/COMPLETE; do sleep 0.05; done"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    out = tmp_path / "out"
    code = (
        "import sys, pathlib; from optima.training.launch import run_training;"
        "from optima.training.jobs import TrainJob; from optima.processes.devices import Devices;"
        "from optima.processes.environment import resolve_environment as resolve;"
        "job = TrainJob.model_validate_json(pathlib.Path(sys.argv[1]).read_bytes());"
        "run_training(job, env=resolve(None, 'train'), devices=Devices('cpu'),"
        "        log_path=pathlib.Path(sys.argv[2]))"
    )
    job_path = tmp_path / "first.json"
    job_path.write_text(job.model_dump_json())
    first = subprocess.Popen(
        [str(env.python), "-c", code, str(job_path), str(log)], env=env.environ()
    )
    watcher.wait(300)
    os.kill(first.pid, signal.SIGKILL)
    first.wait(30)
    time.sleep(3)  # its guard ends the trainer
    assert not (out / "result.json").exists()
    seconds_before = [float(path.read_text()) for path in out.glob("checkpoints/*/COMPLETE")]
    assert min(seconds_before) > 0
    result = _run(job, tmp_path)
    assert result.n_steps == 8
    assert "continuing from" in log.read_text()
    assert result.seconds > max(seconds_before)  # those of all steps, not of this attempt's alone
    _check(result, tmp_path)
    _check_saved(result, smollm2, tmp_path, "merged")


@pytest.mark.e2e
def test_rows_that_are_too_long_are_counted_and_no_rows_are_an_error(
    smollm2: Path, tmp_path: Path
) -> None:
    with pytest.raises(StageError, match=r"no row to train on \(16 are longer"):
        _run(_job(smollm2, tmp_path, max_length=16), tmp_path)


@pytest.mark.parametrize(
    ("ratio", "n_rows", "epochs", "expected"),
    [(0.1, 8, 1.0, 0), (0.1, 80, 1.0, 2), (0.1, 84, 1.0, 2), (0.5, 9, 2.0, 3), (1.0, 8, 1.0, 2)],
)
def test_warm_up_is_a_whole_number_of_steps_and_none_in_a_short_training(
    ratio: float, n_rows: int, epochs: float, expected: int
) -> None:
    arguments = pytest.importorskip("optima.training.session")
    train = TrainSection(warmup_ratio=ratio, epochs=epochs)
    assert arguments.n_warmup_steps(train, n_rows, BatchPlan(2, 2), 1) == expected


def test_command_names_the_configuration_the_port_and_the_job() -> None:
    env = Environment(prefix=Path("/e"), python=Path("/e/bin/python"))
    assert training_argv(env, Path("/out"), kind="sft", port=4567) == (
        *("/e/bin/python", "-m", "accelerate.commands.launch"),
        *("--config_file", "/out/accelerate.json", "--main_process_port", "4567"),
        *("-m", "optima.training.sft", "--job", "/out/job.json"),
    )


def test_training_sees_its_gpus_only() -> None:
    devices = Devices("cuda", (1, 3), ("0", "1", "2", "7"))
    assert training_variables(devices)["CUDA_VISIBLE_DEVICES"] == "1,7"
    assert training_variables(Devices("cpu"))["CUDA_VISIBLE_DEVICES"] == ""


def test_training_by_one_process_sees_one_gpu() -> None:
    # Of several the trainer would give each a micro batch: more rows a step than were asked for.
    devices = Devices("cuda", (1, 3), ("0", "1", "2", "7"))
    alone = training_devices(TrainSection(parallelism="none"), devices)
    assert training_variables(alone)["CUDA_VISIBLE_DEVICES"] == "1"
    assert n_devices(alone) == 1
    for way in ("auto", "ddp", "zero3", "fsdp"):
        assert training_devices(TrainSection(parallelism=way), devices) == devices
    assert training_devices(TrainSection(parallelism="none"), Devices("cpu")) == Devices("cpu")


@pytest.mark.parametrize(
    ("batch", "micro", "n", "expected"),
    [(32, 4, 1, (4, 8)), (32, 64, 8, (4, 1)), (12, 5, 1, (4, 3)), (16, 4, 8, (2, 1))],
)
def test_batch_is_split_exactly(batch: int, micro: int, n: int, expected: tuple[int, int]) -> None:
    plan = plan_batches(batch, micro, n)
    assert (plan.micro_batch_size, plan.n_accumulation) == expected
    assert plan.micro_batch_size * plan.n_accumulation * n == batch


@pytest.mark.parametrize(("batch", "n"), [(12, 8), (4, 8)])
def test_batch_that_the_devices_do_not_divide_is_refused(batch: int, n: int) -> None:
    with pytest.raises(RecipeError, match=r"train\.batch_size"):
        plan_batches(batch, 4, n)


def test_several_gpus_share_the_state_unless_told_otherwise() -> None:
    assert resolve_parallelism(TrainSection(), 1) == "none"
    assert resolve_parallelism(TrainSection(), 8) == "zero3"
    assert resolve_parallelism(TrainSection(parallelism="ddp"), 8) == "ddp"
    assert n_processes(TrainSection(parallelism="none"), 8) == 1
    assert accelerate_config(TrainSection(), 8, kind="sft")["distributed_type"] == "DEEPSPEED"
    assert (
        accelerate_config(TrainSection(dtype="float32"), 1, kind="sft")["mixed_precision"] == "no"
    )


@pytest.mark.parametrize(("kind", "is_alone"), [("sft", True), ("dpo", False)])
def test_every_process_of_fsdp_reads_the_weights_where_a_reference_is_split_too(
    kind: str, is_alone: bool
) -> None:
    config = accelerate_config(TrainSection(parallelism="fsdp"), 2, kind=kind)
    assert config["fsdp_config"]["fsdp_cpu_ram_efficient_loading"] is is_alone

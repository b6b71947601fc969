"""The stand-ins for the two environments speak the protocols of the real ones."""

from pathlib import Path

import pytest

from optima.errors import ProcessError
from optima.processes.devices import Devices
from optima.processes.managed import ManagedProcess
from optima.recipe.schema import ModelSection, Recipe, TrainSection
from optima.serving.scorer import LossScorer
from optima.training.jobs import TrainJob
from optima.training.launch import run_training
from optima.types import ModelRef
from tests.fakes import commands, fake_environment

CPU = Devices("cpu")


def make_job(tmp_path: Path) -> TrainJob:
    start = tmp_path / "start"
    start.mkdir()
    (start / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    (start / "model.safetensors").write_bytes(b"weights")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"input_ids": [1, 2]}\n' * 2)
    return TrainJob(
        model=ModelRef(path=str(start)),
        rows_path=str(rows),
        output_dir=str(tmp_path / "out"),
        train=TrainSection(),
        seed=0,
        device="cpu",
    )


def test_fake_trainer_writes_a_model_and_a_result(tmp_path: Path) -> None:
    environment = fake_environment(tmp_path)
    result = run_training(
        make_job(tmp_path), env=environment, devices=CPU, log_path=tmp_path / "train.log"
    )
    assert result.n_rows == 2
    model = Path(result.model.path)
    assert (model / "tokenizer_config.json").read_text() == '{"chat_template": "x"}'
    assert (model / "model.safetensors").stat().st_size == 64
    assert any("optima.training.sft" in command for command in commands(environment))


def test_fake_trainer_fails_as_often_as_told(tmp_path: Path) -> None:
    environment = fake_environment(tmp_path, train_fails=1)
    job = make_job(tmp_path)
    log = tmp_path / "train.log"
    with pytest.raises(ProcessError, match="fails as it was told"):
        run_training(job, env=environment, devices=CPU, log_path=log)
    assert run_training(job, env=environment, devices=CPU, log_path=log).n_rows == 2


def test_fake_scorer_gives_equal_texts_equal_losses(tmp_path: Path) -> None:
    recipe = Recipe(method="sft", task="arc", model=ModelSection(path="org/model"))
    scorer = LossScorer(
        ModelRef(path="org/model"),
        recipe=recipe,
        devices=CPU,
        env=fake_environment(tmp_path),
        log_dir=tmp_path,
    )
    with scorer:
        losses = scorer.losses([("h", " one"), ("h", " two"), ("h", " one"), ("h", "")])
    assert losses[0] == losses[2] != losses[1]
    assert losses[3] is None


def test_other_calls_go_to_the_interpreter(tmp_path: Path) -> None:
    environment = fake_environment(tmp_path)
    log = tmp_path / "log"
    argv = [str(environment.python), "-c", "import optima.types; print('fine')"]
    with ManagedProcess(argv, name="c", log_path=log, env=environment.environ()) as process:
        process.check(30)
    assert log.read_text() == "fine\n"

"""A training shared by several machines: its command, as accelerate reads it, and a real one."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from optima.conversation.loading import load_codec
from optima.processes.devices import Devices
from optima.processes.environment import Environment, resolve_environment
from optima.processes.managed import ManagedProcess
from optima.recipe.schema import TrainSection
from optima.training.jobs import Machines, TrainJob, accelerate_config
from optima.training.launch import run_training, training_argv, training_variables
from optima.types import ModelRef
from tests.templates import CHATML
from tests.tokenizers import tiny_tokenizer, write_tokenizer
from tests.training.rows import training_row, write_rows

ONE = Devices("cuda", (0,))


@pytest.mark.parametrize("way", ["ddp", "zero3", "fsdp"])
def test_every_machine_starts_its_share_of_the_processes_and_finds_the_first(
    way: str, tmp_path: Path
) -> None:
    commands = pytest.importorskip("accelerate.commands.launch")
    launch = pytest.importorskip("accelerate.utils.launch")
    config = accelerate_config(TrainSection.model_validate({"parallelism": way}), 3 * 8, kind="sft")
    (tmp_path / "accelerate.json").write_text(json.dumps({**config, "num_machines": 3}))
    env = Environment(prefix=Path("/e"), python=Path("/e/bin/python"))
    for rank in (1, 2):  # of the first it looks whether the port is free
        machines = Machines(3, rank, "10.0.0.1")
        words = training_argv(env, tmp_path, kind="sft", port=4567, machines=machines)
        args = commands.launch_command_parser().parse_args(words[3:])
        args = commands._validate_launch_command(args)[0]
        if way == "zero3":
            args.deepspeed_fields_from_accelerate_config = ""
            launch.prepare_deepspeed_cmd_env(args)
        else:
            launch.prepare_multi_gpu_env(args)
        assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("3", "8", rank)
        assert (args.rdzv_backend, args.rdzv_endpoint) == ("static", "10.0.0.1:4567")
        assert args.training_script == "optima.training.sft"


class _OnCpu(Environment):
    """The training environment, whose processes take no GPU; accelerate shares none of a CPU."""

    def environ(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        given = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        return super().environ({**(extra or {}), **given})


class _Second:
    """Another machine, which is this one."""

    machines = Machines(2, 0, "127.0.0.1")

    def __init__(self, env: Environment, log: Path) -> None:
        self._env, self._log = env, log
        self._process: ManagedProcess | None = None

    def start(self, output: Path, kind: str, port: int) -> None:
        argv = training_argv(
            self._env, output, kind=kind, port=port, machines=Machines(2, 1, "127.0.0.1")
        )
        variables = self._env.environ(training_variables(ONE))
        self._process = ManagedProcess(argv, name="second", log_path=self._log, env=variables)
        self._process.start()

    def failure(self) -> str | None:
        assert self._process is not None
        return str(self._process.failure()) if self._process.poll() else None

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()


def _model(directory: Path) -> Path:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=tiny_tokenizer().get_vocab_size(), hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    write_tokenizer(directory)
    (directory / "chat_template.jinja").write_text(CHATML)
    return directory


@pytest.mark.e2e
def test_two_machines_make_the_model_that_one_makes(tmp_path: Path) -> None:
    model = _model(tmp_path / "start")
    codec = load_codec(str(model))
    rows = write_rows(tmp_path / "rows.jsonl", [training_row(codec, k) for k in range(8)])
    section = TrainSection(
        epochs=1.0, batch_size=4, micro_batch_size=2, gradient_checkpointing=False, max_length=256,
        batching="plain", dtype="float32", warmup_ratio=0.0, parallelism="ddp", learning_rate=1e-3,
    )  # fmt: skip
    found = resolve_environment(None, "train")
    env = _OnCpu(prefix=found.prefix, python=found.python)
    losses = []
    for name, others in (("one", None), ("two", _Second(env, tmp_path / "second.log"))):
        job = TrainJob(
            model=ModelRef(path=str(model)), rows_path=str(rows),
            output_dir=str(tmp_path / name), train=section, seed=1, device="cpu",
        )  # fmt: skip
        result = run_training(
            job, env=env, devices=ONE, log_path=tmp_path / f"{name}.log", others=others
        )
        assert result.n_steps == 2
        losses.append(result.train_loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    config = json.loads((tmp_path / "two" / "accelerate.json").read_text())
    assert (config["num_machines"], config["num_processes"]) == (2, 2)

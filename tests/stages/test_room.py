"""What does not fit the devices is said before anything is generated."""

import json
from pathlib import Path

import pytest

from optima.cli.training import sft as main
from optima.errors import EnvironmentNotFoundError, RecipeError, UsageError
from optima.processes.devices import Devices
from optima.recipe.loading import load_recipe
from optima.recipe.schema import Recipe
from optima.stages.room import bytes_per_gpu, check_batches, check_fit, is_trained
from tests.fake_runs import run, write_recipe
from tests.fakes import commands, fake_environment
from tests.processes.test_devices import write_smi

ONE = Devices("cuda", (0,))
TWO = Devices("cuda", (0, 1))
FOUR = Devices("cuda", (0, 1, 2, 3))


def _host(folder: Path, monkeypatch: pytest.MonkeyPatch, n_gpus: int, gib: int) -> None:
    """Put a stand-in of nvidia-smi first that lists GPUs of so much memory each."""
    lines = "".join(
        f'case $1 in -L) echo "GPU {k}: Some GPU (UUID: GPU-{k})";; *) echo {gib * 1024};; esac\n'
        for k in range(n_gpus)
    )
    write_smi(folder, lines)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def _recipe(folder: Path, *overrides: str, method: str = "sft", gib: float = 16) -> Recipe:
    """Return a recipe of a bfloat16 model of so many GiB, which take no room on the disk."""
    path = write_recipe(folder, method)
    (folder / "model/config.json").write_text(
        json.dumps({"max_position_embeddings": 4096, "torch_dtype": "bfloat16"})
    )
    with (folder / "model/model.safetensors").open("wb") as file:
        file.truncate(int(gib * 2**30))
    return load_recipe(path, overrides)


@pytest.mark.parametrize(
    ("overrides", "n_gpus", "expected"),
    [
        ((), 1, 4 + 4 + 8),  # float32 weights, gradients, two moments
        (("train.optimizer_state_dtype=model",), 1, 2 + 2 + 4),
        (("train.optimizer_state_dtype=model", "train.dtype=float32"), 1, 16),
        (("train.lora={}",), 1, 2),
        (("train.lora={}", "train.dtype=float32"), 1, 4),
        ((), 8, (2 + 2 + 4 + 8) / 8),  # ZeRO, which keeps float32 masters whatever it is told
        (("train.optimizer_state_dtype=model",), 8, 16 / 8),
        (("train.parallelism=ddp",), 8, 16),
        (("train.parallelism=none",), 8, 16),
        (("train.parallelism=fsdp",), 8, 16 / 8),
        (("train.parallelism=fsdp", "train.optimizer_state_dtype=model"), 8, 8 / 8),
        (("train.lora={}",), 8, 2 / 8),
        (("train.lora={}", "train.parallelism=ddp"), 8, 2),
    ],
)
def test_memory_of_a_training_by_number_formats_and_split(
    overrides: tuple[str, ...], n_gpus: int, expected: float, tmp_path: Path
) -> None:
    recipe = _recipe(tmp_path, *overrides)
    assert bytes_per_gpu(recipe, 1_000_000, n_gpus) == expected * 1_000_000


@pytest.mark.parametrize(
    ("overrides", "n_gpus", "expected"),
    [
        ((), 1, 16),
        (("dpo.reference=live",), 1, 16 + 4),
        (("dpo.reference=live",), 4, (16 + 2) / 4),
        (("dpo.reference=live", "train.optimizer_state_dtype=model"), 1, 8 + 2),
        (("dpo.reference=live", "train.lora={}"), 1, 2),  # without its adapter the model is it
    ],
)
def test_reference_of_preferences_takes_memory_where_it_is_a_second_model(
    overrides: tuple[str, ...], n_gpus: int, expected: float, tmp_path: Path
) -> None:
    recipe = _recipe(tmp_path, *overrides, method="dpo")
    assert bytes_per_gpu(recipe, 1_000_000, n_gpus) == expected * 1_000_000


def test_training_that_no_gpu_can_hold_is_refused_by_dry_run_and_run_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _host(tmp_path, monkeypatch, 1, 80)
    _recipe(tmp_path)
    environment = fake_environment(tmp_path)
    argv = ["--config", str(tmp_path / "recipe.yaml"), "--run-dir", str(tmp_path / "run")]
    argv += ["--vllm-env", str(environment.prefix), "--train-env", str(environment.prefix)]
    argv += ["--quiet", "serving.device=cuda"]
    for command in ([*argv, "--dry-run"], argv):
        assert main(command) == 2
        assert capsys.readouterr().err == (
            "optima: train: weights, gradients and optimizer states of 8.6 billion parameters take "
            "at least 128.0 GiB on each GPU, of 80.0 GiB there; take train.lora={}, or "
            "train.optimizer_state_dtype=model, or 2 GPUs, or a smaller model\n"
        )
    assert not (tmp_path / "run").exists()
    assert not any(call[0] == "-m" for call in commands(environment))


def test_training_has_what_servers_that_stay_leave_of_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _host(tmp_path, monkeypatch, 1, 80)
    environment = fake_environment(tmp_path)

    def check(*overrides: str, gib: float = 1.5) -> str:  # 12 GiB to train
        recipe = _recipe(tmp_path, *overrides, gib=gib)
        return "\n".join(check_fit(recipe, ONE, environment))

    assert "at least 12.0 GiB of 80.0 GiB on each GPU" in check()
    with pytest.raises(UsageError, match=r"12\.0 GiB on each GPU, of 8\.0 GiB left by servers that "
                       r"stay; take serving\.keep=reload, or train\.lora"):  # fmt: skip
        check("serving.keep=stay")
    room = "at least 12.0 GiB of 56.0 GiB on each GPU"
    assert room in check("serving.keep=stay", "serving.gpu_memory_utilization=0.3")
    with pytest.raises(UsageError, match=r"of 80\.0 GiB there; take train\.lora"):
        check("serving.keep=stay", gib=16)


def test_run_that_has_trained_all_it_trains_is_read_again_where_no_training_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment = fake_environment(tmp_path)
    table = run(tmp_path, environment)
    _host(tmp_path, monkeypatch, 1, 1)
    recipe = _recipe(tmp_path, gib=4)
    argv = ["--config", str(tmp_path / "recipe.yaml"), "--run-dir", str(tmp_path / "run")]
    argv += ["--vllm-env", str(environment.prefix), "--train-env", str(environment.prefix)]
    argv += ["--quiet", "serving.device=cuda"]
    assert is_trained(recipe, tmp_path / "run")
    assert main([*argv, "--dry-run"]) == 0
    capsys.readouterr()
    assert main(argv) == 0
    assert capsys.readouterr().out == table
    (tmp_path / "run/iter_1/train/DONE.json").write_text("{")  # its training is made anew
    assert not is_trained(recipe, tmp_path / "run")
    (tmp_path / "run/iter_1/train/DONE.json").unlink()
    assert main(argv) == 2
    assert "weights, gradients and optimizer states" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("n_gpus", "overrides", "remedies"),
    [
        (1, ["train.lora={}"], ""),
        (1, ["train.optimizer_state_dtype=model"], ""),
        (2, [], ""),
        (2, ["train.parallelism=ddp"], "train.lora={}, or train.optimizer_state_dtype=model, or "
         "train.parallelism=auto, or 4 GPUs with train.parallelism=auto"),
        (2, ["train.parallelism=ddp", "train.parallelism=auto"], ""),
    ],
)  # fmt: skip
def test_remedies_against_too_little_memory_help(
    n_gpus: int, overrides: list[str], remedies: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    _host(tmp_path, monkeypatch, n_gpus, 80)
    recipe = _recipe(tmp_path, *overrides)
    devices = Devices("cuda", tuple(range(n_gpus)))
    lines = check_fit(recipe, devices, fake_environment(tmp_path))
    if remedies:
        with pytest.raises(UsageError) as caught:
            list(lines)
        assert str(caught.value).endswith(f"; take {remedies}, or a smaller model")
    else:
        (line,) = lines
        assert line.startswith("memory     training takes at least ")
        assert line.endswith(" of 80.0 GiB on each GPU")


def test_memory_is_no_matter_where_nothing_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = fake_environment(tmp_path)
    recipe = _recipe(tmp_path)
    assert list(check_fit(recipe, Devices("cpu"), environment)) == []
    write_smi(tmp_path, "echo '[N/A]'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert list(check_fit(recipe, ONE, environment)) == []
    _host(tmp_path, monkeypatch, 1, 8)
    with pytest.raises(UsageError, match=r"on each GPU, of 8\.0 GiB there"):
        list(check_fit(recipe, ONE, environment))
    (tmp_path / "model/model.safetensors").unlink()  # and the config has no shape
    assert list(check_fit(recipe, ONE, environment)) == []


@pytest.mark.parametrize(
    ("method", "overrides", "field"),
    [
        ("sft", ["train.batch_size=30"], "train.batch_size: 30"),
        ("sft", ["cold_start.batch_size=2"], "cold_start.batch_size: 2"),
        ("dpo", ["dpo.batch_size=10"], "dpo.batch_size: 10"),
        ("dpo", ["train.batch_size=30"], "train.batch_size: 30"),
        ("sft_dpo", ["dpo.batch_size=10"], "dpo.batch_size: 10"),
        ("sft", ["train.batch_size=30", "train.batching=packing"], ""),
        ("sft", ["train.batch_size=30", "train.parallelism=none"], ""),
        ("dpo", ["train.batch_size=30", "initialise=false"], ""),
        ("sft_dpo", [], ""),
    ],
)
def test_batch_that_the_gpus_do_not_divide_is_named_before_anything_is_generated(
    method: str, overrides: list[str], field: str, tmp_path: Path
) -> None:
    recipe = _recipe(tmp_path, *overrides, method=method)
    check_batches(recipe, 1)
    if not field:
        check_batches(recipe, 4)
        return
    with pytest.raises(RecipeError, match=f"{field}: the 4 devices do not divide it"):
        check_batches(recipe, 4)


def test_environment_without_what_splits_a_model_is_refused_where_it_is_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _host(tmp_path, monkeypatch, 4, 80)
    environment = fake_environment(tmp_path, packages=("torch",))
    with pytest.raises(EnvironmentNotFoundError, match="holds no deepspeed, by which 4 GPUs"):
        list(check_fit(_recipe(tmp_path), FOUR, environment))
    assert list(check_fit(_recipe(tmp_path, "train.parallelism=fsdp"), FOUR, environment))
    assert list(check_fit(_recipe(tmp_path, gib=1), ONE, environment))


def test_training_shared_by_nodes_is_counted_over_all_their_gpus(tmp_path: Path) -> None:
    environment = fake_environment(tmp_path)
    nodes = ("serving.nodes=auto", "serving.training_nodes=2")
    recipe = _recipe(tmp_path, "train.batch_size=4", *nodes)
    assert list(check_fit(recipe, TWO, environment)) == []
    with pytest.raises(RecipeError, match=r"train\.batch_size: 4: the 8 devices do not divide it"):
        list(check_fit(recipe, FOUR, environment))
    with pytest.raises(UsageError, match="a training on CPUs is not shared by nodes; take 1"):
        list(check_fit(_recipe(tmp_path, *nodes), Devices("cpu"), environment))
    alone = _recipe(tmp_path, "train.parallelism=none", *nodes)
    with pytest.raises(UsageError, match=r"training_nodes: 2: train\.parallelism=none keeps"):
        list(check_fit(alone, TWO, environment))

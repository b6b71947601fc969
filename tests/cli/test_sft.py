"""optima-sft up to the point where a run starts."""

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from optima.api import default_run_dir
from optima.cli import originals
from optima.cli.inference import infer, multi_sc
from optima.cli.options import Program
from optima.cli.training import dpo, sft_dpo
from optima.cli.training import sft as main
from optima.errors import UsageError
from optima.recipe.loading import load_recipe

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "recipes" / "sft" / "quickstart.yaml"


def given(program: Program, *argv: str) -> dict[str, Any]:
    """Return what the words of a command line give to the function that they call."""
    call = program.parse(argv)
    assert isinstance(call, functools.partial)
    return call.keywords


def overrides_of(*argv: str) -> list[str]:
    overrides: list[str] = given(main, *argv)["overrides"]
    return overrides


def test_run_dir_is_named_after_recipe_and_seed() -> None:
    recipe = load_recipe(QUICKSTART, ["seed=3"])
    assert default_run_dir([QUICKSTART], recipe) == Path("runs/sft-quickstart-seed3")
    assert default_run_dir([Path("mine.yaml")], recipe) == Path("runs/mine-seed3")


def test_run_dir_is_named_after_every_layer() -> None:
    recipe = load_recipe(QUICKSTART)
    layers = [Path("recipes/sft/arc.yaml"), Path("recipes/models/qwen2.5-1.5b.yaml")]
    name = "runs/sft-arc+qwen2.5-1.5b-seed0"
    assert default_run_dir(layers, recipe) == Path(name)
    assert default_run_dir([*layers, Path("/home/me/v1.5.yml"), Path("v1.5")], recipe) == Path(
        "runs/sft-arc+qwen2.5-1.5b+v1.5+v1.5-seed0"
    )


@pytest.mark.parametrize(
    "words",
    [
        "--config a.yaml b.yaml seed=1 iterations=2",
        "--config a.yaml seed=1 --config b.yaml iterations=2",
        "seed=1 --config a.yaml b.yaml --dry-run iterations=2",
        "--config=a.yaml b.yaml seed=1 --dry-run iterations=2",
    ],
)
def test_layers_end_where_overrides_begin(words: str) -> None:
    for program in (main, infer, multi_sc):
        options = given(program, *words.replace("--dry-run", "--vllm-env v").split())
        assert options["config"] == [Path("a.yaml"), Path("b.yaml")]
        assert options["overrides"] == ["seed=1", "iterations=2"]


def test_layers_are_read_from_the_command_line_of_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    layer = tmp_path / "layer.yaml"
    layer.write_text("iterations: 0\n")
    monkeypatch.setattr(
        "sys.argv", ["optima-sft", "--config", str(QUICKSTART), str(layer), "seed=1"]
    )
    assert main() == 2
    err = capsys.readouterr().err
    assert err.startswith(f"optima: {layer}:1: iterations: 0 is refused")


def test_recipe_of_another_method_is_named_by_its_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    layer = tmp_path / "layer.yaml"
    layer.write_text("iterations: 1\n")
    dpo = ROOT / "recipes" / "dpo" / "quickstart.yaml"
    assert main(["--config", str(dpo), str(layer)]) == 2
    assert capsys.readouterr().err == (
        f"optima: {dpo}:4: method: is dpo, optima-sft runs sft; use optima-dpo\n"
    )


def test_overrides_may_stand_before_and_behind_options() -> None:
    argv = ("seed=1", "--config", "r.yaml", "iterations=2", "--dry-run", "data.n_test=3")
    assert overrides_of(*argv) == ["seed=1", "iterations=2", "data.n_test=3"]


def test_original_spellings_become_fields_and_options() -> None:
    argv = ("--model_path", "m", "--dataset_type", "trival_qa", "--num_thread", "8",
            "--temperature", "0.5", "--device", "cuda:1", "--port", "8000")  # fmt: skip
    assert overrides_of(*argv) == [
        "model.path=m", "task=trival_qa", "serving.device=cuda", "serving.gpus=[1]",
        "serving.port=8000", "serving.concurrency=8", "sampling.temperature=0.5",
    ]  # fmt: skip
    options = given(
        main, "--train_config_path", "r.yaml", "--vllm_env", "v", "--alignment_env", "t",
        "--output_root_path", "out",
    )  # fmt: skip
    assert (options["config"], options["vllm_env"]) == ([Path("r.yaml")], "v")
    assert (options["train_env"], options["run_dir"]) == ("t", Path("out"))


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (("--vllm_env", "v", "--vllm-env", "w"), "--vllm_env: says the same as --vllm-env"),
        (("--vllm_env=v", "--vllm-env=w"), "--vllm_env: says the same as --vllm-env"),
        (("--output_path", "o", "--output_root_path", "o"), "says the same as --run-dir"),
        (("--model_path",), "--model_path: expected one argument"),
        (("--model_path", "--quiet"), "--model_path: expected one argument"),
    ],
)
def test_original_spelling_that_cannot_be_read_is_refused(
    argv: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line


def test_words_behind_two_dashes_are_no_spellings() -> None:
    options = given(main, "--port=8000", "--", "--port")
    assert options["overrides"] == ["serving.port=8000", "--port"]


@pytest.mark.parametrize("name", ["model_root_path", "tokenizer_path"])
def test_original_option_without_counterpart_is_refused_with_a_remedy(name: str) -> None:
    with pytest.raises(UsageError, match=f"--{name}: is not an option here: .+"):
        overrides_of(f"--{name}", "1")


# The commands of the original README, their comments aside, but for the name of the script.
ORIGINAL_COMMANDS = {
    "infer": (
        "--model_root_path ./checkpoints/arc_sft --tokenizer_path TOKENIZER --dataset_type arc "
        "--device 0 --port 8000 --num_thread 128 --output_root_path ./inference_results "
        "--vllm_env optima-vllm"
    ),
    "multi_sc": (
        "--model_path ./checkpoints/arc_sft/iteration_0 --tokenizer_path TOKENIZER --device 0 "
        "--port 8000 --dataset_type trival_qa --num_thread 128 --output_path ./inference_results "
        "--temperature 0.5 --vllm_env optima-vllm"
    ),
}


def test_commands_of_the_original_readme_are_understood() -> None:
    options = translated("infer")
    assert options["model_root"] == Path("checkpoints/arc_sft")
    assert options["output_path"] == Path("inference_results")
    assert (options["task"], options["vllm_env"]) == ("arc", "optima-vllm")
    fields = {"serving.device=cuda", "serving.port=8000", "model.tokenizer=TOKENIZER"}
    assert set(options["overrides"]) == {*fields, "serving.gpus=[0,1,2,3]"}
    options = translated("multi_sc")
    assert options["model"] == "./checkpoints/arc_sft/iteration_0"
    assert (options["task"], options["temperature"]) == ("trival_qa", 0.5)
    gpus = "serving.gpus=[0,1,2,3,4,5,6,7]"
    assert set(options["overrides"]) == {*fields, gpus, "data.first_test=1000"}


def translated(program: str, *more: str) -> dict[str, Any]:
    words = [*ORIGINAL_COMMANDS[program].split(), *more]
    return given({"infer": infer, "multi_sc": multi_sc}[program], *words)


def nvidia_smi(folder: Path, n_gpus: int) -> None:
    """Write the driver's tool of a host with so many GPUs."""
    lines = "".join(f"GPU {k}: NVIDIA H100 (UUID: GPU-{k})\\n" for k in range(n_gpus))
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{lines}'\n")
    tool.chmod(0o755)


@pytest.mark.parametrize(
    ("device", "n_gpus", "infer_gpus", "sc_gpus"),
    [
        ("0", 8, "[0,1,2,3]", "[0,1,2,3,4,5,6,7]"),
        ("2", 8, "[2,3,4,5]", "[2,3,4,5,6,7]"),
        ("0", 1, "[0]", "[0]"),
        ("1", 4, "[1,2,3]", "[1,2,3]"),
        ("9", 4, "[9,10,11,12]", "[9,10,11,12,13,14,15,16]"),  # none is there: refused later
        ("cuda:1", 8, "[1]", "[1]"),
        ("0,3", 8, "[0,3]", "[0,3]"),
    ],
)
def test_device_is_the_first_of_the_originals_gpus_that_are_there(
    device: str, n_gpus: int, infer_gpus: str, sc_gpus: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    nvidia_smi(tmp_path, n_gpus)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for program, gpus in (("infer", infer_gpus), ("multi_sc", sc_gpus)):
        options = translated(program, "--device", device)
        assert f"serving.gpus={gpus}" in options["overrides"]
    if n_gpus == 1:
        assert "of these GPUs this host has [0]; taking them" in caplog.text


@pytest.mark.parametrize(
    ("device", "n_threads", "each"),
    [("0", 128, 32), ("0", 130, 32), ("0", 2, 1), ("1", 128, 42), ("cpu", 128, 128)],
)
def test_num_thread_counts_the_conversations_over_all_servers(
    device: str, n_threads: int, each: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(tmp_path, 4)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    options = translated("infer", "--device", device, "--num_thread", str(n_threads))
    recipe = load_recipe(QUICKSTART, [o for o in options["overrides"] if o.startswith("serving.")])
    assert originals.share_threads(options["num_thread"], recipe).serving.concurrency == each


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5"])
def test_num_thread_is_a_number_of_conversations(text: str) -> None:
    with pytest.raises(UsageError, match=r"--num_thread.*: must be a whole number"):
        translated("infer", f"--num_thread={text}", "--device", "cpu")


@pytest.mark.parametrize("task", ["hotpot_qa", "mwh_qa", "trival_qa", "cbt"])
def test_the_originals_first_problems_are_taken_unless_said_otherwise(task: str) -> None:
    first = "data.first_test=1000"
    assert first in translated("infer", "--dataset_type", task)["overrides"]
    for said in (("--limit", "5"), ("data.first_test=null",), ("data.n_test=7",)):
        assert first not in translated("infer", "--dataset_type", task, *said)["overrides"]
    for other in ("math", "gsm8k", "arc", "mmlu", "two_hop"):
        assert first not in translated("infer", "--dataset_type", other)["overrides"]


@pytest.mark.parametrize("method", ["sft", "dpo", "sft_dpo"])
def test_path_of_an_original_recipe_is_that_of_ours(
    method: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    path = Path(f"train/{method}_recipes/trival_qa.yaml")
    assert originals.recipe_here(path) == Path(f"recipes/{method}/trivia_qa.yaml")
    assert originals.recipe_here(path).is_file()
    argv = ["--train_config_path", str(path), "seed=x"]
    program = {"sft": main, "dpo": dpo, "sft_dpo": sft_dpo}[method]
    assert program(argv) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("optima: override seed=x: seed: ")


def test_unknown_device_is_refused() -> None:
    with pytest.raises(UsageError, match="must be cpu, cuda"):
        overrides_of("--device", "tpu")


def test_wrong_override_ends_with_2_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", str(QUICKSTART), "reward.lamda_token=1"]) == 2
    assert capsys.readouterr().err == (
        "optima: override reward.lamda_token=1: reward.lamda_token: "
        "unknown key (did you mean lambda_token?)\n"
    )


def test_missing_recipe_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "nowhere.yaml"]) == 2
    assert main([]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_module_can_be_run_and_explains_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "optima.cli", "sft", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "examples:" in done.stdout

"""optima-sft up to the point where a run starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from optima.cli import infer, multi_sc, originals
from optima.cli.sft import COMMAND, main
from optima.cli.training import build_parser, default_run_dir
from optima.errors import UsageError
from optima.recipe.loading import load_recipe

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "recipes" / "sft" / "quickstart.yaml"


def overrides_of(*argv: str) -> list[str]:
    options = build_parser(COMMAND).parse_intermixed_args(argv)
    originals.translate(options)
    overrides: list[str] = options.overrides
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
    for parser in (build_parser(COMMAND), infer.build_parser(), multi_sc.build_parser()):
        argv = words.replace("--dry-run", "--vllm-env v").split()
        options = parser.parse_intermixed_args(argv)
        assert options.config == [Path("a.yaml"), Path("b.yaml")]
        assert options.overrides == ["seed=1", "iterations=2"]


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
    assert err.startswith(f"optima: {layer}: iterations: 0 is refused")


def test_recipe_of_another_method_is_named_by_its_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    layer = tmp_path / "layer.yaml"
    layer.write_text("iterations: 1\n")
    dpo = ROOT / "recipes" / "dpo" / "quickstart.yaml"
    assert main(["--config", str(dpo), str(layer)]) == 2
    assert capsys.readouterr().err == (
        f"optima: {dpo}: method: is dpo, optima-sft runs sft; use optima-dpo\n"
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
    options = build_parser(COMMAND).parse_intermixed_args(
        ["--train_config_path", "r.yaml", "--vllm_env", "v", "--alignment_env", "t",
         "--output_root_path", "out"]
    )  # fmt: skip
    originals.translate(options)
    assert (options.config, options.vllm_env) == ([Path("r.yaml")], "v")
    assert (options.train_env, options.run_dir) == ("t", Path("out"))


@pytest.mark.parametrize("name", ["model_root_path", "tokenizer_path"])
def test_original_option_without_counterpart_is_refused_with_a_remedy(name: str) -> None:
    with pytest.raises(UsageError, match=f"--{name}: is no option here: .+"):
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
    options = infer.build_parser().parse_intermixed_args(ORIGINAL_COMMANDS["infer"].split())
    originals.translate_inference(options)
    assert options.model_root == Path("checkpoints/arc_sft")
    assert options.output == Path("inference_results")
    assert (options.task, options.vllm_env) == ("arc", "optima-vllm")
    fields = {"serving.device=cuda", "serving.gpus=[0]", "serving.concurrency=128",
              "serving.port=8000", "model.tokenizer=TOKENIZER"}  # fmt: skip
    assert set(options.overrides) == fields
    options = multi_sc.build_parser().parse_intermixed_args(ORIGINAL_COMMANDS["multi_sc"].split())
    originals.translate_inference(options)
    assert options.model == "./checkpoints/arc_sft/iteration_0"
    assert (options.task, options.temperature) == ("trival_qa", 0.5)
    assert set(options.overrides) == fields


@pytest.mark.parametrize("method", ["sft", "dpo", "sft_dpo"])
def test_path_of_an_original_recipe_is_that_of_ours(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    options = build_parser(COMMAND).parse_intermixed_args(
        ["--train_config_path", f"train/{method}_recipes/trival_qa.yaml"]
    )
    originals.translate(options)
    assert options.config == [Path(f"recipes/{method}/trivia_qa.yaml")]
    assert options.config[0].is_file()


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
        [sys.executable, "-m", "optima.cli.sft", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "examples:" in done.stdout

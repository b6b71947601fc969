"""Names of layers to adapt are looked for in the model's own files before a run starts."""

import json
import re
from pathlib import Path

import pytest

from optima.cli.training import sft as main
from optima.errors import RecipeError
from optima.recipe.loading import load_recipe
from optima.recipe.schema import LoraSection, ModelSection, Recipe, TrainSection
from optima.training.launch import check_target_modules
from tests.fake_runs import write_recipe
from tests.fakes import commands, fake_environment
from tests.hub import COMMIT

SHAPES = {
    "model.embed_tokens.weight": [8, 4],
    "model.layers.0.self_attn.q_proj.weight": [4, 4],
    "model.layers.0.self_attn.q_proj.bias": [4],
    "model.layers.0.mlp.up_proj.weight": [8, 4],
    "model.norm.weight": [4],
}


def write_weights(path: Path, shapes: dict[str, list[int]] = SHAPES) -> None:
    """Write the header of a file of tensors; the numbers themselves are left out."""
    tensors = {n: {"dtype": "BF16", "shape": s, "data_offsets": [0, 0]} for n, s in shapes.items()}
    header = json.dumps({"__metadata__": {"format": "pt"}, **tensors}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def _recipe(model: str, *names: str) -> Recipe:
    train = TrainSection(lora=LoraSection(target_modules=names))
    return Recipe(method="sft", task="arc", model=ModelSection(path=model), train=train)


@pytest.mark.parametrize(
    "name",
    ["q_proj", "self_attn.q_proj", "model.layers.0.self_attn.q_proj", "embed_tokens", "lm_head"],
)
def test_names_of_layers_are_taken_whole_or_by_their_last_parts(tmp_path: Path, name: str) -> None:
    write_weights(tmp_path / "model.safetensors")
    check_target_modules(_recipe(str(tmp_path), "up_proj", name))


@pytest.mark.parametrize("name", ["qproj", "proj", "norm", "q_proj.bias", "layers", "attn.q_proj"])
def test_name_that_is_no_layer_is_refused_with_the_layers_there_are(
    tmp_path: Path, name: str
) -> None:
    write_weights(tmp_path / "model.safetensors")
    line = (
        f"train.lora.target_modules: {name!r} is not a layer of {tmp_path}; name some of "
        "embed_tokens, q_proj, up_proj, lm_head, or write all-linear"
    )
    with pytest.raises(RecipeError, match=f"^{re.escape(line)}$"):
        check_target_modules(_recipe(str(tmp_path), "up_proj", name))


def test_layers_of_all_files_of_a_model_count(tmp_path: Path) -> None:
    write_weights(tmp_path / "model-00001-of-00002.safetensors", {"a.q_proj.weight": [2, 2]})
    write_weights(tmp_path / "model-00002-of-00002.safetensors", {"b.k_proj.weight": [2, 2]})
    check_target_modules(_recipe(str(tmp_path), "q_proj", "k_proj"))
    with pytest.raises(RecipeError, match=r"'v_proj' is not a layer .* q_proj, k_proj, lm_head,"):
        check_target_modules(_recipe(str(tmp_path), "v_proj"))


def test_names_are_those_that_the_adapters_library_finds(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    for name in ("q_proj", "mlp.down_proj", "embed_tokens", "lm_head"):
        check_target_modules(_recipe(str(tmp_path), name))
        peft.inject_adapter_in_model(peft.LoraConfig(target_modules=[name]), model)
    for name in ("input_layernorm", "w_proj"):
        with pytest.raises(RecipeError, match=f"'{name}' is not a layer"):
            check_target_modules(_recipe(str(tmp_path), name))
        with pytest.raises(ValueError, match=r"not supported|not found"):
            peft.inject_adapter_in_model(peft.LoraConfig(target_modules=[name]), model)


@pytest.mark.parametrize("content", [b"start", b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[]"])
def test_weights_that_nothing_lists_are_left_to_the_training(
    tmp_path: Path, content: bytes
) -> None:
    check_target_modules(_recipe(str(tmp_path), "anything"))
    (tmp_path / "model.safetensors").write_bytes(content)
    check_target_modules(_recipe(str(tmp_path), "anything"))


def test_layers_of_a_hub_model_are_those_of_its_files_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--model"
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    write_weights(repository / "snapshots" / COMMIT / "model.safetensors")
    with pytest.raises(RecipeError, match="'w_proj' is not a layer of someone/model; name some of"):
        check_target_modules(_recipe("someone/model", "q_proj", "w_proj"))


def test_list_of_no_layers_is_refused_when_the_recipe_is_read(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "sft")
    line = r"target_modules: \[\] adapts nothing; name layers, or write all-linear"
    with pytest.raises(RecipeError, match=line):
        load_recipe(recipe, ["train.lora.target_modules=[]"])


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_run_and_dry_run_refuse_a_wrong_name_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    environment = fake_environment(tmp_path)
    recipe = write_recipe(tmp_path, "sft")
    write_weights(tmp_path / "model" / "model.safetensors")
    python = str(environment.python)
    argv = ["--config", str(recipe), "train.lora.target_modules=[q_proj, w_proj]", *options]
    argv += ["--run-dir", str(tmp_path / "run"), "--vllm-env", python, "--train-env", python]
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert "train.lora.target_modules: 'w_proj' is not a layer of" in said
    assert not any(call[0] == "-m" for call in commands(environment))

"""The recipes in the repository: the paper's numbers, nothing besides, and short."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from optima.models import MODELS
from optima.plan import check_trainable, iterations
from optima.recipe.layers import is_layer
from optima.recipe.loading import dump_recipe, load_recipe
from optima.recipe.schema import (
    METHOD_SECTIONS,
    ColdStartSection,
    DpoSection,
    LoraSection,
    PairSection,
    Recipe,
    SearchSection,
)
from optima.stages.evaluate import anchor_left
from optima.tasks import TASKS

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
LAYERS = sorted((RECIPES / "models").glob("*.yaml"))
TEAMS = sorted((RECIPES / "teams").glob("*.yaml"))
MIXTURES = sorted((RECIPES / "mixtures").glob("*.yaml"))
ALL = sorted(set(RECIPES.rglob("*.yaml")) - {*LAYERS, *TEAMS, *MIXTURES})

# Paper Table 8, iSFT: learning rate, epochs, batch, lambda_token, lambda_loss, theta_sft.
TABLE_8: dict[str, tuple[float, ...]] = {
    "hotpot_qa": (2e-5, 3, 32, 0.6, 1.0, 0.5),
    "mwh_qa": (2e-5, 2, 32, 0.6, 1.0, 0.5),
    "trivia_qa": (2e-5, 3, 32, 0.6, 1.0, 0.6),
    "cbt": (2e-5, 2, 32, 0.6, 1.0, 0.5),
    "math": (1e-6, 3, 16, 0.4, 0.9, 0.6),
    "gsm8k": (2e-6, 3, 16, 0.4, 0.9, 0.6),
    "arc": (1e-6, 4, 16, 0.5, 0.6, 0.6),
    "mmlu": (1e-6, 2, 16, 0.6, 0.7, 0.6),
}
# iDPO: lambda_token, lambda_loss, beta, alpha, theta_filter, theta_diff.
TABLE_8_DPO: dict[str, tuple[float, ...]] = {
    "hotpot_qa": (0.6, 1.0, 0.1, 1, 0.4, 0.2),
    "mwh_qa": (0.6, 1.0, 0.5, 1, 0.4, 0.2),
    "trivia_qa": (0.6, 1.0, 0.5, 1, 0.4, 0.2),
    "cbt": (0.6, 1.0, 0.1, 1, 0.4, 0.2),
    "math": (0.5, 0.7, 0.1, 1, 0.4, 0.2),
    "gsm8k": (0.6, 0.7, 0.2, 1, 0.4, 0.2),
    "arc": (0.4, 0.7, 0.2, 1, 0.45, 0.2),
    "mmlu": (0.6, 0.7, 0.1, 1, 0.4, 0.2),
}
# iSFT-DPO: SFT rate, epochs, batch, lambda_token, lambda_loss, beta, theta_sft, theta_filter.
TABLE_8_SFT_DPO: dict[str, tuple[float, ...]] = {
    "hotpot_qa": (2e-5, 2, 32, 0.6, 1.0, 0.5, 0.5, 0.4),
    "mwh_qa": (2e-5, 1, 32, 0.6, 1.0, 0.5, 0.5, 0.4),
    "trivia_qa": (2e-5, 1, 32, 0.6, 1.0, 0.7, 0.6, 0.4),
    "cbt": (2e-5, 1, 32, 0.6, 1.0, 0.7, 0.5, 0.4),
    "math": (1e-6, 4, 32, 0.4, 0.9, 0.1, 0.6, 0.4),
    "gsm8k": (1e-6, 3, 16, 0.4, 0.9, 0.5, 0.6, 0.4),
    "arc": (1e-6, 4, 16, 0.5, 0.6, 0.1, 0.6, 0.45),
    "mmlu": (1e-6, 2, 16, 0.6, 0.7, 0.1, 0.6, 0.4),
}
METHODS = ("sft", "dpo", "sft_dpo")
OPTIONAL_SECTIONS: dict[str, type[BaseModel]] = {
    "cold_start": ColdStartSection,
    "lora": LoraSection,
    "search": SearchSection,
    "pairs": PairSection,
    "dpo": DpoSection,
}


def name_of(path: Path) -> str:
    return str(path.relative_to(RECIPES))


@pytest.mark.parametrize("task", TABLE_8)
def test_sft_recipe_holds_the_numbers_of_the_papers_table_8(task: str) -> None:
    recipe = load_recipe(RECIPES / "sft" / f"{task}.yaml")
    found = (
        recipe.train.learning_rate,
        recipe.train.epochs,
        recipe.train.batch_size,
        recipe.reward.lambda_token,
        recipe.reward.lambda_loss,
        recipe.select.theta,
    )
    assert found == TABLE_8[task]
    assert recipe.task == task
    assert recipe.iterations == 6
    assert recipe.model.path == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert (recipe.select.keep_from, recipe.select.keep_to) == (0.0, 0.7)
    assert (recipe.conversation.max_turns, recipe.conversation.max_turn_tokens) == (10, 2000)
    assert recipe.cold_start is None
    assert not recipe.conversation.worked_example


@pytest.mark.parametrize("task", TABLE_8_DPO)
def test_dpo_recipe_holds_the_numbers_of_the_papers_table_8(task: str) -> None:
    recipe = load_recipe(RECIPES / "dpo" / f"{task}.yaml")
    search, pairs, dpo = recipe.search, recipe.pairs, recipe.dpo
    assert search is not None
    assert pairs is not None
    assert dpo is not None
    reward = recipe.reward
    weights = (
        reward.lambda_token if search.lambda_token is None else search.lambda_token,
        reward.lambda_loss if search.lambda_loss is None else search.lambda_loss,
    )
    found = (*weights, dpo.beta, dpo.nll_weight, pairs.theta_filter, pairs.theta_diff)
    assert found == TABLE_8_DPO[task]
    assert (dpo.learning_rate, dpo.epochs, dpo.batch_size) == (5e-7, 1, 64)
    assert (search.n_rounds, search.n_rollouts, search.n_candidates) == (8, 3, 10)
    assert (search.min_distance, search.merge_distance) == (0.25, 0.1)
    assert (search.n_probe, search.probe_percentile) == (100, 85)
    assert search.n_problems is None  # as many trees as problems
    assert (pairs.keep_share, pairs.strategy) == (0.5, "value")
    # It begins with one iteration of SFT, by the numbers of iSFT.
    sft = load_recipe(RECIPES / "sft" / f"{task}.yaml")
    assert recipe.initialise is not False
    assert (recipe.train, recipe.reward, recipe.select) == (sft.train, sft.reward, sft.select)
    made = [iteration.training for iteration in iterations(recipe)]
    assert made == ["sft", *["dpo"] * 5]  # six trainings, the SFT the first
    given = load_recipe(RECIPES / "dpo" / f"{task}.yaml", ["initialise=false"])
    assert [iteration.training for iteration in iterations(given)] == ["dpo"] * 6


@pytest.mark.parametrize("task", TABLE_8_SFT_DPO)
def test_sft_dpo_recipe_holds_the_numbers_of_the_papers_table_8(task: str) -> None:
    recipe = load_recipe(RECIPES / "sft_dpo" / f"{task}.yaml")
    search, pairs, dpo, train = recipe.search, recipe.pairs, recipe.dpo, recipe.train
    assert search is not None
    assert pairs is not None
    assert dpo is not None
    found = (
        *(train.learning_rate, train.epochs, train.batch_size),
        *(recipe.reward.lambda_token, recipe.reward.lambda_loss, dpo.beta),
        *(recipe.select.theta, pairs.theta_filter),
    )
    assert found == TABLE_8_SFT_DPO[task]
    assert (dpo.learning_rate, dpo.epochs, dpo.batch_size) == (5e-7, 1, 64)
    assert dpo.nll_weight == 0
    assert pairs.theta_diff == 0.2
    assert (search.lambda_token, search.lambda_loss) == (None, None)
    assert (search.n_rounds, search.n_rollouts, search.n_candidates) == (8, 3, 10)
    assert (search.min_distance, search.merge_distance) == (0.25, 0.1)
    assert (pairs.keep_share, pairs.strategy) == (0.5, "value")
    assert search.probe_percentile == 80
    assert 2 * recipe.iterations == 6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", TABLE_8)
def test_trainings_have_the_lengths_and_schedule_of_the_reference(task: str, method: str) -> None:
    recipe = load_recipe(RECIPES / method / f"{task}.yaml")
    train = recipe.train
    assert (train.max_length, recipe.dpo and recipe.dpo.max_length) == (
        2048, None if method == "sft" else 4096
    )  # fmt: skip
    assert (train.warmup_ratio, train.scheduler, train.weight_decay) == (0.1, "cosine", 0.0)
    assert (train.dtype, train.gradient_checkpointing, train.lora) == ("bfloat16", True, None)
    assert train.start == "auto"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", TABLE_8)
def test_first_iteration_uses_the_format_pool_except_for_math_and_gsm8k(
    task: str, method: str
) -> None:
    sampling = load_recipe(RECIPES / method / f"{task}.yaml").sampling
    without_pool = task in ("math", "gsm8k")
    assert sampling.format_pool is not without_pool
    assert sampling.first_temperature == (0.7 if without_pool else 0.3)
    assert sampling.temperature == 0.7
    assert 10 <= sampling.n_samples <= 15


@pytest.mark.parametrize("method", METHODS)
def test_every_task_has_a_recipe(method: str) -> None:
    tasks = {name for name in TASKS if name != "two_hop"}
    assert {path.stem for path in (RECIPES / method).rglob("*.yaml")} == tasks | {"quickstart"}


@pytest.mark.parametrize("layer", LAYERS, ids=name_of)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", TABLE_8)
def test_every_model_goes_over_every_recipe(task: str, method: str, layer: Path) -> None:
    below = load_recipe(RECIPES / method / f"{task}.yaml")
    recipe = load_recipe([RECIPES / method / f"{task}.yaml", layer])
    assert (recipe.task, recipe.method) == (task, method)
    model = MODELS[Path(recipe.model.path).name]
    assert recipe.model.path == f"models/{model.name}"
    assert model.name.startswith(layer.stem.split("-")[0])
    assert model.name.endswith(f"{layer.stem.split('-')[1]}-instruct")
    # What the paper says of a task stays, but where it was measured to make talks longer.
    is_qwen = layer.stem.startswith("qwen")
    is_long = is_qwen and task in ("gsm8k", "math")
    weights = {"lambda_token": 0.6, "lambda_loss": 0.1} if is_long else {}
    assert recipe.reward == below.reward.model_copy(update=weights)
    # Qwen's layers let right answers pass alone; what is kept of them stays the paper's.
    threshold = {"theta": 0.5, "threshold_on": "task"} if is_qwen else {}
    assert recipe.select == below.select.model_copy(update=threshold)
    assert (recipe.search is None) is (method == "sft")
    if recipe.dpo is not None and below.dpo is not None:
        assert recipe.dpo.nll_weight == (1 if is_qwen else below.dpo.nll_weight)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", TABLE_8)
def test_smallest_model_has_one_means_that_teaches_the_format(task: str, method: str) -> None:
    layers = [RECIPES / method / f"{task}.yaml", RECIPES / "models" / "smollm2-135m.yaml"]
    recipe = load_recipe(layers)
    has_cold_start = recipe.cold_start is not None
    assert has_cold_start is TASKS[recipe.task].has_evidence
    assert recipe.conversation.worked_example is not has_cold_start
    assert recipe.conversation.max_turn_tokens == (256 if task in ("gsm8k", "math") else 128)
    is_exchange = TASKS[task].setting == "information_exchange"
    assert recipe.data.max_context_words == (350 if is_exchange else None)
    assert recipe.iterations == (2 if method == "sft_dpo" else 3)


@pytest.mark.parametrize("path", LAYERS, ids=name_of)
def test_layer_of_a_model_starts_with_its_two_commands(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 40
    assert all(len(line) <= 100 for line in lines)
    assert is_layer(yaml.safe_load(path.read_text()))
    name = Path(yaml.safe_load(path.read_text())["model"]["path"]).name
    assert lines[1] == f"#   scripts/fetch_model.sh {name}"
    assert lines[2].startswith("#   optima-sft --config recipes/sft/hotpot_qa.yaml recipes/models/")
    assert name_of(path) in lines[2]
    assert "docs/results.md" in lines[3]
    assert lines[4].startswith("# Cost: ")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", MIXTURES, ids=name_of)
def test_layer_of_a_mixture_lies_between_a_recipe_and_that_of_a_model(
    path: Path, method: str
) -> None:
    assert is_layer(yaml.safe_load(path.read_text()))
    assert f"recipes/{name_of(path)}" in path.read_text().splitlines()[1]
    first = RECIPES / method / "hotpot_qa.yaml"
    for model in LAYERS:
        recipe = load_recipe([first, path, model])
        check_trainable(recipe)
        for task, own in recipe.members().items():  # as the layer says of each task alone
            alone = load_recipe([first.with_name(f"{task}.yaml"), model])
            assert own.conversation == alone.conversation
            assert own.cold_start == alone.cold_start
            assert (own.data.n_train, own.data.n_test) == (alone.data.n_train, alone.data.n_test)
    for task, own in load_recipe([RECIPES / "sft/hotpot_qa.yaml", path]).members().items():
        numbers = (own.reward.lambda_token, own.reward.lambda_loss, own.select.theta)
        assert numbers == TABLE_8[task][3:]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", TEAMS, ids=name_of)
def test_layer_of_a_team_lies_on_recipes_of_every_method(path: Path, method: str) -> None:
    lines = path.read_text().splitlines()
    assert is_layer(yaml.safe_load(path.read_text()))
    assert f"recipes/{name_of(path)}" in lines[2]
    below = [RECIPES / method / "gsm8k.yaml", RECIPES / "models" / "qwen2.5-1.5b.yaml"]
    recipe = load_recipe([*below, path])
    check_trainable(recipe)
    assert recipe.agents.policies == ("solver", "critic")
    assert recipe.reward == load_recipe(below).reward


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_recipe_is_short_and_starts_with_its_command(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 30
    assert all(len(line) <= 100 for line in lines)
    head = [line for line in lines if line.startswith("#")]
    method = path.relative_to(RECIPES).parts[0]
    command = f"optima-{method.replace('_', '-')} --config recipes/{name_of(path)}"
    assert command in "\n".join(head)
    assert lines[0].startswith("# ")


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_recipe_holds_only_what_differs_from_the_defaults(path: Path) -> None:
    tree = yaml.safe_load(path.read_text())
    assert list(repeated_defaults(tree, Recipe)) == []
    for name, defaults in METHOD_SECTIONS[tree["method"]].items():
        assert not defaults.items() & (tree.get(name) or {}).items()


@pytest.mark.parametrize("path", ALL, ids=name_of)
def test_resolved_recipe_loads_back_equal(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    copy = tmp_path / "recipe.yaml"
    copy.write_text(dump_recipe(recipe))
    assert load_recipe(copy) == recipe


def repeated_defaults(tree: dict[str, Any], section: type[BaseModel]) -> Iterator[str]:
    for key, value in tree.items():
        default = section.model_fields[key].default
        nested = OPTIONAL_SECTIONS.get(key) or section.model_fields[key].annotation
        if isinstance(value, dict):
            assert isinstance(nested, type)
            yield from (f"{key}.{rest}" for rest in repeated_defaults(value, nested))
        elif default is not PydanticUndefined and default == value:
            yield key


def test_ruin_by_preferences_alone_has_one_remedy_more() -> None:
    arc = RECIPES / "sft_dpo" / "arc.yaml"
    assert anchor_left(load_recipe(arc)) == ", or raise dpo.nll_weight (it is 0)"
    assert not anchor_left(load_recipe(arc, ["dpo.nll_weight=0.5"]))
    assert not anchor_left(load_recipe(RECIPES / "sft" / "arc.yaml"))

"""Layers of recipes: how they merge, what holds for some only, and who is named in a message."""

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from optima.errors import RecipeError
from optima.recipe.layers import is_layer, merge_layers
from optima.recipe.loading import load_recipe
from optima.recipe.schema import Recipe
from optima.recipe.text import is_override
from optima.types import section_of

BASE = """\
method: sft
task: hotpot_qa
model: {path: m}
data: {n_train: 5, n_test: 6}
train: {epochs: 3.0, lora: {rank: 8, alpha: 9}}
cold_start: {n_problems: 8, epochs: 2.0}
"""


def write(tmp_path: Path, *texts: str) -> list[Path]:
    paths = [tmp_path / f"{name}.yaml" for name, _ in zip("abc", texts, strict=False)]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    return paths


def load(tmp_path: Path, *layers: str, base: str = BASE, overrides: tuple[str, ...] = ()) -> Recipe:
    return load_recipe(write(tmp_path, base, *layers), overrides)


def refusal(tmp_path: Path, *layers: str, base: str = BASE, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, *layers, base=base, overrides=overrides)
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_later_layer_wins_key_by_key_and_sections_merge(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        "data: {n_test: 7}\ntrain: {epochs: 4.0, lora: {alpha: 10}}\niterations: 2\n",
        "train: {batch_size: 8}\niterations: 4\n",
    )
    assert (recipe.data.n_train, recipe.data.n_test) == (5, 7)
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.iterations) == (4.0, 8, 4)
    assert recipe.train.lora is not None
    assert (recipe.train.lora.rank, recipe.train.lora.alpha) == (8, 10)


def test_list_replaces_a_list(tmp_path: Path) -> None:
    recipe = load(tmp_path, "agents: {names: [A, B, C]}\n", "agents: {names: [D, E]}\n")
    assert recipe.agents.names == ("D", "E")


def test_null_takes_back_a_field_and_a_section(tmp_path: Path) -> None:
    recipe = load(tmp_path, "cold_start: null\ntrain: {epochs: null, lora: null}\ndata:\n")
    assert (recipe.cold_start, recipe.train.lora, recipe.train.epochs) == (None, None, 1.0)
    assert recipe.data.n_train is None
    again = load(tmp_path, "cold_start: null\n", "cold_start: {epochs: 3.0}\n")
    assert again.cold_start is not None
    assert (again.cold_start.n_problems, again.cold_start.epochs) == (64, 3.0)


def test_null_of_an_override_takes_back_what_a_layer_set(tmp_path: Path) -> None:
    recipe = load(tmp_path, "iterations: 2\n", overrides=("iterations=null", "cold_start=null"))
    assert (recipe.iterations, recipe.cold_start) == (6, None)


def test_null_is_no_value_of_a_lone_recipe_or_of_what_must_be_said(tmp_path: Path) -> None:
    assert refusal(tmp_path, base=f"{BASE}iterations:\n").startswith("a.yaml:7: iterations: null")
    assert refusal(tmp_path, "task: null\n").startswith("b.yaml:1: task: null must be a text")
    assert refusal(tmp_path, "train: {epoch: null}\n") == (
        "b.yaml:1: train.epoch: unknown key (did you mean epochs?)"
    )


def nullable_fields(section: type[BaseModel]) -> list[tuple[str, Any]]:
    found = []
    for name, field in section.model_fields.items():
        if type(None) in get_args(field.annotation):
            found.append((f"{section.__name__}.{name}", field.default))
        inner = section_of(field.annotation)
        found += nullable_fields(inner) if inner else []
    return found


def test_null_is_the_default_of_whatever_may_be_null() -> None:
    fields = nullable_fields(Recipe)
    assert len(fields) > 20
    assert [name for name, default in fields if default is not None] == []


def test_layer_alone_need_not_be_a_recipe_but_the_whole_must(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, BASE, "iterations: 2\n")).iterations == 2
    reverse = load_recipe(list(reversed(write(tmp_path, BASE, "iterations: 2\n"))))
    assert reverse.iterations == 2
    message = refusal(tmp_path, "iterations: 2\n", base="seed: 1\n")
    assert message.splitlines() == [
        f"a.yaml + b.yaml: {key}: is missing; add it, or name a recipe that has it before this "
        "layer"
        for key in ("method", "task", "model")
    ]


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    paths = [*write(tmp_path, BASE), tmp_path / "no.yaml"]
    with pytest.raises(RecipeError) as caught:
        load_recipe(paths)
    assert str(caught.value) == (
        f"{tmp_path}/no.yaml: there is no such file; `optima recipes` lists recipes and layers"
    )


# Layers over BASE and overrides -> the whole message.
PLACES: dict[tuple[tuple[str, ...], tuple[str, ...]], str] = {
    (("seed: x",), ()): 'b.yaml:1: seed: "x" must be a whole number',
    (("seed: x", "iterations: 2"), ()): 'b.yaml:1: seed: "x" must be a whole number',
    (("seed: x", "seed: y"), ()): 'c.yaml:1: seed: "y" must be a whole number',
    (("seed: x",), ("seed=y",)): 'override seed=y: seed: "y" must be a whole number',
    (("train: {epoch: 1}",), ("train.seed=1",)): (
        "b.yaml:1: train.epoch: unknown key (did you mean epochs?)\n"
        "override train.seed=1: train.seed: unknown key (known keys: "
    ),
    (("train: 5",), ()): "b.yaml:1: train: 5 must be a section of keys",
    (("serving: {gpus: [0, x]}",), ()): 'b.yaml:1: serving.gpus.1: "x" must be a whole number',
    (("select: {keep_from: 0.9}", "iterations: 2"), ()): (
        "b.yaml:1: select.keep_from: 0.9 must be less than keep_to=0.7; lower it"
    ),
    (("select: {keep_from: 0.6}", "select: {keep_to: 0.5}"), ()): (
        "b.yaml:1: select.keep_from: 0.6 must be less than keep_to=0.5; lower it"
    ),
    (("model: {max_model_len: 1024}",), ()): (
        "b.yaml:1: conversation.max_turn_tokens: 2000 leaves no room for a prompt in "
        "model.max_model_len=1024; lower it"
    ),
    (("search: {n_rounds: 3}", "method: sft"), ()): (
        "b.yaml:1: search: contradicts method=sft; remove the section"
    ),
    (("iterations: 2",), ("search.n_rounds=3",)): (
        "override search.n_rounds=3: search: contradicts method=sft; remove the section"
    ),
    (("iterations: 2",), ("search.n_rounds=null",)): (
        "override search.n_rounds=null: search: contradicts method=sft; remove the section"
    ),
    (("task: arc", "iterations: 2"), ()): (
        "a.yaml:6: cold_start: arc has no gold evidence to script conversations from; remove "
        "cold_start, which conversation.worked_example=true can replace"
    ),
    (("task: gsm8",), ()): "b.yaml:1: task: 'gsm8' is not a task (did you mean gsm8k?)",
    (("data: {hub_revision: 2024-01-01}",), ()): (
        "b.yaml:1: data.hub_revision: 2024-01-01 is a date to YAML; put it in quotes"
    ),
    (("seed: [1",), ()): "b.yaml:",
    (("- 1",), ()): "b.yaml: must be a mapping of sections, such as `task: arc`",
    (("for: {dpo2: {seed: 1}}",), ()): (
        "b.yaml:1: for: 'dpo2' is not a method or task (did you mean dpo?)"
    ),
    (("for: {sft: {seed: x}}",), ()): 'b.yaml:1: for sft: seed: "x" must be a whole number',
    (("for: {sft: 1}",), ()): (
        "b.yaml:1: for sft: must be a section of keys, such as `iterations: 2`"
    ),
    (("for: {sft: {task: arc}}",), ()): (
        "b.yaml:1: for sft: task: cannot stand here; move it out of for"
    ),
    (("for: [sft]",), ()): "b.yaml:1: for: must be a section, such as `for: {dpo: ...}`",
    (("iterations: 2",), ("for.sft.seed=1",)): (
        "override for.sft.seed=1: for: unknown key (stands in files only; give the key alone)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PLACES, ids=str)
def test_message_names_the_layer_or_override_where_the_key_stands(
    case: tuple[tuple[str, ...], tuple[str, ...]], tmp_path: Path
) -> None:
    layers, overrides = case
    message = refusal(tmp_path, *(f"{layer}\n" for layer in layers), overrides=overrides)
    assert message.startswith(PLACES[case])


CONDITIONS = """\
iterations: 2
for:
  dpo, sft_dpo: {iterations: 3, search: {n_rounds: 4}}
  information_exchange: {data: {max_context_words: 100}}
  debate: {conversation: {max_turns: 6}}
  evidence: {cold_start: {n_problems: 9}}
  no_evidence: {conversation: {worked_example: true}}
  gsm8k: {conversation: {max_turns: 7}}
"""


@pytest.mark.parametrize(
    ("method", "task", "expected"),
    [
        ("sft", "hotpot_qa", (2, None, 100, 10, 9, False)),
        ("dpo", "hotpot_qa", (3, 4, 100, 10, 9, False)),
        ("sft_dpo", "arc", (3, 4, None, 6, None, True)),
        ("sft", "gsm8k", (2, None, None, 7, 9, False)),
        ("sft", "trival_qa", (2, None, 100, 10, 9, False)),
    ],
)
def test_what_stands_below_for_counts_where_a_name_applies(
    method: str, task: str, expected: tuple[object, ...], tmp_path: Path
) -> None:
    base = f"method: {method}\ntask: {task}\nmodel: {{path: m}}\n"
    recipe = load(tmp_path, CONDITIONS, base=base)
    assert expected == (
        recipe.iterations,
        recipe.search and recipe.search.n_rounds,
        recipe.data.max_context_words,
        recipe.conversation.max_turns,
        recipe.cold_start and recipe.cold_start.n_problems,
        recipe.conversation.worked_example,
    )


def test_method_and_task_of_an_override_decide_what_applies(tmp_path: Path) -> None:
    base = "method: sft\ntask: hotpot_qa\nmodel: {path: m}\n"
    recipe = load(tmp_path, CONDITIONS, base=base, overrides=("task=arc", "method=dpo"))
    assert recipe.conversation.worked_example
    assert recipe.search is not None
    assert recipe.search.n_rounds == 4
    merged = merge_layers(write(tmp_path, base, CONDITIONS), task="gsm8k")
    assert merged.tree["conversation"] == {"max_turns": 7}


ELSEWHERE = """\
iterations: 2
for:
  sft:
    seed: 1
  dpo, sft_dpo:
    search:
      n_problem: 3
    train: {epochs: x, lora: null}
  debate: {sede: 2, conversation: {max_turns: 0}}
  evidence: {select: {keep_from: 0.8}, cold_start: {}}
"""


def test_what_stands_below_for_is_checked_for_whatever_it_holds(tmp_path: Path) -> None:
    base = "method: sft\ntask: hotpot_qa\nmodel: {path: m}\nselect: {keep_to: 0.9}\n"
    assert refusal(tmp_path, ELSEWHERE, base=base).splitlines() == [
        'b.yaml:8: for dpo, sft_dpo: train.epochs: "x" must be a number',
        "b.yaml:7: for dpo, sft_dpo: search.n_problem: unknown key (did you mean n_problems?)",
        "b.yaml:9: for debate: conversation.max_turns: 0 is refused: input should be greater than "
        "or equal to 2",
        "b.yaml:9: for debate: sede: unknown key (did you mean seed?)",
    ]
    with_one = refusal(tmp_path, ELSEWHERE, base=base + "seeds: 1\n").splitlines()
    assert len(with_one) == 5
    assert with_one[0] == "a.yaml:5: seeds: unknown key (did you mean seed?)"


def test_what_may_stand_for_other_methods_and_tasks_is_taken(tmp_path: Path) -> None:
    text = ELSEWHERE.replace("n_problem:", "n_problems:").replace("epochs: x", "epochs: 1")
    text = text.replace("sede", "seed").replace("max_turns: 0", "max_turns: 4")
    for task in ("gsm8k", "trivia_qa"):  # with evidence, and without
        base = f"method: sft\ntask: {task}\nmodel: {{path: m}}\nselect: {{keep_to: 0.9}}\n"
        assert load(tmp_path, text, base=base).seed == (2 if task == "gsm8k" else 1)


def test_later_layer_and_override_go_over_what_stands_below_for(tmp_path: Path) -> None:
    base = "method: dpo\ntask: gsm8k\nmodel: {path: m}\n"
    layers = (CONDITIONS, "iterations: 5\n")
    assert load(tmp_path, *layers, base=base).iterations == 5
    changed = load(tmp_path, *layers, base=base, overrides=("conversation.max_turns=3",))
    assert changed.conversation.max_turns == 3


def test_layer_is_told_from_recipe_and_file_from_override() -> None:
    assert not is_layer({"method": "sft", "task": "arc", "model": {"path": "m"}})
    assert is_layer({"model": {"path": "m"}})
    assert is_layer({"method": "sft", "task": "arc"})
    assert all(map(is_override, ("seed=1", "train.lora.rank=8", "serving.gpus=[0, 1]", "a.b=")))
    assert not any(map(is_override, ("a.yaml", "./a=b.yaml", "runs/a=b/recipe.yaml", "=1", "seed")))

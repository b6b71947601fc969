"""Every number of a recipe has bounds that a machine can take, and the refusal says the bound."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from optima.errors import RecipeError
from optima.recipe.loading import load_recipe
from optima.recipe.schema import Recipe

BASE = "method: dpo\ntask: hotpot_qa\nmodel: {path: m}\ntrain: {lora: {}}\n"
SCHEMA = Recipe.model_json_schema()
UPPER = ("maximum", "exclusiveMaximum")
LOWER = ("minimum", "exclusiveMinimum")


def numbers(node: dict[str, Any], key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each number below a node of the schema with its key; ``[]`` is an element of a list."""
    if "$ref" in node:
        node = SCHEMA["$defs"][node["$ref"].rpartition("/")[2]]
    for option in node.get("anyOf", ()):
        yield from numbers(option, key)
    if node.get("type") in ("number", "integer") and "const" not in node:
        yield key, node
    if "items" in node:
        yield from numbers(node["items"], f"{key}[]")
    for name, inner in node.get("properties", {}).items():
        yield from numbers(inner, f"{key}.{name}" if key else name)


# Sections of a mixture's tasks are those of any recipe; of the weights: test_mixtures.py.
NUMBERS = {key: node for key, node in numbers(SCHEMA) if not key.startswith("tasks[]")}


def refusal(tmp_path: Path, override: str) -> str:
    path = tmp_path / "r.yaml"
    path.write_text(BASE)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [override])
    return str(caught.value)


def override(key: str, value: float | int) -> str:
    return f"{key[:-2]}=[{value}]" if key.endswith("[]") else f"{key}={value}"


@pytest.mark.parametrize("key", NUMBERS)
def test_number_has_bounds_and_the_refusal_says_the_upper_one(key: str, tmp_path: Path) -> None:
    node = NUMBERS[key]
    assert any(name in node for name in LOWER), f"{key}: has no lower bound"
    (limit,) = (node[name] for name in UPPER if name in node)
    assert limit < 2**63
    beyond = int(limit) + 1 if limit < 1e15 else int(limit) * 2
    message = refusal(tmp_path, override(key, beyond))
    assert f": {beyond} is refused: input should be less than " in message
    assert message.rstrip("0").rstrip(".").endswith(str(limit).rstrip("0").rstrip("."))
    assert refusal(tmp_path, override(key, 10**30))
    assert refusal(tmp_path, override(key, -(10**30)))


@pytest.mark.parametrize("key", [key for key in NUMBERS if "maximum" in NUMBERS[key]])
def test_upper_bound_itself_is_taken(key: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(BASE)
    others = {
        "conversation.max_turn_tokens": ["model.max_model_len=10000000"],
        "select.min_share": ["select.keep_to=1"],
        "serving.training_nodes": ["serving.nodes=auto"],
    }
    load_recipe(path, [*others.get(key, ()), override(key, NUMBERS[key]["maximum"])])


def test_deadlines_are_what_a_thread_can_wait_for() -> None:
    waits = [node for key, node in NUMBERS.items() if key.endswith("_s")]
    assert len(waits) == 4
    assert all(node["maximum"] <= threading.TIMEOUT_MAX for node in waits)

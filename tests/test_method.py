"""What docs/method.md says of fields and their defaults is what the schema says."""

import re
from pathlib import Path
from typing import Any

import pytest

from optima.recipe.schema import Recipe
from optima.types import section_of

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs/method.md").read_text(encoding="utf-8")
SECTIONS = set(Recipe.model_fields)


def _default(key: str) -> Any:
    """Return the default of a field; KeyError where the schema has none of that name."""
    *sections, name = key.split(".")
    section: Any = Recipe
    for part in sections:
        section = section_of(section.model_fields[part].annotation)
    return section.model_fields[name].default


def _keys() -> list[str]:
    found = re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)", TEXT)
    return sorted({key for key in found if key.split(".")[0] in SECTIONS})


def test_method_names_the_fields_of_every_part() -> None:
    assert {key.split(".")[0] for key in _keys()} >= {
        "agents", "conversation", "sampling", "reward", "select", "train", "search", "pairs", "dpo",
        "evaluation",
    }  # fmt: skip


@pytest.mark.parametrize("key", _keys())
def test_field_that_the_method_names_exists(key: str) -> None:
    _default(key)


def test_defaults_that_the_method_gives_are_those_of_the_schema() -> None:
    given = re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)`\s(\d+(?:\.\d+)?|true|false)", TEXT)
    assert len(given) > 25
    for key, value in given:
        default = _default(key)
        shown = str(default).lower() if isinstance(default, bool) else f"{default:g}"
        assert (key, value) == (key, shown)


def test_every_rule_of_the_reward_is_in_the_method() -> None:
    section = section_of(Recipe.model_fields["reward"].annotation)
    assert section is not None
    for name in section.model_fields:
        assert f"`reward.{name}`" in TEXT


def test_documents_that_the_code_refers_to_exist() -> None:
    for path in (ROOT / "optima").rglob("*.py"):
        for named in re.findall(r"[\w/]*\w+\.md\b", path.read_text(encoding="utf-8")):
            if named.startswith("docs/") or named == "method.md":
                assert (ROOT / named).is_file(), f"{path}: {named}"

"""YAML of recipes, read strictly and written so that it reads back equal.

A key given twice is refused, and so is whatever is no plain value. Numbers such as 1e-06 are
written as 1.0e-06, which YAML reads as a number.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from optima.errors import RecipeError


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # refused by the method below
            if key_node.value in seen:
                line = key_node.start_mark.line + 1
                raise RecipeError(f"line {line}: {key_node.value}: given twice; remove one of them")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def read_tree(path: Path) -> dict[str, Any]:
    """Read a recipe file as it is written; RecipeError when it is no mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(
            f"{path}: there is no such file; `optima recipes` lists recipes and layers"
        ) from error
    except OSError as error:
        raise RecipeError(
            f"{path}: cannot be read ({error.strerror}); `optima recipes` lists recipes and layers"
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: no UTF-8 text ({error.reason}); is it a recipe?") from error
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise RecipeError(f"{path}: must be a mapping of sections, such as `task: arc`")
    return tree


def parse_yaml(text: str, place: str) -> Any:
    """Return what ``text`` holds; RecipeError, beginning with ``place``, when it is no YAML."""
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506  a SafeLoader
    except RecipeError as error:
        raise RecipeError(f"{place}: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error)
        raise RecipeError(f"{place}{line}: no valid YAML: {reason}") from error


def write_yaml(tree: Any) -> str:
    """Return a mapping of plain values as YAML."""
    return yaml.dump(tree, sort_keys=False, allow_unicode=True, width=100, Dumper=_FloatDumper)


def _represent_float(dumper: Any, value: float) -> yaml.ScalarNode:
    node: yaml.ScalarNode = yaml.SafeDumper.represent_float(dumper, value)
    if "e" in node.value and "." not in node.value:
        node.value = node.value.replace("e", ".0e")
    return node


class _FloatDumper(yaml.SafeDumper):
    """Writes 1e-06 as 1.0e-06, which YAML reads back as a number."""

    yaml_representers = {  # noqa: RUF012  PyYAML's own table
        **yaml.SafeDumper.yaml_representers,
        float: _represent_float,
    }

"""The same recipe with one field at several values: a run each, and one table of their models."""

import logging
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from optima.errors import UsageError
from optima.pipelines.methods import check_trainable, run_method
from optima.pipelines.outline import write_members
from optima.processes.environment import Environment
from optima.recipe.loading import load_recipe
from optima.recipe.schema import Recipe
from optima.records import clear_temporaries, disk_errors
from optima.reporting.tables import EvaluationRow
from optima.seeding import digest
from optima.stages import finished_folders, finished_stages

logger = logging.getLogger(__name__)

# Fields below these are first read when pairs are selected: what comes before is the same run.
_LATE_SECTIONS = ("pairs", "dpo")
_NAME_CHARS = 50  # of a folder; a longer value is told apart by its digest
_FIRST_LATE_STAGES = ("pairs", "influence", "train")


def read_variants(
    configs: Path | Sequence[Path], over: str, overrides: Sequence[str]
) -> dict[str, Recipe]:
    """Return a recipe per value of ``over`` (``section.key=value,value,...``), by the value.

    Raises UsageError for fewer than two values, RecipeError for one the recipe does not take.
    """
    key, separator, text = over.partition("=")
    values = [value.strip() for value in text.split(",")]
    if not separator or len(set(values)) < 2 or not all(values):
        raise UsageError(
            f"--over {over}: must be a field and at least two values of it, such as "
            "pairs.strategy=value,random"
        )
    recipes = {value: load_recipe(configs, [*overrides, f"{key}={value}"]) for value in values}
    for recipe in recipes.values():
        check_trainable(recipe)
    return recipes


def run_sweep(
    variants: dict[str, Recipe], over: str, root: Path, *, vllm_env: Environment,
    train_env: Environment,
) -> dict[str, tuple[EvaluationRow, ...]]:  # fmt: skip
    """Run or resume every variant in a folder of ``root`` named after its value; return its models.

    Variants that differ only in how pairs are selected or trained on share what the first of them
    did before its first selection (as links to the same files), so they select from the same trees.
    """
    write_members(root, tuple(map(folder_of, variants)))
    is_late = over.split(".")[0] in _LATE_SECTIONS
    found: dict[str, tuple[EvaluationRow, ...]] = {}
    first: Path | None = None
    for value, recipe in variants.items():
        run_dir = root / folder_of(value)
        if first is None:
            first = run_dir
        elif is_late and not run_dir.exists():
            share_beginning(first, run_dir)
        logger.info("%s=%s: in %s", over.partition("=")[0], value, run_dir)
        found[value] = run_method(recipe, run_dir, vllm_env=vllm_env, train_env=train_env)
    return found


def folder_of(value: str) -> str:
    """Return the name of a value's folder: itself, or, if it is a path, one that is none."""
    plain = re.sub(r"[^\w.=+-]+", "_", value).strip("._")[:_NAME_CHARS]
    return plain if plain == value else f"{plain}-{digest(value, length=6)}"


def share_beginning(source: Path, target: Path) -> None:
    """Link what ``source`` finished before its first selection of pairs to ``target``."""
    names = [stage.stage for stage in finished_stages(source)]
    searches = (n for n, name in enumerate(names) if name.split("/")[-1] == "search")
    first = next(searches, len(names))
    late = (
        n for n, name in enumerate(names) if n > first and name.split("/")[-1] in _FIRST_LATE_STAGES
    )
    shared = set(names[: next(late, len(names))])
    share_stages(source, target, shared.__contains__)


def share_stages(source: Path, target: Path, is_shared: Callable[[str], bool]) -> None:
    """Link those finished stages of ``source`` to ``target`` whose names are to be shared.

    The directory appears whole or not at all.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    clear_temporaries(target.parent)
    with disk_errors(temporary):
        temporary.mkdir(parents=True)
    for path, stage in finished_folders(source):
        if is_shared(stage.stage):
            shutil.copytree(path, temporary / path.relative_to(source), copy_function=os.link)
    temporary.rename(target)

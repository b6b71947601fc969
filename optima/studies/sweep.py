"""Several runs of one recipe: a field at several values, or the reward without its parts.

``sweep`` is a run per value of a field. ``ablations`` (paper section 4) are the recipe with
everything, without R_token, and without R_loss; their last models are compared problem by problem.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optima.errors import UsageError
from optima.plan import check_trainable, kind_of
from optima.processes.environment import Environment
from optima.recipe.loading import load_recipe
from optima.recipe.schema import Recipe
from optima.recipe.text import check_said_once
from optima.records import clear_temporaries, disk_errors
from optima.runs.files import write_members
from optima.runs.layout import finished_folders, finished_stages
from optima.seeding import digest

if TYPE_CHECKING:
    from optima.runs.comparison import Compared

logger = logging.getLogger(__name__)

FULL = "full"
WEIGHTS = {"no_token": "lambda_token", "no_loss": "lambda_loss"}
# Fields below these are first read when pairs are selected: what comes before is the same run.
_LATE_SECTIONS = ("pairs", "dpo")
_FIRST_LATE_STAGES = ("pairs", "influence", "mix", "train")
_NAME_CHARS = 50  # of a folder; a longer value is told apart by its digest


def read_variants(
    configs: Path | Sequence[Path], over: str, overrides: Sequence[str]
) -> dict[str, Recipe]:
    """Return a recipe per value of ``over`` (``section.key=value,value,...``), by the value.

    Raises UsageError for fewer than two values and for one given twice, in whatever spelling,
    RecipeError for one the recipe does not take.
    """
    key, separator, text = over.partition("=")
    values = [value.strip() for value in text.split(",")]
    if not separator or len(values) < 2 or not all(values):
        raise UsageError(
            f"--over {over}: must be a field and at least two values of it, such as "
            "pairs.strategy=value,random"
        )
    check_said_once([*overrides, f"{key}={values[0]}"])
    recipes: dict[str, Recipe] = {}
    for value in values:
        recipe = load_recipe(configs, [*overrides, f"{key}={value}"])
        if same := next((other for other, made in recipes.items() if made == recipe), None):
            raise UsageError(f"--over {over}: {same} and {value} are one value; remove one of them")
        check_trainable(recipe)
        recipes[value] = recipe
    return recipes


def run_sweep(
    variants: Mapping[str, Recipe], over: str, root: Path, *, vllm_env: Environment,
    train_env: Environment,
) -> None:  # fmt: skip
    """Run or resume every variant in a folder of ``root`` named after its value.

    Variants that differ only in how pairs are selected or trained on share what the first of them
    did before its first selection (as links to the same files), so they select from the same trees.
    """
    is_late = over.split(".")[0] in _LATE_SECTIONS
    recipes = {folder_of(value): recipe for value, recipe in variants.items()}
    _run(recipes, root, (vllm_env, train_env), shared_before_pairs if is_late else None)


def read_ablations(configs: Path | Sequence[Path], overrides: Sequence[str]) -> dict[str, Recipe]:
    """Return the recipe as it is and with one weight of the reward at 0, by the run's name.

    Where trees grow by weights of their own, those are 0 too. Raises UsageError where a weight is 0
    anyway.
    """
    full = load_recipe(configs, overrides)
    check_trainable(full)
    found = {FULL: full}
    for name, weight in WEIGHTS.items():
        without = [f"reward.{weight}=0.0"]
        if full.search is not None:
            without.append(f"search.{weight}=null")
        found[name] = load_recipe(configs, [*overrides, *without])
        if found[name] == full:
            raise UsageError(
                f"reward.{weight}: is 0 in the recipe itself, so {name} would be {FULL} again; "
                f"give it a weight, such as reward.{weight}=0.6"
            )
    return found


def run_ablations(
    recipes: Mapping[str, Recipe], root: Path, *, vllm_env: Environment, train_env: Environment
) -> "tuple[Compared, ...]":
    """Run or resume every recipe in a folder of ``root``; return the last models compared.

    What does not depend on the reward (problems, cold start, the conversations of the models before
    the first training) is done by the first run and linked by the others.
    """
    from optima.runs.comparison import compare

    _run(recipes, root, (vllm_env, train_env), lambda _: _is_before_reward)
    return compare([str(root / name) for name in recipes])


def folder_of(value: str) -> str:
    """Return the name of a value's folder: itself, or, if it is a path, one that is none."""
    plain = re.sub(r"[^\w.=+-]+", "_", value).strip("._")[:_NAME_CHARS]
    return plain if plain == value else f"{plain}-{digest(value, length=6)}"


def shared_before_pairs(source: Path) -> Callable[[str], bool]:
    """Tell which stages ``source`` finished before its first selection of pairs."""
    names = [stage.stage for stage in finished_stages(source)]
    searches = (n for n, name in enumerate(names) if name.split("/")[-1] == "search")
    first = next(searches, len(names))
    late = (n for n, name in enumerate(names) if n > first and kind_of(name) in _FIRST_LATE_STAGES)
    return set(names[: next(late, len(names))]).__contains__


def _run(
    recipes: Mapping[str, Recipe],
    root: Path,
    environments: tuple[Environment, Environment],
    shared: Callable[[Path], Callable[[str], bool]] | None,
) -> None:
    """Run every recipe in its folder; those after the first share stages of it, if ``shared``.

    What would stop the last of them is found before the first begins.
    """
    # A quarter of a second, once the recipes are read.
    from optima.methods import run_method
    from optima.studies.dry_run import dry_runs

    new = {name: recipe for name, recipe in recipes.items() if not (root / name).exists()}
    if new:
        dry_runs(new, root, vllm_env=environments[0], train_env=environments[1])
    write_members(root, tuple(recipes))
    first = root / next(iter(recipes))
    for name, recipe in recipes.items():
        run_dir = root / name
        if shared is not None and run_dir != first and not run_dir.exists():
            _share_stages(first, run_dir, shared(first))
        logger.info("%s: in %s", name, run_dir)
        run_method(recipe, run_dir, vllm_env=environments[0], train_env=environments[1])


def _share_stages(source: Path, target: Path, is_shared: Callable[[str], bool]) -> None:
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


def _is_before_reward(stage: str) -> bool:
    """Tell whether a stage's result is the same whatever the weights of the reward are."""
    parts = stage.split("/")  # of a mixture with the name of a task among them
    first = {"iter_0", "iter_0_sft", "initial"}
    return (
        parts[0] in ("problems", "cold_start")
        or (parts[0] == "evaluate" and parts[1] in ("base", "cold_start") and parts[-1] == "talk")
        or (parts[0] in first and parts[-1] == "generate")
    )

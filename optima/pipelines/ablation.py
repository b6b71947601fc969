"""The reward's ablations (paper section 4): the same recipe with everything, without R_token, and
without R_loss; one run each, and their last models problem by problem."""

import logging
from collections.abc import Sequence
from pathlib import Path

from optima.errors import UsageError
from optima.pipelines.comparison import ComparisonRow, compare
from optima.pipelines.methods import check_trainable, run_method
from optima.pipelines.outline import write_members
from optima.pipelines.sweep import share_stages
from optima.processes.environment import Environment
from optima.recipe.loading import load_recipe
from optima.recipe.schema import Recipe
from optima.reporting.tables import EvaluationRow

logger = logging.getLogger(__name__)

FULL = "full"
WEIGHTS = {"no_token": "lambda_token", "no_loss": "lambda_loss"}


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
    recipes: dict[str, Recipe], root: Path, *, vllm_env: Environment, train_env: Environment
) -> dict[str, tuple[EvaluationRow, ...]]:
    """Run or resume every recipe in a folder of ``root``; return the models by the folder's name.

    What does not depend on the reward (problems, cold start, the conversations of the models before
    the first training) is done by the first run and linked by the others.
    """
    write_members(root, tuple(recipes))
    found: dict[str, tuple[EvaluationRow, ...]] = {}
    for name, recipe in recipes.items():
        run_dir = root / name
        if name != FULL and not run_dir.exists():
            share_stages(root / FULL, run_dir, _is_before_reward)
        logger.info("%s: in %s", name, run_dir)
        found[name] = run_method(recipe, run_dir, vllm_env=vllm_env, train_env=train_env)
    return found


def compare_ablations(root: Path) -> tuple[ComparisonRow, ...]:
    """Return the last models of the finished runs of ``root``, compared with the full reward's."""
    return compare([str(root / name) for name in (FULL, *WEIGHTS)])


def _is_before_reward(stage: str) -> bool:
    """Tell whether a stage's result is the same whatever the weights of the reward are."""
    part, _, name = stage.partition("/")
    first = {"iter_0", "iter_0_sft", "initial"}
    return (
        part in ("problems", "cold_start")
        or stage in ("evaluate/base/talk", "evaluate/cold_start/talk")
        or (part in first and name == "generate")
    )

"""What stops a run before it starts anything: checked alike by the run and by ``--dry-run``."""

import logging
from pathlib import Path

from optima.pipelines.context import RunContext
from optima.pipelines.footprint import check_run_dir, context_window, footprint
from optima.pipelines.problems import Problems
from optima.plan import Counts
from optima.prompts.formats import Format, load_formats
from optima.recipe.schema import Recipe
from optima.training.launch import check_target_modules

logger = logging.getLogger(__name__)


def check_start(recipe: Recipe, run_dir: Path) -> None:
    """Raise UsageError (or a kind of it) for a directory, a window, layers to adapt or format files
    that cannot be.
    """
    check_run_dir(run_dir)
    context_window(recipe.model)
    check_target_modules(recipe)
    read_formats(recipe)


def read_formats(recipe: Recipe) -> tuple[Format, ...]:
    """Return the formats of the pool, none where the recipe has no pool."""
    sampling = recipe.sampling
    return load_formats(sampling.format_pool_path) if sampling.format_pool else ()


def check_room(context: RunContext, problems: Problems) -> None:
    """Log what the run will generate and store; UsageError when the disk is too small for it."""
    counts = Counts(n_train=len(problems.train), n_test=len(problems.test))
    for line in footprint(context.recipe, context.run.root, counts):
        logger.info("%s", line)

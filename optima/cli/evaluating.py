"""What ``optima-infer`` and ``optima-multi-sc`` share: which models, by which recipe."""

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from optima.cli.configs import add_config, add_environments
from optima.cli.numbers import MANY, whole
from optima.cli.paths import path_of
from optima.errors import OptimaError, UsageError
from optima.pipelines.checkpoints import find_models, name_model
from optima.pipelines.context import Model
from optima.pipelines.infer import inference_recipe
from optima.processes.environment import Environment, require_environment, resolve_environment
from optima.reader import run_of
from optima.recipe.layers import Layers, merge_layers
from optima.recipe.schema import Recipe
from optima.stages import read_recipe as read_stored
from optima.tasks import get_task


def add_options(parser: argparse.ArgumentParser, *, has_base: bool = True) -> None:
    """Add the options that say what is evaluated on what, ``--base`` if it makes sense."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--model-root",
        metavar="DIR",
        type=path_of("--model-root"),
        help="every model in and below this directory, such as a run's",
    )
    which.add_argument(
        "--model",
        metavar="MODEL",
        help="one model: a directory, a hub id, or a run's directory for its last model",
    )
    if has_base:
        parser.add_argument("--base", metavar="MODEL", help="a model to evaluate before the others")
    parser.set_defaults(base=None)
    parser.add_argument("--task", help="benchmark (`optima tasks`); default: the recipe's")
    parser.add_argument(
        "--metric", metavar="NAME",
        help="f1, exact_match, math or a plug-in's: stop if the task is scored by another "
        "(default: its own)",
    )  # fmt: skip
    add_config(parser)
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=path_of("--output"),
        help="where results are written; must be given",
    )
    parser.add_argument(
        "--limit", metavar="N", type=whole(1, MANY), help="ask a seeded sample of N problems only"
    )
    add_environments(parser, "vllm")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value",
        help="fields of the recipe to change, such as data.path=/data/arc",
    )  # fmt: skip


def read_models(options: argparse.Namespace) -> tuple[Model, ...]:
    """Return the models asked for, the base first."""
    if options.model_root is None and options.model is None:
        raise UsageError("--model-root or --model: is missing; name a run, a folder, or a model")
    found = (
        find_models(options.model_root)
        if options.model_root is not None
        else (name_model(options.model, "model"),)
    )
    return found if options.base is None else (name_model(options.base, "base"), *found)


def name_models(specs: Sequence[str]) -> tuple[Model, ...]:
    """Return models given by directories or hub ids, called by the ends of their names.

    ``iter_0/train/model`` is called by its run and iteration.
    """
    found = []
    for spec in specs:
        path = Path(spec.strip())
        parts = path.resolve().parts if ".." in path.parts else path.parts
        parts = parts[1:] if parts[:1] == ("/",) else parts  # a label stays below the output
        if parts[-2:] == ("train", "model"):
            parts = parts[:-2]
        found.append(name_model(spec.strip(), "/".join(parts[-2:])))
    return tuple(found)


def read_recipe(options: argparse.Namespace, models: Sequence[Model]) -> Recipe:
    """Return what ``--config``, the models' run, or the defaults say, with the options' changes.

    All test problems are asked unless something says otherwise. Raises UsageError when the task is
    not scored by ``--metric``.
    """
    paths = options.config or _stored_recipe(options.model_root, models)
    if not paths and options.task is None:
        raise UsageError("--task: is missing; name a benchmark, or a recipe by --config")
    layers = (
        merge_layers(paths, options.overrides, task=options.task) if paths else Layers("defaults")
    )
    overrides = [f"model.path={models[-1].ref.path}", *options.overrides]
    stored = layers.tree.get("model")
    if not isinstance(stored, dict) or stored.get("path") != models[-1].ref.path:
        overrides.insert(0, "model.revision=null")  # it is another model's
    if options.limit is not None:
        overrides.append(f"data.n_test={options.limit}")
    elif not any(override.startswith("data.n_test=") for override in overrides):
        overrides.append("data.n_test=null")
    recipe = inference_recipe(layers, task=options.task, overrides=overrides)
    metric = get_task(recipe.task).metric.name
    if options.metric not in (None, metric):
        raise UsageError(
            f"--metric {options.metric}: does not fit {recipe.task}, which is scored by {metric}; "
            "leave it out, or name another --task (`optima tasks`)"
        )
    return recipe


def _stored_recipe(root: Path | None, models: Sequence[Model]) -> list[Path]:
    """Return the recipe of the run that ``root`` is, or that trained all the trained models.

    Raises UsageError when that cannot be read.
    """
    runs = {run_of(model.ref.adapter or model.ref.path) for model in models} - {None}
    if root is not None and (root / "recipe.yaml").is_file():
        runs = {root}
    for run in runs if len(runs) == 1 else ():
        if run is not None:
            read_stored(run)
            return [run / "recipe.yaml"]
    return []


def find_vllm(options: argparse.Namespace, recipe: Recipe) -> Environment:
    """Return the environment of the servers; it need not hold vLLM where endpoints serve."""
    find = resolve_environment if recipe.serving.endpoints else require_environment
    return find(options.vllm_env, "vllm")


@contextlib.contextmanager
def output_named() -> Iterator[None]:
    """Let errors about the directory of results name ``--output``, not trainings' ``--run-dir``."""
    try:
        yield
    except OptimaError as error:
        if "--run-dir" not in str(error):
            raise
        raise type(error)(str(error).replace("--run-dir", "--output")) from error


def check_output(options: argparse.Namespace) -> Path:
    """Return where results are written; UsageError when it is not said."""
    if options.output is None:
        raise UsageError("--output: is missing; name a directory for the results")
    output: Path = options.output
    return output

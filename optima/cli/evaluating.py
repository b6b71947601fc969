"""What ``optima-infer`` and ``optima-multi-sc`` share: which models, by which recipe."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from optima.errors import UsageError
from optima.pipelines.checkpoints import find_models, name_model
from optima.pipelines.context import Model
from optima.pipelines.infer import inference_recipe
from optima.processes.environment import Environment, require_environment, resolve_environment
from optima.recipe.loading import load_tree
from optima.recipe.schema import Recipe


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is evaluated on what."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--model-root", metavar="DIR", type=Path, help="every model in and below this directory"
    )
    which.add_argument("--model", metavar="MODEL", help="one model: a directory or a hub id")
    parser.add_argument("--base", metavar="MODEL", help="a model to evaluate first")
    parser.add_argument("--task", help="benchmark (`optima tasks`); default: the recipe's")
    parser.add_argument("--config", metavar="RECIPE", type=Path, help="recipe file (YAML)")
    parser.add_argument("--output", metavar="DIR", type=Path, help="where results are written")
    parser.add_argument("--limit", metavar="N", type=int, help="a seeded sample of N problems")
    parser.add_argument("--vllm-env", metavar="ENV", help="environment with vLLM")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="fields to change")


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
        parts = [part for part in Path(spec.strip()).parts if part not in ("train", "model", "/")]
        found.append(name_model(spec.strip(), "/".join(parts[-2:])))
    return tuple(found)


def read_recipe(options: argparse.Namespace, model: Model) -> Recipe:
    """Return what ``--config``, the run, or the defaults say, with the options' changes.

    All test problems are asked unless something says otherwise. The chat template is ``model``'s.
    """
    stored = options.model_root / "recipe.yaml" if options.model_root is not None else None
    path = options.config or (stored if stored is not None and stored.is_file() else None)
    if path is None and options.task is None:
        raise UsageError("--task: is missing; name a benchmark, or a recipe by --config")
    tree = load_tree(path) if path is not None else {}
    overrides = [f"model.path={model.ref.path}", *options.overrides]
    if options.limit is not None:
        overrides.append(f"data.n_test={options.limit}")
    elif not any(override.startswith("data.n_test=") for override in overrides):
        overrides.append("data.n_test=null")
    place = str(path or "defaults")
    return inference_recipe(tree, place, task=options.task, overrides=overrides)


def find_vllm(options: argparse.Namespace, recipe: Recipe) -> Environment:
    """Return the environment of the servers; it need not hold vLLM where endpoints serve."""
    find = resolve_environment if recipe.serving.endpoints else require_environment
    return find(options.vllm_env, "vllm")


def check_output(options: argparse.Namespace) -> Path:
    """Return where results are written; UsageError when it is not said."""
    if options.output is None:
        raise UsageError("--output: is missing; name a directory for the results")
    output: Path = options.output
    return output

"""``optima-sft``, ``optima-dpo`` and ``optima-sft-dpo``: run a recipe (paper Alg. 1 to 5)."""

import inspect
from pathlib import Path
from typing import Annotated

import typer

from optima.cli import originals
from optima.cli.console import set_up_logging
from optima.cli.options import (
    AsJson,
    DryRun,
    MaybeConfig,
    Overrides,
    Program,
    TrainEnv,
    VllmEnv,
    exclude,
    path,
)
from optima.errors import RecipeError, UsageError

EPILOG = """\
examples:
  {prog} --config recipes/{method}/quickstart.yaml
  {prog} --config recipes/{method}/quickstart.yaml seed=1 iterations=3
  {prog} --config recipes/{method}/arc.yaml --dry-run
  {prog} --config recipes/{method}/hotpot_qa.yaml recipes/models/qwen2.5-1.5b.yaml \\
    data.path=/data/hotpot_qa

exit status: 0 done, 1 the run failed (and can be resumed), 2 wrong input, 130 interrupted,
143 terminated, 129 hung up.

The spellings of the original project (--train_config_path, --vllm_env, --alignment_env,
--model_path, --dataset_type, --device, --num_thread, --temperature, --output_path, ...) are
accepted too."""


def train(
    method: str,
    overrides: Overrides = None,
    *,
    config: MaybeConfig = None,
    run_dir: Annotated[
        Path | None,
        path(help="where the run is stored (default: runs/<recipe>+<layer>-seed<seed>)"),
    ] = None,
    vllm_env: VllmEnv = None,
    train_env: TrainEnv = None,
    dry_run: DryRun = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with what the run directory holds (default)")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="log details")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="log warnings only")] = False,
    as_json: AsJson = False,
) -> int:
    """{summary}

    Starts vLLM servers in one Python environment and training in another, stores everything in a
    run directory, and ends with a table of every model on held-out problems. An interrupted run
    goes on where it stopped when the same command is given again.
    """
    exclude(verbose=verbose, quiet=quiet)
    exclude(dry_run=dry_run, json=as_json)
    set_up_logging(is_verbose=verbose, is_quiet=quiet)
    # Imported here: what runs pipelines is slow to import, and --help needs none of it.
    from optima import api
    from optima.recipe.layers import merge_layers
    from optima.recipe.loading import change_recipe
    from optima.recipe.text import is_override

    if not config:
        file = next((word for word in overrides or () if not is_override(word)), None)
        remedy = f"write --config {file}" if file else "name a recipe (`optima recipes` lists them)"
        raise UsageError(f"--config: is missing; {remedy}")
    config = [originals.recipe_here(file) for file in config]
    layers = merge_layers(config, overrides or ())
    recipe = change_recipe(layers, overrides or ())
    if recipe.method != method:
        raise RecipeError(
            f"{layers.place_of('method')}: is {recipe.method}, {_name(method)} runs {method}; "
            f"use {_name(recipe.method)}"
        )
    place = run_dir or api.default_run_dir(config, recipe)
    if dry_run:
        print(api.dry_run(recipe, place, vllm_env=vllm_env, train_env=train_env))
        return 0
    from optima.reporting.results import results_json, training_results, training_text

    api.train(recipe, place, vllm_env=vllm_env, train_env=train_env)
    print(results_json(training_results(place)) if as_json else training_text(place))
    return 0


def _name(method: str) -> str:
    return f"optima-{method.replace('_', '-')}"


def _program(method: str, summary: str) -> Program:
    name = _name(method)
    return Program(name, translate=originals.translate).add(
        train,
        text=(inspect.getdoc(train) or "").format(summary=summary),
        epilog=EPILOG.format(prog=name, method=method),
        method=method,
    )


sft = _program(
    "sft", "Iterative supervised fine-tuning of agents: generate, rank, select, train, repeat."
)
dpo = _program(
    "dpo", "Iterative preference training of agents: grow trees, pair siblings, train, repeat."
)
sft_dpo = _program(
    "sft_dpo", "Supervised and preference training of agents in turn, each from the last model."
)

"""What ``optima-sft``, ``optima-dpo`` and ``optima-sft-dpo`` share: everything but the method."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optima.cli import originals
from optima.cli.configs import RecipeParser, add_config, add_environments
from optima.cli.console import run_command, set_up_logging
from optima.cli.paths import path_of
from optima.errors import RecipeError, UsageError
from optima.processes.environment import require_environment
from optima.recipe.layers import is_override, merge_layers
from optima.recipe.loading import change_recipe
from optima.recipe.schema import Method, Recipe

DESCRIPTION = """\
{summary}

Starts vLLM servers in one Python environment and training in another, stores everything in a run
directory, and ends with a table of every model on held-out problems. An interrupted run goes on
where it stopped when the same command is given again."""
EPILOG = """\
examples:
  {prog} --config {quickstart}
  {prog} --config {quickstart} seed=1 iterations=3
  {prog} --config {folder}/arc.yaml --dry-run
  {prog} --config {folder}/hotpot_qa.yaml recipes/models/qwen2.5-1.5b.yaml data.path=/data/hotpot_qa

exit status: 0 done, 1 the run failed (and can be resumed), 2 wrong input, 130 interrupted,
143 terminated, 129 hung up.
The spellings of the original project (--train_config_path, --vllm_env, --alignment_env,
--model_path, --dataset_type, --device, --num_thread, --temperature, --output_path, ...) are
accepted too."""


@dataclass(frozen=True, slots=True)
class TrainingCommand:
    """A command that runs recipes of one method."""

    prog: str
    method: Method
    summary: str


def build_parser(command: TrainingCommand) -> argparse.ArgumentParser:
    """Return the parser of the command."""
    folder = f"recipes/{command.method}"
    quickstart = f"{folder}/quickstart.yaml"
    parser = RecipeParser(
        prog=command.prog,
        description=DESCRIPTION.format(summary=command.summary),
        epilog=EPILOG.format(prog=command.prog, folder=folder, quickstart=quickstart),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_config(parser)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value",
        help="fields of the recipe to change, such as train.learning_rate=1.0e-5",
    )  # fmt: skip
    parser.add_argument(
        "--run-dir", metavar="DIR", type=path_of("--run-dir"),
        help="where the run is stored (default: runs/<recipe>+<layer>-seed<seed>)",
    )  # fmt: skip
    add_environments(parser)
    parser.add_argument(
        "--dry-run", action="store_true",
        help="check all that can be checked without a GPU, print the plan, and stop",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true", help="go on with what the run directory holds (default)"
    )
    level = parser.add_mutually_exclusive_group()
    level.add_argument("--verbose", action="store_true", help="log details")
    level.add_argument("--quiet", action="store_true", help="log warnings only")
    originals.add_options(parser)
    return parser


def run(command: TrainingCommand, argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = build_parser(command).parse_intermixed_args(argv)
    set_up_logging(is_verbose=options.verbose, is_quiet=options.quiet)
    return run_command(lambda: _run(command, options))


def _run(command: TrainingCommand, options: argparse.Namespace) -> int:
    originals.translate(options)
    if not options.config:
        file = next((word for word in options.overrides if not is_override(word)), None)
        remedy = f"write --config {file}" if file else "name a recipe (`optima recipes` lists them)"
        raise UsageError(f"--config: is missing; {remedy}")
    layers = merge_layers(options.config, options.overrides)
    recipe = change_recipe(layers, options.overrides)
    if recipe.method != command.method:
        right = f"optima-{recipe.method.replace('_', '-')}"
        raise RecipeError(
            f"{layers.place_of('method')}: is {recipe.method}, {command.prog} runs "
            f"{command.method}; use {right}"
        )
    run_dir = options.run_dir or default_run_dir(options.config, recipe)
    if options.dry_run:
        from optima.pipelines.dry_run import dry_run

        print(dry_run(recipe, run_dir, options.vllm_env, options.train_env))
        return 0
    # Imported here: what runs pipelines is slow to import, and --help needs none of it.
    from optima.pipelines.methods import run_method
    from optima.reporting.results import training_text
    from optima.training.launch import check_trackers

    vllm_env = require_environment(options.vllm_env, "vllm")
    train_env = require_environment(options.train_env, "train")
    check_trackers(recipe.train.report_to, train_env)
    run_method(recipe, run_dir, vllm_env=vllm_env, train_env=train_env)
    print(training_text(run_dir))
    return 0


def default_run_dir(configs: Sequence[Path], recipe: Recipe) -> Path:
    """Return ``runs/<name of each layer, joined by +>-seed<seed>``.

    A name is that of the file with its folders below ``recipes``, the folder of models left out.
    """
    return Path("runs") / f"{'+'.join(map(_name_of, configs))}-seed{recipe.seed}"


def _name_of(config: Path) -> str:
    is_yaml = config.suffix in (".yaml", ".yml")  # other dots belong to a model's name
    parts = (config.with_suffix("") if is_yaml else config).parts
    below = parts[parts.index("recipes") + 1 :] if "recipes" in parts else parts[-1:]
    return "-".join(below[1:] if below[:1] == ("models",) else below)

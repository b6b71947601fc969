"""``optima-sft``: run iterative SFT as a recipe says (paper Alg. 1, 2)."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from optima.cli import originals
from optima.cli.console import run_command, set_up_logging
from optima.errors import RecipeError, UsageError
from optima.processes.environment import resolve_environment
from optima.recipe.loading import load_recipe
from optima.recipe.schema import Recipe

DESCRIPTION = """\
Iterative supervised fine-tuning of talking agents: generate, rank, select, train, repeat.

Starts vLLM servers in one Python environment and training in another, stores everything in a run
directory, and ends with a table of every model on held-out problems. An interrupted run goes on
where it stopped when the same command is given again."""
EPILOG = """\
examples:
  optima-sft --config recipes/sft/quickstart.yaml
  optima-sft --config recipes/sft/quickstart.yaml seed=1 iterations=3
  optima-sft --config recipes/sft/arc.yaml --dry-run
  optima-sft --config recipes/sft/hotpot_qa.yaml data.path=/data/hotpot_qa --run-dir runs/hotpot

exit status: 0 done, 1 the run failed (and can be resumed), 2 wrong input, 130 interrupted.
The spellings of the original project (--train_config_path, --vllm_env, --alignment_env,
--model_path, --dataset_type, --device, --num_thread, --temperature, --output_path, ...) are
accepted too."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``optima-sft``."""
    parser = argparse.ArgumentParser(
        prog="optima-sft",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="RECIPE", type=Path, help="recipe file (YAML)")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value",
        help="fields of the recipe to change, such as train.learning_rate=1.0e-5",
    )  # fmt: skip
    parser.add_argument(
        "--run-dir", metavar="DIR", type=Path,
        help="where the run is stored (default: runs/<recipe>-seed<seed>)",
    )  # fmt: skip
    parser.add_argument(
        "--vllm-env", metavar="ENV",
        help="environment with vLLM: prefix path, python, or conda name (default: .envs/vllm)",
    )  # fmt: skip
    parser.add_argument(
        "--train-env", metavar="ENV",
        help="environment with TRL: prefix path, python, or conda name (default: .envs/train)",
    )  # fmt: skip
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = build_parser().parse_intermixed_args(argv)
    set_up_logging(is_verbose=options.verbose, is_quiet=options.quiet)
    return run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    originals.translate(options)
    if options.config is None:
        raise UsageError("--config: is missing; name a recipe (`optima recipes` lists them)")
    recipe = load_recipe(options.config, options.overrides)
    if recipe.method != "sft":
        raise RecipeError(f"{options.config}: method: is {recipe.method}, optima-sft runs sft")
    run_dir = options.run_dir or default_run_dir(options.config, recipe)
    if options.dry_run:
        from optima.pipelines.plan import sft_plan

        print(sft_plan(recipe, run_dir, options.vllm_env, options.train_env))
        return 0
    from optima.pipelines.sft import run_sft_pipeline

    table = run_sft_pipeline(
        recipe,
        run_dir,
        vllm_env=resolve_environment(options.vllm_env, "vllm"),
        train_env=resolve_environment(options.train_env, "train"),
    )
    print(table)
    return 0


def default_run_dir(config: Path, recipe: Recipe) -> Path:
    """Return ``runs/<folders below recipes/>-<file stem>-seed<seed>``."""
    parts = config.with_suffix("").parts
    below = parts[parts.index("recipes") + 1 :] if "recipes" in parts else parts[-1:]
    return Path("runs") / f"{'-'.join(below)}-seed{recipe.seed}"


if __name__ == "__main__":
    sys.exit(main())

"""``optima sweep`` and ``optima ablate``: several runs of one recipe, and how they compare."""

import argparse
from typing import TYPE_CHECKING, TypeAlias

from optima.cli.configs import add_config, add_environments
from optima.cli.paths import path_of
from optima.processes.environment import require_environment

if TYPE_CHECKING:
    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]


def add_sweep(commands: "Commands") -> None:
    """Add ``optima sweep``."""
    parser = commands.add_parser(
        "sweep", help="run a recipe at several values of one field and compare",
        allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Run a recipe of any method once per value of a field, one after the other,\n"
        "and print one table. Runs that differ only in a field of pairs or dpo grow their first\n"
        "trees once.\n"
        "An interrupted sweep goes on when the same command is given again.",
        epilog="examples:\n"
        "  optima sweep --config recipes/dpo/quickstart.yaml --run-dir runs/strategies \\\n"
        "    --over pairs.strategy=value,random,influence\n"
        "  optima sweep --config recipes/sft/quickstart.yaml --run-dir runs/weights \\\n"
        "    --over reward.lambda_token=0.3,0.6,0.9\n"
        "The paper's ablations are `optima ablate`.",
    )  # fmt: skip
    add_config(parser, is_required=True)
    parser.add_argument(
        "--over",
        metavar="FIELD=V,V,...",
        required=True,
        help="the field and its values, with commas",
    )
    parser.add_argument(
        "--run-dir",
        metavar="DIR",
        type=path_of("--run-dir"),
        required=True,
        help="folder in which each value has its run",
    )
    _add_common(parser)
    parser.set_defaults(run=_sweep)


def add_ablate(commands: "Commands") -> None:
    """Add ``optima ablate``."""
    parser = commands.add_parser(
        "ablate", help="run a recipe without each part of its reward and compare",
        allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Run a recipe of any method with its whole reward (full), with\n"
        "reward.lambda_token=0 (no_token) and with reward.lambda_loss=0 (no_loss), one after the\n"
        "other, and compare the last models problem by problem: differences to full with 95 %\n"
        "intervals (paired bootstrap). What does not depend on the reward is done once.\n"
        "Interrupted ablations go on when the same command is given again.",
        epilog="examples:\n"
        "  optima ablate --config recipes/sft/quickstart.yaml --run-dir runs/ablations\n"
        "  optima ablate --config recipes/dpo/arc.yaml --run-dir runs/ablations seed=1",
    )  # fmt: skip
    add_config(parser, is_required=True)
    parser.add_argument(
        "--run-dir",
        metavar="DIR",
        type=path_of("--run-dir"),
        required=True,
        help="folder of the three runs and their comparison",
    )
    _add_common(parser)
    parser.set_defaults(run=_ablate)


def _add_common(parser: argparse.ArgumentParser) -> None:
    add_environments(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="other fields to change")


def _sweep(options: argparse.Namespace) -> int:
    from optima.pipelines.studies import folder_of, read_variants, run_sweep
    from optima.reporting.results import sweep_text

    variants = read_variants(options.config, options.over, options.overrides)
    run_sweep(
        variants,
        options.over,
        options.run_dir,
        vllm_env=require_environment(options.vllm_env, "vllm"),
        train_env=require_environment(options.train_env, "train"),
    )
    roots = {value: options.run_dir / folder_of(value) for value in variants}
    print(sweep_text(options.over.partition("=")[0], roots))
    return 0


def _ablate(options: argparse.Namespace) -> int:
    from optima.pipelines.studies import read_ablations, run_ablations
    from optima.reporting.results import comparison_text

    recipes = read_ablations(options.config, options.overrides)
    rows = run_ablations(
        recipes,
        options.run_dir,
        vllm_env=require_environment(options.vllm_env, "vllm"),
        train_env=require_environment(options.train_env, "train"),
    )
    print(comparison_text(rows, options.run_dir))
    return 0

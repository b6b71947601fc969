"""``optima baselines``, ``optima transfer``, ``optima compare`` and ``optima status``."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from optima.cli import evaluating
from optima.errors import UsageError

if TYPE_CHECKING:
    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]


def add_baselines(commands: "Commands") -> None:
    """Add ``optima baselines``."""
    parser = _command(
        commands, "baselines", "evaluate an untrained model by other methods",
        "Evaluate one model on a task's test problems by methods that train nothing:\n"
        "cot (one agent, step by step), sc (a vote among its samples), mad (the agents in natural\n"
        "language), autoform (the agents in concise formats from the pool). One table; for sc the\n"
        "tokens are those of all samples of a vote.",
        "examples:\n  optima baselines --model models/smollm2-135m-instruct --task two_hop \\\n"
        "    --limit 50 --output results/baselines conversation.worked_example=true",
    )  # fmt: skip
    parser.add_argument("--methods", default="cot,sc,mad,autoform", help="some of %(default)s")
    parser.add_argument(
        "--n-votes", metavar="N", type=int, default=8, help="samples of a vote (default: 8)"
    )
    parser.add_argument(
        "--vote-temperature", metavar="T", type=float, default=0.5, help="of them (default: 0.5)"
    )
    evaluating.add_options(parser)
    parser.set_defaults(run=_baselines)


def add_transfer(commands: "Commands") -> None:
    """Add ``optima transfer``."""
    parser = _command(
        commands, "transfer", "evaluate models on tasks they were not trained on",
        "Evaluate every model on every task and print the matrix of scores.",
        "examples:\n  optima transfer --models runs/sft-hotpot_qa-seed0/iter_5/train/model \\\n"
        "    --tasks hotpot_qa,mwh_qa,trivia_qa --output results/transfer \\\n"
        "    --data hotpot_qa=/data/hotpot_qa --data mwh_qa=/data/mwh_qa",
    )  # fmt: skip
    parser.add_argument("--models", required=True, help="directories or hub ids, with commas")
    parser.add_argument("--tasks", required=True, help="benchmarks (`optima tasks`), with commas")
    parser.add_argument(
        "--data", metavar="TASK=DIR", action="append", default=[],
        help="native files of a task instead of the dataset hub; may be given for each",
    )  # fmt: skip
    parser.add_argument("--config", metavar="RECIPE", type=Path, help="recipe file (YAML)")
    parser.add_argument("--output", metavar="DIR", type=Path, help="where results are written")
    parser.add_argument("--limit", metavar="N", type=int, help="a seeded sample of N problems")
    parser.add_argument("--vllm-env", metavar="ENV", help="environment with vLLM")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="fields to change")
    parser.set_defaults(run=_transfer)


def add_compare(commands: "Commands") -> None:
    """Add ``optima compare``."""
    parser = _command(
        commands, "compare", "compare runs problem by problem",
        "Put models of several runs or inferences side by side. Differences are to the first,\n"
        "over the problems both were asked, with 95 % intervals (paired bootstrap): one that\n"
        "leaves 0 out is marked *.",
        "examples:\n  optima compare runs/sft-arc-seed0 runs/dpo-arc-seed0\n"
        "  optima compare runs/sft-arc-seed0:base runs/sft-arc-seed0:iter_0 runs/sft-arc-seed0",
    )  # fmt: skip
    parser.add_argument(
        "runs", nargs="+", metavar="RUN[:MODEL]", help="a run's directory; default: its last model"
    )
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write the table there too")
    parser.set_defaults(run=_compare)


def add_status(commands: "Commands") -> None:
    """Add ``optima status``."""
    parser = _command(
        commands, "status", "say where a run stands",
        "Say which stage a run is in, how far, and when it will be done: an estimate from the\n"
        "stages of the same kind that are done. Exit status 1 if it stopped before its end.",
        "examples:\n  optima status runs/sft-quickstart-seed0",
    )  # fmt: skip
    parser.add_argument("run_dir", metavar="RUN", type=Path, help="a run's directory")
    parser.set_defaults(run=_status)


def _command(
    commands: "Commands", name: str, summary: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name, help=summary, description=description, epilog=epilog, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip


def _baselines(options: argparse.Namespace) -> int:
    from optima.pipelines.baselines import METHODS, Votes, run_baselines
    from optima.reporting.inference import write_inference

    names = [name.strip() for name in options.methods.split(",")]
    methods = [method for method in METHODS if method in names]
    if unknown := [name for name in names if name not in METHODS]:
        raise UsageError(f"--methods {unknown[0]}: must be some of {', '.join(METHODS)}")
    output = evaluating.check_output(options)
    models = evaluating.read_models(options)
    if len(models) > 1:
        raise UsageError(f"--model-root: holds {len(models)} models; name one by --model")
    recipe = evaluating.read_recipe(options, models[0])
    rows = run_baselines(
        recipe, models[0], methods, output,
        ballot=Votes(options.n_votes, options.vote_temperature),
        vllm_env=evaluating.find_vllm(options, recipe),
    )  # fmt: skip
    print(write_inference(recipe, rows, output))
    return 0


def _transfer(options: argparse.Namespace) -> int:
    from optima.pipelines.transfer import run_transfer
    from optima.reporting.inference import write_transfer

    output = evaluating.check_output(options)
    path_by_task = dict(_assignment(text) for text in options.data)
    models = evaluating.name_models(options.models.split(","))
    recipes = {}
    for task in options.tasks.split(","):
        options.model_root, options.task = None, task
        given = options.overrides
        if task in path_by_task:
            given = [f"data.path={path_by_task[task]}", *given]
        task_options = argparse.Namespace(**{**vars(options), "overrides": given})
        recipes[task] = evaluating.read_recipe(task_options, models[-1])
    vllm_env = evaluating.find_vllm(options, next(iter(recipes.values())))
    rows = run_transfer(recipes, models, output, vllm_env=vllm_env)
    print(write_transfer(recipes, rows, output))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from optima.pipelines.comparison import compare
    from optima.reporting.inference import comparison_cost, comparison_table
    from optima.rundir import write_text

    rows = compare(options.runs)
    table = comparison_table(rows)
    if options.csv is not None:
        write_text(options.csv, table.csv())
    print(table.text() + comparison_cost(rows))
    return 0


def _status(options: argparse.Namespace) -> int:
    from optima.pipelines.status import read_status
    from optima.reporting.status import status_text

    status = read_status(options.run_dir)
    print(status_text(options.run_dir, status))
    return 1 if status.state == "stopped" else 0


def _assignment(text: str) -> tuple[str, str]:
    task, separator, path = text.partition("=")
    if not separator or not path:
        raise UsageError(f"--data {text}: must be TASK=DIR")
    return task, path

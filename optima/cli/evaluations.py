"""``optima baselines``, ``optima transfer``, ``optima compare`` and ``optima status``."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from optima.cli import evaluating
from optima.cli.configs import add_config, add_environments
from optima.cli.numbers import MANY, temperature, whole
from optima.cli.paths import path_of
from optima.errors import UsageError
from optima.processes.environment import require_environment
from optima.tasks import get_task

if TYPE_CHECKING:
    from optima.reader import Baseline

    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]


def add_baselines(commands: "Commands") -> None:
    """Add ``optima baselines``."""
    parser = _command(
        commands, "baselines", "evaluate a model by other methods",
        "Evaluate one model on a task's test problems by other methods, in one table:\n"
        "cot (one agent, step by step), sc (a vote among its samples), mad (the agents in natural\n"
        "language), autoform (the agents in concise formats from the pool). For sc the tokens are\n"
        "those of all samples of a vote. trained is the control for what talking adds: one agent,\n"
        "told everything, after SFT on its own correct answers, with the base model, problems and\n"
        "budget of --run (conversations a problem, iterations, training); it is trained beside\n"
        "that run, in a directory of its own.",
        "examples:\n  optima baselines --model models/smollm2-135m-instruct --task two_hop \\\n"
        "    --limit 50 --output results/baselines conversation.worked_example=true\n"
        "  optima baselines --run runs/sft-arc-seed0 --methods cot,sc,mad,autoform,trained \\\n"
        "    --output results/arc-baselines",
    )  # fmt: skip
    parser.add_argument(
        "--methods", default="cot,sc,mad,autoform", help="some of %(default)s,trained"
    )
    parser.add_argument(
        "--run", dest="of_run", metavar="RUN", type=path_of("--run"),
        help="a training run to compare with: its base model, recipe, data and budget",
    )  # fmt: skip
    parser.add_argument(
        "--n-votes",
        metavar="N",
        type=whole(1, 10_000),
        default=8,
        help="samples of a vote (default: 8)",
    )
    parser.add_argument(
        "--vote-temperature",
        metavar="T",
        type=temperature,
        default=0.5,
        help="temperature of these samples (default: 0.5)",
    )
    parser.add_argument(
        "--control-dir", metavar="DIR", type=path_of("--control-dir"),
        help="where the single agent is trained (default: RUN-single)",
    )  # fmt: skip
    add_environments(parser, "train")
    evaluating.add_options(parser, has_base=False)
    parser.set_defaults(run=_baselines)


def add_transfer(commands: "Commands") -> None:
    """Add ``optima transfer``."""
    parser = _command(
        commands, "transfer", "evaluate models on tasks they were not trained on",
        "Evaluate every model on every task, also those it was not trained on, and print the\n"
        "matrix of scores.",
        "examples:\n  optima transfer --models runs/sft-hotpot_qa-seed0/iter_5/train/model \\\n"
        "    --tasks hotpot_qa,mwh_qa,trivia_qa --output results/transfer \\\n"
        "    --data hotpot_qa=/data/hotpot_qa --data mwh_qa=/data/mwh_qa",
    )  # fmt: skip
    parser.add_argument(
        "--models", required=True,
        help="directories, hub ids, or runs for their last models, with commas",
    )  # fmt: skip
    parser.add_argument("--tasks", required=True, help="benchmarks (`optima tasks`), with commas")
    parser.add_argument(
        "--data", metavar="TASK=DIR", action="append", default=[],
        help="directory with a task's own files, instead of the dataset hub; may be repeated",
    )  # fmt: skip
    add_config(parser)
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=path_of("--output"),
        help="where results are written; must be given",
    )
    parser.add_argument(
        "--limit",
        metavar="N",
        type=whole(1, MANY),
        help="ask a seeded sample of N problems of each task only",
    )
    add_environments(parser, "vllm")
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
        "runs",
        nargs="+",
        metavar="RUN[:MODEL]",
        help="directory of a run or an inference, and one of its models, such as base or iter_0 "
        "(default: its last)",
    )
    parser.add_argument(
        "--csv", metavar="FILE", type=path_of("--csv"), help="write the table there too"
    )
    parser.set_defaults(run=_compare)


def add_status(commands: "Commands") -> None:
    """Add ``optima status``."""
    parser = _command(
        commands, "status", "say where a run stands",
        "Say which stage a run or an evaluation is in, how far, and when it will be done: an\n"
        "estimate from the stages of the same kind that are done. Of a folder of several (a\n"
        "sweep, ablations, a transfer) each is said, and when the last will be done. Exit status\n"
        "1 if it stopped before its end, or a run of it is damaged.",
        "examples:\n  optima status runs/sft-quickstart-seed0\n  optima status runs/ablations",
    )  # fmt: skip
    parser.add_argument(
        "run_dir",
        metavar="RUN",
        type=path_of("RUN"),
        help="directory of a run, an evaluation, or several",
    )
    parser.set_defaults(run=_status)


def _command(
    commands: "Commands", name: str, summary: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name, help=summary, description=description, epilog=epilog, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip


def _baselines(options: argparse.Namespace) -> int:
    from optima.pipelines.baselines import (
        UNTRAINED,
        Votes,
        read_run,
        run_baselines,
        train_control,
    )
    from optima.reporting.results import write_inference

    methods = _methods(options)
    ballot = Votes(options.n_votes, options.vote_temperature)
    output = evaluating.check_output(options)
    if options.of_run is not None:
        recipe = read_run(options.of_run)
        options.config = options.config or [options.of_run / "recipe.yaml"]
        if options.model is None and options.model_root is None:
            options.model = recipe.model.path
    models = evaluating.read_models(options)
    if len(models) > 1:
        raise UsageError(f"--model-root: holds {len(models)} models; name one by --model instead")
    recipe = evaluating.read_recipe(options, models)
    vllm_env = evaluating.find_vllm(options, recipe)
    model_by_method = {method: models[0] for method in methods if method in UNTRAINED}
    text = ""
    if "trained" in methods:
        train_env = require_environment(options.train_env, "train")
        if model_by_method:  # written before a long training, which may fail
            with evaluating.output_named():
                rows = run_baselines(
                    recipe, model_by_method, output, ballot=ballot, vllm_env=vllm_env
                )
            write_inference(recipe, rows, output)
        model_by_method["trained"] = train_control(
            options.of_run, _control_dir(options), "trained", vllm_env=vllm_env, train_env=train_env
        )
        text = f"\nTrained single agent: {_control_dir(options)}"
    with evaluating.output_named():
        rows = run_baselines(recipe, model_by_method, output, ballot=ballot, vllm_env=vllm_env)
    print(write_inference(recipe, rows, output) + text)
    return 0


def _methods(options: argparse.Namespace) -> "list[Baseline]":
    """Return the methods asked for, in the order of tables; UsageError for what cannot be."""
    from optima.reader import BASELINES

    names = [name.strip() for name in options.methods.split(",")]
    if unknown := [name for name in names if name not in BASELINES]:
        raise UsageError(f"--methods {unknown[0]}: must be some of {', '.join(BASELINES)}")
    if "trained" in names and options.of_run is None:
        raise UsageError(
            "--methods trained: needs --run, whose data and budget the single agent is trained with"
        )
    if "sc" in names and options.n_votes > 1 and options.vote_temperature == 0:
        raise UsageError("--vote-temperature 0: makes all samples of a vote equal; raise it")
    return [method for method in BASELINES if method in names]


def _control_dir(options: argparse.Namespace) -> Path:
    run: Path = options.of_run.resolve()
    return options.control_dir or run.with_name(f"{run.name}-single")


def _transfer(options: argparse.Namespace) -> int:
    from optima.pipelines.infer import run_transfer
    from optima.reporting.results import write_transfer

    output = evaluating.check_output(options)
    tasks = [get_task(name.strip()).name for name in options.tasks.split(",")]
    if doubled := [task for task in tasks if tasks.count(task) > 1]:
        raise UsageError(f"--tasks {doubled[0]}: is named twice; remove one")
    path_by_task = dict(_assignment(text) for text in options.data)
    if foreign := [task for task in path_by_task if task not in tasks]:
        raise UsageError(
            f"--data {foreign[0]}: is not among --tasks {', '.join(tasks)}; add it there"
        )
    models = evaluating.name_models(options.models.split(","))
    options.model_root = options.metric = None
    recipes = {}
    for task in tasks:
        given = [f"data.path={path_by_task[task]}"] if task in path_by_task else []
        overrides = [*given, *options.overrides]
        task_options = argparse.Namespace(**{**vars(options), "task": task, "overrides": overrides})
        recipes[task] = evaluating.read_recipe(task_options, models)
    vllm_env = evaluating.find_vllm(options, next(iter(recipes.values())))
    with evaluating.output_named():
        rows = run_transfer(recipes, models, output, vllm_env=vllm_env)
    print(write_transfer(recipes, rows, output))
    return 0


def _compare(options: argparse.Namespace) -> int:
    from optima.pipelines.comparison import compare
    from optima.records import write_text
    from optima.reporting.results import comparison_table, comparison_text

    rows = compare(options.runs)
    if options.csv is not None:
        write_text(options.csv, comparison_table(rows).csv())
    print(comparison_text(rows))
    return 0


def _status(options: argparse.Namespace) -> int:
    from optima.pipelines.status import folder_text, read_folder, read_status, status_text

    members = read_folder(options.run_dir)
    if members is not None:
        print(folder_text(options.run_dir, members))
        states = {member.state for member in members}
        has_stopped = "running" not in states and not states <= {"done"}
        return 1 if has_stopped or "damaged" in states else 0
    status = read_status(options.run_dir)
    print(status_text(options.run_dir, status))
    return 1 if status.state == "stopped" else 0


def _assignment(text: str) -> tuple[str, str]:
    task, separator, path = text.partition("=")
    if not separator or not path:
        raise UsageError(f"--data {text}: must be TASK=DIR, such as --data gsm8k=/data/gsm8k")
    return get_task(task).name, path

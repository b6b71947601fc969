"""``optima baselines``, ``transfer``, ``compare``, ``sweep``, ``ablate``: models side by side.

And ``optima serve-node``, by which nodes serve what these and trainings want served.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optima.cli.options import (
    MANY,
    AsJson,
    Config,
    DryRun,
    Limit,
    MaybeConfig,
    MetricName,
    ModelRoot,
    OneModel,
    Output,
    Overrides,
    TaskName,
    TrainEnv,
    VllmEnv,
    check_metric,
    check_output,
    exclude,
    path,
    temperature,
    whole,
)
from optima.errors import UsageError

if TYPE_CHECKING:
    from optima.runs.reader import Baseline

BASELINES = """\
examples:
  optima baselines --model models/smollm2-135m-instruct --task two_hop \\
    --limit 50 --output results/baselines conversation.worked_example=true
  optima baselines --run runs/sft-arc-seed0 --methods cot,sc,mad,autoform,trained \\
    --output results/arc-baselines"""
TRANSFER = """\
examples:
  optima transfer --models runs/sft-hotpot_qa-seed0/iter_5/train/model \\
    --tasks hotpot_qa,mwh_qa,trivia_qa --output results/transfer \\
    --data hotpot_qa=/data/hotpot_qa --data mwh_qa=/data/mwh_qa"""
COMPARE = """\
examples:
  optima compare runs/sft-arc-seed0 runs/dpo-arc-seed0
  optima compare runs/sft-arc-seed0:base runs/sft-arc-seed0:iter_0 runs/sft-arc-seed0
  optima compare runs/sft-arc-seed0 runs/dpo-arc-seed0 --problems 20
  optima compare runs/sft-arc-seed0 runs/dpo-arc-seed0 --problem arc-0123456789abcdef"""
SWEEP = """\
examples:
  optima sweep --config recipes/dpo/quickstart.yaml --run-dir runs/strategies \\
    --over pairs.strategy=value,random,influence
  optima sweep --config recipes/sft/quickstart.yaml --run-dir runs/weights \\
    --over reward.lambda_token=0.3,0.6,0.9

The paper's ablations are `optima ablate`."""
SERVE_NODE = """\
examples:
  optima-sft --config recipes/sft/arc.yaml --run-dir /shared/arc serving.nodes=auto
  optima serve-node --run-dir /shared/arc          on each of the other nodes

scripts/slurm/nodes.sbatch does both under Slurm."""
ABLATE = """\
examples:
  optima ablate --config recipes/sft/quickstart.yaml --run-dir runs/ablations
  optima ablate --config recipes/dpo/arc.yaml --run-dir runs/ablations seed=1"""


def baselines(
    overrides: Overrides = None,
    *,
    methods: Annotated[
        str, typer.Option(metavar="NAMES", help="some of cot,sc,mad,autoform,trained, with commas")
    ] = "cot,sc,mad,autoform",
    run: Annotated[
        Path | None,
        path(
            metavar="RUN",
            help="a training run to compare with: its base model, recipe, data and budget",
        ),
    ] = None,
    n_votes: Annotated[int, whole(1, 10_000, "samples of a vote")] = 8,
    vote_temperature: Annotated[float, temperature("temperature of these samples")] = 0.5,
    control_dir: Annotated[
        Path | None, path(help="where the single agent is trained (default: RUN-single)")
    ] = None,
    train_env: TrainEnv = None,
    model_root: ModelRoot = None,
    model: OneModel = None,
    task: TaskName = None,
    metric: MetricName = None,
    config: MaybeConfig = None,
    output: Output = None,
    limit: Limit = None,
    vllm_env: VllmEnv = None,
    as_json: AsJson = False,
) -> int:
    """Evaluate one model on a task's test problems by other methods, in one table.

    cot is one agent, step by step; sc a vote among its samples, whose tokens are those of all
    samples of a vote; mad the agents in natural language; autoform the agents in concise formats
    from the pool. trained is the control for what talking adds: one agent, told everything, after
    SFT on its own correct answers, with the base model, problems and budget of --run
    (conversations a problem, iterations, training); it is trained beside that run, in a directory
    of its own.
    """
    exclude(model_root=model_root, model=model)
    from optima import api
    from optima.processes.environment import require_environment
    from optima.reporting.results import results_json, stored_results, write_inference
    from optima.runs.files import RECIPE
    from optima.studies.baselines import UNTRAINED, Votes, read_run, run_baselines, train_control

    named = _methods(methods, run)
    if "sc" in named and n_votes > 1 and vote_temperature == 0:
        raise UsageError("--vote-temperature 0: makes all samples of a vote equal; raise it")
    ballot = Votes(n_votes, vote_temperature)
    place = check_output(output)
    if run is not None:
        own = read_run(run)
        config = config or [run / RECIPE]
        if model is None and model_root is None:
            model = own.model.path
    models = api.read_models(model, model_root)
    if len(models) > 1:
        raise UsageError(f"--model-root: holds {len(models)} models; name one by --model instead")
    recipe = api.evaluation_recipe(
        models, config or (), overrides or (), task=task, limit=limit, root=model_root
    )
    check_metric(metric, recipe)
    serving = api.find_vllm(vllm_env, recipe)
    model_by_method = {method: models[0] for method in named if method in UNTRAINED}

    def evaluated() -> str:
        """Ask what is not asked yet, and write all of it; return the table."""
        with api.output_named():
            rows = run_baselines(recipe, model_by_method, place, ballot=ballot, vllm_env=serving)
        return write_inference(recipe, rows, place)

    text = ""
    if "trained" in named and run is not None:
        training = require_environment(train_env, "train")
        if model_by_method:
            evaluated()  # before a long training, which may fail
        control = control_dir or run.resolve().with_name(f"{run.resolve().name}-single")
        model_by_method["trained"] = train_control(
            run, control, "trained", vllm_env=serving, train_env=training
        )
        text = f"\nTrained single agent: {control}"
    said = evaluated() + text
    print(results_json(stored_results(place)) if as_json else said)
    return 0


def transfer(
    overrides: Overrides = None,
    *,
    models: Annotated[
        str,
        typer.Option(
            metavar="MODELS",
            help="directories, hub ids, runs for their last models, or RUN:MODEL, with commas",
        ),
    ],
    tasks: Annotated[
        str, typer.Option(metavar="TASKS", help="benchmarks (`optima tasks`), with commas")
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK=DIR",
            help="directory with a task's own files, instead of the dataset hub; may be repeated",
        ),
    ] = None,
    config: MaybeConfig = None,
    output: Output = None,
    limit: Limit = None,
    vllm_env: VllmEnv = None,
    as_json: AsJson = False,
) -> int:
    """Evaluate models on tasks they were not trained on.

    Evaluate every model on every task, also those it was not trained on, and print the matrix of
    scores.
    """
    from optima import api
    from optima.reporting.results import results_json, stored_results, write_transfer
    from optima.studies.infer import run_transfer
    from optima.tasks import get_task

    place = check_output(output)
    names = [get_task(name.strip()).name for name in tasks.split(",")]
    assigned = [_assignment(text) for text in data or ()]
    _check_once("--tasks", names)
    _check_once("--data", [name for name, _ in assigned])
    path_by_task = dict(assigned)
    if foreign := [name for name in path_by_task if name not in names]:
        raise UsageError(
            f"--data {foreign[0]}: is not among --tasks {', '.join(names)}; add it there"
        )
    named = api.name_models(models.split(","))
    recipes = {}
    for name in names:
        given = [f"data.path={path_by_task[name]}"] if name in path_by_task else []
        recipes[name] = api.evaluation_recipe(
            named, config or (), [*given, *(overrides or ())], task=name, limit=limit
        )
    environment = api.find_vllm(vllm_env, next(iter(recipes.values())))
    with api.output_named():
        rows = run_transfer(recipes, named, place, vllm_env=environment)
    text = write_transfer(recipes, rows, place)
    print(results_json(stored_results(place)) if as_json else text)
    return 0


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN[:MODEL]", show_default=False,
            help="directory of a run or an inference, and one of its models, such as base or "
            "iter_0 (default: its last)",
        ),
    ],
    *,
    csv: Annotated[
        Path | None, path(metavar="FILE", help="write the table there too")
    ] = None,
    problems: Annotated[
        int, whole(0, MANY, "problems listed that a model solved better than the first, and worse")
    ] = 0,
    problem: Annotated[
        str | None,
        typer.Option(metavar="ID", help="show instead what every model said about this problem"),
    ] = None,
    as_json: AsJson = False,
) -> int:  # fmt: skip
    """Compare runs problem by problem.

    Put models of several runs or inferences side by side. Differences are to the first, over the
    problems both were asked, with 95 % intervals (paired bootstrap): one that leaves 0 out is
    marked *. With --problem, what was said about one problem: by every evaluated model of RUN, or
    by that of RUN:MODEL, each with its answer, score and tokens; the runs may be of several tasks,
    and those that were not asked it are named.
    """
    exclude(problem=problem, problems=problems)
    from optima.records import write_text
    from optima.reporting.results import (
        comparison_json,
        comparison_table,
        comparison_text,
        decided_text,
        results_json,
        said_json,
        said_table,
        said_text,
    )
    from optima.runs import comparison

    if problem is not None:
        asked = comparison.said_about(runs, problem)
        if csv is not None:
            write_text(csv, said_table(asked).csv())
        print(results_json(said_json(asked)) if as_json else said_text(asked))
        return 0
    rows = comparison.compare(runs)
    pairs, first = [], rows[0]
    for row in rows:
        first = row if row.score is None else first  # of each task of mixtures
        if row is not first and not row.run.is_mixture:
            pairs.append((first, row))
    if csv is not None:
        write_text(csv, comparison_table(rows).csv())
    found = [comparison.decided(*pair) for pair in pairs] if problems else []
    if as_json:
        made = comparison_json(rows)
        model_by_row = dict(zip(map(id, rows), made["models"], strict=True))
        for (_, row), several in zip(pairs, found, strict=False):
            model = model_by_row[id(row)]
            model["better"] = [one.row() for one in several if one.gain > 0][:problems]
            model["worse"] = [one.row() for one in several if one.gain < 0][:problems]
        print(results_json(made))
        return 0
    lists = [
        decided_text(*pair, several, problems) for pair, several in zip(pairs, found, strict=False)
    ]
    print("\n\n".join([comparison_text(rows), *lists]))
    return 0


def sweep(
    overrides: Overrides = None,
    *,
    config: Config,
    over: Annotated[
        str,
        typer.Option(metavar="FIELD=V,V,...", help="the field and its values, with commas"),
    ],
    run_dir: Annotated[Path, path(help="folder in which each value has its run")],
    vllm_env: VllmEnv = None,
    train_env: TrainEnv = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Run a recipe at several values of one field and compare.

    Run a recipe of any method once per value of a field, one after the other, and print one table.
    All are checked before the first begins. Runs that differ only in a field of pairs or dpo grow
    their first trees once. An interrupted sweep goes on when the same command is given again.
    """
    exclude(dry_run=dry_run, json=as_json)
    from optima import api
    from optima.studies.dry_run import dry_runs
    from optima.studies.sweep import folder_of, read_variants, run_sweep

    variants = read_variants(config, over, overrides or ())
    environments = api.find_both(vllm_env, train_env)
    if dry_run:
        recipes = {folder_of(value): recipe for value, recipe in variants.items()}
        print(dry_runs(recipes, run_dir, **environments))
        return 0
    from optima.reporting.results import results_json, sweep_results, sweep_text

    run_sweep(variants, over, run_dir, **environments)
    roots = {value: run_dir / folder_of(value) for value in variants}
    key = over.partition("=")[0]
    print(results_json(sweep_results(key, roots)) if as_json else sweep_text(key, roots))
    return 0


def ablate(
    overrides: Overrides = None,
    *,
    config: Config,
    run_dir: Annotated[Path, path(help="folder of the three runs and their comparison")],
    vllm_env: VllmEnv = None,
    train_env: TrainEnv = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> int:
    """Run a recipe without each part of its reward and compare.

    Run a recipe of any method with its whole reward (full), with reward.lambda_token=0 (no_token)
    and with reward.lambda_loss=0 (no_loss), one after the other, and compare the last models
    problem by problem: differences to full with 95 % intervals (paired bootstrap). What does not
    depend on the reward is done once, and all are checked before the first begins. Interrupted
    ablations go on when the same command is given again.
    """
    exclude(dry_run=dry_run, json=as_json)
    from optima import api
    from optima.studies.dry_run import dry_runs
    from optima.studies.sweep import read_ablations, run_ablations

    recipes = read_ablations(config, overrides or ())
    environments = api.find_both(vllm_env, train_env)
    if dry_run:
        print(dry_runs(recipes, run_dir, **environments))
        return 0
    from optima.reporting.results import comparison_text, results_json, stored_results

    rows = run_ablations(recipes, run_dir, **environments)
    text = comparison_text(rows, run_dir)
    print(results_json(stored_results(run_dir)) if as_json else text)
    return 0


def _methods(text: str, run: Path | None) -> "list[Baseline]":
    """Return the methods asked for, in the order of tables; UsageError for what cannot be."""
    from optima.runs.reader import BASELINES

    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in BASELINES]:
        raise UsageError(f"--methods {unknown[0]}: must be some of {', '.join(BASELINES)}")
    if "trained" in names and run is None:
        raise UsageError(
            "--methods trained: needs --run, whose data and budget the single agent is trained with"
        )
    _check_once("--methods", names)
    return [method for method in BASELINES if method in names]


def _check_once(option: str, names: Sequence[str]) -> None:
    """Raise UsageError for a name that stands in a list twice."""
    if doubled := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"{option} {doubled[0]}: is named twice; remove one")


def _assignment(text: str) -> tuple[str, str]:
    from optima.tasks import get_task

    task, separator, directory = text.partition("=")
    if not separator or not directory:
        raise UsageError(f"--data {text}: must be TASK=DIR, such as --data gsm8k=/data/gsm8k")
    return get_task(task).name, directory


def serve_node(
    *,
    run_dir: Annotated[
        Path | None, path(metavar="RUN", help="directory of a run with serving.nodes=auto")
    ] = None,
    shared: Annotated[Path | None, path(help="the folder that serving.nodes names")] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST",
            help="address of this node that its servers listen on (default: that of its name)",
        ),
    ] = None,
    wait_s: Annotated[int, whole(1, 604_800, "seconds to wait for the run to begin")] = 3600,
    vllm_env: VllmEnv = None,
    train_env: TrainEnv = None,
) -> int:
    """Serve beside a run on this node, until that ends.

    Start this on every node but the run's own. It follows what the run wants served, by servers on
    all GPUs of this node that it may see, and says so in a folder that both see. It may be started
    before the run and at any time while it goes on, and stopped at any time.
    """
    exclude(run_dir=run_dir, shared=shared)
    from optima.processes.environment import require_environment
    from optima.serving import agent

    folder = shared or (run_dir and run_dir / "nodes")
    if folder is None:
        raise UsageError("--run-dir or --shared: is missing; name the run, or its serving.nodes")
    env = require_environment(vllm_env, "vllm")
    print(agent.serve_node(folder, address=address, env=env, train_env=train_env, wait_s=wait_s))
    return 0

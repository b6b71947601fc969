"""``--dry-run``: checks all that needs no GPU and says what a run would do.

Starts no process but to ask environments, and a Ray cluster, what they hold, and writes nothing.
Estimates are upper bounds: every turn is counted in full.
"""

import shlex
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path

from optima.errors import RunBusyError, ServerError, UsageError
from optima.plan import (
    PROBLEMS,
    Counts,
    Step,
    Training,
    by_policy,
    check_trainable,
    describe_policies,
    iterations,
    placed,
    plan,
)
from optima.processes.devices import Devices, check_sockets, core_warning, detect_devices, free_port
from optima.processes.environment import Environment
from optima.prompts.rendering import PromptStyle
from optima.recipe.schema import Recipe
from optima.recipe.sections import base_url
from optima.reward import needs_losses, scores_trees
from optima.runs.directory import check_same_recipe
from optima.runs.files import RECIPE, is_owned
from optima.runs.layout import own_starts, read_done
from optima.search.pairs import read_conversational
from optima.serving.board import board_of, node_address
from optima.serving.client import Server
from optima.serving.cluster import describe
from optima.serving.command import endpoint_field, endpoint_key, gpu_groups, server_argv, shares_of
from optima.serving.probe import name_at, served_as, served_models
from optima.serving.reply import RetryableError
from optima.serving.scorer import scorer_argv
from optima.stages.context import Places, split_devices
from optima.stages.opening import (
    base_model,
    check_models,
    check_start,
    check_windows,
    codecs_of,
    loss_codec,
    read_formats,
)
from optima.stages.problems import Splits, check_unseen, held_out_problems, keep_apart
from optima.stages.room import (
    Footprint,
    check_disk,
    check_fit,
    footprint,
    is_trained,
    keep_of,
    serving_recipe,
)
from optima.stages.train import side_by_side
from optima.tasks import get_task
from optima.tasks.loading import load_splits
from optima.training.jobs import MODEL_DIR, Machines
from optima.training.launch import check_trackers, training_argv, training_devices
from optima.types import EndpointRef, ModelRef, TeamRef

_ENDPOINT_TIMEOUT_S = 10.0
_KEPT = {
    "restart": "are started for every model, and stopped for scoring and training",
    "reload": "take the weights of other trained models, and are stopped for scoring and training",
    "sleep": "take the weights of other trained models, and sleep during scoring and training",
    "stay": "take the weights of other trained models, and stay during scoring and training",
}
_SCORER_RUNS = {"sleep": "while the servers sleep", "stay": "beside the servers"}


def dry_run(recipe: Recipe, run_dir: Path, *, vllm_env: Environment, train_env: Environment) -> str:
    """Return the plan of a run as text.

    Raises UsageError (or a kind of it) for the first thing that would stop the run: its directory,
    data, what the environments hold, endpoints, model, chat template, devices, format files,
    trackers, or too little free disk.
    """
    plan = _plan(recipe, run_dir, vllm_env, train_env)
    return "\n".join((*plan.lines, check_disk(plan.n_bytes, run_dir)))


def dry_runs(
    recipes: Mapping[str, Recipe], root: Path, *, vllm_env: Environment, train_env: Environment
) -> str:
    """Return the plans of several runs, by the names of their folders in ``root``, as text.

    Raises UsageError (or a kind of it) for the first thing that would stop one of them, also a disk
    that is too small for all.
    """
    plans = {
        name: _plan(recipe, root / name, vllm_env, train_env) for name, recipe in recipes.items()
    }
    sizes = [plan.n_bytes for plan in plans.values()]
    known = [size for size in sizes if size is not None]
    texts = ["\n".join((name, *plan.lines)) for name, plan in plans.items()]
    disk = check_disk(sum(known) if len(known) == len(sizes) else None, root)
    return "\n\n".join((*texts, f"all runs\n{disk}"))


def _plan(
    recipe: Recipe, run_dir: Path, vllm_env: Environment, train_env: Environment
) -> Footprint:
    """Return all lines of a run's plan but that of the disk, and the bytes that it stores."""
    check_trainable(recipe)
    _check_run(recipe, run_dir)
    tasks = [_data(own, run_dir, name) for name, own in recipe.members().items()]
    apart = keep_apart([splits for _, splits in tasks])
    counts = [
        Counts(n_train=len(train), n_test=len(splits.test))
        for train, (_, splits) in zip(apart, tasks, strict=True)
    ]
    check_trackers(recipe.train.report_to, train_env)
    devices = detect_devices(recipe.serving)
    check_sockets()
    places = split_devices(recipe, devices)
    is_over = is_trained(recipe, run_dir)
    if not is_over:
        check_models(recipe)
    memory = [] if is_over else list(check_fit(recipe, devices, train_env))
    codecs = codecs_of(recipe, base_model(recipe))
    loss_codec(recipe, codecs)
    check_start(recipe, run_dir)
    if recipe.pairs is not None and recipe.pairs.path is not None:
        read_conversational(Path(recipe.pairs.path), codecs[0])
    where = "CPU" if devices.kind == "cpu" else f"GPUs {list(devices.gpus)}"
    lines = [
        f"run        {run_dir}" + (" (exists; would go on)" if run_dir.exists() else ""),
        *(line for lines, _ in tasks for line in lines),
        f"model      {recipe.model.path}, context {check_windows(recipe)}, "
        f"roles {', '.join(dict.fromkeys(codec.template.roles for codec in codecs))}",
        *(f"policy     {name}: {said}" for name, said in describe_policies(recipe).items()),
        f"devices    {where}" + (f"; {warning}" if (warning := core_warning()) else ""),
        "stages",
        *(f"  {line}" for line in _stages(recipe, *counts)),
        *_processes(recipe, run_dir, devices, places, (vllm_env, train_env)),
        *memory,
    ]
    found = footprint(recipe, run_dir, *counts)
    return Footprint((*lines, *found.lines), found.n_bytes)


def _data(recipe: Recipe, run_dir: Path, member: str) -> tuple[list[str], Splits]:
    """Return what is to be said of one task, and its problems."""
    task, n_agents = get_task(recipe.task), len(recipe.agents.names)
    train, test = load_splits(task, recipe.data, n_agents=n_agents, seed=recipe.seed)
    if read_done(run_dir / placed(PROBLEMS, member)) is None:
        check_unseen(recipe, (base_model(recipe),), held_out_problems(test.problems, recipe))
    PromptStyle.of(recipe, task)
    formats = read_formats(recipe)
    lines = [
        f"task       {task.name}: {task.setting}, {task.metric}, {n_agents} agents",
        f"data       train {train.counts()}; test {test.counts()}",
        f"formats    {len(formats)}" + ("" if formats else " (no pool)"),
    ]
    return lines, Splits(recipe, train.problems, test.problems)


def _check_run(recipe: Recipe, run_dir: Path) -> None:
    """Raise UsageError when the directory holds a run that goes on or is of another recipe."""
    if (run_dir / RECIPE).exists():
        check_same_recipe(run_dir, recipe)
        if is_owned(run_dir):
            raise RunBusyError(f"--run-dir {run_dir}: a process runs in it; give another --run-dir")


def _stages(recipe: Recipe, *counts: Counts) -> Iterator[str]:
    """Yield one line for each folder of stages, in the order of the plan."""
    by_folder = groupby(plan(recipe, *counts), key=lambda step: step.name.rpartition("/")[0])
    members = recipe.members()
    for folder, steps in by_folder:
        own = members.get(folder.rpartition("/")[2], recipe)
        parts = ", ".join(_part(own, step) for step in steps)
        yield f"{folder}: {parts}" if folder else parts


def _part(recipe: Recipe, step: Step) -> str:
    """Return what a stage does, with the conversations that it holds at most."""
    if step.kind == "train":
        return " ".join(filter(None, ("train", step.policy, "from", step.start)))
    if step.kind == "script":
        return f"script {step.n_lines:,} conversations"
    if not step.n_conversations:
        return step.name.rpartition("/")[2] if step.kind == PROBLEMS else step.kind
    said = f"{step.kind} {step.n_conversations:,} conversations by {step.model}"
    if step.kind == "generate":
        n_samples = recipe.sampling.n_samples
        return f"{said} ({step.n_lines // n_samples} problems x {n_samples})"
    if step.kind == "search" and recipe.search is not None:
        n_rounds, n_rollouts = recipe.search.n_rounds, recipe.search.n_rollouts
        scored = ", scored while they grow" if scores_trees(recipe) else ""
        return f"{said} ({step.n_lines // n_rounds} trees x {n_rounds} x {n_rollouts}{scored})"
    return said


def _processes(
    recipe: Recipe,
    run_dir: Path,
    devices: Devices,
    places: Places,
    envs: tuple[Environment, Environment],
) -> Iterator[str]:
    """Yield the processes: servers and a scorer in their ``places``, trainings on all devices."""
    vllm_env, train_env = envs
    recipe = serving_recipe(recipe)
    yield "processes  (ports are examples; each start takes a free one)"
    yield from _nodes(recipe, run_dir)
    for endpoint in recipe.serving.endpoints:
        served = _served_by(endpoint, recipe.model.path)
        yield f"  endpoint {endpoint} serves {served}, for the start model"
    shares = shares_of(base_model(recipe).ref, recipe, places.servers)
    for share in shares:
        part = share.part
        if isinstance(part, EndpointRef):
            yield f"  endpoint {part.url} serves {_plays_at(part)}, as policy {part.policy}"
            continue
        for index, gpus in enumerate(gpu_groups(share.recipe, share.devices), share.first_index):
            argv = server_argv(
                part, recipe=share.recipe, devices=share.devices, env=vllm_env, port=free_port()
            )
            yield f"  server {index} on {_where(gpus)}: {shlex.join(argv)}"
    trained = shares_of(_once_trained(recipe, run_dir), recipe, places.servers)
    if len(trained) != len(shares):
        yield f"  once trained, {len(trained)} fleets: " + "; ".join(
            f"{share.part.place} on {_where(share.devices.gpus)}" for share in trained
        )
    keep = keep_of(recipe, devices)
    yield f"  servers {_KEPT[keep]} (serving.keep={recipe.serving.keep})"
    if needs_losses(recipe):
        loss_ref = ModelRef(path=recipe.model.loss_path or recipe.model.path)
        scorer = scorer_argv(loss_ref, recipe=recipe, env=train_env, devices=places.scorer)
        apart = _SCORER_RUNS.get(keep, "while no server runs")
        beside = _SCORER_RUNS["stay"] if recipe.search else apart
        yield f"  scorer on {_where(places.scorer.gpus)}, {beside}: {shlex.join(scorer)}"
    n_nodes, machines = recipe.serving.training_nodes, None
    if n_nodes > 1:
        address = node_address(recipe.serving.training_address, "serving.training_address")
        machines = Machines(n_nodes, 0, address)
        yield f"  trainings by {n_nodes} nodes, this one of rank 0; the others start the same"
    first: dict[Training, tuple[Step, ...]] = {}
    for iteration in iterations(recipe):
        first.setdefault(iteration.training, by_policy(recipe, iteration.step("train")))
    for kind, steps in first.items():
        benches = side_by_side(recipe, devices, len(steps))
        for step, own in zip(steps, benches or (devices,), strict=False):
            trained_on, place = training_devices(recipe.train, own, n_nodes), run_dir.resolve()
            argv = training_argv(
                train_env, place / step.name, kind=kind, port=free_port(), machines=machines
            )
            beside = f", {len(benches)} at once" if benches else ""
            yield f"  training on {_where(trained_on.gpus)}{beside}: {shlex.join(argv)}"


def _nodes(recipe: Recipe, run_dir: Path) -> Iterator[str]:
    """Yield what other nodes do; UsageError where there is no Ray cluster to ask for them."""
    if (board := board_of(recipe, run_dir)) is not None:
        yield f"  nodes, those that run: optima serve-node --shared {board.folder}"
    if (cluster := recipe.serving.ray) is not None:
        yield f"  each node of the cluster at {cluster} is asked to; {describe(cluster)}"


def _served_by(endpoint: str, model_path: str) -> str:
    """Return what an endpoint serves; UsageError when it is silent or serves other models."""
    server = Server(0, base_url(endpoint), endpoint_key())
    try:
        served_as(server, model_path, _ENDPOINT_TIMEOUT_S)
        return ", ".join(served_models(server, _ENDPOINT_TIMEOUT_S)) or "models it does not list"
    except RetryableError as error:
        raise UsageError(
            f"serving.endpoints: {error}; start that server, or remove it from the list"
        ) from error
    except ServerError as error:
        raise UsageError(f"serving.endpoints: {error}") from error


def _once_trained(recipe: Recipe, run_dir: Path) -> ModelRef:
    """Return the first team that a run trains, where its policies are whole models."""
    base, lora = base_model(recipe).ref, recipe.train.lora
    steps = [step for step in plan(recipe) if step.policy]
    if not steps or (lora is not None and lora.serve == "adapter"):
        return base
    first = [step for step in steps if step.model == steps[0].model]
    made = {step.policy: ModelRef(path=str(run_dir / step.name / MODEL_DIR)) for step in first}
    return TeamRef(path=base.path, member_by_policy={**own_starts(recipe), **made})


def _plays_at(ref: EndpointRef) -> str:
    """Return what an endpoint serves for a policy; UsageError when it is silent or has it not."""
    place, server = endpoint_field(ref), Server(0, ref.url, endpoint_key(ref.policy))
    try:
        return name_at(server, ref, _ENDPOINT_TIMEOUT_S)
    except RetryableError as error:
        raise UsageError(f"{place}: {error}; start that server, or name another") from error
    except ServerError as error:
        raise UsageError(f"{place}: {error}") from error


def _where(gpus: tuple[int, ...]) -> str:
    return f"GPU {','.join(map(str, gpus))}" if gpus else "CPU"

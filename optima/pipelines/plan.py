"""``--dry-run``: checks all that needs no GPU and says what a run would do.

Starts no process and writes nothing. Estimates are upper bounds: every turn is counted in full.
"""

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from optima.conversation.template import ChatTemplate
from optima.errors import ModelError, UsageError
from optima.pipelines.context import serving_recipe, split_devices
from optima.pipelines.methods import check_trainable
from optima.pipelines.outline import steps
from optima.pipelines.run import loss_template
from optima.processes.devices import Devices, detect_devices
from optima.processes.environment import Environment, resolve_environment
from optima.prompts.formats import load_formats
from optima.recipe.schema import Recipe
from optima.reward import needs_losses, search_reward
from optima.rundir import check_same_recipe
from optima.search.exchange import read_conversational
from optima.serving.command import gpu_groups, server_argv
from optima.serving.scorer import scorer_argv
from optima.tasks import get_task
from optima.tasks.loading import LoadedProblems, load_problems
from optima.training.launch import free_port, training_argv
from optima.types import ModelRef

_BYTES_PER_TOKEN = 6  # JSON Lines of generated English text, a generous figure
_OPTIMIZER_FACTOR = 6  # float32 weights and two Adam moments over bf16 weights
_WEIGHT_PATTERNS = ("*.safetensors", "*.bin")


def run_plan(recipe: Recipe, run_dir: Path, vllm_spec: str | None, train_spec: str | None) -> str:
    """Return the plan of a run as text.

    Raises UsageError (or a kind of it) for the first thing that would stop the run: data,
    environments, model, chat template, devices, format files, or too little free disk.
    """
    check_trainable(recipe)
    task = get_task(recipe.task)
    n_agents = len(recipe.agents.names)
    train, test = (
        load_problems(task, recipe.data, split, n_agents=n_agents, seed=recipe.seed)
        for split in ("train", "test")
    )
    vllm_env = resolve_environment(vllm_spec, "vllm")
    train_env = resolve_environment(train_spec, "train")
    devices = detect_devices(recipe.serving)
    places = split_devices(recipe, devices)
    template = ChatTemplate.load(
        recipe.model.path, revision=recipe.model.revision, roles=recipe.model.roles
    )
    loss_template(recipe, template)
    _check_run_dir(recipe, run_dir)
    window = _context_window(recipe)
    extra = recipe.sampling.format_pool_path
    if recipe.pairs is not None and recipe.pairs.path is not None:
        read_conversational(Path(recipe.pairs.path))
    formats = load_formats(Path(extra) if extra else None) if recipe.sampling.format_pool else ()
    where = "CPU" if devices.kind == "cpu" else f"GPUs {list(devices.gpus)}"
    lines = [
        f"run        {run_dir}" + (" (exists; would go on)" if run_dir.exists() else ""),
        f"task       {task.name}: {task.setting}, {task.metric}, {n_agents} agents",
        f"data       train {_counts(train)}; test {_counts(test)}",
        f"model      {recipe.model.path}, context {window or 'unknown'}, roles {template.roles}",
        f"formats    {len(formats)}" + ("" if formats else " (no pool)"),
        f"devices    {where}",
        *_stages(recipe, len(train.problems), len(test.problems)),
        *_processes(recipe, run_dir, (devices, *places), (vllm_env, train_env)),
        *_disk(recipe, run_dir, len(train.problems), len(test.problems)),
    ]
    return "\n".join(lines)


def _check_run_dir(recipe: Recipe, run_dir: Path) -> None:
    """Raise UsageError when the directory holds a run of another recipe."""
    stored = run_dir / "recipe.yaml"
    if stored.exists():
        check_same_recipe(run_dir, recipe)


def _counts(loaded: LoadedProblems) -> str:
    skipped = f", {len(loaded.skipped)} malformed" if loaded.skipped else ""
    return f"{len(loaded.problems)} problems of {loaded.n_rows} rows{skipped}"


def _taken(n: int | None, there: int) -> int:
    return there if n is None else min(n, there)


def _stages(recipe: Recipe, n_train: int, n_test: int) -> Iterator[str]:
    n_problems = _taken(recipe.data.n_train, n_train)
    n_held_out = _taken(recipe.data.n_test, n_test)
    n_evaluated = n_held_out * recipe.evaluation.n_samples
    n_candidates = n_problems * recipe.sampling.n_samples
    yield "stages"
    if recipe.evaluation.base:
        yield f"  evaluate base: {n_evaluated} conversations"
    if recipe.cold_start:
        n_scripts = min(recipe.cold_start.n_problems, n_train)
        yield f"  cold_start/train from base: {n_scripts} scripted conversations"
        yield f"  evaluate cold_start: {n_evaluated} conversations"
    scores = recipe.reward.lambda_loss > 0
    scores_trees = search_reward(recipe).lambda_loss > 0
    for step in steps(recipe):
        name, search = step.label, recipe.search
        if step.is_dpo and search is not None:
            n_trees = _taken(search.n_problems or recipe.data.n_train, n_train)
            n_talks = n_trees * search.n_rounds * search.n_rollouts
            n_probe = min(search.n_probe, n_train)
            yield f"  {name}/probe by {step.generator}: {n_probe} conversations"
            yield (
                f"  {name}/search by {step.generator}: {n_trees} trees x {search.n_rounds} rounds "
                f"x {search.n_rollouts} = {n_talks} conversations"
                + (", scored while they grow" if scores_trees else "")
            )
            if trials := n_trial_talks(recipe, n_train):
                yield f"  {name}/influence: {trials} conversations by trials of groups of pairs"
            yield f"  {name}/pairs, {name}/train from {step.start}"
        else:
            yield (
                f"  {name}/generate by {step.generator}: {n_problems} problems x "
                f"{recipe.sampling.n_samples} = {n_candidates} conversations"
            )
            scored = f"{name}/score, " if scores else ""
            yield f"  {scored}{name}/rank, {name}/select: at most {n_problems} conversations"
            yield f"  {name}/train from {step.start}"
        yield f"  evaluate {name}: {n_evaluated} conversations"


def n_trial_talks(recipe: Recipe, n_train: int) -> int:
    """Return the conversations of one selection by influence; 0 with another strategy.

    Raises UsageError when no problem is left to hold them about.
    """
    pairs, search = recipe.pairs, recipe.search
    if pairs is None or search is None or pairs.strategy != "influence":
        return 0
    n_left = n_train - _taken(search.n_problems or recipe.data.n_train, n_train)
    if n_left < 1:
        raise UsageError(
            f"pairs.strategy: influence: all {n_train} problems of the train split get a tree, so "
            "none is left to measure influence on; lower search.n_problems"
        )
    n_problems = min(n_left, pairs.influence.n_problems)
    return (1 + pairs.influence.n_groups) * n_problems * recipe.evaluation.n_samples


def _processes(
    recipe: Recipe,
    run_dir: Path,
    devices: tuple[Devices, Devices, Devices],
    envs: tuple[Environment, Environment],
) -> Iterator[str]:
    """Yield the processes on ``devices`` = (all, the servers', the scorer's)."""
    everywhere, serving, scoring = devices
    vllm_env, train_env = envs
    recipe = serving_recipe(recipe)
    yield "processes  (ports are examples; each start takes a free one)"
    for endpoint in recipe.serving.endpoints:
        yield f"  endpoint {endpoint} (serves the start model, not started here)"
    for index, gpus in enumerate(gpu_groups(recipe, serving)):
        argv = server_argv(
            ModelRef(path=recipe.model.path),
            recipe=recipe,
            devices=serving,
            env=vllm_env,
            port=free_port(),
        )
        yield f"  server {index} on {_where(gpus)}: {shlex.join(argv)}"
    if needs_losses(recipe):
        loss_ref = ModelRef(path=recipe.model.loss_path or recipe.model.path)
        scorer = scorer_argv(loss_ref, recipe=recipe, env=train_env, device=scoring.kind)
        beside = "beside the servers" if recipe.search else "while no server runs"
        yield f"  scorer on {_where(scoring.gpus)}, {beside}: {shlex.join(scorer)}"
    for kind in {"sft": ("sft",), "dpo": ("dpo",), "sft_dpo": ("sft", "dpo")}[recipe.method]:
        suffix = f"_{kind}" if recipe.method == "sft_dpo" else ""
        place = run_dir.resolve() / f"iter_0{suffix}/train"
        argv = training_argv(train_env, place, kind=kind, port=free_port())
        yield f"  training on {_where(everywhere.gpus)}: {shlex.join(argv)}"


def _where(gpus: tuple[int, ...]) -> str:
    return f"GPU {','.join(map(str, gpus))}" if gpus else "CPU"


def _disk(recipe: Recipe, run_dir: Path, n_train: int, n_test: int) -> Iterator[str]:
    talks = recipe.conversation
    most = talks.max_turns * talks.max_turn_tokens
    n_test_talks = _taken(recipe.data.n_test, n_test) * recipe.evaluation.n_samples
    made = list(steps(recipe))
    n_models = len(made) + (recipe.cold_start is not None)
    n_talks = (n_models + recipe.evaluation.base) * n_test_talks
    search = recipe.search
    for step in made:
        if step.is_dpo and search is not None:
            n_trees = _taken(search.n_problems or recipe.data.n_train, n_train)
            n_talks += n_trees * search.n_rounds * search.n_rollouts + min(search.n_probe, n_train)
            n_talks += n_trial_talks(recipe, n_train)
        else:
            n_talks += _taken(recipe.data.n_train, n_train) * recipe.sampling.n_samples
    n_tokens = most * n_talks
    yield f"tokens     at most {n_tokens:,} generated ({most:,} a conversation)"
    weights = _weight_bytes(recipe)
    if weights is None:
        yield "disk       not estimated: the model's weights are not on this host"
        return
    checkpoints = recipe.train.save_total_limit * weights
    if recipe.train.lora is None:
        checkpoints *= _OPTIMIZER_FACTOR
    # The bound on tokens is far above what agents say; a tenth is still several times the paper's.
    needed = n_models * weights + checkpoints + n_tokens * _BYTES_PER_TOKEN // 10
    place = next(p for p in (run_dir.resolve(), *run_dir.resolve().parents) if p.exists())
    free = shutil.disk_usage(place).free
    yield f"disk       about {needed / 2**30:.1f} GiB of {free / 2**30:.1f} GiB free in {place}"
    if needed > free:
        raise UsageError(
            f"--run-dir {run_dir}: about {needed / 2**30:.1f} GiB needed, "
            f"{free / 2**30:.1f} GiB free in {place}; free some or give another --run-dir"
        )


def _weight_bytes(recipe: Recipe) -> int | None:
    """Return the size of the base model's weights where it is a directory on this host."""
    folder = Path(recipe.model.path)
    for pattern in _WEIGHT_PATTERNS:
        sizes = [path.stat().st_size for path in folder.glob(pattern)] if folder.is_dir() else []
        if sizes:
            return sum(sizes)
    return None


def _context_window(recipe: Recipe) -> int | None:
    """Return the tokens a prompt may have; ModelError when a local model has no usable config."""
    folder = Path(recipe.model.path)
    if not folder.is_dir():
        return recipe.model.max_model_len
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); fetch the model again") from error
    longest = config.get("max_position_embeddings")
    asked = recipe.model.max_model_len
    if isinstance(longest, int) and asked is not None and asked > longest:
        raise ModelError(
            f"model.max_model_len: {asked}: {folder} has {longest} positions; lower it"
        )
    return asked or (longest if isinstance(longest, int) else None)

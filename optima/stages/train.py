"""The stage that trains a model on selected rows, and the model that it leaves."""

import logging
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import chain
from pathlib import Path

from optima.errors import RecipeError, StageError
from optima.plan import Step, by_policy
from optima.processes.devices import Devices, gpu_memory
from optima.recipe.schema import ColdStartSection, DpoSection, Recipe, TrainSection
from optima.records import atomic_writer, read_records, write_text
from optima.runs.costs import N_GPUS
from optima.runs.directory import Stage
from optima.runs.files import EVAL_ROWS, ROWS
from optima.runs.layout import check_model
from optima.seeding import derive_seed
from optima.stages.context import Bench, Made, Model, RunContext
from optima.stages.room import bytes_per_gpu, check_batches, count_trained, serving_recipe
from optima.training.jobs import LOGPROBS_FILE, MODEL_DIR, RESULT_FILE, TrainJob, TrainResult
from optima.training.launch import run_training
from optima.trainset import is_held_out
from optima.types import ModelRef, PreferenceRow, TrainingRow

logger = logging.getLogger(__name__)
_FEW_STEPS = 5  # of the optimizer
_LOOK_S = 0.5  # between two looks at trainings side by side, so that a signal is heard


def train_model(
    context: RunContext, step: Step, start: Model, rows: Stage, section: TrainSection | DpoSection
) -> Model:
    """Let ``train`` be done, and return the model of the step.

    Of several policies each is trained by itself, on the rows of its own agents, beside the others
    where there are GPUs for it; a frozen one stays as it was.
    """
    policies, parts = context.recipe.agents.policies, by_policy(context.recipe, step)
    if not parts[0].policy:
        return _made(step, start, context.do(step, train, start, rows, section))

    def made_of(part: Step, context: RunContext) -> Model:
        agents = tuple(agent for agent, name in enumerate(policies) if name == part.policy)
        before = start.member(part.policy)
        return _made(part, before, context.do(part, train, before, rows, section, agents))

    shares = side_by_side(context.recipe, context.device.devices, len(parts))
    if shares:
        trained = _at_once(context, parts, shares, made_of)
    else:
        trained = [made_of(part, context) for part in parts]
    made = {name: start.member(name) for name in policies}
    made |= {part.policy: one for part, one in zip(parts, trained, strict=True)}
    folder = (context.run.root / step.name).resolve().parent
    return Model.of_members(step.model, made, context.base.ref.path, str(folder))


def side_by_side(recipe: Recipe, devices: Devices, n: int) -> tuple[Devices, ...]:
    """Return the GPUs of each of ``n`` trainings at once, none where they come one after the other.

    So they do where there are fewer GPUs, where nodes share each training, where fewer GPUs do not
    divide a batch, and where it is not known that a model fits on them.
    """
    size = len(devices.gpus) // n if recipe.serving.training_nodes == 1 else 0
    if n == 1 or devices.kind == "cpu" or not size:
        return ()
    there, n_parameters = gpu_memory(devices), count_trained(recipe)
    if there is None or n_parameters is None:
        return ()
    if recipe.serving.keep == "stay":
        there = int(there * (1 - serving_recipe(recipe).serving.gpu_memory_utilization))
    try:
        check_batches(recipe, size)
    except RecipeError:
        return ()
    if bytes_per_gpu(recipe, n_parameters, size) > there:
        return ()
    return tuple(replace(devices, gpus=devices.gpus[k * size : (k + 1) * size]) for k in range(n))


def _at_once(
    context: RunContext,
    parts: Sequence[Step],
    shares: Sequence[Devices],
    made_of: Callable[[Step, RunContext], Model],
) -> list[Model]:
    """Do trainings side by side; one that fails leaves the others to end, a signal does not."""
    given_up = threading.Event()
    with ThreadPoolExecutor(len(parts), "train") as pool:
        doing = [
            pool.submit(made_of, part, replace(context, bench=Bench(own, given_up)))
            for part, own in zip(parts, shares, strict=True)
        ]
        try:
            while wait(doing, _LOOK_S).not_done:
                pass
        except BaseException:
            given_up.set()
            raise
    return [one.result() for one in doing]


def _made(step: Step, start: Model, trained: Stage) -> Model:
    """Return the model of a finished training: where its run is now, if that was moved since."""
    result = TrainResult.model_validate_json((trained.path / RESULT_FILE).read_bytes())
    ref = result.model
    if not Path(ref.place).exists():
        made = str((trained.path / MODEL_DIR).resolve())
        ref = ModelRef(path=start.ref.path, adapter=made) if ref.adapter else ModelRef(path=made)
    return Model(step.model, ref, trained.digest)


def train(
    context: RunContext,
    out: Stage,
    start: Model,
    rows: Stage,
    section: TrainSection | DpoSection,
    agents: tuple[int, ...] = (),
) -> Made:
    """Train ``start`` on the rows of a stage, or on those of some ``agents`` alone.

    A ``DpoSection`` makes it a preference training, whose rows are pairs.
    """
    own: tuple[str, ...] = ()
    folder, counts = rows.path, rows.metrics
    if agents:
        folder, own = out.path, (ROWS, EVAL_ROWS)
        counts = _write_rows_of(context, out, rows, agents, section)
    n_rows = int(counts["rows/train"])
    n_steps = count_steps(section, n_rows)
    logger.info("%s: %d rows from %s, %d steps", out.name, n_rows, start.label, n_steps)
    if warning := explain_few_steps(section, n_rows, is_cold=section != context.recipe.train):
        logger.warning("%s: %s", out.name, warning)
    check_model(start.ref)
    context.device.vacate()
    job, bench = _job(context, out, start, folder, section), context.bench
    result = run_training(
        job if counts["rows/eval"] > 0 else job.model_copy(update={"eval_rows_path": None}),
        env=context.environments.train,
        devices=bench.devices if bench else context.device.devices,
        log_path=context.log_path(out.name),
        others=context.device.others(),
        is_given_up=bench.is_given_up if bench else None,
    )
    metrics = _train_metrics(result)
    if bench is not None:
        metrics[N_GPUS] = float(len(bench.devices.gpus))
    # none of a training that an older release finished
    logprobs = (path.name for path in out.path.glob(LOGPROBS_FILE))
    line = f"loss {result.train_loss:.3f}, {result.tokens_per_s:.0f} tokens/s"
    return Made((RESULT_FILE, MODEL_DIR, *logprobs, *own), metrics, line)


def _write_rows_of(
    context: RunContext,
    out: Stage,
    rows: Stage,
    agents: tuple[int, ...],
    section: TrainSection | DpoSection,
) -> dict[str, float]:
    """Write the rows of some agents beside the model to come; return the counts.

    Raises StageError where there are none.
    """
    kind: type[PreferenceRow | TrainingRow]
    kind = PreferenceRow if isinstance(section, DpoSection) else TrainingRow
    given = chain(*(read_records(rows.path / name, kind) for name in (ROWS, EVAL_ROWS)))
    counts = write_rows(context, out.path, (row for row in given if row.agent in agents))
    if not counts["rows/train"]:
        names = ", ".join(context.recipe.agents.names[agent] for agent in agents)
        raise StageError(
            f"stage {out.name}: nothing to train on: none of the rows of {rows.name} is of "
            f"{names}; raise data.n_train or sampling.n_samples, or freeze this policy"
        )
    return counts


def write_rows(
    context: RunContext, path: Path, rows: Iterable[TrainingRow | PreferenceRow]
) -> dict[str, float]:
    """Write rows to train on and rows for evaluation loss, split by problem; return the counts."""
    seed, share = context.recipe.seed, context.recipe.train.eval_share
    counts = {False: 0, True: 0}
    n_retokenised = 0
    with atomic_writer(path / ROWS) as train, atomic_writer(path / EVAL_ROWS) as held_out:
        for row in rows:
            n_retokenised += row.n_retokenised
            is_out = is_held_out(row.problem_id, seed=seed, share=share)
            (held_out if is_out else train).write(row.model_dump_json() + "\n")
            counts[is_out] += 1
    if not counts[False]:  # a handful of problems, all of them drawn for evaluation
        (path / EVAL_ROWS).replace(path / ROWS)
        write_text(path / EVAL_ROWS, "")
        counts = {False: counts[True], True: 0}
    return {
        "rows/train": float(counts[False]),
        "rows/eval": float(counts[True]),
        "rows/retokenised": float(n_retokenised),
    }


def count_steps(section: TrainSection | DpoSection, n_rows: int) -> int:
    """Return the steps of the optimizer that a training on ``n_rows`` makes."""
    return round(math.ceil(n_rows / section.batch_size) * section.epochs)


def explain_few_steps(
    section: TrainSection | DpoSection, n_rows: int, *, is_cold: bool = False
) -> str | None:
    """Return what to change where a training makes too few steps to change a model, else None."""
    if count_steps(section, n_rows) >= _FEW_STEPS:
        return None
    name = "dpo" if isinstance(section, DpoSection) else "cold_start" if is_cold else "train"
    return (
        f"so few steps change a model little; lower {name}.batch_size (it is {section.batch_size}) "
        f"or raise {name}.epochs (it is {section.epochs:g})"
    )


def _job(
    context: RunContext, out: Stage, start: Model, folder: Path, section: TrainSection | DpoSection
) -> TrainJob:
    model = context.recipe.model
    return TrainJob(
        model=start.ref,
        revision=model.revision if start.ref.path == model.path else None,
        rows_path=str((folder / ROWS).resolve()),
        eval_rows_path=str((folder / EVAL_ROWS).resolve()),
        output_dir=str(out.path.resolve()),
        train=training_section(context.recipe.train, section)
        if isinstance(section, DpoSection)
        else section,
        dpo=section if isinstance(section, DpoSection) else None,
        seed=derive_seed(context.recipe.seed, out.name) % 2**31,
        device=context.device.devices.kind,
        trust_remote_code=model.trust_remote_code,
    )


def training_section(common: TrainSection, own: DpoSection | ColdStartSection) -> TrainSection:
    """Return how a training goes that has a section of its own: as the recipe says but for that."""
    shared = [name for name in type(own).model_fields if name in TrainSection.model_fields]
    return common.model_copy(update={name: getattr(own, name) for name in shared})


def _train_metrics(result: TrainResult) -> dict[str, float]:
    metrics = {
        "train/rows": float(result.n_rows),
        "train/rows_dropped": float(result.n_dropped_rows),
        "train/steps": float(result.n_steps),
        "train/loss": result.train_loss,
        "train/tokens_per_s": result.tokens_per_s,
        "train/seconds": result.seconds,
        "tokens/trained": float(result.n_tokens),
        "tokens/trained_with_loss": float(result.n_loss_tokens),
    }
    metrics |= {f"train/{key}": value for key, value in result.figures.items()}
    if result.eval_loss is not None:
        metrics["train/eval_loss"] = result.eval_loss
    if result.eval_loss_before is not None:
        metrics["train/eval_loss_before"] = result.eval_loss_before
    return metrics

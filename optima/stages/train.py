"""The stage that trains a model on selected rows, and the model that it leaves."""

import logging
import math
from pathlib import Path

from optima.plan import Step
from optima.recipe.schema import ColdStartSection, DpoSection, TrainSection
from optima.runs.directory import Stage
from optima.runs.files import EVAL_ROWS, ROWS
from optima.runs.layout import check_model
from optima.seeding import derive_seed
from optima.stages.context import Made, Model, RunContext
from optima.training.jobs import LOGPROBS_FILE, MODEL_DIR, RESULT_FILE, TrainJob, TrainResult
from optima.training.launch import run_training
from optima.types import ModelRef

logger = logging.getLogger(__name__)
_FEW_STEPS = 5  # of the optimizer


def train_model(
    context: RunContext, step: Step, start: Model, rows: Stage, section: TrainSection | DpoSection
) -> Model:
    """Let ``train`` be done, and return the model of the step.

    It is where its run is now, if that was moved since.
    """
    trained = context.do(step, train, start, rows, section)
    result = TrainResult.model_validate_json((trained.path / RESULT_FILE).read_bytes())
    ref = result.model
    if not Path(ref.place).exists():
        made = str((trained.path / MODEL_DIR).resolve())
        ref = ModelRef(path=start.ref.path, adapter=made) if ref.adapter else ModelRef(path=made)
    return Model(step.model, ref, trained.digest)


def train(
    context: RunContext, out: Stage, start: Model, rows: Stage, section: TrainSection | DpoSection
) -> Made:
    """Train ``start`` on the rows of a stage.

    A ``DpoSection`` makes it a preference training, whose rows are pairs.
    """
    n_rows = int(rows.metrics["rows/train"])
    n_steps = count_steps(section, n_rows)
    logger.info("%s: %d rows from %s, %d steps", out.name, n_rows, start.label, n_steps)
    if warning := explain_few_steps(section, n_rows, is_cold=section != context.recipe.train):
        logger.warning("%s: %s", out.name, warning)
    check_model(start.ref)
    context.device.vacate()
    result = run_training(
        _job(context, out, start, rows, section),
        env=context.environments.train,
        devices=context.device.devices,
        log_path=context.log_path(out.name),
        others=context.device.others(),
    )
    # none of a training that an older release finished
    logprobs = (path.name for path in out.path.glob(LOGPROBS_FILE))
    line = f"loss {result.train_loss:.3f}, {result.tokens_per_s:.0f} tokens/s"
    return Made((RESULT_FILE, MODEL_DIR, *logprobs), _train_metrics(result), line)


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
    context: RunContext, out: Stage, start: Model, rows: Stage, section: TrainSection | DpoSection
) -> TrainJob:
    model = context.recipe.model
    has_eval_rows = rows.metrics["rows/eval"] > 0
    return TrainJob(
        model=start.ref,
        revision=model.revision if start.ref.path == model.path else None,
        rows_path=str((rows.path / ROWS).resolve()),
        eval_rows_path=str((rows.path / EVAL_ROWS).resolve()) if has_eval_rows else None,
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

"""The stages that turn rewards into the next model: select, rows, train; and the cold start."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from optima.errors import StageError
from optima.evaluation.health import Remedies, examine
from optima.files import CONVERSATIONS, EVAL_ROWS, REWARDS, ROWS, SCRIPTS, SELECTED
from optima.pipelines.context import Model, RunContext
from optima.pipelines.identity import identity
from optima.pipelines.talk import speakers_for
from optima.prompts.scripts import scripted_utterances
from optima.recipe.schema import ColdStartSection, DpoSection, SelectSection, TrainSection
from optima.records import read_records, write_records
from optima.rundir import Stage
from optima.seeding import derive_seed, rng
from optima.selection import best_of_each, select_top
from optima.shares import share_of
from optima.stages import check_model
from optima.tasks.answers import last_marked_answer
from optima.tasks.loading import sample_problems
from optima.training.jobs import LOGPROBS_FILE, MODEL_DIR, TrainJob, TrainResult
from optima.training.launch import run_training
from optima.trainset import conversation_rows, is_held_out
from optima.types import (
    Conversation,
    ModelRef,
    PreferenceRow,
    Problem,
    RewardParts,
    TrainingRow,
    Turn,
)

logger = logging.getLogger(__name__)
ROW_FORMAT = "token ids"  # what rows are made of; rows of another format are made anew


def select(
    context: RunContext, name: str, t: int, problems: Sequence[Problem], stages: tuple[Stage, Stage]
) -> Stage:
    """Write the selected conversations' rewards and their training rows (paper Alg. 2).

    ``stages`` = (talk, rank) of iteration ``t``. Raises StageError when too little passes, and says
    what went wrong in the conversations and how far the best one was.
    """
    talk, ranked = stages
    section = context.recipe.select
    stage = context.run.stage(name, talk.output_digest, ranked.output_digest, ROW_FORMAT)
    if stage.done:
        return stage
    best = best_of_each(read_records(ranked.path / REWARDS, RewardParts))
    selected = select_top(best, section)
    if not selected or len(selected) < share_of(section.min_share, len(problems)):
        conversations = read_records(talk.path / CONVERSATIONS, Conversation)
        advice = examine(conversations, problems).advice(remedies(context, t))
        found, way_out = (
            _too_few(len(selected), problems, section) if selected else _nothing(best, section)
        )
        raise StageError("\n  - ".join([f"stage {name}: {found}", *advice, way_out]))
    keys = {(parts.problem_id, parts.n) for parts in selected}
    problem_by_id = {problem.problem_id: problem for problem in problems}

    def rows() -> Iterator[TrainingRow]:
        for conversation in read_records(talk.path / CONVERSATIONS, Conversation):
            if (conversation.problem_id, conversation.n) in keys:
                problem = problem_by_id[conversation.problem_id]
                yield from conversation_rows(
                    conversation.problem_id,
                    conversation.n,
                    conversation.turns,
                    speakers_for(context, problem),
                )

    write_records(stage.path / SELECTED, selected)
    counts = write_rows(context, stage.path, rows())
    outputs = [stage.path / file for file in (SELECTED, ROWS, EVAL_ROWS)]
    total = sum(parts.total or 0.0 for parts in selected) / len(selected)
    tokens = sum(parts.n_tokens for parts in selected) / len(selected)
    stage.finish(
        outputs,
        {
            "selected/problems": float(len(selected)),
            "selected/candidates": float(len(best)),
            "selected/reward": total,
            "selected/tokens": tokens,
            **counts,
        },
    )
    context.run.write_metrics()
    logger.info(
        "%s: done, %d of %d problems kept, mean reward %.3f, %.1f tokens",
        name, len(selected), len(problems), total, tokens,
    )  # fmt: skip
    return stage


def remedies(context: RunContext, t: int) -> Remedies:
    """Return what is left to try where the conversations of iteration ``t`` go wrong."""
    recipe = context.recipe
    return Remedies(
        temperature="sampling.first_temperature" if t == 0 else "sampling.temperature",
        roles=context.codec.template.other_roles,
        can_show_example=not recipe.conversation.worked_example,
        can_cold_start=recipe.cold_start is None and context.task.has_evidence,
    )


def _nothing(best: Sequence[RewardParts], section: SelectSection) -> tuple[str, str]:
    """Say that nothing was selected, and which fields of the selection to change."""
    values = [parts.task if section.threshold_on == "task" else parts.total for parts in best]
    highest = max((value for value in values if value is not None), default=None)
    if highest is None:
        return "nothing to train on: no candidate was eligible", "raise sampling.n_samples"
    return (
        f"nothing to train on: the best of {len(best)} candidates reaches {highest:.3f}, "
        f"select.theta is {section.theta}",
        "lower select.theta, or raise sampling.n_samples; `optima try` shows conversations and "
        "shares in minutes",
    )


def _too_few(
    n_selected: int, problems: Sequence[Problem], section: SelectSection
) -> tuple[str, str]:
    """Say that too little was selected, and which fields of the selection to change."""
    return (
        f"{n_selected} of {len(problems)} problems selected, select.min_share is "
        f"{section.min_share}: too few to learn from",
        "lower select.theta, or raise sampling.n_samples (`optima try` shows conversations and "
        "shares in minutes); or, to train on so little, run again with a lower select.min_share",
    )


def script(context: RunContext, name: str, problems: Sequence[Problem]) -> Stage:
    """Write conversations scripted from gold evidence, and their training rows (cold start)."""
    section = context.recipe.cold_start
    assert section is not None
    with_evidence = [problem for problem in problems if problem.evidence]
    ids = "\n".join(problem.problem_id for problem in with_evidence)
    prompts = "\n".join(context.style.texts())
    stage = context.run.stage(
        name, ids, identity(section), context.base.digest, ROW_FORMAT, prompts
    )
    if stage.done:
        return stage
    chosen = sample_problems(
        with_evidence, section.n_problems, seed=context.recipe.seed, stage=name
    )
    if not chosen:
        raise StageError(
            f"stage {name}: none of {len(problems)} problems carries evidence to script from; "
            "remove cold_start"
        )
    scripts = [_scripted_conversation(context, section, problem) for problem in chosen]
    rows = (
        row
        for problem, conversation in zip(chosen, scripts, strict=True)
        for row in conversation_rows(
            problem.problem_id, conversation.n, conversation.turns, speakers_for(context, problem)
        )
    )
    write_records(stage.path / SCRIPTS, scripts)
    counts = write_rows(context, stage.path, rows)
    stage.finish([stage.path / file for file in (SCRIPTS, ROWS, EVAL_ROWS)], counts)
    context.run.write_metrics()
    logger.info("%s: done, %d conversations scripted from evidence", name, len(scripts))
    return stage


def train(
    context: RunContext,
    name: str,
    start: Model,
    rows: Stage,
    section: TrainSection | DpoSection,
    label: str,
) -> Model:
    """Train ``start`` on the rows of a stage and return the model called ``label``.

    A ``DpoSection`` makes it a preference training, whose rows are pairs.
    """
    stage = context.run.stage(name, start.digest, rows.output_digest, identity(section))
    result_path = stage.path / "result.json"
    if not stage.done:
        n_eval_rows = rows.metrics["rows/eval"]
        logger.info("%s: %d rows from %s", name, int(rows.metrics["rows/train"]), start.label)
        check_model(start.ref)
        context.device.vacate()
        model = context.recipe.model
        job = TrainJob(
            model=start.ref,
            revision=model.revision if start.ref.path == model.path else None,
            rows_path=str((rows.path / ROWS).resolve()),
            eval_rows_path=str((rows.path / EVAL_ROWS).resolve()) if n_eval_rows else None,
            output_dir=str(stage.path.resolve()),
            train=dpo_train_section(context.recipe.train, section)
            if isinstance(section, DpoSection)
            else section,
            dpo=section if isinstance(section, DpoSection) else None,
            seed=derive_seed(context.recipe.seed, name) % 2**31,
            device=context.device.devices.kind,
            trust_remote_code=model.trust_remote_code,
        )
        result = run_training(
            job,
            env=context.train_env,
            devices=context.device.devices,
            log_path=context.log_path(name),
        )
        logprobs = stage.path.glob(LOGPROBS_FILE)  # none of a training by an older release
        stage.finish([result_path, stage.path / MODEL_DIR, *logprobs], _train_metrics(result))
        context.run.write_metrics()
        logger.info(
            "%s: done in %.0f s, loss %.3f, %.0f tokens/s",
            name, result.seconds, result.train_loss, result.tokens_per_s,
        )  # fmt: skip
    result = TrainResult.model_validate_json(result_path.read_bytes())
    ref = result.model
    if not Path(ref.adapter or ref.path).exists():  # where the run is now, if it was moved
        made = str((stage.path / MODEL_DIR).resolve())
        ref = ModelRef(path=start.ref.path, adapter=made) if ref.adapter else ModelRef(path=made)
    return Model(label=label, ref=ref, digest=stage.output_digest)


def dpo_train_section(section: TrainSection, dpo: DpoSection) -> TrainSection:
    """Return how preference training trains: the recipe's section, with what ``dpo`` names."""
    names = ("learning_rate", "epochs", "batch_size", "micro_batch_size", "max_length")
    return section.model_copy(update={name: getattr(dpo, name) for name in names})


def cold_start_section(section: TrainSection, cold: ColdStartSection) -> TrainSection:
    """Return the training section of the cold start: the recipe's, with the cold start's own."""
    return section.model_copy(
        update={
            "learning_rate": cold.learning_rate,
            "epochs": cold.epochs,
            "batch_size": cold.batch_size,
        }
    )


def _scripted_conversation(
    context: RunContext, section: ColdStartSection, problem: Problem
) -> Conversation:
    seed, names = context.recipe.seed, context.recipe.agents.names
    draw = rng(seed, "cold_start", "register", problem.problem_id).random()
    texts = scripted_utterances(
        problem,
        answer_style=context.task.answer_style,
        names=names,
        is_terse=draw < section.terse_share,
        seed=seed,
    )
    turns = tuple(
        Turn(
            agent=k % len(names),
            name=names[k % len(names)],
            text=text,
            answer=last_marked_answer(text, context.task.answer_style),
            n_prompt_tokens=0,
            n_tokens=0,  # nothing was generated
            finish_reason="stop",
            seconds=0.0,
        )
        for k, text in enumerate(texts)
    )
    return Conversation(
        problem_id=problem.problem_id,
        n=0,
        format_id=None,
        turns=turns,
        stop_reason="agreement" if len(names) > 1 else "alone",
        answer=turns[-1].answer,
    )


def write_rows(
    context: RunContext, path: Path, rows: Iterable[TrainingRow | PreferenceRow]
) -> dict[str, float]:
    """Write rows to train on and rows for evaluation loss, split by problem; return the counts."""
    seed, share = context.recipe.seed, context.recipe.train.eval_share
    kept: tuple[list[TrainingRow | PreferenceRow], list[TrainingRow | PreferenceRow]] = ([], [])
    n_retokenised = 0
    for row in rows:
        n_retokenised += row.n_retokenised
        kept[is_held_out(row.problem_id, seed=seed, share=share)].append(row)
    train_rows, eval_rows = kept
    if not train_rows:  # a handful of problems, all of them drawn for evaluation
        train_rows, eval_rows = eval_rows, []
    return {
        "rows/train": float(write_records(path / ROWS, train_rows)),
        "rows/eval": float(write_records(path / EVAL_ROWS, eval_rows)),
        "rows/retokenised": float(n_retokenised),
    }


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

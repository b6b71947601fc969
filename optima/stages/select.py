"""The stage that selects what is trained on, and writes its rows (paper Alg. 2)."""

from collections.abc import Iterator, Sequence

from optima.errors import StageError
from optima.evaluation.health import Remedies, examine
from optima.prompts.rendering import example_answer
from optima.recipe.schema import SelectSection
from optima.records import read_records, write_records
from optima.runs.directory import Stage
from optima.runs.files import CONVERSATIONS, EVAL_ROWS, REWARDS, ROWS, SELECTED
from optima.selection import best_of_each, select_top, share_of
from optima.stages.context import Made, RunContext
from optima.stages.train import write_rows
from optima.trainset import conversation_rows
from optima.types import Conversation, Problem, RewardParts, TrainingRow


def select(
    context: RunContext,
    out: Stage,
    problems: Sequence[Problem],
    talked: Stage,
    ranked: Stage,
    t: int,
) -> Made:
    """Write the selected conversations' rewards and their training rows.

    Raises StageError when too little passes in iteration ``t``, and says what went wrong in the
    conversations and how far the best one was.
    """
    best = best_of_each(read_records(ranked.path / REWARDS, RewardParts))
    selected = select_top(best, context.recipe.select)
    if reason := _too_few(selected, best, problems, context.recipe.select):
        conversations = read_records(talked.path / CONVERSATIONS, Conversation)
        advice = examine(conversations, problems).advice(remedies(context, problems, t))
        found, way_out = reason
        raise StageError("\n  - ".join([f"stage {out.name}: {found}", *advice, way_out]))
    write_records(out.path / SELECTED, selected)
    counts = write_rows(context, out.path, _rows(context, problems, talked, selected))
    total = sum(parts.total or 0.0 for parts in selected) / len(selected)
    tokens = sum(parts.n_tokens for parts in selected) / len(selected)
    metrics = {
        "selected/problems": float(len(selected)),
        "selected/candidates": float(len(best)),
        "selected/reward": total,
        "selected/tokens": tokens,
        **counts,
    }
    line = (
        f"{len(selected)} of {len(problems)} problems kept, mean reward {total:.3f}, "
        f"{tokens:.1f} tokens"
    )
    return Made((SELECTED, ROWS, EVAL_ROWS), metrics, line)


def _rows(
    context: RunContext, problems: Sequence[Problem], talked: Stage, selected: Sequence[RewardParts]
) -> Iterator[TrainingRow]:
    """Yield the rows of the selected conversations, of those agents who are trained."""
    keys = {(parts.problem_id, parts.n) for parts in selected}
    problem_by_id = {problem.problem_id: problem for problem in problems}
    for said in read_records(talked.path / CONVERSATIONS, Conversation):
        if (said.problem_id, said.n) in keys:
            speakers = context.learners_of(problem_by_id[said.problem_id])
            yield from conversation_rows(said.problem_id, said.n, said.turns, speakers)


def remedies(context: RunContext, problems: Sequence[Problem], t: int) -> Remedies:
    """Return what is left to try where the conversations of iteration ``t`` go wrong."""
    recipe = context.recipe
    return Remedies(
        temperature="sampling.first_temperature" if t == 0 else "sampling.temperature",
        roles=context.codecs[0].template.other_roles,
        can_show_example=not recipe.conversation.worked_example,
        can_cold_start=recipe.cold_start is None and context.task.has_evidence,
        shown=example_answer(problems[0], context.style),
    )


def _too_few(
    selected: Sequence[RewardParts],
    best: Sequence[RewardParts],
    problems: Sequence[Problem],
    section: SelectSection,
) -> tuple[str, str] | None:
    """Say that nothing or too little was selected, and which fields to change; None if enough."""
    if not selected:
        return _nothing(best, section)
    if len(selected) >= share_of(section.min_share, len(problems)):
        return None
    return (
        f"{len(selected)} of {len(problems)} problems selected, select.min_share is "
        f"{section.min_share}: too few to learn from",
        "lower select.theta, or raise sampling.n_samples (`optima try` shows conversations and "
        "shares in minutes); or, to train on so little, run again with a lower select.min_share",
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

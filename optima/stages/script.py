"""The stage of the cold start: conversations scripted from gold evidence, and their rows."""

from collections.abc import Sequence

from optima.errors import StageError
from optima.prompts.scripts import scripted_utterances
from optima.recipe.schema import ColdStartSection
from optima.records import write_records
from optima.runs.directory import Stage
from optima.runs.files import EVAL_ROWS, ROWS, SCRIPTS
from optima.seeding import rng
from optima.stages.context import Made, RunContext, Team
from optima.stages.train import write_rows
from optima.tasks.answers import last_marked_answer
from optima.tasks.loading import sample_problems, take_in_turn
from optima.trainset import conversation_rows
from optima.types import Conversation, Problem, Turn


def script(
    context: RunContext,
    out: Stage,
    team: Team,
    problems: Sequence[Problem],
    section: ColdStartSection,
) -> Made:
    """Write conversations of the team about problems with evidence, and their training rows."""
    told, n, seed = [p for p in problems if p.evidence], section.n_problems, context.recipe.seed
    chosen = (
        take_in_turn(told, n, 0, seed=seed, stage=out.name, backwards=True)
        if context.recipe.data.draw == "in_turn"
        else sample_problems(told, n, seed=seed, stage=out.name)
    )
    if not chosen:
        raise StageError(
            f"stage {out.name}: none of {len(problems)} problems carries evidence to script from; "
            "remove cold_start"
        )
    scripts = [_scripted_conversation(context, section, problem) for problem in chosen]
    rows = (
        row
        for problem, said in zip(chosen, scripts, strict=True)
        for row in conversation_rows(
            problem.problem_id, said.n, said.turns, context.learners_of(problem)
        )
    )
    write_records(out.path / SCRIPTS, scripts)
    counts = write_rows(context, out.path, rows)
    line = f"{len(scripts)} conversations scripted from evidence"
    return Made((SCRIPTS, ROWS, EVAL_ROWS), counts, line)


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

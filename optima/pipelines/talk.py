"""The stage in which agents converse: problems in, conversations.jsonl out.

Conversations are appended as they end and put in order when all are there, so that a rerun gives
the same file whatever ended first. Resume holds exactly the missing ones.
"""

import contextlib
import gc
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from optima.conversation.agent import Speaker
from optima.conversation.dialogue import Dialogue, Request
from optima.conversation.rollouts import RoutedCompletion, hold_conversations
from optima.conversation.tokens import ChatCodec
from optima.errors import StageError
from optima.evaluation.health import HealthCount, TalkHealth
from optima.files import CONVERSATIONS
from optima.pipelines.agreement import TaskAgreement
from optima.pipelines.context import Model, RunContext
from optima.pipelines.identity import identity
from optima.processes import interruption
from optima.prompts.formats import Format
from optima.prompts.rendering import PromptStyle, cue, system_prompt
from optima.records import RecordAppender, atomic_writer, disk_errors, repair_tail
from optima.rundir import Stage
from optima.seeding import derive_seed, rng
from optima.serving.client import CompletionClient, Server
from optima.serving.fleet import Fleet
from optima.shares import share_of
from optima.tasks.judging import Judge
from optima.types import Conversation, Problem

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TalkPlan:
    """How candidates are drawn: N per problem, temperature, nucleus mass, and the format pool."""

    n_samples: int
    temperature: float
    top_p: float = 1.0
    formats: tuple[Format, ...] = ()


def talk(
    context: RunContext, name: str, model: Model, problems: Sequence[Problem], plan: TalkPlan
) -> Stage:
    """Let the agents, all played by ``model``, hold ``plan.n_samples`` conversations a problem.

    Raises StageError when more than ``conversation.max_error_rate`` of them end in an error; a
    rerun tries exactly those again.
    """
    ids = "\n".join(problem.problem_id for problem in problems)
    prompts = "\n".join(context.style.texts())
    stage = context.run.stage(
        name, model.digest, ids, identity(plan), prompts, *context.task.versions
    )
    if stage.done:
        return stage
    path = stage.path / CONVERSATIONS
    held = _keep_good_records(stage)
    n_total = len(problems) * plan.n_samples
    logger.info(
        "%s: %d problems x %d conversations with %s%s",
        name, len(problems), plan.n_samples, model.label,
        f", {len(held)} held before" if held else "",
    )  # fmt: skip
    if len(held) < n_total:
        fleet = context.device.fleet(model.ref)
        with Judge() as judge:
            missing = _dialogues(context, name, problems, plan, held, judge)
            interruption.run(_hold(context, fleet, missing, stage, plan, (len(held), n_total)))
    statistics, health = _finalise(path, problems)
    n_errors = statistics["conversations/errors"]
    if n_errors > share_of(context.recipe.conversation.max_error_rate, n_total):
        raise StageError(
            f"stage {name}: {n_errors:.0f} of {n_total} conversations ended in an error, more "
            f"than conversation.max_error_rate allows; the first says: {_first_error(path)}; see "
            f"{context.run.log_dir}, then run again to try exactly those"
        )
    stage.finish([path], statistics)
    context.run.write_metrics()
    logger.info(
        "%s: done in %.0f s, %.1f tokens a conversation, %.0f %% answered",
        name, stage.done.seconds if stage.done else 0.0, statistics["tokens/conversation"],
        100 * statistics["conversations/answered"],
    )  # fmt: skip
    if health.has_collapsed:
        logger.warning("%s: one answer everywhere: %s", name, health.collapse())
    return stage


async def _hold(
    context: RunContext,
    fleet: Fleet,
    dialogues: Iterator[Dialogue],
    stage: Stage,
    plan: TalkPlan,
    counts: tuple[int, int],
) -> None:
    serving = context.recipe.serving
    n_held, n_total = counts
    n_ids = context.codec.encoder.n_ids
    async with CompletionClient(
        fleet.servers, fleet.model_name, serving, n_vocabulary=n_ids
    ) as client:

        async def generate(request: Request, preferred: object) -> RoutedCompletion:
            completion = await client.complete(
                request,
                temperature=plan.temperature,
                top_p=plan.top_p,
                prefer=preferred if isinstance(preferred, Server) else None,
            )
            stage.count_unkept(completion.n_tokens)
            return completion

        concurrency = min(serving.concurrency * len(fleet.servers), n_total - n_held)
        with (
            RecordAppender(stage.path / CONVERSATIONS) as appender,
            tqdm(
                total=n_total, initial=n_held, desc=stage.path.name, unit="conv",
                disable=not sys.stderr.isatty(),
            ) as bar,
        ):  # fmt: skip

            def keep(conversation: Conversation) -> None:
                appender.append(conversation)
                stage.count_unkept(-conversation.n_generated)
                bar.update()

            with rare_collections():
                await hold_conversations(dialogues, generate, keep, concurrency=concurrency)


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    """Collect garbage rarely: turns make no cycles, and looking for some took 13-25 % of the time
    per turn (2026-11-23)."""
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def speakers_for(
    context: RunContext, problem: Problem, format_text: str | None = None
) -> tuple[Speaker, ...]:
    """Return the speakers of a problem in a run."""
    return speakers_of(context.style, context.codec, problem, format_text)


def speakers_of(
    style: PromptStyle, codec: ChatCodec, problem: Problem, format_text: str | None = None
) -> tuple[Speaker, ...]:
    """Return the speakers of a problem, each with its own prompt, in order of speaking."""
    return tuple(
        Speaker(
            agent=agent,
            name=name,
            system_prompt=system_prompt(problem, style, agent=agent, format_text=format_text),
            codec=codec,
            cue=cue(problem, style, agent=agent),
        )
        for agent, name in enumerate(style.names)
    )


def _dialogues(
    context: RunContext,
    name: str,
    problems: Sequence[Problem],
    plan: TalkPlan,
    held: set[tuple[str, int]],
    judge: Judge,
) -> Iterator[Dialogue]:
    seed = context.recipe.seed
    for problem in problems:
        speakers = () if plan.formats else speakers_for(context, problem)
        for n in range(plan.n_samples):
            if (problem.problem_id, n) in held:
                continue
            drawn = None
            if plan.formats:
                drawn = rng(seed, name, "format", problem.problem_id, n).choice(plan.formats)
                speakers = speakers_for(context, problem, drawn.text)
            yield Dialogue(
                problem_id=problem.problem_id,
                n=n,
                speakers=speakers,
                answer_style=context.task.answer_style,
                agreement=TaskAgreement(context.task.metric, problem.choices, judge),
                limits=context.recipe.conversation,
                seed=derive_seed(seed, name),
                format_id=drawn.format_id if drawn else None,
                choices=problem.choices,
            )


def _keep_good_records(stage: Stage) -> set[tuple[str, int]]:
    """Return the conversations already held; failed, torn and doubled ones leave the file."""
    path = stage.path / CONVERSATIONS
    repair_tail(path)
    held: set[tuple[str, int]] = set()
    if not path.exists():
        return held
    with disk_errors(path), path.open(encoding="utf-8") as old, atomic_writer(path) as new:
        for line in old:
            try:
                record = json.loads(line)
                key = (record["problem_id"], record["n"])
                is_good = record["error"] is None and key not in held
                n_tokens = sum(turn["n_tokens"] for turn in record["turns"])
            except (ValueError, KeyError, TypeError):
                logger.warning("%s: dropped a line that is no conversation", path)
                continue
            if is_good:
                held.add(key)
                new.write(line)
            else:
                stage.count_unkept(n_tokens)
    return held


def _finalise(path: Path, problems: Sequence[Problem]) -> tuple[dict[str, float], TalkHealth]:
    """Put the file in the order of problems and samples, and return what was counted in it."""
    order = {problem.problem_id: i for i, problem in enumerate(problems)}
    health = HealthCount({problem.problem_id: problem for problem in problems})
    places: list[tuple[int, int, int]] = []
    counts: Counter[str] = Counter()
    if not path.exists():
        path.touch()
    with path.open("rb") as file:
        offset = 0
        for line in file:
            conversation = Conversation.model_validate_json(line)
            places.append((order[conversation.problem_id], conversation.n, offset))
            offset += len(line)
            health.add(conversation)
            counts["tokens"] += conversation.n_tokens
            counts["generated"] += conversation.n_generated
            counts["prompt_tokens"] += sum(turn.n_prompt_tokens for turn in conversation.turns)
            counts["turns"] += len(conversation.turns)
            counts["answered"] += conversation.answer is not None
            counts["errors"] += conversation.error is not None
            counts[f"stop/{conversation.stop_reason}"] += 1
            for fault in conversation.faults:
                counts[f"fault/{fault}"] += 1
        places.sort()
        with disk_errors(path), atomic_writer(path) as ordered:
            for _, _, place in places:
                file.seek(place)
                ordered.write(file.readline().decode())
    n = max(1, len(places))
    shares = {key: counts[key] / n for key in sorted(counts) if key.startswith(("stop/", "fault/"))}
    found = health.health()
    statistics = {
        "conversations": float(len(places)),
        "conversations/errors": float(counts["errors"]),
        "conversations/answered": counts["answered"] / n,
        "turns/conversation": counts["turns"] / n,
        "tokens/conversation": counts["tokens"] / n,
        "tokens/generated_conversation": counts["generated"] / n,
        "tokens/generated": float(counts["generated"]),
        "tokens/prompt": float(counts["prompt_tokens"]),
        **shares,
        **found.metrics(),
    }
    return statistics, found


def _first_error(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        errors = (json.loads(line)["error"] for line in file)
        return next((error for error in errors if error), "nothing")

"""The stage in which agents converse: problems in, conversations.jsonl out.

Conversations are appended as they end and put in order when all are there, so that a rerun gives
the same file whatever ended first. Resume holds exactly the missing ones.
"""

import json
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from optima.conversation.dialogue import Dialogue
from optima.conversation.rollouts import hold_conversations
from optima.evaluation.health import HealthCount, TalkHealth
from optima.files import CONVERSATIONS
from optima.pipelines.context import Made, RunContext, Sampling, Team
from optima.pipelines.dialogues import check_errors, completing, dialogue_about
from optima.processes import interruption
from optima.records import RecordAppender, atomic_writer, repair_tail
from optima.rundir import Stage
from optima.seeding import rng
from optima.tasks.judging import Judge
from optima.types import Conversation, Problem

logger = logging.getLogger(__name__)
Key = tuple[str, int]  # of a conversation: its problem's id and n


@dataclass(frozen=True, slots=True)
class _Counted:
    metrics: dict[str, float]
    health: TalkHealth


def generate(
    context: RunContext, out: Stage, team: Team, problems: Sequence[Problem], sampling: Sampling
) -> Made:
    """Let the team hold ``sampling.n_samples`` conversations about each problem.

    Raises StageError when more than ``conversation.max_error_rate`` of them end in an error; a
    rerun tries exactly those again.
    """
    path = out.path / CONVERSATIONS
    held = _keep_good_records(out)
    n_total = len(problems) * sampling.n_samples
    logger.info(
        "%s: %d problems x %d conversations with %s%s",
        out.name, len(problems), sampling.n_samples, team.model.label,
        f", {len(held)} held before" if held else "",
    )  # fmt: skip
    if len(held) < n_total:
        interruption.run(_hold(context, out, team, problems, sampling, held))
    counted = _finalise(path, problems)
    check_errors(context, out, counted.metrics, _errors(path))
    if counted.health.has_collapsed:
        logger.warning("%s: one answer everywhere: %s", out.name, counted.health.collapse())
    tokens = counted.metrics["tokens/conversation"]
    answered = 100 * counted.metrics["conversations/answered"]
    line = f"{tokens:.1f} tokens a conversation, {answered:.0f} % answered"
    return Made((CONVERSATIONS,), counted.metrics, line)


async def _hold(
    context: RunContext,
    out: Stage,
    team: Team,
    problems: Sequence[Problem],
    sampling: Sampling,
    held: set[Key],
) -> None:
    """Hold the conversations that are not held yet, and append them."""
    fleet = context.device.fleet(team.model.ref)
    n_total = len(problems) * sampling.n_samples
    n_at_once = min(context.recipe.serving.concurrency * len(fleet.servers), n_total - len(held))
    with (
        Judge() as judge,
        RecordAppender(out.path / CONVERSATIONS) as appender,
        tqdm(
            total=n_total, initial=len(held), desc=out.path.name, unit="conv",
            disable=not sys.stderr.isatty(),
        ) as bar,
    ):  # fmt: skip

        def keep(conversation: Conversation) -> None:
            appender.append(conversation)
            out.count_unkept(-conversation.n_generated)
            bar.update()

        numbers = range(sampling.n_samples)
        missing = (
            (problem, [n for n in numbers if (problem.problem_id, n) not in held])
            for problem in problems
        )
        dialogues = _dialogues(context, out, team, sampling, missing, judge)
        async with completing(context, out, fleet, sampling) as complete:
            await hold_conversations(dialogues, complete, keep, concurrency=n_at_once)


def _dialogues(
    context: RunContext,
    out: Stage,
    team: Team,
    sampling: Sampling,
    missing: Iterable[tuple[Problem, Sequence[int]]],
    judge: Judge,
) -> Iterator[Dialogue]:
    """Yield the conversations of these numbers; each draws its format, if there are any."""
    seed, formats = context.recipe.seed, sampling.formats
    for problem, numbers in missing:
        if not numbers:
            continue
        plain = dialogue_about(context, out, problem, team, judge)
        for n in numbers:
            if not formats:
                yield replace(plain, n=n)
                continue
            drawn = rng(seed, out.name, "format", problem.problem_id, n).choice(formats)
            speakers = team.speakers(problem, drawn.text)
            yield replace(plain, n=n, speakers=speakers, format_id=drawn.format_id)


def _keep_good_records(stage: Stage) -> set[Key]:
    """Return the conversations already held; failed, torn and doubled ones leave the file."""
    path = stage.path / CONVERSATIONS
    repair_tail(path)
    held: set[Key] = set()
    if not path.exists():
        return held
    with atomic_writer(path) as new, path.open(encoding="utf-8") as old:
        for line in old:
            try:
                record = json.loads(line)
                key = (record["problem_id"], record["n"])
                is_good = record["error"] is None and key not in held
                n_tokens = sum(turn["n_tokens"] for turn in record["turns"])
            except (ValueError, KeyError, TypeError):
                logger.warning("%s: dropped a line that is not a conversation", path)
                continue
            if is_good:
                held.add(key)
                new.write(line)
            else:
                stage.count_unkept(n_tokens)
    return held


def _finalise(path: Path, problems: Sequence[Problem]) -> _Counted:
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
        with atomic_writer(path) as ordered:
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
    return _Counted(statistics, found)


def _errors(path: Path) -> Iterator[str | None]:
    with path.open(encoding="utf-8") as file:
        yield from (json.loads(line)["error"] for line in file)

"""The stage in which agents converse: problems in, conversations.jsonl out.

Conversations are appended as they end and put in order when all are there, so that a rerun gives
the same file whatever ended first. Resume holds exactly the missing ones. Growing trees shares with
it how a dialogue begins and who completes it.
"""

import asyncio
import contextlib
import gc
import json
import logging
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from optima.conversation.dialogue import Completion, Dialogue, Generate, Request, hold_conversations
from optima.errors import StageError
from optima.evaluation.health import HealthCount, TalkHealth
from optima.plan import Step
from optima.processes import interruption
from optima.progress import Meter
from optima.prompts.rendering import Format, example_answer
from optima.records import RecordAppender, atomic_writer, repair_tail
from optima.runs.directory import Stage
from optima.runs.files import CONVERSATIONS
from optima.seeding import derive_seed, rng
from optima.selection import share_of
from optima.serving.client import CompletionClient
from optima.serving.fleet import Fleet
from optima.stages.context import Made, Model, RunContext, Sampling, Team
from optima.tasks.answers import assents, restates
from optima.tasks.choices import named_choice
from optima.tasks.judging import Judge
from optima.tasks.task import JudgeError, Metric
from optima.types import Conversation, Problem

logger = logging.getLogger(__name__)


def dialogue_about(
    context: RunContext, out: Stage, problem: Problem, team: Team, judge: Judge
) -> Dialogue:
    """Return the first conversation of a stage about a problem, before it is held."""
    return Dialogue(
        problem_id=problem.problem_id,
        n=0,
        speakers=team.speakers(problem),
        answer_style=context.task.answer_style,
        agreement=TaskAgreement(context.task.metric, problem.choices, judge),
        limits=context.recipe.conversation,
        seed=derive_seed(context.recipe.seed, out.name),
        choices=problem.choices,
    )


@contextlib.asynccontextmanager
async def completing(
    context: RunContext, out: Stage, team: Team, sampling: Sampling, n_at_once: int | None = None
) -> AsyncIterator[Generate]:
    """Give a function that has servers make one turn, which counts until a record holds it.

    Each turn is asked of the policy of the agent who speaks. ``n_at_once`` calls there will be at
    a time; None, and of servers of others anyway, is ``serving.concurrency`` per server. Servers
    that join later come on top.
    """
    fleets = context.device.fleets(team.model.ref)
    policies = team.policies or ("",) * len(team.codecs)
    playing = [fleets.of(policy) for policy in policies]
    names = [fleet.name_of(policy) for fleet, policy in zip(playing, policies, strict=True)]
    clients: dict[Fleet, CompletionClient] = {}
    async with contextlib.AsyncExitStack() as stack:
        for fleet, codec in zip(playing, team.codecs, strict=True):
            if fleet not in clients:
                client = CompletionClient(
                    fleet.roster,
                    fleet.model_name,
                    context.recipe.serving,
                    None if fleet.is_foreign else n_at_once,
                    codec.encoder.n_ids,
                )
                clients[fleet] = await stack.enter_async_context(client)

        async def generate(request: Request, preferred: object) -> Completion:
            fleet = playing[request.agent]
            held = preferred if isinstance(preferred, dict) else {}  # the server in each fleet
            completion = await clients[fleet].complete(
                request,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                prefer=held.get(fleet),
                model_name=names[request.agent],
            )
            out.count_unkept(completion.n_tokens)
            return replace(completion, server={**held, fleet: completion.server})

        with rare_collections():
            yield generate


def ask(
    context: RunContext,
    folder: str,
    model: Model,
    problems: Sequence[Problem],
    formats: tuple[Format, ...] = (),
) -> Stage:
    """Let ``model`` converse as the recipe's evaluation says, with ``formats`` in one of them."""
    section = context.recipe.evaluation
    sampling = Sampling(section.n_samples, section.temperature, formats=formats)
    team = context.team(model, problems)
    return context.do(Step(f"{folder}/talk", model.label), generate, team, problems, sampling)


def check_errors(
    context: RunContext, out: Stage, metrics: Mapping[str, float], errors: Iterable[str | None]
) -> None:
    """Raise StageError when more conversations failed than ``conversation.max_error_rate`` allows.

    ``metrics`` count them, ``errors`` has an entry for each conversation.
    """
    n, n_failed = int(metrics["conversations"]), int(metrics["conversations/errors"])
    if n_failed > share_of(context.recipe.conversation.max_error_rate, n):
        first = next(filter(None, errors), "nothing")
        raise StageError(
            f"stage {out.name}: {n_failed} of {n} conversations ended in an error, more than "
            f"conversation.max_error_rate allows; the first says: {first}; see "
            f"{context.run.log_dir}, then run again to try exactly those"
        )


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


@dataclass(frozen=True, slots=True)
class TaskAgreement:
    """Compares answers about one problem; ``choices`` are its texts in the order of the letters."""

    metric: Metric
    choices: tuple[str, ...]
    judge: Judge

    async def is_same(self, answer: str, other: str) -> bool:
        """Tell whether both mean the same; False, as in votes, where that takes too long."""
        try:
            told = self.metric.same(answer, other, self.choices)
        except JudgeError:  # which the judge says, and counts as different
            told = None
        if told is not None:
            return told
        return await asyncio.to_thread(
            self.judge.are_same, self.metric, answer, other, self.choices
        )

    def is_restated(self, text: str, answer: str) -> bool:
        """Tell whether an utterance without a mark says nothing but that ``answer`` is right.

        "Right." does, unless it is the text of a choice.
        """
        if assents(text) and (not self.choices or named_choice(text, self.choices) is None):
            return True
        try:
            return restates(text, answer, metric=self.metric, choices=self.choices)
        except JudgeError as error:
            logger.warning("counted as not restated: %s", error)
            return False


class Held:
    """Which of the ``n_samples`` conversations about each problem are held, a bit for each: a run
    may have a million."""

    def __init__(self, n_samples: int) -> None:
        self._n_samples, self._n = n_samples, 0
        self._bits_by_id: dict[str, int] = {}

    def __len__(self) -> int:
        return self._n

    def has(self, problem_id: str, n: int) -> bool:
        """Tell whether a conversation is held."""
        return bool(self._bits_by_id.get(problem_id, 0) >> n & 1)

    def add(self, problem_id: str, n: int) -> bool:
        """Count a conversation as held; False for one that was, ValueError for one of no sample."""
        if not 0 <= n < self._n_samples:
            raise ValueError(f"{n} is not below {self._n_samples}")
        is_new = not self.has(problem_id, n)
        self._bits_by_id[problem_id] = self._bits_by_id.get(problem_id, 0) | 1 << n
        self._n += is_new
        return is_new


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
    held = _keep_good_records(out, sampling.n_samples)
    n_total = len(problems) * sampling.n_samples
    logger.info(
        "%s: %d problems x %d conversations with %s%s",
        out.name, len(problems), sampling.n_samples, team.model.label,
        f", {len(held)} held before" if held else "",
    )  # fmt: skip
    if len(held) < n_total:
        interruption.run(_hold(context, out, team, problems, sampling, held))
    counted = _finalise(path, problems, sampling.n_samples)
    check_errors(context, out, counted.metrics, _errors(path))
    if counted.health.has_collapsed:
        said = counted.health.collapse(example_answer(problems[0], context.style))
        logger.warning("%s: one answer everywhere: %s", out.name, said)
    tokens = counted.metrics["tokens/conversation"]
    answered = 100 * counted.metrics["conversations/answered"]
    line = f"{tokens:.1f} tokens a conversation, {answered:.0f} % answered"
    return Made((CONVERSATIONS,), counted.metrics, line)


class ScoreSoFar:
    """Scores conversations as they end, for the eye; what counts is the stage ``rank``.

    A context manager. ``take`` is given each score. Those of a slow metric are a sample: one answer
    is judged at a time, in a process of its own, and what ends meanwhile is left out.
    """

    def __init__(
        self, metric: Metric, problems: Sequence[Problem], take: Callable[[float], None]
    ) -> None:
        self._metric, self._take = metric, take
        self._problem_by_id = {problem.problem_id: problem for problem in problems}
        self._judge = Judge(1)
        self._pool = ThreadPoolExecutor(1, "score")
        self._last: Future[None] | None = None

    def __enter__(self) -> Self:
        self._judge.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._pool.shutdown(cancel_futures=True)  # bounded: every answer has a deadline
        self._judge.__exit__(*exc)

    def add(self, conversation: Conversation) -> None:
        """Score a conversation, unless it failed or an answer before it is still judged."""
        if conversation.error is not None:
            return
        if not self._metric.is_slow:
            self._score(conversation)
        elif self._last is None or self._last.done():
            self._last = self._pool.submit(self._score, conversation)

    def _score(self, conversation: Conversation) -> None:
        problem = self._problem_by_id[conversation.problem_id]
        asked = (conversation.answer, problem.golds, problem.choices)
        with contextlib.suppress(JudgeError):  # the stage ``rank`` says which
            self._take(self._judge.score(self._metric, *asked))


async def _hold(
    context: RunContext,
    out: Stage,
    team: Team,
    problems: Sequence[Problem],
    sampling: Sampling,
    held: Held,
) -> None:
    """Hold the conversations that are not held yet, and append them."""
    n_total = len(problems) * sampling.n_samples
    meter = Meter(out.name, out.path, "conversations", n_total, len(held))
    fleets = context.device.fleets(team.model.ref)
    n_missing, per_server = n_total - len(held), context.recipe.serving.concurrency

    def n_at_once() -> int:  # servers of other nodes join and leave
        return min(per_server * fleets.n_servers, n_missing)

    with (
        Judge() as judge,
        RecordAppender(out.path / CONVERSATIONS) as appender,
        meter,
        ScoreSoFar(context.task.metric, problems, meter.count_score) as scores,
    ):

        def keep(conversation: Conversation) -> None:
            appender.append(conversation)
            out.count_unkept(-conversation.n_generated)
            scores.add(conversation)
            meter.count(1, n_errors=conversation.error is not None)

        numbers = range(sampling.n_samples)
        missing = (
            (problem, [n for n in numbers if not held.has(problem.problem_id, n)])
            for problem in problems
        )
        dialogues = _dialogues(context, out, team, sampling, missing, judge)
        async with completing(context, out, team, sampling) as complete:
            counted = meter.counting(complete)
            await hold_conversations(dialogues, counted, keep, concurrency=n_at_once)


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


def _keep_good_records(stage: Stage, n_samples: int) -> Held:
    """Return the conversations already held; failed, torn and doubled ones leave the file."""
    path = stage.path / CONVERSATIONS
    repair_tail(path)
    held = Held(n_samples)
    if not path.exists():
        return held
    with atomic_writer(path) as new, path.open(encoding="utf-8") as old:
        for line in old:
            try:
                record = json.loads(line)
                n_tokens = sum(turn["n_tokens"] for turn in record["turns"])
                is_good = record["error"] is None and held.add(record["problem_id"], record["n"])
            except (ValueError, KeyError, TypeError):
                logger.warning("%s: dropped a line that is not a conversation", path)
                continue
            if is_good:
                new.write(line)
            else:
                stage.count_unkept(n_tokens)
    return held


def _finalise(path: Path, problems: Sequence[Problem], n_samples: int) -> _Counted:
    """Put the file in the order of problems and samples, and return what was counted in it."""
    order = {problem.problem_id: i for i, problem in enumerate(problems)}
    health = HealthCount({problem.problem_id: problem for problem in problems})
    places = array("q", [-1]) * (len(problems) * n_samples)  # of the lines, in the order to be
    counts: Counter[str] = Counter()
    if not path.exists():
        path.touch()
    with path.open("rb") as file:
        offset = 0
        for line in file:
            conversation = Conversation.model_validate_json(line)
            places[order[conversation.problem_id] * n_samples + conversation.n] = offset
            offset += len(line)
            health.add(conversation)
            counts["conversations"] += 1
            counts["tokens"] += conversation.n_tokens
            counts["generated"] += conversation.n_generated
            counts["prompt_tokens"] += sum(turn.n_prompt_tokens for turn in conversation.turns)
            counts["turns"] += len(conversation.turns)
            counts["answered"] += conversation.answer is not None
            counts["errors"] += conversation.error is not None
            counts[f"stop/{conversation.stop_reason}"] += 1
            for fault in conversation.faults:
                counts[f"fault/{fault}"] += 1
        with atomic_writer(path) as ordered:
            for place in places:
                if place >= 0:
                    file.seek(place)
                    ordered.write(file.readline().decode())
    n = max(1, counts["conversations"])
    shares = {key: counts[key] / n for key in sorted(counts) if key.startswith(("stop/", "fault/"))}
    found = health.health()
    statistics = {
        "conversations": float(counts["conversations"]),
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

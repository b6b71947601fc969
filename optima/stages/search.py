"""The stage that grows dialogue trees (paper Alg. 4), and what measures their tokens before it.

Finished rounds are appended to ``rounds.jsonl`` as they end, whichever tree they belong to. A
stage that was interrupted grows every tree on from its last finished round; a round with a failed
rollout is grown again, with all rounds after it.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from optima.evaluation.statistics import percentile
from optima.processes import interruption
from optima.progress import Meter
from optima.recipe.schema import SearchSection
from optima.records import (
    RecordAppender,
    atomic_writer,
    parse_record,
    read_records,
    repair_tail,
    write_records,
)
from optima.runs.directory import Stage
from optima.runs.files import CONVERSATIONS, ROUNDS, TREES
from optima.search.tree import Forest
from optima.stages.context import LossModel, Made, RunContext, Sampling, Team
from optima.stages.generate import check_errors, completing, dialogue_about
from optima.stages.rank import RewardDesk, RewardMeans, search_yardstick
from optima.tasks.judging import Judge
from optima.types import Conversation, DialogueTree, Problem, TreeRound

logger = logging.getLogger(__name__)


def normaliser_of(probe: Stage, section: SearchSection) -> int:
    """Return what R_token divides by while trees grow: a percentile of a probe's tokens plus 1."""
    counts = [c.n_tokens for c in read_records(probe.path / CONVERSATIONS, Conversation)]
    return int(percentile(counts, section.probe_percentile)) + 1


def grow(
    context: RunContext,
    out: Stage,
    team: Team,
    problems: Sequence[Problem],
    normaliser: int,
    loss: LossModel,
) -> Made:
    """Let the team grow a tree for every problem; R_token divides by ``normaliser`` tokens.

    Raises StageError when more than ``conversation.max_error_rate`` of the rollouts failed.
    """
    section = search_section(context)
    stored = keep_sound_rounds(out.path / ROUNDS, out.count_unkept)
    n_held = sum(stored.n_rounds(problem.problem_id) for problem in problems)
    n_total = len(problems) * section.n_rounds
    logger.info(
        "%s: %d trees of %d x %d conversations with %s%s",
        out.name, len(problems), section.n_rounds, section.n_rollouts, team.model.label,
        f", {n_held} of {n_total} rounds grown before" if n_held else "",
    )  # fmt: skip
    if n_held < n_total:
        context.device.fleets(team.model.ref)  # before a scorer, which takes what memory is left
        desk = RewardDesk(problems, search_yardstick(context, loss, normaliser))
        interruption.run(_grow_all(context, out, team, problems, desk, stored))
    metrics = _gather(out.path, problems)
    metrics["tokens/normaliser"] = float(normaliser)
    check_errors(context, out, metrics, _errors(out.path / ROUNDS))
    line = (
        f"mean reward {metrics['reward/total']:.3f}, {metrics['tokens/conversation']:.1f} tokens "
        f"a conversation, {metrics['nodes/tree']:.1f} nodes a tree"
    )
    return Made((TREES,), metrics, line)


def search_section(context: RunContext) -> SearchSection:
    """Return how trees grow; only methods with trees have it."""
    assert context.recipe.search is not None
    return context.recipe.search


async def _grow_all(
    context: RunContext,
    out: Stage,
    team: Team,
    problems: Sequence[Problem],
    desk: RewardDesk,
    stored: "StoredRounds",
) -> None:
    """Grow the trees of ``problems`` that are not whole on from their stored rounds."""
    section, sampling = search_section(context), context.recipe.sampling
    n_held = sum(stored.n_rounds(problem.problem_id) for problem in problems)
    n_total = len(problems) * section.n_rounds
    meter = Meter(out.name, out.path, "rounds", n_total, n_held)
    fleets = context.device.fleets(team.model.ref)
    missing = [p for p in problems if stored.n_rounds(p.problem_id) < section.n_rounds]

    def n_at_once() -> int:  # servers of other nodes join and leave
        return min(section.concurrency * fleets.n_servers, len(missing))

    with (
        Judge() as judge,
        desk,
        RecordAppender(out.path / ROUNDS) as appender,
        meter,
    ):

        def keep(finished: TreeRound) -> None:
            appender.append(finished)
            out.count_unkept(-finished.n_tokens)
            for rollout in finished.rollouts:
                if rollout.reward.error is None:
                    meter.count_score(rollout.reward.task)
            failed = [rollout for rollout in finished.rollouts if rollout.stop_reason == "error"]
            meter.count(1, n_errors=len(failed))

        drawn = Sampling(1, sampling.temperature, sampling.top_p)
        n_calls = n_at_once() * section.n_rollouts
        async with completing(context, out, team, drawn, n_calls) as complete:
            forest = Forest(section, meter.counting(complete), desk.rewards_for, keep, n_at_once)
            dialogues = (dialogue_about(context, out, p, team, judge) for p in missing)
            await forest.grow(dialogues, stored)


def _gather(directory: Path, problems: Sequence[Problem]) -> dict[str, float]:
    """Write one record per tree, in the order of the problems, and return their statistics."""
    stored = StoredRounds(directory / ROUNDS)
    totals: Counter[str] = Counter()
    means = RewardMeans()

    def trees() -> Iterator[DialogueTree]:
        for problem in problems:
            rounds = stored[problem.problem_id]
            for finished in rounds:
                _count(finished, totals, means)
            yield DialogueTree(problem_id=problem.problem_id, rounds=rounds)

    n_trees = write_records(directory / TREES, trees())
    n = max(1, totals["rollouts"])
    shares = {key: totals[key] / n for key in sorted(totals) if key.startswith("stop/")}
    return {
        "trees": float(n_trees),
        "conversations": float(totals["rollouts"]),
        "conversations/errors": float(totals["errors"]),
        "nodes/tree": totals["nodes"] / max(1, n_trees),
        "nodes/merged": float(totals["merged"]),
        "tokens/generated": float(totals["tokens"]),
        "tokens/conversation": totals["said"] / n,
        **means.metrics(),
        **shares,
    }


def _count(finished: TreeRound, totals: Counter[str], means: RewardMeans) -> None:
    totals["nodes"] += len(finished.nodes)
    totals["merged"] += finished.n_merged
    totals["tokens"] += finished.n_tokens
    for rollout in finished.rollouts:
        totals["rollouts"] += 1
        totals["errors"] += rollout.stop_reason == "error"
        totals[f"stop/{rollout.stop_reason}"] += 1
        totals["said"] += rollout.reward.n_tokens
        means.add(rollout.reward)


def _errors(path: Path) -> Iterator[str | None]:
    for finished in read_records(path, TreeRound):
        yield from (rollout.reward.error for rollout in finished.rollouts)


class StoredRounds(Mapping[str, tuple[TreeRound, ...]]):
    """The rounds of each tree in their order, by problem id; read from ``path`` when asked for.

    A round that is there twice counts once, the first time. Raises StageError for a line that is
    no round.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, dict[int, int]] = defaultdict(dict)
        place = 0
        with path.open("rb") as file:
            for n, line in enumerate(file, start=1):
                finished = parse_record(line, TreeRound, f"{path}:{n}")
                self._places[finished.problem_id].setdefault(finished.number, place)
                place += len(line)

    def __getitem__(self, problem_id: str) -> tuple[TreeRound, ...]:
        places = self._places.get(problem_id)
        if places is None:
            raise KeyError(problem_id)
        rounds = []
        with self._path.open("rb") as file:
            for number in sorted(places):
                file.seek(places[number])
                rounds.append(TreeRound.model_validate_json(file.readline()))
        return tuple(rounds)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def n_rounds(self, problem_id: str) -> int:
        """Return how many rounds of a tree there are."""
        return len(self._places.get(problem_id, ()))


def keep_sound_rounds(path: Path, count_lost: Callable[[int], None]) -> StoredRounds:
    """Return the rounds that stand: of each tree those before the first failed or missing one.

    All others leave the file, and ``count_lost`` is told the tokens of each. A failed round is one
    with a failed rollout.
    """
    repair_tail(path)
    path.touch()
    stored = StoredRounds(path)
    with atomic_writer(path) as new:
        for rounds in stored.values():
            is_sound = True
            for number, finished in enumerate(rounds):
                is_sound = is_sound and finished.number == number and not has_failed(finished)
                if is_sound:
                    new.write(finished.model_dump_json() + "\n")
                else:
                    count_lost(finished.n_tokens)
    return StoredRounds(path)


def has_failed(finished: TreeRound) -> bool:
    """Tell whether a rollout of the round ended in an error."""
    return any(rollout.stop_reason == "error" for rollout in finished.rollouts)

"""The stages that grow dialogue trees and read preference pairs from them (paper Alg. 4, 5).

Finished rounds are appended to ``rounds.jsonl`` as they end, whichever tree they belong to. A
stage that was interrupted grows every tree on from its last finished round; a round with a failed
rollout is grown again, with all rounds after it.
"""

import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from optima.conversation.dialogue import Dialogue, Request
from optima.conversation.rollouts import RoutedCompletion
from optima.errors import StageError
from optima.evaluation.statistics import percentile
from optima.files import CONVERSATIONS, EVAL_ROWS, PAIRS, ROUNDS, ROWS, TREES
from optima.pipelines import learn
from optima.pipelines.agreement import TaskAgreement
from optima.pipelines.context import Model, RunContext
from optima.pipelines.identity import identity
from optima.pipelines.rewarding import RewardDesk, search_yardstick
from optima.pipelines.rounds import StoredRounds, keep_sound_rounds
from optima.pipelines.talk import TalkPlan, rare_collections, speakers_for, talk
from optima.processes import interruption
from optima.recipe.schema import PairSection, SearchSection
from optima.records import RecordAppender, read_records, write_records
from optima.rundir import Stage
from optima.search.exchange import read_conversational
from optima.search.forest import Forest
from optima.search.pairs import harvest_pairs, preference_row
from optima.seeding import derive_seed
from optima.serving.client import CompletionClient, Server
from optima.shares import share_of
from optima.tasks.judging import Judge
from optima.tasks.loading import sample_problems
from optima.types import (
    Conversation,
    DialogueTree,
    PreferenceRow,
    Problem,
    TreeRound,
)

logger = logging.getLogger(__name__)


def probe(context: RunContext, name: str, model: Model, problems: Sequence[Problem]) -> int:
    """Return what R_token divides by while trees grow: a percentile of the model's tokens plus 1.

    The probe's conversations are stored as those of any stage.
    """
    section = search_section(context)
    chosen = sample_problems(problems, section.n_probe, seed=context.recipe.seed, stage=name)
    sampling = context.recipe.sampling
    plan = TalkPlan(n_samples=1, temperature=sampling.temperature, top_p=sampling.top_p)
    held = talk(context, name, model, chosen, plan)
    counts = [c.n_tokens for c in read_records(held.path / CONVERSATIONS, Conversation)]
    return int(percentile(counts, section.probe_percentile)) + 1


def grow(
    context: RunContext,
    name: str,
    model: Model,
    problems: Sequence[Problem],
    normaliser_tokens: int,
) -> Stage:
    """Grow a tree for every problem, all agents played by ``model``.

    Raises StageError when more than ``conversation.max_error_rate`` of the rollouts failed.
    """
    section = search_section(context)
    ids = "\n".join(problem.problem_id for problem in problems)
    stage = context.run.stage(
        name, model.digest, context.loss_model.digest, ids, repr(normaliser_tokens),
        "\n".join(context.style.texts()), context.loss_end, *context.task.versions,
    )  # fmt: skip
    if stage.done:
        return stage
    path = stage.path / ROUNDS
    stored = keep_sound_rounds(path, stage.count_unkept)
    missing = [p for p in problems if stored.n_rounds(p.problem_id) < section.n_rounds]
    n_held = sum(stored.n_rounds(problem.problem_id) for problem in problems)
    n_total = len(problems) * section.n_rounds
    logger.info(
        "%s: %d trees of %d x %d conversations with %s%s",
        name, len(problems), section.n_rounds, section.n_rollouts, model.label,
        f", {n_held} of {n_total} rounds grown before" if n_held else "",
    )  # fmt: skip
    if missing:
        interruption.run(_grow_all(context, stage, model, missing, normaliser_tokens, stored))
    statistics = _gather(stage.path, problems)
    statistics["tokens/normaliser"] = float(normaliser_tokens)
    n_failed = statistics["conversations/errors"]
    n_rollouts = int(statistics["conversations"])
    if n_failed > share_of(context.recipe.conversation.max_error_rate, n_rollouts):
        raise StageError(
            f"stage {name}: {n_failed:.0f} of {n_rollouts} rollouts failed, more than "
            f"conversation.max_error_rate allows; the first says: {_first_error(path)}; see "
            f"{context.run.log_dir}, then run again to grow exactly those again"
        )
    stage.finish([stage.path / TREES], statistics)
    context.run.write_metrics()
    logger.info(
        "%s: done in %.0f s, mean reward %.3f, %.1f tokens a conversation, %.1f nodes a tree",
        name, stage.done.seconds if stage.done else 0.0, statistics["reward/total"],
        statistics["tokens/conversation"], statistics["nodes/tree"],
    )  # fmt: skip
    return stage


def pair(
    context: RunContext, name: str, problems: Sequence[Problem], grown: Stage, section: PairSection
) -> Stage:
    """Write the selected pairs and their training rows (paper Alg. 5).

    Raises StageError when there is none, and says how far the best one was.
    """
    imported = read_imported(context)
    stage = context.run.stage(
        name, grown.output_digest, identity(section), identity(imported), learn.ROW_FORMAT
    )
    if stage.done:
        return stage
    harvest = harvest_pairs(
        read_records(grown.path / TREES, DialogueTree),
        search_section(context),
        section,
        seed=context.recipe.seed,
    )
    chosen = harvest.chosen
    if not chosen and not imported:
        raise StageError(
            f"stage {name}: no pair to train on: {harvest.best()}, pairs.theta_filter is "
            f"{section.theta_filter} and pairs.theta_diff {section.theta_diff}; lower them, or "
            "raise search.n_rounds"
        )
    n_paired = len({p.problem_id for p in chosen})
    if n_paired < share_of(section.min_share, len(problems)) and not imported:
        raise StageError(
            f"stage {name}: {len(chosen)} pairs from {n_paired} of {len(problems)} "
            f"problems, pairs.min_share is {section.min_share}: too few to learn from; raise "
            "search.n_rounds, lower pairs.theta_filter or pairs.theta_diff (`optima pairs` counts "
            "without generating), or, to train on so little, run again with a lower "
            "pairs.min_share"
        )
    problem_by_id = {problem.problem_id: problem for problem in problems}
    rows = (preference_row(p, speakers_for(context, problem_by_id[p.problem_id])) for p in chosen)
    write_records(stage.path / PAIRS, chosen)
    counts = learn.write_rows(context, stage.path, chain(rows, imported))
    outputs = [stage.path / file for file in (PAIRS, ROWS, EVAL_ROWS)]
    n = max(1, len(chosen))
    metrics = {
        "pairs": float(len(chosen)),
        "pairs/imported": float(len(imported)),
        "pairs/candidates": float(harvest.n_found),
        "pairs/problems": float(n_paired),
        "pairs/chosen_value": sum(p.chosen_value for p in chosen) / n,
        "pairs/rejected_value": sum(p.rejected_value for p in chosen) / n,
        **counts,
    }
    stage.finish(outputs, metrics)
    context.run.write_metrics()
    logger.info(
        "%s: done, %d of %d pairs kept, values %.3f against %.3f",
        name, len(chosen), harvest.n_found,
        metrics["pairs/chosen_value"], metrics["pairs/rejected_value"],
    )  # fmt: skip
    return stage


def read_imported(context: RunContext) -> tuple[PreferenceRow, ...]:
    """Return the preferences of ``pairs.path``; DataError names the first line that is none."""
    section = context.recipe.pairs
    if section is None or section.path is None:
        return ()
    return read_conversational(Path(section.path), context.codec)


def search_section(context: RunContext) -> SearchSection:
    """Return how trees grow; only methods with trees have it."""
    assert context.recipe.search is not None
    return context.recipe.search


async def _grow_all(
    context: RunContext,
    stage: Stage,
    model: Model,
    problems: Sequence[Problem],
    normaliser_tokens: int,
    stored: StoredRounds,
) -> None:
    """Grow the trees of ``problems``, none of which is whole, on from their stored rounds."""
    recipe, section = context.recipe, search_section(context)
    sampling = recipe.sampling
    fleet = context.device.fleet(model.ref)
    yardstick = search_yardstick(context, normaliser_tokens)
    n_at_once = min(section.concurrency * len(fleet.servers), len(problems))
    n_held = sum(stored.n_rounds(problem.problem_id) for problem in problems)
    with (
        Judge() as judge,
        RewardDesk(problems, yardstick) as desk,
        RecordAppender(stage.path / ROUNDS) as appender,
        tqdm(
            total=len(problems) * section.n_rounds, initial=n_held, desc=stage.path.name,
            unit="round", disable=not sys.stderr.isatty(),
        ) as bar,
        rare_collections(),
    ):  # fmt: skip
        async with CompletionClient(
            fleet.servers,
            fleet.model_name,
            recipe.serving,
            n_at_once * section.n_rollouts,
            context.codec.encoder.n_ids,
        ) as client:

            async def generate(request: Request, preferred: object) -> RoutedCompletion:
                completion = await client.complete(
                    request,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    prefer=preferred if isinstance(preferred, Server) else None,
                )
                stage.count_unkept(completion.n_tokens)
                return completion

            def keep(finished: TreeRound) -> None:
                appender.append(finished)
                stage.count_unkept(-finished.n_tokens)
                bar.update()

            forest = Forest(section, generate, desk.rewards_for, keep, n_at_once)
            await forest.grow(_dialogues(context, stage, problems, judge), stored)


def _dialogues(
    context: RunContext, stage: Stage, problems: Sequence[Problem], judge: Judge
) -> Iterator[Dialogue]:
    for problem in problems:
        yield Dialogue(
            problem_id=problem.problem_id,
            n=0,
            speakers=speakers_for(context, problem),
            answer_style=context.task.answer_style,
            agreement=TaskAgreement(context.task.metric, problem.choices, judge),
            choices=problem.choices,
            limits=context.recipe.conversation,
            seed=derive_seed(context.recipe.seed, stage.name),
        )


def _gather(directory: Path, problems: Sequence[Problem]) -> dict[str, float]:
    """Write one record per tree, in the order of the problems, and return their statistics."""
    stored = StoredRounds(directory / ROUNDS)
    totals: Counter[str] = Counter()
    sums: dict[str, float] = defaultdict(float)

    def trees() -> Iterator[DialogueTree]:
        for problem in problems:
            rounds = stored[problem.problem_id]
            for finished in rounds:
                _count(finished, totals, sums)
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
        "tokens/conversation": sums["tokens"] / n,
        "reward/total": sums["total"] / max(1, totals["rewarded"]),
        "reward/task": sums["task"] / n,
        "reward/token": sums["token"] / n,
        "reward/loss_term": sums["loss_term"] / max(1, totals["rewarded"]),
        "reward/errors": float(totals["rollouts"] - totals["rewarded"]),
        **shares,
    }


def _count(finished: TreeRound, totals: Counter[str], sums: dict[str, float]) -> None:
    totals["nodes"] += len(finished.nodes)
    totals["merged"] += finished.n_merged
    totals["tokens"] += finished.n_tokens
    for rollout in finished.rollouts:
        totals["rollouts"] += 1
        totals["errors"] += rollout.stop_reason == "error"
        totals[f"stop/{rollout.stop_reason}"] += 1
        sums["tokens"] += rollout.reward.n_tokens
        sums["task"] += rollout.reward.task
        sums["token"] += rollout.reward.token
        if rollout.reward.total is not None:
            totals["rewarded"] += 1
            sums["total"] += rollout.reward.total
            sums["loss_term"] += rollout.reward.loss_term


def _first_error(path: Path) -> str:
    for finished in read_records(path, TreeRound):
        for rollout in finished.rollouts:
            if rollout.reward.error is not None:
                return rollout.reward.error
    return "nothing"

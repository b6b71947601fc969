"""The stages that grow dialogue trees and read preference pairs from them (paper Alg. 4, 5).

Finished rounds are appended to ``rounds.jsonl`` as they end, whichever tree they belong to. A
stage that was interrupted grows every tree on from its last finished round; a round with a failed
rollout is grown again, with all rounds after it.
"""

import asyncio
import logging
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from optima.conversation.dialogue import Dialogue, Request
from optima.errors import StageError
from optima.evaluation.statistics import percentile
from optima.pipelines import learn
from optima.pipelines.context import Model, RunContext
from optima.pipelines.rewarding import RewardDesk
from optima.pipelines.talk import FILE as CONVERSATIONS
from optima.pipelines.talk import TalkPlan, rare_collections, speakers_for, talk
from optima.recipe.schema import PairSection, SearchSection
from optima.rundir import (
    RecordAppender,
    Stage,
    atomic_writer,
    disk_errors,
    read_records,
    repair_tail,
    write_records,
)
from optima.search.exchange import read_conversational
from optima.search.expand import TreeGrower
from optima.search.pairs import preference_row, select_pairs, sibling_pairs
from optima.search.tree import Tree
from optima.seeding import derive_seed, rng
from optima.serving.client import Completion, CompletionClient, Server
from optima.tasks.loading import sample_problems
from optima.types import Conversation, DialogueTree, PreferencePair, Problem, TreeRound

logger = logging.getLogger(__name__)
ROUNDS = "rounds.jsonl"
TREES = "trees.jsonl"
PAIRS = "pairs.jsonl"


def probe(context: RunContext, name: str, model: Model, problems: Sequence[Problem]) -> int:
    """Return what R_token divides by while trees grow: a percentile of the model's tokens plus 1.

    The probe's conversations are stored as those of any stage.
    """
    section = search_section(context)
    chosen = sample_problems(problems, section.n_probe, seed=context.recipe.seed, stage=name)
    plan = TalkPlan(n_samples=1, temperature=context.recipe.sampling.temperature)
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
        name, model.digest, context.loss_model.digest, ids, repr(normaliser_tokens)
    )
    if stage.done:
        return stage
    path = stage.path / ROUNDS
    rounds = _keep_good_rounds(stage)
    n_held = sum(map(len, rounds.values()))
    n_total = len(problems) * section.n_rounds
    logger.info(
        "%s: %d trees of %d x %d conversations with %s%s",
        name, len(problems), section.n_rounds, section.n_rollouts, model.label,
        f", {n_held} of {n_total} rounds grown before" if n_held else "",
    )  # fmt: skip
    if n_held < n_total:
        asyncio.run(_grow_all(context, stage, model, problems, normaliser_tokens, rounds))
    statistics = _gather(stage.path, problems)
    n_failed = statistics["conversations/errors"]
    n_rollouts = statistics["conversations"]
    if n_failed > context.recipe.conversation.max_error_rate * n_rollouts:
        raise StageError(
            f"stage {name}: {n_failed:.0f} of {n_rollouts:.0f} rollouts failed, more than "
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
    imported = read_conversational(Path(section.path)) if section.path else ()
    stage = context.run.stage(name, grown.output_digest, repr(section), repr(imported))
    if stage.done:
        return stage
    all_pairs, chosen = read_pairs(context, grown, section)
    if not chosen and not imported:
        best = max((p.chosen_value for p in all_pairs), default=None)
        gap = max((p.chosen_value - p.rejected_value for p in all_pairs), default=None)
        reason = (
            f"of {len(all_pairs)} the highest chosen value is {best:.3f} and the widest gap "
            f"{gap:.3f}"
            if best is not None and gap is not None
            else "no siblings differ in value"
        )
        raise StageError(
            f"stage {name}: no pair to train on: {reason}, pairs.theta_filter is "
            f"{section.theta_filter} and pairs.theta_diff {section.theta_diff}; lower them, or "
            "raise search.n_rounds"
        )
    problem_by_id = {problem.problem_id: problem for problem in problems}
    rows = (preference_row(p, speakers_for(context, problem_by_id[p.problem_id])) for p in chosen)
    write_records(stage.path / PAIRS, chosen)
    counts = learn.write_rows(context, stage.path, chain(rows, imported))
    outputs = [stage.path / file for file in (PAIRS, learn.ROWS, learn.EVAL_ROWS)]
    n = max(1, len(chosen))
    metrics = {
        "pairs": float(len(chosen)),
        "pairs/imported": float(len(imported)),
        "pairs/candidates": float(len(all_pairs)),
        "pairs/problems": float(len({p.problem_id for p in chosen})),
        "pairs/chosen_value": sum(p.chosen_value for p in chosen) / n,
        "pairs/rejected_value": sum(p.rejected_value for p in chosen) / n,
        **counts,
    }
    stage.finish(outputs, metrics)
    context.run.write_metrics()
    logger.info(
        "%s: done, %d of %d pairs kept, values %.3f against %.3f",
        name, len(chosen), len(all_pairs),
        metrics["pairs/chosen_value"], metrics["pairs/rejected_value"],
    )  # fmt: skip
    return stage


def read_pairs(
    context: RunContext, grown: Stage, section: PairSection
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Return (all pairs, selected pairs) of the trees of a stage, problem by problem."""
    return pairs_of_trees(
        read_records(grown.path / TREES, DialogueTree),
        search_section(context),
        section,
        seed=context.recipe.seed,
    )


def pairs_of_trees(
    trees: Iterator[DialogueTree], search: SearchSection, section: PairSection, *, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Return (all pairs, selected pairs) of trees, in their order."""
    found: list[PreferencePair] = []
    chosen: list[PreferencePair] = []
    for record in trees:
        pairs = sibling_pairs(Tree(search, record.rounds), record.problem_id)
        found += pairs
        chosen += select_pairs(pairs, section, rng(seed, "pairs", record.problem_id))
    return found, chosen


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
    rounds: Mapping[str, Sequence[TreeRound]],
) -> None:
    recipe, section = context.recipe, search_section(context)
    fleet = context.device.fleet(model.ref)
    sampling = recipe.sampling
    n_held = sum(map(len, rounds.values()))
    waiting = iter(problems)
    async with (
        CompletionClient(fleet.servers, fleet.model_name, recipe.serving) as client,
        RewardDesk(context, problems, normaliser_tokens) as desk,
    ):
        with (
            RecordAppender(stage.path / ROUNDS) as appender,
            tqdm(
                total=len(problems) * section.n_rounds, initial=n_held, desc=stage.path.name,
                unit="round", disable=not sys.stderr.isatty(),
            ) as bar,
            rare_collections(),
        ):  # fmt: skip

            def keep(finished: TreeRound) -> None:
                appender.append(finished)
                stage.count_unkept(-finished.n_tokens)
                bar.update()

            async def work() -> None:
                for problem in waiting:  # shared by all workers: each problem is taken once
                    server: Server | None = None  # a tree stays where its prefixes are cached

                    async def complete(request: Request) -> Completion:
                        nonlocal server
                        completion = await client.complete(
                            request.prompt,
                            max_tokens=request.max_tokens,
                            temperature=sampling.temperature,
                            top_p=sampling.top_p,
                            seed=request.seed,
                            prefer=server,
                        )
                        server = completion.server
                        stage.count_unkept(completion.n_tokens)
                        return completion

                    dialogue = Dialogue(
                        problem_id=problem.problem_id,
                        n=0,
                        speakers=speakers_for(context, problem),
                        answer_style=context.task.answer_style,
                        limits=recipe.conversation,
                        seed=derive_seed(recipe.seed, stage.name),
                    )
                    grower = TreeGrower(dialogue, section, complete, desk.rewards_for())
                    await grower.grow(rounds.get(problem.problem_id, ()), keep)

            n_workers = min(section.concurrency * len(fleet.servers), len(problems))
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(n_workers):
                        group.create_task(work())
            except ExceptionGroup as failures:
                raise failures.exceptions[0] from failures


def _keep_good_rounds(stage: Stage) -> dict[str, list[TreeRound]]:
    """Return the rounds that stand: of each tree those before the first failed or missing one.

    All others leave the file.
    """
    path = stage.path / ROUNDS
    repair_tail(path)
    if not path.exists():
        return {}
    by_number: dict[str, dict[int, TreeRound]] = defaultdict(dict)
    for finished in read_records(path, TreeRound):
        by_number[finished.problem_id].setdefault(finished.number, finished)
    kept: dict[str, list[TreeRound]] = {}
    for problem_id, numbered in by_number.items():
        rounds = kept[problem_id] = []
        while len(rounds) in numbered:
            candidate = numbered[len(rounds)]
            if any(rollout.stop_reason == "error" for rollout in candidate.rollouts):
                break
            rounds.append(candidate)
        stage.count_unkept(sum(r.n_tokens for k, r in numbered.items() if k >= len(rounds)))
    with disk_errors(path), atomic_writer(path) as new:
        for rounds in kept.values():
            new.writelines(finished.model_dump_json() + "\n" for finished in rounds)
    return kept


def _gather(directory: Path, problems: Sequence[Problem]) -> dict[str, float]:
    """Write one record per tree, in the order of the problems, and return their statistics."""
    rounds: dict[str, list[TreeRound]] = defaultdict(list)
    for finished in read_records(directory / ROUNDS, TreeRound):
        rounds[finished.problem_id].append(finished)
    totals: Counter[str] = Counter()
    sums: dict[str, float] = defaultdict(float)

    def trees() -> Iterator[DialogueTree]:
        for problem in problems:
            of_tree = sorted(rounds.pop(problem.problem_id), key=lambda r: r.number)
            for finished in of_tree:
                totals["nodes"] += len(finished.nodes)
                totals["merged"] += finished.n_merged
                totals["tokens"] += finished.n_tokens
                for rollout in finished.rollouts:
                    totals["rollouts"] += 1
                    totals["errors"] += rollout.stop_reason == "error"
                    totals[f"stop/{rollout.stop_reason}"] += 1
                    sums["tokens"] += rollout.reward.n_tokens
                    sums["task"] += rollout.reward.task
                    if rollout.reward.total is not None:
                        totals["rewarded"] += 1
                        sums["total"] += rollout.reward.total
            yield DialogueTree(problem_id=problem.problem_id, rounds=tuple(of_tree))

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
        **shares,
    }


def _first_error(path: Path) -> str:
    for finished in read_records(path, TreeRound):
        for rollout in finished.rollouts:
            if rollout.reward.error is not None:
                return rollout.reward.error
    return "nothing"

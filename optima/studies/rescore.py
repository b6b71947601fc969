"""A finished training under another reward, metric or selection; nothing is generated or trained.

Every stored conversation is rewarded again from what the run keeps of it (its answer, its tokens,
the losses of its turns), and each iteration's selection is made again, beside the one it had. Trees
keep their shape: which of their nodes were expanded followed from the rewards of the run. Their
pairs can also be rebuilt alone, with other thresholds, and exported.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from optima.conversation.dialogue import find_faults, last_answer
from optima.errors import UsageError
from optima.evaluation.figures import JudgedConversation
from optima.plan import trained_agents
from optima.prompts.rendering import PromptStyle
from optima.recipe.loading import load_recipe
from optima.recipe.schema import Recipe, RewardSection
from optima.records import atomic_writer
from optima.reporting.tables import Table
from optima.reward import compute_reward, search_reward
from optima.runs.comparison import open_task
from optima.runs.files import RECIPE, TREES
from optima.runs.reader import Run
from optima.search.pairs import Harvest, export_lines, preference_row
from optima.search.tree import Tree
from optima.selection import best_of_each, select_top
from optima.stages.context import speakers_of
from optima.stages.opening import base_model, codecs_of
from optima.stages.rank import in_batches
from optima.tasks import get_task
from optima.tasks.judging import Judge, JudgeError, Judgement
from optima.tasks.task import Metric
from optima.types import (
    Conversation,
    DialogueTree,
    PreferencePair,
    PreferenceRow,
    Problem,
    RewardParts,
)

CHANGEABLE = ("reward.", "select.", "pairs.", "search.lambda_token=", "search.lambda_loss=")
PAIRS_HEAD = ("iteration", "trees", "pairs", "kept", "problems", "chosen", "rejected")


@dataclass(frozen=True, slots=True)
class Chosen:
    """What an iteration trains on, conversations or pairs, and what there was to choose from.

    ``n_found`` counts problems with an eligible conversation, or pairs of siblings that differ.
    ``high`` is the mean R of what is chosen, of pairs the mean value of the chosen utterances;
    ``low`` the mean R_task, of pairs the mean value of the rejected ones; ``tokens`` the mean
    length of a conversation, of pairs that of a chosen utterance. None where nothing is chosen.
    """

    n_found: int
    n_chosen: int
    n_problems: int
    high: float | None
    low: float | None
    tokens: float | None


@dataclass(frozen=True, slots=True)
class Selection:
    """The selection of one iteration by the run's recipe and by the changed one."""

    iteration: str
    before: Chosen
    after: Chosen
    n_common: int


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What a model gets: mean R_task in [0, 1] and mean R of those that could be rewarded."""

    model: str
    score_before: float
    score_after: float
    reward_before: float | None
    reward_after: float | None


@dataclass(frozen=True, slots=True)
class Rescored:
    """A run's selections of conversations and of pairs and its evaluations, before and after."""

    selections: tuple[Selection, ...]
    pairs: tuple[Selection, ...]
    evaluations: tuple[Evaluated, ...]

    def row(self) -> dict[str, Any]:
        """Return everything as values of JSON."""
        return asdict(self)

    def text(self) -> str:
        """Return a table of each kind that the run has."""
        kinds = (("R", "score", self.selections), ("chosen", "rejected", self.pairs))
        shown = [_table(high, low, found).text() for high, low, found in kinds if found]
        if self.evaluations:
            shown.append(_models_table(self.evaluations).text())
        return "\n\n".join(shown) or "nothing is rewarded or evaluated yet"


def rescore(
    root: Path, overrides: Sequence[str], metric: Metric | None = None, *, task: str | None = None
) -> Rescored:
    """Reward and select again what the finished stages of a training hold.

    ``metric`` scores answers instead of the task's own; ``task`` is the one that is meant of a
    mixture. Raises UsageError for a directory that is not a training, for fields that decide more
    than rewards and selections, and where losses are asked for that the run did not take.
    """
    run = open_task(root, task)
    for change in overrides:
        key = change.removeprefix(f"tasks.{run.task}.")
        if "=" in change and not key.startswith(CHANGEABLE):
            raise UsageError(
                f"{change}: decides what is generated or trained, or is of another task; change "
                "fields of reward, select or pairs, or search.lambda_token and search.lambda_loss"
            )
    if run.is_evaluation:
        raise UsageError(f"{root}: is an evaluation, which selects nothing; name a training run")
    _ = run.recipe  # says what is wrong with the stored one by itself
    finished = {done.stage for done in run.stages}
    labels = list(dict.fromkeys(done.stage.partition("/")[0] for done in run.stages))
    recipe = load_recipe(root / RECIPE, overrides).members()[run.task]
    if _takes_more_than_trees(recipe) and not _takes_more_than_trees(run.recipe):
        raise UsageError(
            f"{root}: pairs.strategy=influence takes trainings and pairs.path a file; rescore with "
            "pairs.strategy=value or random"
        )
    # Of a run whose pairs came from more than its trees, what it trained on is not found again.
    harvested = () if _takes_more_than_trees(run.recipe) else labels
    with Judge() as judge:
        changed = _Changed(run, recipe, judge, metric)
        return Rescored(
            tuple(changed.selection(label) for label in labels if f"{label}/rank" in finished),
            tuple(changed.pairs(label) for label in harvested if f"{label}/pairs" in finished),
            tuple(changed.evaluation(label) for label in run.evaluated),
        )


def _takes_more_than_trees(recipe: Recipe) -> bool:
    """Tell whether pairs are chosen by trainings, or come from a file as well."""
    pairs = recipe.pairs
    return pairs is not None and (pairs.strategy == "influence" or pairs.path is not None)


@dataclass(frozen=True, slots=True)
class _Stored:
    """A conversation and what a run keeps of its reward; ``losses`` are those of its turns."""

    problem: Problem
    conversation: Conversation
    parts: RewardParts
    losses: tuple[float | None, ...] | None


class _Changed:
    """A run by another recipe; ``metric`` scores its answers, None: the task's own."""

    def __init__(self, run: Run, recipe: Recipe, judge: Judge, metric: Metric | None) -> None:
        self._run = run
        self._recipe = recipe
        self._judge = judge
        self._is_other_metric = metric is not None
        self._metric = metric or get_task(recipe.task).metric

    def selection(self, label: str) -> Selection:
        """Return the selection of an iteration of SFT."""
        section, run = self._recipe.reward, self._run
        said = self._stored(run.candidates(label), f"{label}/score")
        stored, best = [], []
        for _, group in groupby(self._both(said, section), key=lambda both: both[0].problem_id):
            stored_N, changed_N = zip(*group, strict=True)
            stored += best_of_each(stored_N)
            best += best_of_each(changed_N)
        before, after = select_top(stored, run.recipe.select), select_top(best, self._recipe.select)
        keys = [{(one.problem_id, one.n) for one in chosen} for chosen in (before, after)]
        n_common = len(keys[0] & keys[1])
        return Selection(label, _of_selected(stored, before), _of_selected(best, after), n_common)

    def pairs(self, label: str) -> Selection:
        """Return the selection of an iteration of DPO."""
        found = [
            _harvest(self._run.trees(label), self._run.recipe),
            _harvest(self._revalued(label), self._recipe),
        ]
        keys = [
            {(one.problem_id, one.parent, one.chosen.text, one.rejected.text) for one in chosen}
            for _, chosen in found
        ]
        before, after = (_of_pairs(*one) for one in found)
        return Selection(label, before, after, len(keys[0] & keys[1]))

    def evaluation(self, label: str) -> Evaluated:
        """Return what an evaluated model gets."""
        stored = [one.reward for one in self._run.evaluation(label)]
        said = self._stored(self._run.evaluation(label), f"evaluate/{label}/score")
        changed = list(self._rewards(said, self._recipe.reward))
        scores = [_mean([parts.task for parts in parts_]) or 0.0 for parts_ in (stored, changed)]
        rewards = [_mean([parts.total for parts in parts_]) for parts_ in (stored, changed)]
        return Evaluated(label, *scores, *rewards)

    def _stored(self, judged: Iterable[JudgedConversation], scored: str) -> Iterator[_Stored]:
        """Yield conversations with the losses that the stage ``scored`` took, where they count."""
        if self._recipe.reward.lambda_loss == 0:
            yield from (_Stored(o.problem, o.conversation, o.reward, None) for o in judged)
            return
        self._check_losses(self._run.recipe.reward, self._recipe.reward, "reward")
        for one, turns in zip(judged, self._run.losses(scored), strict=True):
            yield _Stored(one.problem, one.conversation, one.reward, turns.losses)

    def _check_losses(self, own: RewardSection, section: RewardSection, where: str) -> None:
        if section.lambda_loss > 0 and own.lambda_loss == 0:
            raise UsageError(
                f"{where}.lambda_loss: {self._run.root} took no losses, since its own is 0; leave "
                "it 0, or run again with another"
            )

    def _revalued(self, label: str) -> Iterator[DialogueTree]:
        """Yield the trees of an iteration, their rollouts rewarded by the changed recipe."""
        own, section = search_reward(self._run.recipe), search_reward(self._recipe)
        self._check_losses(own, section, "search")
        limit = own.max_loss_tokens
        if section.lambda_loss > 0 and limit and (section.max_loss_tokens or math.inf) > limit:
            raise UsageError(
                f"reward.max_loss_tokens: {self._run.root} kept no losses of rollouts of over "
                f"{limit} tokens; leave it, or lower it"
            )
        problem_by_id = self._run.problems("train")
        for tree in self._run.trees(label):
            problem = problem_by_id[tree.problem_id]
            parts = iter(list(self._rewards(self._rollouts(tree, problem), section)))
            rounds = (
                one.model_copy(
                    update={
                        "rollouts": tuple(
                            rollout.model_copy(update={"reward": next(parts)})
                            for rollout in one.rollouts
                        )
                    }
                )
                for one in tree.rounds
            )
            yield tree.model_copy(update={"rounds": tuple(rounds)})

    def _rollouts(self, tree: DialogueTree, problem: Problem) -> Iterator[_Stored]:
        assert self._recipe.search is not None
        nodes = Tree(self._recipe.search, tree.rounds).nodes
        for rollout in (rollout for one in tree.rounds for rollout in one.rollouts):
            turns, stop, parts = (
                nodes[rollout.node_id].history(),
                rollout.stop_reason,
                rollout.reward,
            )
            talk = Conversation(
                problem_id=tree.problem_id, n=rollout.n, format_id=None, turns=turns,
                stop_reason=stop, answer=last_answer(turns),
                faults=find_faults(turns, stop, self._recipe.agents.names),
                error=parts.error if stop == "error" else None,
            )  # fmt: skip
            # R_loss is the largest of its turns' losses, and all that is kept of them.
            yield _Stored(problem, talk, parts, (parts.loss,) * len(turns))

    def _rewards(self, stored: Iterable[_Stored], section: RewardSection) -> Iterator[RewardParts]:
        """Yield the reward of every conversation by ``section``."""
        return (after for _, after in self._both(stored, section))

    def _both(
        self, stored: Iterable[_Stored], section: RewardSection
    ) -> Iterator[tuple[RewardParts, RewardParts]]:
        """Yield the reward of every conversation as it is stored, and by ``section``."""
        for batch in in_batches(stored):
            for one, score in zip(batch, self._scores(batch), strict=True):
                after = compute_reward(
                    one.conversation,
                    task_score=score,
                    normaliser_tokens=_normaliser(one.parts),
                    turn_losses=one.losses,
                    section=section,
                )
                yield one.parts, after

    def _scores(self, batch: Sequence[_Stored]) -> list[float | JudgeError]:
        """Return R_task: as stored, and by the judge where the metric is another or it failed."""
        unknown = [one for one in batch if self._is_other_metric or one.parts.error is not None]
        judged = iter(
            self._judge.score_many(
                self._metric,
                [
                    Judgement(one.conversation.answer, one.problem.golds, one.problem.choices)
                    for one in unknown
                ],
            )
        )
        ids = set(map(id, unknown))
        return [next(judged) if id(one) in ids else one.parts.task for one in batch]


def _normaliser(parts: RewardParts) -> int:
    """Return what R_token divided by, as far as it matters: R_token is capped at 1."""
    return max(1, round(parts.n_tokens / parts.token)) if parts.token else 1


def _harvest(trees: Iterable[DialogueTree], recipe: Recipe) -> tuple[Harvest, list[PreferencePair]]:
    assert recipe.search is not None
    assert recipe.pairs is not None
    harvest = Harvest()
    gathered = harvest.gather(trees, recipe.search, recipe.pairs, seed=recipe.seed)
    return harvest, list(gathered)


def _of_selected(best: Sequence[RewardParts], chosen: Sequence[RewardParts]) -> Chosen:
    return Chosen(
        len(best), len(chosen), len({one.problem_id for one in chosen}),
        _mean([one.total for one in chosen]), _mean([one.task for one in chosen]),
        _mean([one.n_tokens for one in chosen]),
    )  # fmt: skip


def _of_pairs(harvest: Harvest, chosen: Sequence[PreferencePair]) -> Chosen:
    return Chosen(
        harvest.n_found, harvest.n_chosen, harvest.n_paired,
        _mean([one.chosen_value for one in chosen]), _mean([one.rejected_value for one in chosen]),
        _mean([one.chosen.n_counted for one in chosen]),
    )  # fmt: skip


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _table(high: str, low: str, found: Sequence[Selection]) -> Table:
    head = ("iteration", "by", "found", "chosen", "problems", high, low, "tokens", "in both")
    lines = [
        (
            one.iteration, by, str(chosen.n_found), str(chosen.n_chosen), str(chosen.n_problems),
            _shown(chosen.high, 3), _shown(chosen.low, 3), _shown(chosen.tokens, 1), common,
        )
        for one in found
        for by, chosen, common in (
            ("the run", one.before, ""), ("the change", one.after, str(one.n_common)),
        )
    ]  # fmt: skip
    return Table(head, tuple(lines), n_left=2)


def _models_table(found: Sequence[Evaluated]) -> Table:
    head = ("model", "score", "changed", "R", "changed")
    lines = (
        (
            one.model, _shown(100 * one.score_before, 1), _shown(100 * one.score_after, 1),
            _shown(one.reward_before, 3), _shown(one.reward_after, 3),
        )
        for one in found
    )  # fmt: skip
    return Table(head, tuple(lines))


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def rebuild_pairs(
    run_dir: Path,
    iteration: str | None,
    overrides: Sequence[str],
    out: Path | None,
    *,
    task: str | None = None,
) -> Table:
    """Return a table of the pairs of every iteration; with ``out`` export them in their order.

    What trainings decide is left out: with strategy ``influence`` all pairs above the thresholds
    count as kept.

    Raises UsageError when the directory holds no such run or iteration, or ``out`` has no folder.
    """
    run = open_task(run_dir, task)
    _ = run.recipe  # says what is wrong with the stored one by itself
    recipe = load_recipe(run_dir / RECIPE, overrides).members()[run.task]
    if recipe.search is None or recipe.pairs is None:
        raise UsageError(
            f"--run {run_dir}: is a run of method {recipe.method}, which has no trees; name one of "
            "optima-dpo or optima-sft-dpo"
        )
    grown = [search.label for search in run.searches if search.is_finished]
    labels = [label for label in grown if iteration in (None, label)]
    if not labels:
        what = f"--iteration {iteration}" if iteration else f"--run {run_dir}"
        remedy = f"take one of {', '.join(grown)}" if grown else "let the run grow some first"
        raise UsageError(f"{what}: has no finished trees ({run_dir}/*/search/{TREES}); {remedy}")
    if out is not None and not out.absolute().parent.is_dir():
        raise UsageError(f"--out {out}: its folder does not exist; make it first")
    rows: list[tuple[str, ...]] = []
    kept: list[PreferencePair] = []
    problems = run.problems("train")
    for label in labels:
        harvest, pairs = _harvest(run.trees(label), recipe)
        kept += pairs
        chosen = _of_pairs(harvest, pairs)
        rows.append(
            (
                label, str(harvest.n_trees), str(chosen.n_found), str(chosen.n_chosen),
                str(chosen.n_problems), _shown(chosen.high, 3), _shown(chosen.low, 3),
            )
        )  # fmt: skip
    if out is not None:
        with atomic_writer(out) as file:
            file.writelines(export_lines(_training_rows(recipe, problems, kept)))
    return Table(PAIRS_HEAD, tuple(rows))


def _training_rows(
    recipe: Recipe, problem_by_id: Mapping[str, Problem], pairs: Sequence[PreferencePair]
) -> Iterator[PreferenceRow]:
    codecs, learners = codecs_of(recipe, base_model(recipe)), trained_agents(recipe)
    style = PromptStyle.of(recipe, get_task(recipe.task))
    for pair in pairs:
        if pair.chosen.agent in learners:
            yield preference_row(pair, speakers_of(style, codecs, problem_by_id[pair.problem_id]))

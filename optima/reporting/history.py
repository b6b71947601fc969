"""What a report shows of runs, read from their directories; nothing in them is changed.

A run is what a training, an inference, self-consistency, baselines or a transfer wrote; a folder of
them (a sweep, a transfer) is read as its runs. Only finished stages count, so a run can be read
while it goes on. Refuses what is no run directory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from optima.errors import StageError, UsageError
from optima.evaluation.consistency import Point, scaling_curve, vote_of_all
from optima.evaluation.statistics import Estimate
from optima.evaluation.summary import Summary, Tally, summarise_together, tally
from optima.pipelines.baselines import METHODS
from optima.pipelines.comparison import Evaluated, evaluated_models, is_evaluation
from optima.pipelines.consistency import read_samples
from optima.pipelines.cost import ModelCost, read_costs
from optima.pipelines.judged import read_judged
from optima.recipe.schema import Recipe
from optima.stages import (
    StageDone,
    check_run,
    find_begun,
    finished_stages,
    read_done,
    read_each,
    read_recipe,
)

Kind = Literal["training", "inference", "baselines", "consistency", "transfer"]


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """One model as a run evaluated it.

    ``tokens_N`` are the tokens of each conversation (of each vote where it was one of votes).
    ``reward`` is the mean R, with the tokens of the run's first model as normaliser; None outside
    of trainings. ``metrics`` are those of its talk. ``talk_s`` and ``made_in_s`` are seconds of
    wall time; the latter is of its own iteration, 0 where the run did not train it.
    """

    evaluated: Evaluated
    summary: Summary
    tokens_N: NDArray[np.int64]
    reward: float | None
    metrics: dict[str, float]
    talk_s: float
    made_in_s: float

    @property
    def label(self) -> str:
        """Name of the model in its run."""
        return self.evaluated.label

    @property
    def n_samples(self) -> int:
        """Conversations per problem."""
        return round(self.metrics["conversations"] / self.summary.n_problems)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Conversations that an iteration drew from the model before it, by the metrics of its stages.

    A metric is missing where its stage is not finished.
    """

    label: str
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Scaling:
    """A model's votes and coverage for k = 1, 2, ... samples."""

    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class History:
    """A run: its models in the order in which they were evaluated, and what it spent on them.

    ``name`` tells it from the other runs of the report; ``folder`` is the one it was found in when
    that was given in its place.
    """

    name: str
    root: Path
    folder: Path | None
    kind: Kind
    task: str
    method: str
    models: tuple[EvaluatedModel, ...]
    candidates: tuple[Candidates, ...]
    costs: tuple[ModelCost, ...]
    scalings: tuple[Scaling, ...]


def read_histories(runs: Sequence[Path]) -> tuple[History, ...]:
    """Return the runs in directories, and in folders of such, in the order given.

    Raises UsageError for directories that are neither, StageError for broken records, each named.
    """
    found = [pair for pairs in read_each(_expand, runs) for pair in pairs]
    roots = list(dict.fromkeys(root for root, _ in found))
    names = dict(zip(roots, _names(roots), strict=True))
    folders = dict(reversed(found))
    histories = read_each(lambda root: _read(root, names[root], folders[root]), roots)
    return tuple(_mark_transfers(histories))


def find_runs(runs: Sequence[Path]) -> tuple[Path, ...]:
    """Return the run directories that ``runs`` are or hold; UsageError for what is neither."""
    return tuple(dict.fromkeys(root for pairs in read_each(_expand, runs) for root, _ in pairs))


def _expand(run: Path) -> list[tuple[Path, Path | None]]:
    if (run / "recipe.yaml").is_file() or (run / "LOCK").is_file():
        return [(run, None)]
    if not (below := find_begun(run)):
        raise UsageError(
            f"{run}: is no run directory (it has no recipe.yaml) nor a folder of some; give what "
            "--run-dir or --output named"
        )
    return [(path, run) for path in sorted(below, key=_order)]


def _order(root: Path) -> tuple[float, str]:
    """Return when a run began: a folder's runs come in that order, as in its own table."""
    try:
        begun = read_done(root / "problems")
    except StageError:  # said when the run is read
        begun = None
    return (begun.started_unix_s if begun else float("inf"), root.name)


def _names(roots: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart."""
    parts = [path.resolve().parts[1:] or ("/",) for path in roots]
    names = []
    for own in parts:
        n = 1
        while n < len(own) and sum(other[-n:] == own[-n:] for other in parts) > 1:
            n += 1
        names.append("/".join(own[-n:]))
    return names


def _mark_transfers(histories: Sequence[History]) -> list[History]:
    """Call the inferences of a folder a transfer when each is in a directory called as its task."""
    by_folder: dict[Path, list[History]] = {}
    for history in histories:
        if history.folder is not None:
            by_folder.setdefault(history.folder, []).append(history)
    transfers = {
        folder
        for folder, inside in by_folder.items()
        if all(one.kind == "inference" and one.root.name == one.task for one in inside)
    }
    return [replace(one, kind="transfer") if one.folder in transfers else one for one in histories]


def _read(root: Path, name: str, folder: Path | None) -> History:
    recipe = read_recipe(root)
    check_run(root)
    is_training = not is_evaluation(root)
    stages = finished_stages(root) if is_training else []
    models = _models(root, recipe, stages if is_training else None)
    results = {} if is_training else _results(root)
    scalings = () if is_training else _scalings(models, recipe, results)
    kind: Kind = "training" if is_training else "inference"
    if scalings:
        kind = "consistency"
    elif models and not is_training and all(model.label in METHODS for model in models):
        kind = "baselines"
    costs = read_costs(root) if is_training else _costs(results)
    return History(
        name=name,
        root=root,
        folder=folder,
        kind=kind,
        task=recipe.task,
        method=recipe.method if is_training else kind,
        models=models,
        candidates=_candidates(stages),
        costs=costs,
        scalings=scalings,
    )


def _models(
    root: Path, recipe: Recipe, stages: Sequence[StageDone] | None
) -> tuple[EvaluatedModel, ...]:
    """Return the evaluated models; ``stages`` are those of a training, None of anything else."""
    found = [(model, _tally(model, recipe)) for model in evaluated_models(root)]
    found = [(model, counted) for model, counted in found if counted.counts]
    summaries = summarise_together([counted for _, counted in found], seed=recipe.seed)
    models = []
    for (model, counted), summary in zip(found, summaries, strict=True):
        talked, ranked = read_done(model.path / "talk"), read_done(model.path / "rank")
        assert talked is not None
        assert ranked is not None
        made = [s.seconds for s in stages or () if s.stage.split("/")[0] == model.label]
        models.append(
            EvaluatedModel(
                evaluated=model,
                summary=summary,
                tokens_N=np.asarray(counted.counts, dtype=np.int64),
                reward=None if stages is None else ranked.metrics.get("reward/total"),
                metrics=talked.metrics,
                talk_s=talked.seconds,
                made_in_s=sum(made),
            )
        )
    return tuple(models)


def _tally(model: Evaluated, recipe: Recipe) -> Tally:
    """Count a model's conversations; where a baseline votes, a problem is all its samples."""
    counted = tally(read_judged(model.path))
    if recipe.evaluation.n_samples > 1 or read_done(model.path / "groups") is None:
        return counted
    samples_by_problem = read_samples(model.path)
    tokens = {
        problem_id: sum(sample.n_tokens for sample in samples)
        for problem_id, samples in samples_by_problem.items()
    }
    return replace(
        counted,
        counts=tuple(tokens.values()),
        score_by_problem=vote_of_all(samples_by_problem, seed=recipe.seed),
        tokens_by_problem={key: float(n) for key, n in tokens.items()},
    )


def _candidates(stages: Sequence[StageDone]) -> tuple[Candidates, ...]:
    metrics_by_label: dict[str, dict[str, float]] = {}
    for done in stages:
        label, _, part = done.stage.partition("/")
        if part in ("generate", "search"):
            metrics_by_label[label] = dict(done.metrics)
        elif part in ("rank", "select", "pairs") and label in metrics_by_label:
            metrics_by_label[label] |= done.metrics
    return tuple(Candidates(label, metrics) for label, metrics in metrics_by_label.items())


def _scalings(
    models: Sequence[EvaluatedModel], recipe: Recipe, results: dict[str, Any]
) -> tuple[Scaling, ...]:
    """Return the curves of self-consistency: as they were written, or else computed as they are."""
    if recipe.evaluation.n_samples == 1:
        return ()
    written = {row["label"]: row["points"] for row in results.get("models", ()) if "points" in row}
    found = []
    for model in models:
        path = model.evaluated.path
        if model.label in written:
            points = [_point(row) for row in written[model.label]]
        elif read_done(path / "groups") is not None:
            points = scaling_curve(read_samples(path), seed=recipe.seed)
        else:
            continue
        found.append(Scaling(model.label, tuple(points)))
    return tuple(found)


def _point(row: dict[str, Any]) -> Point:
    score, coverage = Estimate(**row["score"]), Estimate(**row["coverage"])
    return Point(k=row["k"], score=score, coverage=coverage, n_tokens=row["n_tokens"])


def _results(root: Path) -> dict[str, Any]:
    path = root / "results.json"
    if not path.exists():
        return {}
    try:
        results: dict[str, Any] = orjson.loads(path.read_bytes())
        for row in results.get("models", ()):  # the fields that are used below
            _ = row["label"], *map(_point, row.get("points", ()))
        _costs(results)
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise StageError(
            f"{path}: no JSON of an evaluation ({reason}); it was damaged: give the command "
            "that wrote it again"
        ) from error
    return results


def _costs(results: dict[str, Any]) -> tuple[ModelCost, ...]:
    """Return the costs that an inference of a run's models noted beside its figures."""
    return tuple(ModelCost(**row) for row in results.get("costs", ()))

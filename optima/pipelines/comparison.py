"""Models of several runs side by side, with paired differences over the same problems.

A run is what a training or an inference left: its evaluated models are the directories that hold a
finished ``talk`` and ``rank``. Where answers were grouped too (self-consistency), what is compared
is the vote among all samples of a problem. Nothing is served or computed again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optima.errors import UsageError
from optima.evaluation.statistics import Estimate, estimate_means
from optima.evaluation.summary import Summary, summarise
from optima.pipelines.consistency import read_samples, voted
from optima.pipelines.judge import read_judged
from optima.records import check_path
from optima.stages import (
    check_outputs,
    finished_folders,
    own_stage,
    read_done,
    read_each,
    read_recipe,
    stage_folders,
)
from optima.tasks import get_task


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One model as a run evaluated it."""

    run: Path
    label: str
    path: Path


@dataclass(frozen=True, slots=True)
class ComparisonRow:
    """One model beside the first: its figures, and the differences on the problems both have.

    ``score`` and ``tokens`` are None in the first row, which everything is compared with.
    """

    model: Evaluated
    summary: Summary
    n_common: int
    score: Estimate | None
    tokens: Estimate | None


def compare(specs: Sequence[str], *, seed: int = 0) -> tuple[ComparisonRow, ...]:
    """Compare models named ``RUN`` (its last) or ``RUN:MODEL`` with the first of them.

    Raises UsageError for what is no run, names no model of it, or has no problem in common, and
    StageError for damaged ones, a line each.
    """
    models = read_each(lambda spec: _read(spec, seed), specs)
    _check_tasks([model for model, _ in models])
    rows = differences(models, seed=seed)
    for spec, row in zip(specs, rows, strict=True):
        if not row.n_common:
            raise UsageError(
                f"{spec}: has no problem in common with {specs[0]}; compare runs of one task "
                "with the same data and seed"
            )
    return rows


def differences(
    models: Sequence[tuple[Evaluated, Summary]], *, seed: int
) -> tuple[ComparisonRow, ...]:
    """Return each model's differences to the first, problem by problem.

    One without a problem in common with it has ``n_common`` 0 and no difference.
    """
    first = models[0][1]
    common_M = [
        [key for key in first.score_by_problem if key in summary.score_by_problem]
        for _, summary in models
    ]
    values_M = [
        [ours[key] - theirs[key] for key in common]
        for (_, summary), common in zip(models[1:], common_M[1:], strict=True)
        for ours, theirs in (
            (summary.score_by_problem, first.score_by_problem),
            (summary.tokens_by_problem, first.tokens_by_problem),
        )
    ]
    estimates = iter(estimate_means([values for values in values_M if values], seed=seed))
    rows = []
    for m, ((model, summary), common) in enumerate(zip(models, common_M, strict=True)):
        has_difference = m > 0 and bool(common)
        rows.append(
            ComparisonRow(
                model=model,
                summary=summary,
                n_common=len(common),
                score=next(estimates) if has_difference else None,
                tokens=next(estimates) if has_difference else None,
            )
        )
    return tuple(rows)


def find_evaluated(spec: str) -> Evaluated:
    """Return the model that ``RUN`` or ``RUN:MODEL`` names."""
    check_path(spec, "RUN")
    root, separator, label = (spec, "", "") if Path(spec).is_dir() else spec.rpartition(":")
    root = root or spec
    found = evaluated_models(Path(root))
    if not found:
        raise UsageError(f"{root}: holds no evaluated model; give a run or an inference's output")
    if not separator:
        return found[-1]
    for model in found:
        if model.label == label:
            return model
    known = ", ".join(model.label for model in found)
    raise UsageError(f"{spec}: {root} has evaluated no {label}; it has {known}")


def evaluated_models(run: Path) -> tuple[Evaluated, ...]:
    """Return the models that a run or an inference has talked with and judged, in that order.

    What trials of pairs were measured by (``influence``) is no evaluation.
    """
    found = []
    for path, talked in finished_folders(run):
        folder = path.parent
        parts = folder.relative_to(run).parts
        is_ranked = path.name == "talk" and own_stage(folder / "rank", run) is not None
        if is_ranked and not _is_trial(parts):
            label = "/".join(parts).removeprefix("evaluate/")
            found.append((talked.started_unix_s, Evaluated(run, label, folder)))
    return tuple(model for _, model in sorted(found, key=lambda pair: pair[0]))


def is_evaluation(run: Path) -> bool:
    """Tell whether ``run`` was written by an inference, baselines or such, not by a training."""
    talks = (
        path.parent.relative_to(run).parts for path in stage_folders(run) if path.name == "talk"
    )
    return any(parts[:1] != ("evaluate",) and not _is_trial(parts) for parts in talks)


def _is_trial(parts: Sequence[str]) -> bool:
    """Tell whether a folder is ``<iteration>/influence/<trial>``."""
    return len(parts) == 3 and parts[1] == "influence"


def _check_tasks(models: Sequence[Evaluated]) -> None:
    """Raise UsageError when the models were evaluated on different tasks: scores do not compare."""
    stored = [model.run / "recipe.yaml" for model in models]
    names = {
        path: read_recipe(path.parent).task for path in dict.fromkeys(stored) if path.is_file()
    }
    for path, name in names.items():
        first_path, first = next(iter(names.items()))
        if name != first:
            raise UsageError(
                f"{path.parent}: is scored by {get_task(name).metric} on {name}, "
                f"{first_path.parent} by {get_task(first).metric} on {first}; compare runs of one "
                "task"
            )


def _read(spec: str, seed: int) -> tuple[Evaluated, Summary]:
    model = find_evaluated(spec)
    if (model.run / "recipe.yaml").is_file():
        read_recipe(model.run)
    return model, _summary(model, seed)


def _summary(model: Evaluated, seed: int) -> Summary:
    for part in ("talk", "rank", "groups"):
        if (done := read_done(model.path / part)) is not None:
            check_outputs(model.path / part, done)
    summary = summarise(read_judged(model.path), seed=seed)
    if read_done(model.path / "groups") is None:
        return summary
    return voted(summary, read_samples(model.path), seed=seed)

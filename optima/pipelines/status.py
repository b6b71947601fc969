"""Where a run stands, read from its directory while it runs or after; nothing is changed."""

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import psutil

from optima.errors import UsageError
from optima.pipelines.outline import stage_names
from optima.recipe.loading import load_recipe
from optima.recipe.schema import Recipe
from optima.rundir import StageDone, read_done, read_spent

_GROWING = ("conversations.jsonl", "rounds.jsonl")  # their lines are the progress of a stage


@dataclass(frozen=True, slots=True)
class Status:
    """``state`` of a run; ``share`` in [0, 1] of the current stage, None where it is not known;
    ``seconds_left`` is an estimate from the stages of the same kind that are done, None before
    there are any."""

    state: str
    stage: str | None
    share: float | None
    n_done: int
    n_stages: int
    seconds: float
    seconds_left: float | None


def read_status(root: Path) -> Status:
    """Return where the run in ``root`` stands; UsageError when there is none."""
    stored = root / "recipe.yaml"
    if not stored.exists():
        raise UsageError(f"{root}: is no run directory (it has no recipe.yaml)")
    recipe = load_recipe(stored)
    talks = (path.relative_to(root) for path in root.glob("**/talk"))
    is_evaluation = any(path.parts[0] != "evaluate" for path in talks)
    names = _begun(root) if is_evaluation else stage_names(recipe)
    done = {name: found for name in names if (found := read_done(root / name)) is not None}
    is_running = is_owned(root)
    missing = [name for name in names if name not in done]
    begun = [name for name in missing if (root / name / "INPUTS").exists()]
    current = begun[0] if begun and is_running else None
    is_done = (root / "results.json").exists() if is_evaluation else not missing
    is_ended = is_done and not (is_evaluation and is_running)
    state = "done" if is_ended else "running" if is_running else "stopped"
    share = _share(root, current, recipe) if current else None
    return Status(
        state=state,
        stage=current,
        share=share,
        n_done=len(done),
        n_stages=len(names),
        seconds=sum(stage.seconds for stage in done.values())
        + sum(read_spent(root / name).seconds for name in begun),
        seconds_left=None if is_evaluation else _seconds_left(missing, done, root, current),
    )


def _begun(root: Path) -> list[str]:
    """Return the stages begun so far: which models an evaluation has is not in its recipe."""
    marks = sorted(root.glob("**/INPUTS"), key=lambda path: path.stat().st_mtime)
    return [str(mark.parent.relative_to(root)) for mark in marks]


def is_owned(root: Path) -> bool:
    """Tell whether the process named in LOCK still holds it; asking takes no lock."""
    lock = root / "LOCK"
    try:
        held = psutil.Process(int(lock.read_text())).open_files()
    except (OSError, ValueError, psutil.Error):
        return False
    return any(Path(file.path) == lock.resolve() for file in held)


def _share(root: Path, name: str, recipe: Recipe) -> float | None:
    path = root / name
    progress = path / "progress.json"
    if progress.exists():
        row = json.loads(progress.read_text())
        return float(row["step"]) / float(max(1, row["n_steps"]))
    total = _n_lines_expected(root, name, recipe)
    for file in (path / growing for growing in _GROWING):
        if file.exists() and total:
            with file.open("rb") as lines:
                return min(1.0, sum(1 for _ in lines) / total)
    return None


def _n_lines_expected(root: Path, name: str, recipe: Recipe) -> int | None:
    kind = name.split("/")[-1]
    counts = read_done(root / "problems")
    if counts is None:
        return None
    n_train, n_test = (int(counts.metrics[f"problems/{split}"]) for split in ("train", "test"))
    n_taken = min(recipe.data.n_train or n_train, n_train)
    if kind == "talk":
        return n_test * recipe.evaluation.n_samples
    if kind == "generate":
        return n_taken * recipe.sampling.n_samples
    if recipe.search is not None and kind == "probe":
        return min(recipe.search.n_probe, n_train)
    if recipe.search is not None and kind == "search":
        n_trees = min(recipe.search.n_problems or n_taken, n_train)
        return n_trees * recipe.search.n_rounds
    return None


def _seconds_left(
    missing: list[str], done: dict[str, StageDone], root: Path, current: str | None
) -> float | None:
    """Estimate by the mean seconds of finished stages of the same kind."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for name, stage in done.items():
        seconds[name.split("/")[-1]].append(stage.seconds)
    left = 0.0
    for name in missing:
        of_kind = seconds[name.split("/")[-1]]
        if not of_kind:
            return None
        left += sum(of_kind) / len(of_kind)
    if current is not None:
        of_kind = seconds[current.split("/")[-1]]
        left -= min(read_spent(root / current).seconds, sum(of_kind) / len(of_kind))
    return left

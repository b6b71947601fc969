"""Where a run stands, read from its directory while it runs or after; nothing is changed."""

import contextlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from pydantic import ValidationError

from optima.errors import OptimaError, UsageError
from optima.files import CONVERSATIONS, ROUNDS
from optima.pipelines.comparison import is_evaluation
from optima.pipelines.outline import Outline, read_outline
from optima.plan import Counts, plan
from optima.recipe.schema import Recipe
from optima.rundir import read_spent
from optima.stages import (
    StageDone,
    check_run,
    find_begun,
    read_done,
    read_recipe,
    stage_folders,
)
from optima.training.jobs import TrainProgress

_GROWING = (CONVERSATIONS, ROUNDS)  # their lines are the progress of a stage
# Short beside the others: what of these is to come counts as nothing until one of its kind is done.
_SHORT = ("problems", "script", "rank", "select", "pairs", "groups")


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


@dataclass(frozen=True, slots=True)
class Member:
    """One run of a folder of several; ``status`` is None where it was not begun, or is damaged.

    ``damage`` then says how, in one line.
    """

    name: str
    status: Status | None
    damage: str | None = None


def read_folder(root: Path) -> tuple[Member, ...] | None:
    """Return where the runs of a folder of several stand, None where ``root`` is no such folder.

    A sweep, ablations and a transfer say which runs they will have; of any other folder those that
    are there count.
    """
    outline = read_outline(root)
    if outline is not None and outline.runs:
        names = outline.runs
    elif (root / "recipe.yaml").exists():
        return None
    else:
        names = tuple(path.name for path in find_begun(root) if (path / "LOCK").exists())
    return tuple(_read_member(root, name) for name in names) or None


def _read_member(root: Path, name: str) -> Member:
    path = root / name
    try:
        is_there = _is_begun(path) or stage_folders(path)
        return Member(name, read_status(path) if is_there else None)
    except OptimaError as error:
        return Member(name, None, str(error))
    except OSError as error:  # no permission, a disk that cannot be read
        return Member(name, None, f"{error.filename}: cannot be read ({error.strerror})")


def folder_seconds_left(members: Sequence[Member]) -> float | None:
    """Estimate when the last of several runs will be done, None before that is known.

    A run that was not begun takes as long as the mean of those done, or as the one that runs.
    """
    statuses = [member.status for member in members if member.status is not None]
    whole = [status.seconds for status in statuses if status.state == "done"] or [
        status.seconds + status.seconds_left
        for status in statuses
        if status.seconds_left is not None
    ]
    if not whole:
        return None
    mean = sum(whole) / len(whole)
    left = mean * (len(members) - len(statuses))
    for status in statuses:
        if status.state != "done":
            own = status.seconds_left
            left += max(0.0, mean - status.seconds) if own is None else own
    return left


def read_status(root: Path) -> Status:
    """Return where the run in ``root`` stands; UsageError when there is none."""
    if not _is_begun(root):
        missing = [name for name in ("recipe.yaml", "LOCK") if not (root / name).exists()]
        raise UsageError(
            f"{root}: is no run directory (it has no {' and no '.join(missing)}); give what "
            "--run-dir or --output named, or put back from a copy what was removed"
        )
    recipe = read_recipe(root)
    check_run(root, reads=False)
    outline = read_outline(root)
    is_other = outline is not None or is_evaluation(root)
    names = list(outline.stages) if outline else _begun(root) if is_other else []
    names = [name for name in names or _planned(recipe) if not _is_left_out(root, name)]
    done = {name: found for name in names if (found := read_done(root / name)) is not None}
    missing = [name for name in names if name not in done]
    begun = [name for name in missing if (root / name / "INPUTS").exists()]
    is_running = is_owned(root)
    current = _current(root, begun) if is_running else None
    is_done = not missing and (not is_other or (root / "results.json").exists())
    state = "done" if is_done and not is_running else "running" if is_running else "stopped"
    share = _share(root, current, recipe, outline) if current else None
    return Status(
        state=state,
        stage=current,
        share=share,
        n_done=len(done),
        n_stages=len(names),
        seconds=sum(stage.seconds for stage in done.values())
        + sum(read_spent(root / name).seconds for name in begun),
        seconds_left=_seconds_left(missing, done, (root, current, share))
        if state == "running"
        else None,
    )


def _planned(recipe: Recipe) -> list[str]:
    return [step.name for step in plan(recipe)]


def _is_left_out(root: Path, name: str) -> bool:
    """Tell whether there was no such group of pairs to try, for lack of problems."""
    before, _, group = name.partition("/influence/")
    is_over = read_done(root / before / "influence" / "selected") is not None
    return group.startswith("group_") and is_over and not (root / name).exists()


def _is_begun(root: Path) -> bool:
    return (root / "recipe.yaml").exists() and (root / "LOCK").exists()


def _current(root: Path, begun: Sequence[str]) -> str | None:
    """Return the stage under way: of those planned, or one that no plan names, such as a trial."""
    unplanned = [name for name in _begun(root) if read_done(root / name) is None]
    return next(iter(begun or unplanned[-1:]), None)


def _begun(root: Path) -> list[str]:
    """Return the stages begun so far: which models an evaluation has is not in its recipe."""
    begun = {}
    for folder in stage_folders(root):
        with contextlib.suppress(FileNotFoundError):  # moved aside meanwhile
            begun[str(folder.relative_to(root))] = (folder / "INPUTS").stat().st_mtime
    return sorted(begun, key=begun.__getitem__)


def is_owned(root: Path) -> bool:
    """Tell whether the process named in LOCK still holds it; asking takes no lock."""
    lock = root / "LOCK"
    try:
        held = psutil.Process(int(lock.read_text("utf-8"))).open_files()
    except (OSError, ValueError, psutil.Error):
        return False
    return any(Path(file.path) == lock.resolve() for file in held)


def _share(root: Path, name: str, recipe: Recipe, outline: Outline | None) -> float | None:
    path = root / name
    progress = path / "progress.json"
    if progress.exists():
        try:
            row = TrainProgress.model_validate_json(progress.read_bytes())
        except (OSError, ValidationError):
            return None  # gone with the training, or damaged: it is written anew at the next step
        return min(1.0, row.step / max(1, row.n_steps))
    total = _n_lines_expected(root, name, recipe, outline)
    for file in (path / growing for growing in _GROWING):
        if file.exists() and total:
            with file.open("rb") as lines:
                return min(1.0, sum(1 for _ in lines) / total)
    return None


def _n_lines_expected(root: Path, name: str, recipe: Recipe, outline: Outline | None) -> int | None:
    problems = read_done(root / "problems")
    if problems is None:
        return None
    n_test = int(problems.metrics.get("problems/test", 0))
    if outline is not None and name in outline.n_samples:
        return n_test * outline.n_samples[name]
    n_train = int(problems.metrics.get("problems/train", 0))
    steps = plan(recipe, Counts(n_train=n_train, n_test=n_test))
    return next((step.n_lines for step in steps if step.name == name), None)


def _seconds_left(
    missing: Sequence[str],
    done: Mapping[str, StageDone],
    now: tuple[Path, str | None, float | None],
) -> float | None:
    """Estimate by the mean seconds of finished stages of the same kind, and by the share done.

    ``now`` is the directory, the current stage, and the share of it that is done.
    """
    root, current, share = now
    seconds: dict[str, list[float]] = defaultdict(list)
    for name, stage in done.items():
        seconds[_kind(name)].append(stage.seconds)
    spent = read_spent(root / current).seconds if current is not None else 0.0
    if current is not None and share and not seconds[_kind(current)]:
        seconds[_kind(current)].append(spent / share)
    left = 0.0
    for name in missing:
        of_kind = seconds[_kind(name)] or ([0.0] if _kind(name) in _SHORT else [])
        if not of_kind:
            return None
        whole = sum(of_kind) / len(of_kind)
        if name == current and share is not None:
            whole *= 1 - share
        elif name == current:
            whole = max(0.0, whole - spent)
        left += whole
    return left


def _kind(name: str) -> str:
    return name.split("/")[-1]

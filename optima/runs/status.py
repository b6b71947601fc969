"""Where a run stands, read from its directory while it runs or after, and said in a few lines."""

import contextlib
import datetime
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from optima.errors import OptimaError, UsageError
from optima.plan import describe_policies, kind_of, plan
from optima.progress import Progress, Serving, duration, read_progress, read_serving
from optima.runs.directory import logs_of, newest_attempt, read_spent
from optima.runs.files import (
    INPUTS,
    LOCK,
    RECIPE,
    RESULTS,
    is_owned,
    read_outline,
)
from optima.runs.layout import StageDone, check_run, find_begun, read_done, stage_folders
from optima.runs.reader import Run

# Short beside the others: what of these is to come counts as nothing until one of its kind is done.
_SHORT = ("problems", "script", "rank", "select", "pairs", "mix", "groups")
_STOPPED = "the command that started it goes on from here"


@dataclass(frozen=True, slots=True)
class Status:
    """``state`` of a run; ``share`` in [0, 1] of the current stage, None where it is not known;
    ``seconds_left`` is an estimate from the stages of the same kind that are done, None before
    there are any; ``progress`` is what the current stage tells of itself, None where it tells
    nothing; ``serving`` has the servers that a running one has now, whose logs are in ``logs``.
    ``policies`` are those of the agents, where there are several, with what becomes of them."""

    state: str
    stage: str | None
    share: float | None
    n_done: int
    n_stages: int
    seconds: float
    seconds_left: float | None
    progress: Progress | None = None
    serving: tuple[Serving, ...] = ()
    logs: Path | None = None
    policies: Mapping[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return it for other programs."""
        return {
            **asdict(self),
            "progress": self.progress and self.progress.model_dump(),
            "serving": [fleet.model_dump() for fleet in self.serving],
            "logs": self.logs and str(self.logs),
        }


@dataclass(frozen=True, slots=True)
class Member:
    """One run of a folder of several; ``status`` is None where it was not begun, or is damaged.

    ``damage`` then says how, in one line.
    """

    name: str
    status: Status | None
    damage: str | None = None

    @property
    def state(self) -> str:
        """In which state it is, in words."""
        if self.damage is not None:
            return "damaged"
        return self.status.state if self.status else "not begun"

    def record(self) -> dict[str, Any]:
        """Return it for other programs."""
        status = self.status and self.status.record()
        return {"name": self.name, "status": status, "damage": self.damage, "state": self.state}


def read_folder(root: Path) -> tuple[Member, ...] | None:
    """Return where the runs of a folder of several stand, None where ``root`` is not such a folder.

    A sweep, ablations and a transfer say which runs they will have; of any other folder those that
    are there count.
    """
    outline = read_outline(root)
    if outline is not None and outline.runs:
        names = outline.runs
    elif (root / RECIPE).exists():
        return None
    else:
        names = tuple(path.name for path in find_begun(root) if (path / LOCK).exists())
    return tuple(_read_member(root, name) for name in names) or None


def _read_member(root: Path, name: str) -> Member:
    path = root / name
    try:
        is_there = not _missing(path) or stage_folders(path)
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
    if missing := _missing(root):
        raise UsageError(
            f"{root}: is not a run directory (it has no {' and no '.join(missing)}); give what "
            "--run-dir or --output named, or put back from a copy what was removed"
        )
    run = Run(root)
    _ = run.recipe
    check_run(root, reads=False)
    outline, begun_at = read_outline(root), _begun_at(run)
    is_other = outline is not None or run.is_evaluation
    names = list(outline.stages) if outline else list(begun_at) if is_other else []
    names = [
        name
        for name in names or [step.name for step in plan(run.recipe)]
        if not _is_left_out(root, name)
    ]
    done = {name: found for name in names if (found := read_done(root / name)) is not None}
    missing = [name for name in names if name not in done]
    begun = [name for name in missing if name in begun_at]
    is_running = is_owned(root)
    # The stage under way: of those planned, or one that no plan names, such as a trial.
    unplanned = [name for name in begun_at if read_done(root / name) is None]
    current = next(iter(begun or unplanned[-1:]), None) if is_running else None
    is_done = not missing and (not is_other or (root / RESULTS).exists())
    progress = read_progress(root / current) if current else None
    share = progress.share if progress else None
    logs = logs_of(root, newest_attempt(root)) if is_running else None
    return Status(
        state="done" if is_done and not is_running else "running" if is_running else "stopped",
        stage=current,
        share=share,
        n_done=len(done),
        n_stages=len(names),
        seconds=sum(stage.seconds for stage in done.values())
        + sum(read_spent(root / name).seconds for name in begun),
        seconds_left=_seconds_left(missing, done, (root, current, share)) if is_running else None,
        progress=progress,
        serving=read_serving(logs) if logs else (),
        logs=logs,
        policies={} if is_other else describe_policies(run.recipe),
    )


def _missing(root: Path) -> list[str]:
    return [name for name in (RECIPE, LOCK) if not (root / name).exists()]


def _is_left_out(root: Path, name: str) -> bool:
    """Tell whether there was no such group of pairs to try, for lack of problems."""
    before, _, group = name.partition("/influence/")
    is_over = read_done(root / before / "influence" / "selected") is not None
    return group.startswith("group_") and is_over and not (root / name).exists()


def _begun_at(run: Run) -> dict[str, float]:
    """Return the stages begun so far, by when: an evaluation's are not in its recipe."""
    begun = {}
    for name in run.begun:
        with contextlib.suppress(FileNotFoundError):  # moved aside meanwhile
            begun[name] = (run.root / name / INPUTS).stat().st_mtime
    return dict(sorted(begun.items(), key=lambda pair: pair[1]))


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
        seconds[kind_of(name)].append(stage.seconds)
    spent = read_spent(root / current).seconds if current is not None else 0.0
    if current is not None and share and not seconds[kind_of(current)]:
        seconds[kind_of(current)].append(spent / share)
    left = 0.0
    for name in missing:
        of_kind = seconds[kind_of(name)] or ([0.0] if kind_of(name) in _SHORT else [])
        if not of_kind:
            return None
        whole = sum(of_kind) / len(of_kind)
        if name == current:
            whole = max(0.0, whole - spent) if share is None else whole * (1 - share)
        left += whole
    return left


def status_text(root: Path, status: Status) -> str:
    """Return the state of the run in ``root``, its stage and its end."""
    lines = [f"{root}: {status.state}, {_stages(status)}"]
    lines += [f"policy {name}: {said}" for name, said in status.policies.items()]
    if status.stage is not None:
        lines.append(f"now: {_now(status)}")
    if (logs := status.logs) is not None:
        lines += ["servers: " + "\n  ".join(fleet.lines(logs)) for fleet in status.serving]
    if status.state == "running":
        lines.append(f"left: {_left(status.seconds_left)}")
    if status.state == "stopped":
        lines.append(_STOPPED)
    return "\n".join(lines)


def folder_text(root: Path, members: Sequence[Member]) -> str:
    """Return the states of the runs of a folder, a line each, and the end of the last."""
    states = [member.state for member in members]
    n_done = states.count("done")
    state = "done" if n_done == len(members) else "running" if "running" in states else "stopped"
    width = max(len(member.name) for member in members)
    lines = [f"{root}: {state}, {n_done} of {len(members)} runs done"]
    for member in members:
        status = member.status
        parts = [member.state, *([_stages(status)] if status else [])]
        if member.damage is not None:
            parts = [f"{member.state}: {member.damage}"]
        if status is not None and status.stage is not None:
            parts.append(f"now {_now(status)}")
        lines.append(f"  {member.name:<{width}}  {', '.join(parts)}")
    if state == "running":
        lines.append(f"left: {_left(folder_seconds_left(members))}")
    if state == "stopped" and "damaged" not in states:
        lines.append(_STOPPED)
    return "\n".join(lines)


def _stages(status: Status) -> str:
    return f"{status.n_done} of {status.n_stages} stages done in {duration(status.seconds)}"


def _now(status: Status) -> str:
    share = "" if status.share is None else f", {100 * status.share:.0f} % of it"
    told = "" if status.progress is None else f": {status.progress.text()}"
    return f"{status.stage}{share}{told}"


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "not known before a stage of each kind is done"
    end = datetime.datetime.fromtimestamp(time.time() + seconds).astimezone()
    day = "" if seconds < 12 * 3600 else f"{end:%Y-%m-%d} "
    return f"about {duration(seconds)}, until {day}{end:%H:%M}"

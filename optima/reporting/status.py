"""Where a run stands, in a few lines for the terminal."""

import datetime
import time
from collections.abc import Sequence
from pathlib import Path

from optima.pipelines.status import Member, Status, folder_seconds_left


def status_text(root: Path, status: Status) -> str:
    """Return the state of the run in ``root``, its stage and its end."""
    lines = [f"{root}: {status.state}, {_stages(status)}"]
    if status.stage is not None:
        lines.append(f"now: {_now(status)}")
    if status.state == "running":
        lines.append(f"left: {_left(status.seconds_left)}")
    if status.state == "stopped":
        lines.append("the command that started it goes on from here")
    return "\n".join(lines)


def folder_text(root: Path, members: Sequence[Member]) -> str:
    """Return the states of the runs of a folder, a line each, and the end of the last."""
    states = [_state(member) for member in members]
    n_done = states.count("done")
    state = "done" if n_done == len(members) else "running" if "running" in states else "stopped"
    width = max(len(member.name) for member in members)
    lines = [f"{root}: {state}, {n_done} of {len(members)} runs done"]
    for member, of_one in zip(members, states, strict=True):
        status = member.status
        parts = [of_one, *([_stages(status)] if status else [])]
        if member.damage is not None:
            parts = [f"{of_one}: {member.damage}"]
        if status is not None and status.stage is not None:
            parts.append(f"now {_now(status)}")
        lines.append(f"  {member.name:<{width}}  {', '.join(parts)}")
    if state == "running":
        lines.append(f"left: {_left(folder_seconds_left(members))}")
    if state == "stopped" and "damaged" not in states:
        lines.append("the command that started it goes on from here")
    return "\n".join(lines)


def _state(member: Member) -> str:
    if member.damage is not None:
        return "damaged"
    return member.status.state if member.status else "not begun"


def _stages(status: Status) -> str:
    return f"{status.n_done} of {status.n_stages} stages done in {_duration(status.seconds)}"


def _now(status: Status) -> str:
    share = "" if status.share is None else f", {100 * status.share:.0f} % of it"
    return f"{status.stage}{share}"


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "not known before a stage of each kind is done"
    end = datetime.datetime.fromtimestamp(time.time() + seconds).astimezone()
    day = "" if seconds < 12 * 3600 else f"{end:%Y-%m-%d} "
    return f"about {_duration(seconds)}, until {day}{end:%H:%M}"


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(max(0.0, seconds))))

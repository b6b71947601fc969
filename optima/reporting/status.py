"""Where a run stands, in a few lines for the terminal."""

import datetime
import time
from pathlib import Path

from optima.pipelines.status import Status


def status_text(root: Path, status: Status) -> str:
    """Return the state of the run in ``root``, its stage and its end."""
    lines = [
        f"{root}: {status.state}, {status.n_done} of {status.n_stages} stages done in "
        f"{_duration(status.seconds)}"
    ]
    if status.stage is not None:
        share = "" if status.share is None else f", {100 * status.share:.0f} % of it"
        lines.append(f"now: {status.stage}{share}")
    if status.state == "running":
        if status.seconds_left is None:
            lines.append("left: not known before a stage of each kind is done")
        else:
            end = time.strftime("%H:%M", time.localtime(time.time() + status.seconds_left))
            lines.append(f"left: about {_duration(status.seconds_left)}, until {end}")
    if status.state == "stopped":
        lines.append("the command that started it goes on from here")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(max(0.0, seconds))))

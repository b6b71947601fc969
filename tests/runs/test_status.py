"""Estimates of when several runs will be done, and how they are shown."""

from dataclasses import replace
from pathlib import Path

import pytest

from optima.progress import ServerState, Serving
from optima.runs.status import Member, Status, folder_seconds_left, folder_text, status_text


def _status(state: str, seconds: float, left: float | None = None) -> Status:
    stage = "iter_0/train" if state == "running" else None
    share = 0.25 if state == "running" else None
    return Status(state, stage, share, 3, 9, seconds, left)


@pytest.mark.parametrize(
    ("statuses", "left"),
    [
        # two are to come, each as long as the mean of those done, (100 + 200) / 2
        ((_status("done", 100), _status("done", 200), None, None), 300),
        # the one that runs knows its own 40
        ((_status("done", 100), _status("running", 60, 40), None), 140),
        # it does not yet: what is missing to the mean
        ((_status("done", 100), _status("running", 30)), 70),
        # none is done: the others take as long as the one that runs, 60 + 40
        ((_status("running", 60, 40), None), 140),
        ((_status("done", 100), _status("stopped", 30)), 70),
        ((_status("running", 60), None), None),
    ],
)
def test_runs_to_come_take_as_long_as_those_before(
    statuses: tuple[Status | None, ...], left: float | None
) -> None:
    members = [Member(str(n), status) for n, status in enumerate(statuses)]
    assert folder_seconds_left(members) == left


def test_every_run_of_a_folder_has_its_line() -> None:
    members = [
        Member("full", _status("done", 100)),
        Member("no_token", _status("running", 60, 40)),
        Member("no_loss", None),
    ]
    lines = folder_text(Path("ablations"), members).splitlines()
    assert lines[:4] == [
        "ablations: running, 1 of 3 runs done",
        "  full      done, 3 of 9 stages done in 0:01:40",
        "  no_token  running, 3 of 9 stages done in 0:01:00, now iter_0/train, 25 % of it",
        "  no_loss   not begun",
    ]
    assert lines[4].startswith("left: about 0:02:20, until ")


def test_servers_of_a_running_run_stand_below_its_stage() -> None:
    alive = ServerState(name="server 0", url="http://127.0.0.1:1", is_alive=True)
    lost = ServerState(
        name="server 1", url="", is_alive=False, trouble="it died\nand so on", log="server_1.2.log"
    )
    serving = Serving(model="runs/x/iter_0/train/model", is_asleep=False, servers=(alive, lost))
    other = Serving(model="models/teacher", is_asleep=True, servers=(alive,))
    logs = Path("runs/x/logs/attempt_2")
    status = replace(_status("running", 60, 40), serving=(serving, other), logs=logs)
    lines = status_text(Path("runs/x"), status).splitlines()
    assert lines[1:5] == [
        "now: iter_0/train, 25 % of it",
        "servers: 1 of 2 alive, of runs/x/iter_0/train/model, logs in runs/x/logs/attempt_2",
        "  server 1: it died; see runs/x/logs/attempt_2/server_1.2.log",
        "servers: 1 of 1 asleep, of models/teacher, logs in runs/x/logs/attempt_2",
    ]
    assert status.record()["serving"][0]["servers"][0]["is_alive"]

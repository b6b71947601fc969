"""``optima report`` and ``optima view`` as commands."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from optima.cli.main import main
from tests.commands import ROOT
from tests.fake_runs import finish, start, wait_until
from tests.fakes import fake_environment
from tests.reporting.browser import chromium
from tests.reporting.made import training

VIEW = (sys.executable, "-m", "optima.cli.main", "view")


@contextmanager
def _view(*argv: str) -> Iterator[str]:
    process = subprocess.Popen([*VIEW, *argv], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(20) == 0
        finally:
            process.kill()


def _status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as r:
            return int(r.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_report_writes_a_page_and_every_table_and_figure_by_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = training(tmp_path / "run")
    assert main(["report", str(root)]) == 0
    assert capsys.readouterr().out.strip() == str(root / "report/report.html")
    names = {path.name for path in (root / "report/tables").iterdir()}
    assert {"models.md", "models.csv", "cost.md", "rewards.csv"} <= names
    figures = {path.name for path in (root / "report/figures").iterdir()}
    assert {"score-by-model.png", "score-by-model.svg", "tokens-by-model.svg"} <= figures
    text = (root / "report/report.md").read_text()
    for link in re.findall(r"\]\((.*?)\)", text):
        assert (root / "report" / link).is_file()
    html = (root / "report/report.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", html)  # nothing from elsewhere


def test_report_of_the_same_runs_is_the_same_page(tmp_path: Path) -> None:
    root = training(tmp_path / "run")
    pages = []
    for name in ("one", "two"):
        assert main(["report", str(root), "--output", str(tmp_path / name)]) == 0
        pages.append((tmp_path / name / "report.html").read_bytes())
    assert pages[0] == pages[1]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("report", "nowhere"), "nowhere: is not a run directory"),
        (("view", "nowhere"), "nowhere: is not a run directory"),
        (("report", "RUN", "--max-conversations", "0"), "--max-conversations: 0: must be a whole"),
        (
            ("view", "RUN", "--port", "70000"),
            "--port: 70000: must be a whole number from 0 to 65535",
        ),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    argv: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = training(tmp_path / "run")
    assert main([part.replace("RUN", str(root)) for part in argv]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_taken_port_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = training(tmp_path / "run")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["view", str(root), "--port", str(port)]) == 2
    err = capsys.readouterr().err
    assert f"--port {port}: " in err
    assert len(err.splitlines()) == 1


def test_output_that_cannot_be_written_is_not_blamed_on_the_port(tmp_path: Path) -> None:
    root = training(tmp_path / "run")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*VIEW, str(root)], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True,
            timeout=90, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("optima: standard output: the disk is full")


def test_view_answers_only_who_knows_the_address_and_only_by_its_name(tmp_path: Path) -> None:
    root = training(tmp_path / "run")
    with _view(str(root)) as url:
        parts = urlsplit(url)
        assert parts.hostname == "127.0.0.1"
        assert _status(url) == 200
        origin = f"http://{parts.netloc}"
        assert _status(f"{origin}/") == 404
        assert _status(f"{origin}/guess/status") == 404
        assert _status(url, Host="attacker.example") == 403
        assert _status(f"{url}chunk/0?v=old") == 410
        state = json.loads(urllib.request.urlopen(f"{url}status", timeout=20).read())
        assert _status(f"{url}chunk/0?v={state['version']}") == 200
        assert _status(f"{url}chunk/99?v={state['version']}") == 404


def test_view_shows_a_run_going_on_and_offers_what_is_new(tmp_path: Path) -> None:
    environment = fake_environment(tmp_path, train_seconds=4.0)
    running = start(tmp_path, environment, "iterations=1")
    run = tmp_path / "run"
    wait_until((run / "evaluate/base/talk/DONE.json").exists, "the first conversations")
    with _view(str(run)) as url, chromium() as page:
        page.open(url, "#conversations")
        page.wait(lambda: page.count(".line"), "the list")
        first = page.run("return data.n")
        page.wait(lambda: "stages done" in page.text("#live-text"), "the state of the run")
        page.click(".line")
        page.wait(lambda: page.count("#reader .turn"), "a conversation while the run goes on")
        assert finish(running)[0] == 0
        page.wait(lambda: not page.count("#live-reload[hidden]"), "the offer of what is new")
        page.wait(lambda: "done" in page.text("#live-text"), "the end of the run")
        page.click("#live-reload")
        time.sleep(0.5)
        page.wait(lambda: page.count(".line") and page.run("return data.n") > first, "more rows")
        assert page.complaints() == []


def test_view_says_that_a_run_was_written_anew_under_an_open_page(tmp_path: Path) -> None:
    root = training(tmp_path / "run")
    with _view(str(root)) as url, chromium() as page:
        page.open(url, "#conversations")
        page.wait(lambda: page.count(".line"), "the list")
        path = root / "evaluate/base/talk/conversations.jsonl"
        copy = path.with_suffix(".tmp")
        copy.write_text(path.read_text())
        copy.replace(path)
        page.click(".line")
        page.wait(lambda: "reload the page" in page.text("#reader [role=alert]"), "the reason")

"""How far a stage is: counted once, and told alike by the terminal, the command and the page."""

import asyncio
import io
import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from optima.conversation.dialogue import Completion, Request
from optima.progress import Meter, Progress, read_progress
from optima.reporting.live import LiveReport
from optima.runs.directory import RunDir
from optima.runs.reader import Run
from optima.runs.status import read_status, status_text
from optima.stages.generate import ScoreSoFar
from optima.tasks import get_metric
from optima.tasks.task import Metric
from optima.types import Conversation, Problem
from tests.fake_runs import run
from tests.fakes import fake_environment
from tests.runs.test_directory import recipe


class Clock(SimpleNamespace):
    """Time that a test sets, in seconds."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


class Screen(io.StringIO):
    """Standard error of a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("optima.progress.time", found)
    return found


def test_figures_are_those_of_this_attempt(clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text("of an attempt before")
    meter = Meter("iter_0/generate", tmp_path, "conversations", 1200, n_before=200)
    assert read_progress(tmp_path) == Progress(n_done=200, n_total=1200, unit="conversations")
    clock.now += 60  # servers start

    async def generate(request: Request, preferred: object) -> Completion:
        return Completion("x", "stop", 5, n_tokens=700)

    with meter:
        counted = meter.counting(generate)
        for _ in range(3):
            asyncio.run(counted(Request(0, (1,), (), 2, 8, 0), None))  # type: ignore[arg-type]
        clock.now += 20
        for score, is_failed in ((1.0, False), (0.5, False), (0.0, True)):
            meter.count_score(score)
            meter.count(33 + is_failed, n_errors=is_failed)
    # 100 of this attempt's 1000 took 20 s, so the 900 that are left take 180 s
    expected = Progress(
        n_done=300, n_total=1200, unit="conversations", tokens_per_s=105.0, n_errors=1, score=0.5,
        seconds_left=180.0,
    )  # fmt: skip
    assert meter.progress() == read_progress(tmp_path) == expected
    assert expected.share == 0.25
    assert expected.text() == (
        "300 of 1,200 conversations, 105 tokens/s, 1 error, score 50.0, 0:03:00 left"
    )


def test_what_a_stage_has_not_is_not_told() -> None:
    plain = Progress(n_done=0, n_total=0, unit="problems")
    assert (plain.share, plain.text()) == (0.0, "0 of 0 problems")
    step = Progress(n_done=3, n_total=9, unit="steps", tokens_per_s=1234.5, loss=1.23456)
    assert step.text() == "3 of 9 steps, 1,234 tokens/s, loss 1.235"


def test_terminal_status_and_page_tell_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    root = tmp_path / "run"
    with RunDir(root, recipe()) as owned:
        stage = owned.stage("iter_0/generate", "inputs")
        with Meter(stage.name, stage.path, "conversations", 40) as meter:
            meter.count(10, n_tokens=3000, n_errors=2)
            meter.count_score(0.25)
        told = read_progress(stage.path)
        assert told is not None
        words = told.text()
        assert words.startswith("10 of 40 conversations, ")
        assert ", 2 errors, score 25.0, " in words
        assert screen.getvalue().rstrip().endswith(f"| 25 %, {words}")
        status = read_status(root)
        assert (status.share, status.progress) == (0.25, told)
        assert f"\nnow: iter_0/generate, 25 % of it: {words}\n" in status_text(root, status)
        assert status.record()["progress"]["n_errors"] == 2
        page = json.loads(asyncio.run(_page(root)))
        assert page["share"] == 0.25
        assert f"now: iter_0/generate, 25 % of it: {words}\n" in page["text"]


async def _page(root: Path) -> str:
    answer = await LiveReport([root]).status(None)  # type: ignore[arg-type]
    return str(answer.text)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run with conversations and trees."""
    directory = tmp_path_factory.mktemp("trained")
    environment = fake_environment(directory)
    words = ("cold_start=null", "iterations=2", "data.n_test=2", "evaluation.base=true")
    run(directory, environment, *words, method="sft_dpo")
    return directory / "run"


def test_stages_end_with_all_done_and_the_scores_of_their_records(trained: Path) -> None:
    metrics = Run(trained).metrics
    for name, ranked in (
        ("iter_0_sft/generate", "iter_0_sft/rank"),
        ("evaluate/base/talk", "evaluate/base/rank"),
        ("iter_1_dpo/search", "iter_1_dpo/search"),
    ):
        told = read_progress(trained / name)
        assert told is not None, name
        assert told.n_done == told.n_total > 0
        assert told.n_errors == metrics[name]["conversations/errors"] == 0
        assert told.score == pytest.approx(metrics[ranked]["reward/task"])
        assert (told.tokens_per_s or 0.0) > 0
        assert told.seconds_left == 0.0
    scored = read_progress(trained / "iter_0_sft/score")
    assert scored is not None
    assert scored.n_done == scored.n_total == metrics["iter_0_sft/generate"]["conversations"]


def talk(answer: str, error: str | None = None) -> Conversation:
    return Conversation(
        problem_id="p", n=0, format_id=None, turns=(), stop_reason="error" if error else "alone",
        answer=answer, error=error,
    )  # fmt: skip


PROBLEM = Problem(problem_id="p", task="math", question="?", golds=("(x+1)^2",))


def test_failed_conversations_have_no_score_and_slow_answers_are_sampled() -> None:
    found: list[float] = []
    taken = threading.Event()

    def take(score: float) -> None:
        found.append(score)
        taken.set()

    metric: Metric = get_metric("math")
    with ScoreSoFar(metric, [PROBLEM], take) as scores:
        scores.add(talk("x", error="no server"))
        scores.add(talk("x^2+2x+1"))
        for _ in range(50):  # they end while the first is judged, which takes a process
            scores.add(talk("7"))
        assert taken.wait(60)
    assert found == [1.0]

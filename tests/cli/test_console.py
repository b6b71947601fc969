"""How errors and interruptions end a process."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from optima.cli.console import run_command
from optima.errors import RecipeError, StageError


@pytest.fixture(autouse=True)
def signals_as_they_were() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def raising(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (RecipeError("r.yaml: seed: wrong"), 2, "optima: r.yaml: seed: wrong\n"),
        (StageError("nothing selected"), 1, "optima: nothing selected\n"),
        (KeyboardInterrupt(), 130, "optima: interrupted; the same command goes on from here\n"),
    ],
)
def test_known_error_is_one_line_and_a_status(
    error: BaseException, status: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(raising(error)) == status
    assert capsys.readouterr().err == text


def test_unexpected_error_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError()))


def test_termination_that_arrives_inside_a_task_of_many_is_one_line_and_its_status(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # It was wrapped into a group of errors, whose traceback ended the run with status 1.
    async def work(k: int) -> None:
        if k == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)

    async def hold() -> int:
        async with asyncio.TaskGroup() as group:
            for k in range(3):
                group.create_task(work(k))
        return 0

    assert run_command(lambda: asyncio.run(hold())) == 143
    assert capsys.readouterr().err == "optima: terminated; the same command goes on from here\n"


@pytest.mark.parametrize("is_ignored", [False, True])
def test_termination_ends_a_command_also_where_interrupts_are_ignored(
    is_ignored: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        return 0

    if is_ignored:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert run_command(command) == 143
    assert capsys.readouterr().err == "optima: terminated; the same command goes on from here\n"

"""How errors and interruptions end a process."""

from collections.abc import Callable

import pytest

from optima.cli.console import run_command
from optima.errors import RecipeError, StageError


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

"""Directories and files on a command line: what can be no name is refused before anything runs."""

from collections.abc import Callable
from pathlib import Path

from optima.cli.console import EXIT_USAGE, complain
from optima.errors import UsageError
from optima.records import check_path


def path_of(option: str) -> Callable[[str], Path]:
    """Return what argparse makes a path of ``option`` with; an empty one is not the folder here."""

    def path(text: str) -> Path:
        try:
            check_path(text, option)
        except UsageError as error:
            complain(error)
            raise SystemExit(EXIT_USAGE) from error
        return Path(text)

    return path

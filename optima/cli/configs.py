"""``--config``: one recipe or several layers, and ``key=value`` wherever it stands.

``--config A.yaml B.yaml seed=1`` and ``--config A.yaml --config B.yaml seed=1`` are the same: a
word ``key=value`` is an override and never a file (one of such a name is written ``./key=value``).
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

import optima
from optima.processes.environment import Role
from optima.recipe.layers import is_override

NAMES = ("--config", "--recipe")
HELP = "recipe file (YAML), and layers that go over it, from left to right"


class RecipeParser(argparse.ArgumentParser):
    """A parser that ends the files of ``--config`` where overrides begin, and has ``--version``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.add_argument(
            "--version", action="version", version=f"optima {optima.__version__}",
            help="print the version and stop",
        )  # fmt: skip

    def error(self, message: str) -> NoReturn:
        """End with status 2 and one line, as every wrong input does."""
        text = message.removeprefix("argument ")
        self.exit(2, f"optima: {text}; `{self.prog} --help` says what can be given\n")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as ever, each file of ``--config`` with the option before it."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args(list(_one_by_one(words)), namespace)


def add_config(
    parser: argparse.ArgumentParser, *names: str, is_required: bool = False, text: str = HELP
) -> None:
    """Add ``--config`` (or ``names``), whose value is a list of files."""
    parser.add_argument(
        *(names or NAMES[:1]), metavar="RECIPE", type=Path, nargs="+", action="extend",
        required=is_required, help=text,
    )  # fmt: skip


def add_environments(parser: argparse.ArgumentParser, *roles: Role) -> None:
    """Add ``--vllm-env`` and ``--train-env``, or those that are asked for."""
    for role in roles or get_args(Role):
        what = "vLLM" if role == "vllm" else "TRL"
        parser.add_argument(
            f"--{role}-env", metavar="ENV",
            help=f"environment with {what}: prefix path, python, or conda name (default: "
            f"OPTIMA_{role.upper()}_ENV, else .envs/{role}, else conda's optima-{role})",
        )  # fmt: skip


def split_words(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the files and the overrides among the words of a command line."""
    files = [Path(word) for word in words if not is_override(word)]
    return files, [word for word in words if is_override(word)]


def _one_by_one(words: Sequence[str]) -> Iterator[str]:
    option = ""
    for index, word in enumerate(words):
        if word == "--":
            yield from words[index:]
            return
        name, has_value, _ = word.partition("=")
        if name in NAMES and has_value:
            option = name
            yield word
        elif word in NAMES and len(words) > index + 1 and not _is_end(words[index + 1]):
            option = word
        elif option and not _is_end(word):
            yield f"{option}={word}"
        else:
            option = ""
            yield word


def _is_end(word: str) -> bool:
    return word.startswith("-") or is_override(word)

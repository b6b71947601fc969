"""``python -m optima.cli sft ...``: a console script, from a clone that is not installed too."""

import importlib
import sys
from collections.abc import Callable, Sequence

from optima.cli.console import EXIT_USAGE, complain

# name -> module:object, as in [project.scripts] of pyproject.toml
PROGRAMS = {
    "optima": "optima.cli.main:main",
    "optima-sft": "optima.cli.training:sft",
    "optima-dpo": "optima.cli.training:dpo",
    "optima-sft-dpo": "optima.cli.training:sft_dpo",
    "optima-infer": "optima.cli.inference:infer",
    "optima-multi-sc": "optima.cli.inference:multi_sc",
    "optima-fetch-model": "optima.training.fetch_model:main",
}


def program(name: str) -> Callable[[Sequence[str] | None], int]:
    """Return what a console script calls: with its arguments, for its exit status."""
    module, _, attribute = PROGRAMS[name].partition(":")
    found: Callable[[Sequence[str] | None], int] = getattr(
        importlib.import_module(module), attribute
    )
    return found


def main(argv: Sequence[str]) -> int:
    """Run the program that ``argv`` begins with; return its exit status."""
    name = argv[0].replace("_", "-") if argv else ""
    for known in (name, f"optima-{name}"):
        if known in PROGRAMS:
            return program(known)(argv[1:])
    complain(f"{name or 'PROGRAM'}: must be one of {', '.join(PROGRAMS)}")
    return EXIT_USAGE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

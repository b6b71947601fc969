"""``optima report`` and ``optima view``: what runs have come to, to read in a browser."""

import argparse
import contextlib
from typing import TYPE_CHECKING, TypeAlias

from optima.cli.numbers import MANY, whole
from optima.cli.paths import path_of
from optima.errors import UsageError

if TYPE_CHECKING:
    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]


def add_report(commands: "Commands") -> None:
    """Add ``optima report``."""
    parser = commands.add_parser(
        "report", help="write runs as a page to read, with tables and figures", allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Write one self-contained page of HTML about trainings, inferences, sweeps or\n"
        "transfers: figures, tables, every conversation and dialogue tree. It opens from disk and\n"
        "loads nothing. The tables are also written as Markdown and CSV, the figures as PNG and\n"
        "SVG. Runs are only read, and may be going on.",
        epilog="examples:\n"
        "  optima report runs/sft-quickstart-seed0\n"
        "  optima report runs/sft-arc-seed0 runs/dpo-arc-seed0 results/arc --output reports/arc",
    )  # fmt: skip
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        type=path_of("RUN"),
        help="directory of a run, or of several",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=path_of("--output"),
        help="where to write it (default: report in the first RUN)",
    )
    parser.add_argument(
        "--max-conversations", metavar="N", type=whole(1, MANY), default=100_000,
        help="conversations in the page; of larger runs a seeded sample of the problems "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--max-trees", metavar="N", type=whole(1, MANY), default=200,
        help="trees of each search in the page (default: %(default)s)",
    )  # fmt: skip
    parser.set_defaults(run=_report)


def add_view(commands: "Commands") -> None:
    """Add ``optima view``."""
    parser = commands.add_parser(
        "view", help="serve the report of runs live, on this machine only", allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Serve the page of `optima report` at 127.0.0.1 while runs are going on, with\n"
        "the progress of the current stage. The address holds a random key. Ends with Ctrl-C; the\n"
        "runs go on.",
        epilog="examples:\n  optima view runs/sft-quickstart-seed0\n"
        "from a GPU node, forward the port: ssh -L 8700:127.0.0.1:8700 NODE, and here --port 8700",
    )  # fmt: skip
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        type=path_of("RUN"),
        help="directory of a run, or of several",
    )
    parser.add_argument(
        "--port",
        metavar="N",
        type=whole(0, 65535),
        default=0,
        help="port to listen at (default: a free one)",
    )
    parser.set_defaults(run=_view)


def _report(options: argparse.Namespace) -> int:
    from optima.reporting.report import Limits, write_report

    output = options.output or options.runs[0] / "report"
    print(write_report(options.runs, output, Limits(options.max_conversations, options.max_trees)))
    return 0


def _view(options: argparse.Namespace) -> int:
    from optima.processes import interruption
    from optima.reporting.live import serve

    def announce(address: str) -> None:
        print(f"{address}\nCtrl-C ends it; the runs go on.", flush=True)

    try:
        with contextlib.suppress(KeyboardInterrupt):
            interruption.run(serve(options.runs, options.port, announce))
    except OSError as error:
        raise UsageError(f"--port {options.port}: {error.strerror}; take another one") from error
    return 0

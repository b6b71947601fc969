"""The report of runs as files: one page, and its tables and figures by themselves.

report.html   report.md   tables/NAME.{md,csv}   figures/NAME.{png,svg}
"""

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from optima.errors import StageError
from optima.records import atomic_writer, clear_temporaries, disk_errors, make_folder, write_text
from optima.reporting.archive import Archive, StaleError
from optima.reporting.drawing import Figure
from optima.reporting.figures import figures_of, write_figures
from optima.reporting.history import read_histories
from optima.reporting.page import Content, page_parts
from optima.reporting.run_tables import ReportTable, tables_of, write_tables
from optima.reporting.trees import Trees

logger = logging.getLogger(__name__)
PAGE = "report.html"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a page holds at most: conversations in all, trees of each search."""

    n_conversations: int = 100_000
    n_trees: int = 200


def write_report(runs: Sequence[Path], output: Path, limits: Limits) -> Path:
    """Write the report of ``runs``, or folders of runs, into ``output``; return the page's path.

    Runs are read as they are, finished or not. Raises UsageError for what is no run, StageError for
    what is damaged, or was made anew while it was read.
    """
    try:
        return _write_report(runs, output, limits)
    except (StaleError, FileNotFoundError) as error:
        place = error.filename if isinstance(error, FileNotFoundError) else error
        raise StageError(
            f"{place}: was made anew or taken away while it was read; give the same command again"
        ) from error


def _write_report(runs: Sequence[Path], output: Path, limits: Limits) -> Path:
    started = time.monotonic()
    histories = read_histories(runs)
    tables, figures = tables_of(histories), figures_of(histories)
    make_folder(output, "--output")
    for folder in (output, output / "tables", output / "figures"):
        clear_temporaries(folder)
    write_tables(tables, output / "tables")
    write_figures(figures, output / "figures")
    write_text(output / "report.md", _markdown(tables, figures))
    archive = Archive([history.root for history in histories], n_most=limits.n_conversations)
    trees = Trees(archive, n_most=limits.n_trees)
    page = output / PAGE
    n_parts = archive.n_chunks + len(trees) + 2
    with disk_errors(page), atomic_writer(page) as file:
        parts = page_parts(Content(histories, archive, trees, tables, figures))
        bar = tqdm(parts, desc="report", total=n_parts, disable=not sys.stderr.isatty())
        for part in bar:
            file.write(part)
    logger.info(
        "report: done in %.1f s, %d conversations and %d trees in %.1f MB",
        time.monotonic() - started, len(archive), len(trees), page.stat().st_size / 1e6,
    )  # fmt: skip
    return page


def _markdown(tables: Sequence[ReportTable], figures: Sequence[Figure]) -> str:
    """Return all tables, and the figures by link, as one page of Markdown."""
    parts = ["# Report\n"]
    parts += [f"## {t.title}\n\n{t.caption}\n\n{t.table.markdown()}" for t in tables]
    parts += [
        f"## {figure.title}\n\n![{figure.title}](figures/{figure.name}.svg)\n\n{figure.caption}\n"
        for figure in figures
    ]
    return "\n".join(parts)

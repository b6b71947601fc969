"""Several runs: found in folders, told apart by names, and opened together."""

from collections.abc import Sequence
from pathlib import Path

from optima.errors import StageError, UsageError
from optima.runs.files import LOCK, RECIPE
from optima.runs.layout import check_run, find_begun, read_done, read_each
from optima.runs.reader import Run


def open_runs(places: Sequence[Path]) -> tuple[Run, ...]:
    """Open runs, and all those in folders of such, in the order given; a folder's as they began.

    All that reports show of them is read. Raises UsageError for directories that are neither,
    StageError for what is damaged, each named.
    """
    found = [pair for pairs in read_each(_expand, places) for pair in pairs]
    folders = dict(reversed(found))
    roots = list(dict.fromkeys(root for root, _ in found))
    names = dict(zip(roots, _names(roots), strict=True))

    def read(root: Path) -> Run:
        run = Run(root, name=names[root], folder=folders[root])
        check_run(root)
        _ = run.recipe, run.figures, run.costs
        return run

    runs = read_each(read, roots)
    for run in runs:
        beside = [other for other in runs if run.folder is not None and other.folder == run.folder]
        run.is_transfer = bool(beside) and all(map(_is_called_as_its_task, beside))
    return tuple(runs)


def find_runs(places: Sequence[Path]) -> tuple[Path, ...]:
    """Return the directories of runs that ``places`` are or hold; UsageError for neither."""
    return tuple(dict.fromkeys(root for pairs in read_each(_expand, places) for root, _ in pairs))


def transfers(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return the inferences of each transfer, a task each, without those that have no model yet.

    The key tells what is made of them apart: nothing for one alone, else ``-1``, ``-2`` and so on.
    """
    groups: dict[Path | None, list[Run]] = {}
    for run in runs:
        if run.kind == "transfer" and run.figures:
            groups.setdefault(run.folder, []).append(run)
    is_alone = len(groups) == 1
    return {"" if is_alone else f"-{i}": group for i, group in enumerate(groups.values(), start=1)}


def _is_called_as_its_task(run: Run) -> bool:
    return run.kind in ("inference", "transfer") and run.root.name == run.recipe.task


def _expand(place: Path) -> list[tuple[Path, Path | None]]:
    if (place / RECIPE).is_file() or (place / LOCK).is_file():
        return [(place, None)]
    if not (below := find_begun(place)):
        raise UsageError(
            f"{place}: is not a run directory (it has no {RECIPE}) nor a folder of some; give what "
            "--run-dir or --output named"
        )
    return [(path, place) for path in sorted(below, key=_order)]


def _order(root: Path) -> tuple[float, str]:
    """Return when a run began: a folder's runs come in that order, as in its own table."""
    try:
        begun = read_done(root / "problems")
    except StageError:  # said when the run is read
        begun = None
    return (begun.started_unix_s if begun else float("inf"), root.name)


def _names(roots: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart."""
    parts = [path.resolve().parts[1:] or ("/",) for path in roots]
    names = []
    for own in parts:
        n = 1
        while n < len(own) and sum(other[-n:] == own[-n:] for other in parts) > 1:
            n += 1
        names.append("/".join(own[-n:]))
    return names

"""What an evaluation or a folder of several runs will hold, which no recipe says (see optima.plan).

They write it down when they begin: ``plan.json``, with the names of stages or of runs.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from optima.errors import StageError
from optima.recipe.schema import Recipe
from optima.records import make_folder, write_text
from optima.types import Record

PLAN = "plan.json"


class Outline(Record):
    """plan.json: the stages of an evaluation in their order, or the runs of a folder in theirs.

    ``n_samples`` are the conversations per problem of a stage, where it has any.
    """

    schema_version: Literal[1] = 1
    stages: tuple[str, ...] = ()
    n_samples: dict[str, int] = Field(default_factory=dict)
    runs: tuple[str, ...] = ()


def write_stages(
    root: Path, n_samples_by_label: Mapping[str, int], *, grouped: Sequence[str] = ()
) -> None:
    """Note that an evaluation in ``root`` has these models, each with its samples per problem.

    The answers of those in ``grouped`` are put into groups too.
    """
    stages = ["problems"]
    for label in n_samples_by_label:
        stages += [f"{label}/talk", f"{label}/rank"]
        stages += [f"{label}/groups"] if label in grouped else []
    n_samples = {f"{label}/talk": n for label, n in n_samples_by_label.items()}
    _write(root, Outline(stages=tuple(stages), n_samples=n_samples))


def write_trial(root: Path, recipe: Recipe) -> None:
    """Note that a trial in ``root`` has the first generation of a run and its rewards."""
    scored = ["score"] if recipe.reward.lambda_loss > 0 else []
    stages = ["problems", *(f"iter_0/{part}" for part in ("generate", *scored, "rank"))]
    _write(root, Outline(stages=tuple(stages)))


def write_members(root: Path, names: Sequence[str]) -> None:
    """Note that the folder ``root`` has these runs."""
    make_folder(root, "--run-dir")
    _write(root, Outline(runs=tuple(names)))


def read_outline(root: Path) -> Outline | None:
    """Return what was noted in ``root``, None where nothing was.

    Raises StageError when it cannot be read.
    """
    try:
        return Outline.model_validate_json((root / PLAN).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (IsADirectoryError, ValidationError) as error:
        raise StageError(
            f"{root / PLAN}: cannot be read; it was damaged from outside: remove it, or give the "
            "command that wrote it again"
        ) from error


def _write(root: Path, outline: Outline) -> None:
    write_text(root / PLAN, outline.model_dump_json(indent=1) + "\n")

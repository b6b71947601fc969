"""Which models and stages a run will have: known from its recipe alone for a training.

What an evaluation or a folder of several runs will hold is not in a recipe, so these write it down
when they begin: ``plan.json``, with the names of stages or of runs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from optima.errors import StageError, UsageError
from optima.recipe.schema import Recipe
from optima.records import disk_errors, write_text
from optima.tasks import get_task
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


@dataclass(frozen=True, slots=True)
class Step:
    """One model to come: its label, the label of its start, and by which method it is made."""

    label: str
    generator: str
    start: str
    is_dpo: bool


def begins_with_sft(recipe: Recipe) -> bool:
    """Tell whether the first iteration is the SFT that initialises iDPO."""
    return recipe.method == "dpo" and recipe.initialise is not False


def n_loops(recipe: Recipe) -> int:
    """Return how often the method's own loop runs: the SFT that initialises iDPO is before it."""
    return recipe.iterations - begins_with_sft(recipe)


def steps(recipe: Recipe) -> Iterator[Step]:
    """Yield the trained models of a run in order, the cold start's aside."""
    rule = recipe.train.start
    is_exchange = get_task(recipe.task).setting == "information_exchange"
    builds_on = rule == "previous" or (rule == "auto" and is_exchange)
    initial = model = "cold_start" if recipe.cold_start else "base"
    if begins_with_sft(recipe):
        yield Step("initial", model, model, is_dpo=False)
        model = "initial"
    for t in range(n_loops(recipe)):
        if recipe.method == "dpo":
            yield Step(f"iter_{t}", model, model, is_dpo=True)
            model = f"iter_{t}"
            continue
        suffix = "_sft" if recipe.method == "sft_dpo" else ""
        label = f"iter_{t}{suffix}"
        yield Step(label, model, model if builds_on else initial, is_dpo=False)
        model = label
        if recipe.method == "sft_dpo":
            yield Step(f"iter_{t}_dpo", model, model, is_dpo=True)
            model = f"iter_{t}_dpo"


def stage_names(recipe: Recipe) -> list[str]:
    """Return the stages of a run, roughly in order: scoring of an evaluation comes later."""
    names = ["problems"]
    if recipe.evaluation.base:
        names += _evaluation(recipe, "base")
    if recipe.cold_start:
        names += ["cold_start/script", "cold_start/train", *_evaluation(recipe, "cold_start")]
    for step in steps(recipe):
        if step.is_dpo:
            parts = ["probe", "search", "pairs", *_influence(recipe), "train"]
        else:
            scored = ["score"] if recipe.reward.lambda_loss > 0 else []
            parts = ["generate", *scored, "rank", "select", "train"]
        names += [f"{step.label}/{part}" for part in parts]
        names += _evaluation(recipe, step.label)
    return names


def _influence(recipe: Recipe) -> list[str]:
    """Return the stages of selection by influence; of few problems it makes fewer groups."""
    assert recipe.pairs is not None
    if recipe.pairs.strategy != "influence":
        return []
    talked = [part.split("/")[-1] for part in _evaluation(recipe, "")]
    trial = ["rows", "train", *talked]
    groups = range(recipe.pairs.influence.n_groups)
    names = [f"before/{part}" for part in talked]
    names += [f"group_{g}/{part}" for g in groups for part in trial]
    return [f"influence/{name}" for name in (*names, "selected")]


def _evaluation(recipe: Recipe, label: str) -> list[str]:
    scored = ["score"] if recipe.reward.lambda_loss > 0 else []
    return [f"evaluate/{label}/{part}" for part in ("talk", *scored, "rank")]


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
    with disk_errors(root):
        try:
            root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, FileNotFoundError) as error:
            raise UsageError(
                f"--run-dir {root}: cannot be a directory ({error.strerror}); give another"
            ) from error
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

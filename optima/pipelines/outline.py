"""Which models and stages a run will have, known from its recipe alone."""

from collections.abc import Iterator
from dataclasses import dataclass

from optima.recipe.schema import Recipe
from optima.tasks import get_task


@dataclass(frozen=True, slots=True)
class Step:
    """One model to come: its label, the label of its start, and by which method it is made."""

    label: str
    generator: str
    start: str
    is_dpo: bool


def steps(recipe: Recipe) -> Iterator[Step]:
    """Yield the trained models of a run in order, the cold start's aside."""
    rule = recipe.train.start
    is_exchange = get_task(recipe.task).setting == "information_exchange"
    builds_on = rule == "previous" or (rule == "auto" and is_exchange)
    initial = model = "cold_start" if recipe.cold_start else "base"
    if recipe.method == "dpo" and recipe.initialise is not False:
        yield Step("initial", model, model, is_dpo=False)
        model = "initial"
    for t in range(recipe.iterations):
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

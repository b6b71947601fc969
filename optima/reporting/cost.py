"""The table of what models cost to make and to evaluate, and after how many conversations that is
repaid."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from optima.pipelines.cost import EvaluationCost, ModelCost, repaid_after
from optima.records import write_text
from optima.reporting.tables import Table

HEAD = ("model", "tokens generated", "tokens trained", "generate", "score", "train", "other")
EVALUATION_HEAD = ("evaluated: tokens", "evaluated")
REPAID = "repaid after"
LEGEND = (
    "Cost up to each model: tokens, and device-seconds (of all GPUs) by what they were spent on."
)
REPAID_LEGEND = (
    "\nrepaid after: conversations until the tokens saved against {first}\nare those generated and "
    "trained."
)
NO_BASE_LEGEND = (
    "\nrepaid after: not known, as no untrained model is beside them to save tokens against."
)
KINDS = ("generate", "score", "train", "other")


def cost_table(
    costs: Sequence[ModelCost],
    tokens_by_label: Mapping[str, float],
    evaluations: Mapping[str, EvaluationCost] | None = None,
    before: tuple[str, float] | None = None,
) -> Table:
    """Return one line per model that has tokens in ``tokens_by_label`` and a cost of any kind.

    Trained models save tokens against the first that is not trained, or, where there is none,
    against ``before``: the name of a model and its tokens per conversation. ``evaluations`` adds
    what evaluating each took.
    """
    cost_by_label = {cost.label: cost for cost in costs}
    first = untrained(costs, tokens_by_label)
    saved_from = tokens_by_label[first] if first is not None else before[1] if before else None
    lines = []
    for label, tokens in tokens_by_label.items():
        cost = cost_by_label.get(label)
        if cost is None and (evaluations is None or label not in evaluations):
            continue
        lines.append(
            (
                label,
                *_making(cost),
                *(_evaluating(evaluations.get(label)) if evaluations is not None else ()),
                "" if cost is None else _repaid(cost, saved_from, tokens),
            )
        )
    head = (*HEAD, *(EVALUATION_HEAD if evaluations is not None else ()), REPAID)
    return Table(head, tuple(lines))


def untrained(costs: Sequence[ModelCost], tokens_by_label: Mapping[str, float]) -> str | None:
    """Return the first model that cost nothing to make, None if all were trained."""
    trained = {cost.label for cost in costs}
    return next((label for label in tokens_by_label if label not in trained), None)


def cost_text(
    costs: Sequence[ModelCost],
    tokens_by_label: Mapping[str, float],
    evaluations: Mapping[str, EvaluationCost] | None = None,
    before: tuple[str, float] | None = None,
    output: Path | None = None,
) -> str:
    """Return the table with its legend, with an empty line before; nothing without costs.

    With ``output`` it is added to ``table.md`` there and written to ``costs.csv`` too.
    """
    table = cost_table(costs, tokens_by_label, evaluations, before)
    if not table.rows:
        return ""
    if output is not None:
        page = output / "table.md"
        write_text(page, f"{page.read_text(encoding='utf-8')}\n{table.markdown()}")
        write_text(output / "costs.csv", table.csv())
    legend = LEGEND
    if any(cost.label in tokens_by_label for cost in costs):
        first = untrained(costs, tokens_by_label) or (before[0] if before else None)
        legend += REPAID_LEGEND.format(first=first) if first is not None else NO_BASE_LEGEND
    return f"\n\n{table.text()}\n\n{legend}"


def _making(cost: ModelCost | None) -> tuple[str, ...]:
    if cost is None:
        return ("0", "0", *("0 s" for _ in KINDS))
    seconds = (f"{cost.device_seconds[kind]:.0f} s" for kind in KINDS)
    return (f"{cost.n_generated:,}", f"{cost.n_trained:,}", *seconds)


def _evaluating(cost: EvaluationCost | None) -> tuple[str, str]:
    if cost is None:
        return ("", "")
    return (f"{cost.n_generated:,}", f"{cost.device_seconds:.0f} s")


def _repaid(cost: ModelCost, before: float | None, tokens: float) -> str:
    if before is None:
        return "-"
    n = repaid_after(cost, before, tokens)
    return "never" if n is None else f"{n:,}"

"""The table of what models cost to make and to evaluate, and after how many conversations that is
repaid."""

from collections.abc import Mapping, Sequence

from optima.pipelines.cost import EvaluationCost, ModelCost, repaid_after
from optima.reporting.tables import Table

HEAD = ("model", "tokens generated", "tokens trained", "generate", "score", "train", "other")
EVALUATION_HEAD = ("evaluated: tokens", "evaluated")
REPAID = "repaid after"
LEGEND = (
    "Cost up to each model: tokens, and device-seconds by what they were spent on (on GPUs: times "
    "their number)."
)
REPAID_LEGEND = (
    "repaid after: conversations\nuntil the tokens saved against {first} are those generated and "
    "trained."
)
NO_BASE_LEGEND = (
    "repaid after:\nnot known, as no untrained model is beside them to save tokens against."
)
KINDS = ("generate", "score", "train", "other")


def cost_table(
    costs: Sequence[ModelCost],
    tokens_by_label: Mapping[str, float],
    evaluations: Mapping[str, EvaluationCost] | None = None,
    before: float | None = None,
) -> Table:
    """Return one line per model that has tokens in ``tokens_by_label`` and a cost of any kind.

    Trained models save tokens against the first that is not trained, or against ``before`` tokens
    a conversation where there is none. ``evaluations`` adds what evaluating each took.
    """
    cost_by_label = {cost.label: cost for cost in costs}
    first = untrained(costs, tokens_by_label)
    before = before if first is None else tokens_by_label[first]
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
                "" if cost is None else "-" if before is None else _repaid(cost, before, tokens),
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
    before: float | None = None,
) -> str:
    """Return the table with its legend, with an empty line before; nothing without costs."""
    table = cost_table(costs, tokens_by_label, evaluations, before)
    if not table.rows:
        return ""
    legend = LEGEND
    if any(cost.label in tokens_by_label for cost in costs):
        first = untrained(costs, tokens_by_label)
        if first is None and before is None:
            legend += f" {NO_BASE_LEGEND}"
        else:
            legend += f" {REPAID_LEGEND.format(first=first or 'the base model of their run')}"
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


def _repaid(cost: ModelCost, before: float, tokens: float) -> str:
    n = repaid_after(cost, before, tokens)
    return "never" if n is None else f"{n:,}"

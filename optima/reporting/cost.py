"""The table of what models cost to make and after how many conversations that is repaid."""

from collections.abc import Mapping, Sequence

from optima.pipelines.cost import ModelCost, repaid_after
from optima.reporting.tables import Table

HEAD = (
    *("model", "tokens generated", "tokens trained", "generate", "score", "train", "other"),
    "repaid after",
)
LEGEND = (
    "Cost up to each model: tokens, and device-seconds by what they were spent on. repaid after: "
    "conversations\nuntil the tokens saved against {first} are those generated and trained."
)


def cost_table(costs: Sequence[ModelCost], tokens_by_label: Mapping[str, float]) -> Table:
    """Return one line per trained model that has tokens in ``tokens_by_label``.

    Its first entry is the model that the others save tokens against.
    """
    before = next(iter(tokens_by_label.values()))
    lines = [
        (
            cost.label,
            f"{cost.n_generated:,}",
            f"{cost.n_trained:,}",
            *(f"{seconds:.0f} s" for seconds in cost.device_seconds.values()),
            _repaid(repaid_after(cost, before, tokens_by_label[cost.label])),
        )
        for cost in costs
        if cost.label in tokens_by_label
    ]
    return Table(HEAD, tuple(lines))


def cost_text(costs: Sequence[ModelCost], tokens_by_label: Mapping[str, float]) -> str:
    """Return the table with its legend, with an empty line before; nothing without costs."""
    table = cost_table(costs, tokens_by_label)
    if not table.rows:
        return ""
    return f"\n\n{table.text()}\n\n{LEGEND.format(first=next(iter(tokens_by_label)))}"


def _repaid(n: int | None) -> str:
    return "never" if n is None else f"{n:,}"

"""The closing table of a run: every model's score, tokens and cost, and where things are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One model's figures on the held-out problems.

    ``score`` and ``answered`` in [0, 1]; ``tokens`` and ``turns`` are means per conversation;
    ``seconds`` is the wall time of the stages that made the model, 0 for the base model.
    """

    label: str
    model: str
    score: float
    answered: float
    tokens: float
    turns: float
    reward: float
    seconds: float


COLUMNS = ("model", "score", "answered", "tokens", "turns", "reward", "made in")


def run_table(root: Path, rows: Sequence[EvaluationRow]) -> str:
    """Return the table as text: score in per cent, tokens and turns per conversation.

    ``reward`` is R with the tokens of the first row's model as normaliser; ``made in`` is the
    wall time of the stages that made the model.
    """
    cells = [COLUMNS] + [
        (
            row.label,
            f"{100 * row.score:.1f}",
            f"{100 * row.answered:.0f} %",
            f"{row.tokens:.1f}",
            f"{row.turns:.2f}",
            f"{row.reward:.3f}",
            f"{row.seconds:.0f} s" if row.seconds else "",
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    lines.insert(1, "-" * len(lines[0]))
    paths = [f"  {row.label}: {row.model}" for row in rows]
    return "\n".join(
        [*lines, "", "Models:", *paths, f"Run: {root}", f"Metrics: {root / 'metrics.jsonl'}"]
    )

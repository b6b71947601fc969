"""The closing table of a run: every model's score, tokens and cost, and where things are."""

from collections.abc import Mapping, Sequence
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
    paths = [f"  {row.label}: {row.model}" for row in rows]
    return "\n".join(
        [
            text_table(COLUMNS, [_cells(row) for row in rows]),
            *("", "Models:", *paths, f"Run: {root}", f"Metrics: {root / 'metrics.jsonl'}"),
        ]
    )


def sweep_table(key: str, models: Mapping[str, Sequence[EvaluationRow]]) -> str:
    """Return one table of the models of several runs by the value of the field ``key``.

    What a run shares with the first one, figures and all, is shown once.
    """
    lines: list[tuple[str, ...]] = []
    seen: set[EvaluationRow] = set()
    for value, rows in models.items():
        lines += [(value, *_cells(row)) for row in rows if row not in seen]
        seen.update(rows)
    return text_table((key, *COLUMNS), lines, n_left=2)


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], n_left: int = 1) -> str:
    """Return aligned columns below a ruled head; the first ``n_left`` columns are words."""
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < n_left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (head, *rows)
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _cells(row: EvaluationRow) -> tuple[str, ...]:
    return (
        row.label,
        f"{100 * row.score:.1f}",
        f"{100 * row.answered:.0f} %",
        f"{row.tokens:.1f}",
        f"{row.turns:.2f}",
        f"{row.reward:.3f}",
        f"{row.seconds:.0f} s" if row.seconds else "",
    )

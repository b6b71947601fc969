"""The closing table of a run: every model's score, tokens and cost, and where things are."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optima.evaluation.statistics import Estimate


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """One model's figures on the held-out problems.

    ``score`` and ``answered`` in [0, 1]; ``tokens`` (of the utterances, label in, end of turn
    out), ``generated`` (by the server) and ``turns`` are means per conversation;
    ``seconds`` is the wall time of the stages that made the model, 0 for the base model.
    """

    label: str
    model: str
    score: float
    answered: float
    tokens: float
    generated: float
    turns: float
    reward: float
    seconds: float


COLUMNS = ("model", "score", "answered", "tokens", "generated", "turns", "reward", "made in")


def run_table(root: Path, rows: Sequence[EvaluationRow]) -> str:
    """Return the table as text: score in per cent, tokens and turns per conversation.

    ``tokens`` are the paper's count, ``generated`` the server's.
    ``reward`` is R with the tokens of the first row's model as normaliser; ``made in`` is the
    wall time of the stages that made the model.
    """
    paths = [f"  {row.label}: {row.model}" for row in rows]
    return "\n".join(
        [
            Table(COLUMNS, tuple(_cells(row) for row in rows)).text(),
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
    return Table((key, *COLUMNS), tuple(lines), n_left=2).text()


@dataclass(frozen=True, slots=True)
class Table:
    """A head and rows of words and figures; the first ``n_left`` columns are words."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    n_left: int = 1

    def text(self) -> str:
        """Return aligned columns below a ruled head."""
        widths = [max(len(line[i]) for line in (self.head, *self.rows)) for i in self._columns]
        lines = [
            "  ".join(
                cell.ljust(width) if i < self.n_left else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in (self.head, *self.rows)
        ]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])

    def markdown(self) -> str:
        """Return a table of GitHub's Markdown, with its last newline."""
        rule = ["---" if i < self.n_left else "---:" for i in self._columns]
        lines = (self.head, rule, *self.rows)
        cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
        return "".join(f"| {' | '.join(line)} |\n" for line in cells)

    def csv(self) -> str:
        """Return comma-separated values with a head (RFC 4180)."""
        out = io.StringIO()
        csv.writer(out).writerows((self.head, *self.rows))
        return out.getvalue()

    @property
    def _columns(self) -> range:
        return range(len(self.head))


def interval(estimate: Estimate, factor: float = 1.0) -> str:
    """Return both ends of an interval times ``factor``."""
    return f"{factor * estimate.low:.1f}-{factor * estimate.high:.1f}"


def _cells(row: EvaluationRow) -> tuple[str, ...]:
    return (
        row.label,
        f"{100 * row.score:.1f}",
        f"{100 * row.answered:.0f} %",
        f"{row.tokens:.1f}",
        f"{row.generated:.1f}",
        f"{row.turns:.2f}",
        f"{row.reward:.3f}",
        f"{row.seconds:.0f} s" if row.seconds else "",
    )

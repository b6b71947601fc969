"""What a training row holds, token by token: what carries loss, and what it is conditioned on.

An SFT row is one agent's view of a conversation, a preference row its view up to one utterance
with the chosen and the rejected one behind it (docs/method.md, 3).
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from typing import Any

from optima.conversation.codec import Encoder
from optima.errors import UsageError
from optima.runs.reader import Run
from optima.types import PreferenceRow, TrainingRow

OPEN, CLOSE, BETWEEN = "\u27e6", "\u27e7", "\u00b7"


@dataclass(frozen=True, slots=True)
class Piece:
    """A token, or several that are parts of one character; ``is_trained``: it carries loss."""

    ids: tuple[int, ...]
    text: str
    is_trained: bool


@dataclass(frozen=True, slots=True)
class ShownRow:
    """The row at ``index`` of the training of ``label``; ``part``: row, or chosen and rejected."""

    label: str
    index: int
    part: str
    problem_id: str
    agent: str
    n_retokenised: int
    pieces: tuple[Piece, ...]

    def text(self) -> str:
        """Return the row as read: trained spans in brackets, a dot between their tokens."""
        n = sum(len(piece.ids) for piece in self.pieces)
        n_trained = sum(len(piece.ids) for piece in self.pieces if piece.is_trained)
        head = (
            f"{self.label}, row {self.index}, {self.part}: {self.problem_id} as {self.agent} sees "
            f"it; {n_trained} of {n} tokens carry loss, utterances tokenised from text: "
            f"{self.n_retokenised}"
        )
        return f"{head}\n{_marked(self.pieces)}"

    def record(self) -> dict[str, Any]:
        """Return it for other programs."""
        return asdict(self)


def read_rows(run: Run, label: str, first: int, n: int, encoder: Encoder) -> list[ShownRow]:
    """Return ``n`` rows that ``label`` was trained on, from the one at ``first``, from 0 on.

    Raises UsageError where there are not so many.
    """
    found: list[ShownRow] = []
    names = run.recipe.agents.names
    for index, row in enumerate(islice(run.rows(label), first, first + n), first):
        for part, ids, trained in _parts(row):
            about = (label, index, part, row.problem_id, names[row.agent], row.n_retokenised)
            found.append(ShownRow(*about, _pieces(ids, trained, encoder)))
    if not found:
        n_rows = sum(1 for _ in run.rows(label))
        raise UsageError(f"--first {first}: {label} was trained on {n_rows} rows; give a lower one")
    return found


def _parts(
    row: TrainingRow | PreferenceRow,
) -> Iterable[tuple[str, tuple[int, ...], Sequence[tuple[int, int]]]]:
    """Yield the name, the ids and the trained spans of each sequence that a row trains on."""
    if isinstance(row, TrainingRow):
        yield "row", row.input_ids, row.trained
        return
    for part, ids in (("chosen", row.chosen_ids), ("rejected", row.rejected_ids)):
        whole = (*row.prompt_ids, *ids)
        yield part, whole, ((len(row.prompt_ids), len(whole)),)


def _pieces(
    ids: tuple[int, ...], trained: Sequence[tuple[int, int]], encoder: Encoder
) -> tuple[Piece, ...]:
    """Return the tokens; what carries loss and what does not never share a piece."""
    bounds = sorted({0, len(ids), *(place for span in trained for place in span)})
    starts = {start for start, _ in trained}
    return tuple(
        Piece(one, text, begin in starts)
        for begin, end in pairwise(bounds)
        for one, text in encoder.pieces(ids[begin:end])
    )


def _marked(pieces: Sequence[Piece]) -> str:
    parts, was_trained = [], False
    for piece in pieces:
        if piece.is_trained:
            parts.append(BETWEEN if was_trained else OPEN)
        elif was_trained:
            parts.append(CLOSE)
        parts.append(piece.text)
        was_trained = piece.is_trained
    return "".join([*parts, CLOSE if was_trained else ""])

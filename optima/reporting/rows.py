"""What a training row holds, token by token: what carries loss, and what it is conditioned on.

An SFT row is one agent's view of a conversation, a preference row its view up to one utterance
with the chosen and the rejected one behind it (docs/method.md, 3). What a model makes of a row is
computed by the scorer in the training environment: the loss of each token that carries one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise
from typing import Any

from optima.conversation.codec import Encoder
from optima.errors import UsageError
from optima.processes.devices import detect_devices
from optima.processes.environment import Environment
from optima.recipe.schema import Recipe
from optima.records import scratch_folder
from optima.runs.reader import Run
from optima.serving.scorer import LossScorer
from optima.types import ModelRef, PreferenceRow, TrainingRow

OPEN, CLOSE, BETWEEN = "\u27e6", "\u27e7", "\u00b7"
OPEN_LOSS, CLOSE_LOSS = "\u2039", "\u203a"


@dataclass(frozen=True, slots=True)
class Piece:
    """A token, or several that are parts of one character; ``is_trained``: it carries loss.

    ``losses`` are those of its ids, in nats, None where not finite; of a trained one only, and
    where a model was asked.
    """

    ids: tuple[int, ...]
    text: str
    is_trained: bool
    losses: tuple[float | None, ...] = ()

    @property
    def shown(self) -> str:
        """Its text, with the loss of what its ids say together behind it."""
        if not self.losses:
            return self.text
        finite = [loss for loss in self.losses if loss is not None]
        loss = f"{sum(finite):.2f}" if len(finite) == len(self.losses) else "not finite"
        return f"{self.text}{OPEN_LOSS}{loss}{CLOSE_LOSS}"


@dataclass(frozen=True, slots=True)
class ShownRow:
    """The row at ``index`` of the training of ``label``; ``part``: row, or chosen and rejected.

    ``loss`` is the mean of its trained tokens under the model that was asked, in nats; None where
    none was, or one of them is not finite.
    """

    label: str
    index: int
    part: str
    problem_id: str
    agent: str
    n_retokenised: int
    pieces: tuple[Piece, ...]
    loss: float | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        """All its token ids."""
        return tuple(index for piece in self.pieces for index in piece.ids)

    def text(self) -> str:
        """Return the row as read: trained spans in brackets, a dot between their tokens."""
        n = sum(len(piece.ids) for piece in self.pieces)
        n_trained = sum(len(piece.ids) for piece in self.pieces if piece.is_trained)
        head = (
            f"{self.label}, row {self.index}, {self.part}: {self.problem_id} as {self.agent} sees "
            f"it; {n_trained} of {n} tokens carry loss, utterances tokenised from text: "
            f"{self.n_retokenised}"
        )
        head += "" if self.loss is None else f"; mean loss {self.loss:.4f} nats"
        return f"{head}\n{_marked(self.pieces)}"

    def record(self) -> dict[str, Any]:
        """Return it for other programs."""
        return asdict(self)


def read_rows(
    run: Run, label: str, first: int, n: int, encoders: Mapping[str, Encoder]
) -> list[ShownRow]:
    """Return ``n`` rows that ``label`` was trained on, from the one at ``first``, from 0 on.

    ``encoders`` are those of the agents, by their names.
    Raises UsageError where there are not so many.
    """
    found: list[ShownRow] = []
    names = run.recipe.agents.names
    for index, row in enumerate(islice(run.rows(label), first, first + n), first):
        for part, ids, trained in _parts(row):
            about = (label, index, part, row.problem_id, names[row.agent], row.n_retokenised)
            found.append(ShownRow(*about, _pieces(ids, trained, encoders[about[4]])))
    if not found:
        n_rows = sum(1 for _ in run.rows(label))
        raise UsageError(f"--first {first}: {label} was trained on {n_rows} rows; give a lower one")
    return found


def add_losses(
    shown: Sequence[ShownRow], model: ModelRef, recipe: Recipe, *, train_env: Environment
) -> list[ShownRow]:
    """Return the rows with the loss of every trained token under ``model``.

    It is asked on one device of this host. Raises ProcessError when it cannot be.
    """
    devices = detect_devices(recipe.serving)
    devices = replace(devices, gpus=devices.gpus[:1])
    with (
        scratch_folder("optima-rows-") as logs,
        LossScorer(model, recipe=recipe, devices=devices, env=train_env, log_dir=logs) as scorer,
    ):
        losses_of_rows = scorer.row_losses([row.ids for row in shown])
    return [_with_losses(row, losses) for row, losses in zip(shown, losses_of_rows, strict=True)]


def _with_losses(row: ShownRow, losses: Sequence[float | None]) -> ShownRow:
    """Return a row with ``losses`` of its ids after the first, of those that are trained."""
    each: Iterator[float | None] = iter((None, *losses))  # nothing precedes the first
    pieces = []
    for piece in row.pieces:
        own = tuple(islice(each, len(piece.ids)))
        pieces.append(replace(piece, losses=own) if piece.is_trained else piece)
    trained = [loss for piece in pieces for loss in piece.losses]
    finite = [loss for loss in trained if loss is not None]
    is_whole = bool(trained) and len(finite) == len(trained)
    return replace(row, pieces=tuple(pieces), loss=sum(finite) / len(finite) if is_whole else None)


def check_tokens(
    shown: Sequence[ShownRow], encoders: Mapping[str, Encoder], other: Encoder, spec: str
) -> None:
    """Raise UsageError where a model named ``spec`` reads ids of the rows as other tokens."""
    for index, agent in sorted({(index, row.agent) for row in shown for index in row.ids}):
        own = encoders[agent]
        if own.token(index) != other.token(index):
            raise UsageError(
                f"--losses {spec}: reads token {index} as {other.token(index)!r}, and the rows "
                f"hold {own.token(index)!r}; give a model with the tokenizer of the one trained"
            )


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
        parts.append(piece.shown)
        was_trained = piece.is_trained
    return "".join([*parts, CLOSE if was_trained else ""])

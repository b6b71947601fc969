"""What tests of conversations share: speakers, turns, replies, and how answers compare."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from optima.conversation.codec import Ids
from optima.conversation.dialogue import Completion, Speaker
from optima.types import Turn
from tests.tokenizers import codec, encoder

NAMES = ("Alice", "Bob", "Carol")


@dataclass(frozen=True)
class Reply(Completion):
    """A completion."""

    finish_reason: Literal["stop", "length", "label"] = "stop"
    n_prompt_tokens: int = 7
    n_tokens: int = 3


class SameText:
    """Answers agree when their texts do, whatever their case and full stops."""

    async def is_same(self, answer: str, other: str) -> bool:
        return answer.strip(" .").lower() == other.strip(" .").lower()

    def is_restated(self, text: str, answer: str) -> bool:
        return False


def speakers(family: str = "chatml", names: Sequence[str] = NAMES[:2]) -> tuple[Speaker, ...]:
    """Return one speaker per name, each with a prompt of its own."""
    shared = codec(family)
    return tuple(Speaker(i, name, f"You are {name}.", shared) for i, name in enumerate(names))


def turn(
    agent: int, text: str, *, answer: str | None = None, ids: Sequence[int] | None = None
) -> Turn:
    """Return an utterance; with ``ids`` these were sampled."""
    return Turn(
        agent=agent, name=NAMES[agent], text=text, answer=answer, n_prompt_tokens=1, n_tokens=1,
        finish_reason="stop", seconds=0.0, token_ids=None if ids is None else tuple(ids),
    )  # fmt: skip


def ids_of(*pieces: str) -> Ids:
    """Return the ids of pieces of text, each tokenised by itself, as a model may sample them."""
    return tuple(index for piece in pieces for index in encoder().encode(piece))

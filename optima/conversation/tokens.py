"""A conversation as token ids: what a model is prompted with is what it is trained on.

A prompt is put together from pieces: text of the chat template, of prompts and of partners, each
tokenised by itself, and between them the very ids that the model sampled for its own utterances.
Tokenising the whole text anew would give other ids wherever a token reaches across such a border
(with Llama-3's vocabulary ``Alice:`` and ``<A>`` meet in the token ``:<``). So every prompt goes on
from the one before it, and a training row holds nothing that was not generated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from tokenizers import Tokenizer

from optima.conversation.template import ChatTemplate
from optima.errors import ModelError
from optima.types import Message

HOLE = "\ue0a0optima\ue0a1"  # stands for what a model said while the template renders around it
ANCHORS = ("\n", ":")  # texts that what follows them rarely merges with
N_CACHED_PIECES = 8192  # system prompts of the problems under way, mostly

Ids = tuple[int, ...]


class Encoder:
    """A model's own tokenizer: pieces of text to ids and back, nothing added at either end.

    ``special_ids`` are its special tokens: they end turns and belong to no utterance. All ids are
    below ``n_ids``, those included that a model of ``n_rows`` embeddings has beyond its tokenizer.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop_tokens: Sequence[str] = (), n_rows: int = 0
    ) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        named = (tokenizer.token_to_id(text) for text in stop_tokens)
        self.special_ids = frozenset(
            {index for index, token in added.items() if token.special}
            | {index for index in named if index is not None}
        )
        ids = tokenizer.get_vocab(with_added_tokens=True).values()
        self.n_ids = max(n_rows, 1 + max(ids, default=-1))
        self._cached = lru_cache(maxsize=N_CACHED_PIECES)(self.encode_once)
        self._anchor = self.encode_once(ANCHORS[0])
        self._anchor_text = self._text(self._anchor)
        # SentencePiece's tokenizers begin every text with a space that is not in it.
        self._adds_space = self.token(self.encode_once("a")[0]).startswith("\u2581")

    def encode(self, text: str) -> Ids:
        """Return the ids of a piece of text; special tokens written in it are recognised."""
        return self._cached(text)

    def token(self, index: int) -> str:
        """Return a token as the vocabulary writes it."""
        return str(self._tokenizer.id_to_token(index))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids that go on from others, special tokens left out."""
        return self._text((*self._anchor, *ids))[len(self._anchor_text) :]

    def encode_once(self, text: str) -> Ids:
        """Return the ids of a piece that will not come again."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_said(self, text: str) -> Ids:
        """Return the ids of an utterance, which goes on from the text before it."""
        for anchor in ANCHORS if self._adds_space else ():
            head, whole = self.encode(anchor), self.encode_once(anchor + text)
            if whole[: len(head)] == head:
                return whole[len(head) :]
        return self.encode_once(text)

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Token ids of one training row; ``trained`` are the spans [start, end) that carry loss."""

    input_ids: Ids
    trained: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ChatCodec:
    """A model's chat template with its tokenizer: from what was said to what the model is given.

    Messages that the model said itself have ``label + HOLE`` as their content, and what it said is
    handed in beside them as ids without the end of turn, one tuple for each hole.
    """

    template: ChatTemplate
    encoder: Encoder
    end_token: int

    @classmethod
    def of(cls, template: ChatTemplate, encoder: Encoder) -> "ChatCodec":
        """Put a template and a tokenizer together; ModelError when no token ends a turn."""
        codec = cls(template, encoder, end_token=-1)
        tail = codec._pieces([Message(role="user", content="optima-probe"), _hole()])[-1]
        return replace(codec, end_token=codec._end_ids(tail)[-1])

    def end_text(self) -> str:
        """Return what the template writes after an utterance, up to its end of turn."""
        tail = self._pieces([Message(role="user", content="optima-probe"), _hole()])[-1]
        end = self.encoder.token(self.end_token)
        return tail[: tail.index(end) + len(end)]

    def prompt_ids(self, messages: Sequence[Message], said: Sequence[Ids], label: str) -> Ids:
        """Return what the model continues with its next utterance; it ends with ``label``."""
        return self._fill(self._prompt_pieces(messages, label), said)

    def rows(
        self, messages: Sequence[Message], own: Sequence[int], said: Sequence[Ids], label: str
    ) -> list[TokenRow]:
        """Return the rows that train what a speaker said, ``own`` being its messages' places.

        One row, cut after its last utterance, where every prompt goes on from the one before;
        where the template rewrites what came before, one row for each utterance. So it is where
        the token that ends the last message is none that ends an earlier one (GPT-OSS).
        """
        last = own[-1] + 1
        whole = self._pieces(messages[:last])
        prompts = [self._prompt_pieces(messages[:place], label) for place in own]
        is_one = all(prompt == whole[: len(prompt)] for prompt in prompts)
        if is_one and all(self._end_ids(piece)[-1] == self.end_token for piece in whole[1:]):
            return [self._row(whole, said)]
        rows = []
        for k, (place, prompt) in enumerate(zip(own, prompts, strict=True)):
            tail = self._pieces(messages[: place + 1])[-1]
            rows.append(self._row([*prompt, tail], said[: k + 1], only_last=True))
        return rows

    def continuation(self, messages: Sequence[Message], utterance: Message) -> tuple[Ids, Ids]:
        """Return (prompt, utterance) of messages that come from elsewhere, as ids.

        The utterance ends with its end of turn.
        """
        prompt, tail = self._pieces([*messages, _hole()])
        said = self.encoder.encode_said(utterance.content)
        return self.encoder.encode(prompt), said + self._end_ids(tail)

    def ended(self, messages: Sequence[Message], said: Ids, label: str) -> Ids:
        """Return an utterance after ``messages`` with its end of turn."""
        return said + self._end_ids(self._pieces([*messages, _hole(label)])[-1])

    def _prompt_pieces(self, messages: Sequence[Message], label: str) -> list[str]:
        """Return the rendered text up to where the next utterance goes on from ``label``."""
        return self._pieces([*messages, _hole(label)])[:-1]

    def _pieces(self, messages: Sequence[Message]) -> list[str]:
        """Return the rendered text between the holes, one piece more than there are holes."""
        text = self.template.render(messages)
        pieces = text.split(HOLE)
        n_holes = sum(message.content.endswith(HOLE) for message in messages)
        if len(pieces) != n_holes + 1:
            raise ModelError(
                f"{self.template.origin}: the chat template renders {len(pieces) - 1} of "
                f"{n_holes} assistant messages, so a conversation cannot be put before the model; "
                "give the model a template that keeps them all"
            )
        return pieces

    def _fill(self, pieces: Sequence[str], said: Sequence[Ids]) -> Ids:
        ids = list(self.encoder.encode(pieces[0]))
        for utterance, piece in zip(said, pieces[1:], strict=True):
            ids += utterance
            ids += self.encoder.encode(piece)
        return tuple(ids)

    def _row(
        self, pieces: Sequence[str], said: Sequence[Ids], *, only_last: bool = False
    ) -> TokenRow:
        """Return the row of ``pieces`` around ``said``; its last piece is the end of a turn."""
        ids = list(self.encoder.encode(pieces[0]))
        trained = []
        for k, (utterance, piece) in enumerate(zip(said, pieces[1:], strict=True)):
            start, end = len(ids), self._end_ids(piece)
            ids += utterance
            ids += end if k == len(said) - 1 else self.encoder.encode(piece)
            trained.append((start, start + len(utterance)))
            # What a template writes between an utterance and its end of turn was not sampled.
            stop = start + len(utterance) + len(end)
            trained.append((stop - 1, stop))
        return TokenRow(tuple(ids), _joined(trained[-2:] if only_last else trained))

    def _end_ids(self, tail: str) -> Ids:
        """Return the ids of what follows an utterance, up to its end of turn."""
        ids = self.encoder.encode(tail) if tail else ()
        for place, index in enumerate(ids):
            if index in self.encoder.special_ids:
                return ids[: place + 1]
        raise ModelError(
            f"{self.template.origin}: no special token ends an assistant message (the template "
            f"writes {tail!r} after it), so a model could not learn to stop; add an end-of-turn "
            "token to the chat template"
        )


def _hole(label: str = "") -> Message:
    return Message(role="assistant", content=label + HOLE)


def _joined(spans: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return the spans without empty ones, neighbours made one."""
    joined: list[tuple[int, int]] = []
    for start, stop in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        elif start < stop:
            joined.append((start, stop))
    return tuple(joined)

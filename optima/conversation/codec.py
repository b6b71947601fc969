"""From messages to token ids: chat templates, rendered here once, and the ids of prompts and rows.

Roles are a property of the model's template: own = assistant, partner = user, and the system prompt
inside the first user message where there is no system role. Llama-3, the paper's model, keeps the
paper's way, every utterance as ``assistant``; with other models the second agent then repeats the
first (docs/decisions/0004-roles.md).

What a model is prompted with is what it is trained on. A prompt is put together from pieces: text
of the chat template, of prompts and of partners, each tokenised by itself, and between them the
very ids that the model sampled for its own utterances. Tokenising the whole text anew would give
other ids wherever a token reaches across such a border (with Llama-3's vocabulary ``Alice:`` and
``<A>`` meet in the token ``:<``). So every prompt goes on from the one before it, and a training
row holds nothing that was not generated.
"""

import json
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property, lru_cache
from typing import Any, Literal

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from tokenizers import Tokenizer

from optima.errors import ModelError
from optima.sandbox import ExcessError, Sandbox, bounded
from optima.types import Message

Roles = Literal["assistant", "alternate"]
# Families that take a run of assistant messages well, by what their templates write around a role.
RUNS_OF_ASSISTANT = ("<|start_header_id|>",)
FIXED_DATE = date(2024, 7, 26)  # the one that Llama-3's template falls back to
_PROBES = ("optima-probe-one", "optima-probe-two", "optima-probe-three")
# Stands for what a model said while the template renders around it; no text that was written
# before this process began can hold it, and none is sent to a model.
HOLE = f"\ue0a0optima{secrets.token_hex(16)}\ue0a1"
ANCHORS = ("\n", ":")  # texts that what follows them rarely merges with
N_CACHED_PIECES = 16_384  # system prompts of the problems under way, what was said in their talks
_NO_CHARACTER, _MAX_BYTES = "\ufffd", 4  # of UTF-8: how a part decodes, and the most parts

Ids = tuple[int, ...]


class _GenerationBlock(Extension):
    """Accepts ``{% generation %}`` blocks, which some templates use to mark assistant text."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it as a plain class attribute

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_inner"), [], [], body).set_lineno(line)

    def _inner(self, caller: Any) -> str:
        return str(caller())


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys,
    )  # fmt: skip


class ChatTemplate:
    """The chat template of one model.

    ``roles`` says how utterances map to chat roles, ``has_system`` whether the template takes a
    system message, ``special_tokens`` are those that it may name, such as ``eos_token``.
    """

    @bounded()
    def __init__(
        self,
        source: str,
        special_tokens: dict[str, str],
        *,
        roles: Roles | Literal["auto"] = "auto",
        origin: str = "chat template",
    ) -> None:
        environment = Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        # A prompt that contains today's date would differ between generation, training and resume.
        environment.globals["strftime_now"] = FIXED_DATE.strftime
        try:
            self._template = environment.from_string(source)
        except Exception as error:  # nested too deeply, too: by jinja2's rules and by Python's
            raise ModelError(f"{origin}: the chat template does not parse: {error}") from error
        # A plain dict, as each rendering copies it: of the chain that jinja2 makes that is slow.
        self._template.globals = dict(self._template.globals)
        self.special_tokens = special_tokens
        self.origin = origin
        # Templates of models that see images take a message as a list of parts.
        self._takes_parts = False
        self._takes_parts = not self._accepts("user", "assistant")
        self.has_system = self._accepts("system", "user", "assistant")
        self._accepts_runs = self.has_system and self._accepts("system", "assistant", "assistant")
        suits_runs = self._accepts_runs and any(mark in source for mark in RUNS_OF_ASSISTANT)
        self.roles: Roles = (
            ("assistant" if suits_runs else "alternate") if roles == "auto" else roles
        )
        if self.roles == "assistant" and not self._accepts_runs:
            raise ModelError(
                f"model.roles=assistant: {origin} refuses a system prompt followed by several "
                "assistant messages; write model.roles=auto"
            )
        if not self._accepts("user", "assistant"):
            raise ModelError(
                f"{origin}: the chat template does not render a user and an assistant message "
                f"({self._refusal}); use an instruction-tuned model"
            )

    @property
    def other_roles(self) -> Roles | None:
        """The roles that are not in use, None where the template refuses them."""
        if self.roles == "assistant":
            return "alternate"
        return "assistant" if self._accepts_runs else None

    def render(self, messages: Sequence[Message]) -> str:
        """Return the messages as one string.

        A model's next utterance is prompted with the text before an assistant message's content,
        so no generation prompt is asked for, which some templates write otherwise than the message
        that follows. Reasoning is switched off where a template lets it: utterances are short.
        """
        try:
            return self._template.render(
                messages=[{"role": m.role, "content": self._content(m)} for m in messages],
                # As transformers does: many templates ask whether there are tools.
                tools=None,
                documents=None,
                add_generation_prompt=False,
                enable_thinking=False,
                **self.special_tokens,
            )
        except ExcessError as error:
            raise ModelError(f"{self.origin}: the chat template {error}; mend it") from error
        except Exception as error:
            roles = ", ".join(message.role for message in messages)
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ModelError(
                f"{self.origin}: the chat template refuses the roles {roles}: {reason}"
            ) from error

    def assistant_header(self) -> str:
        """Return what the template writes before the content of a lone assistant message."""
        probe = Message(role="assistant", content=_PROBES[0])
        try:
            text = self.render([probe])
        except ModelError:
            user = Message(role="user", content="")
            text = self.render([user, probe])
        return text[: text.index(_PROBES[0])]

    def _accepts(self, *roles: Literal["system", "user", "assistant"]) -> bool:
        messages = [
            Message(role=role, content=probe) for role, probe in zip(roles, _PROBES, strict=False)
        ]
        try:
            text = self.render(messages)
        except ModelError as error:
            if isinstance(error.__cause__, ExcessError):
                raise
            self._refusal = str(error)
            return False
        places = [text.find(message.content) for message in messages]
        self._refusal = "it leaves out a message or changes their order"
        return -1 not in places and places == sorted(places)

    def _content(self, message: Message) -> str | list[dict[str, str]]:
        return [{"type": "text", "text": message.content}] if self._takes_parts else message.content


class Encoder:
    """A model's own tokenizer: pieces of text to ids and back, nothing added at either end.

    ``special_ids`` are its special tokens: they end turns and belong to no utterance. ``n_ids``
    counts those ids too that a model of ``n_rows`` embeddings has beyond its tokenizer.
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
        self._n_rows = n_rows
        self._cached = lru_cache(maxsize=N_CACHED_PIECES)(self.encode_once)
        self._anchor = self.encode_once(ANCHORS[0])
        self._anchor_text = self._text(self._anchor)
        # SentencePiece's tokenizers begin every text with a space that is not in it.
        self._adds_space = self.token(self.encode_once("a")[0]).startswith("\u2581")

    @cached_property
    def n_ids(self) -> int:
        """How many ids there are; all of them are below it."""
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        return max(self._n_rows, 1 + max(ids, default=-1))

    def encode(self, text: str) -> Ids:
        """Return the ids of a piece of text; special tokens written in it are recognised."""
        return self._cached(text)

    def borders(self, ids: Iterable[int]) -> re.Pattern[str] | None:
        """Return what finds those of the special tokens ``ids`` that part a text into two.

        What stands on either side has the ids that it has alone: the token takes no white space
        along, no other token reaches over it, and a text begins after it as at its start. None
        where there is no such token.
        """
        added = self._tokenizer.get_added_tokens_decoder()
        raw = [token.content for token in added.values() if not token.normalized]
        found = []
        for index in sorted(self.special_ids.intersection(ids, added)):
            token, text = added[index], added[index].content
            is_alone = not (token.normalized or token.lstrip or token.rstrip or token.single_word)
            is_alone &= not any(_may_overlap(text, other) for other in raw if other != text)
            parts = self.encode_once(f"a{text}a")
            if is_alone and text == text.strip() and parts == (*parts[:1], index, *parts[:1]):
                found.append(re.escape(text))
        is_whole = self._tokenizer.truncation is None and self._tokenizer.padding is None
        return re.compile(f"({'|'.join(found)})") if found and is_whole else None

    def token(self, index: int) -> str:
        """Return a token as the vocabulary writes it."""
        return str(self._tokenizer.id_to_token(index))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids that go on from others, special tokens left out."""
        return self._text((*self._anchor, *ids))[len(self._anchor_text) :]

    def pieces(self, ids: Sequence[int]) -> list[tuple[Ids, str]]:
        """Return ids with their text, special tokens as written; one id each.

        Only ids that hold parts of one character stand together.
        """
        found: list[tuple[Ids, str]] = []
        held: Ids = ()
        for index in ids:
            if index in self.special_ids:
                found += [(held, self.decode(held))] if held else []
                found.append(((index,), self.token(index)))
                held = ()
                continue
            held = (*held, index)
            text = self.decode(held)
            if not text.endswith(_NO_CHARACTER) or len(held) == _MAX_BYTES:
                found.append((held, text))
                held = ()
        return found + ([(held, self.decode(held))] if held else [])

    def encode_once(self, text: str) -> Ids:
        """Return the ids of a piece that will not come again."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_said(self, text: str) -> Ids:
        """Return the ids of an utterance, which goes on from the text before it."""
        for anchor in ANCHORS if self._adds_space else ():
            head, whole = self.encode(anchor), self.encode_once(anchor + text)
            if whole[: len(head)] == head:
                return whole[len(head) :]
        return self.encode(text)

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
    handed in beside them as ids without the end of turn, one tuple for each hole. ``borders`` finds
    the special tokens by which a piece of text can be cut without a change of its ids, so that of
    a growing conversation only what is new is tokenised.
    """

    template: ChatTemplate
    encoder: Encoder
    end_token: int
    borders: re.Pattern[str] | None = None

    @classmethod
    def of(cls, template: ChatTemplate, encoder: Encoder) -> "ChatCodec":
        """Put a template and a tokenizer together; ModelError when no token ends a turn."""
        codec = cls(template, encoder, end_token=-1)
        pieces = codec._pieces([Message(role="user", content="optima-probe"), _hole()])
        written = [index for piece in pieces for index in encoder.encode(piece)]
        end = codec._end_ids(pieces[-1])[-1]
        return replace(codec, end_token=end, borders=encoder.borders(written))

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
        ids = self._encode(pieces[0])
        for utterance, piece in zip(said, pieces[1:], strict=True):
            ids += utterance
            ids += self._encode(piece)
        return tuple(ids)

    def _encode(self, piece: str) -> list[int]:
        """Return the ids of a piece, those of its parts that came before from memory."""
        ids: list[int] = []
        for part in self.borders.split(piece) if self.borders is not None else (piece,):
            ids += self.encoder.encode(part) if part else ()
        return ids

    def _row(
        self, pieces: Sequence[str], said: Sequence[Ids], *, only_last: bool = False
    ) -> TokenRow:
        """Return the row of ``pieces`` around ``said``; its last piece is the end of a turn."""
        ids = self._encode(pieces[0])
        trained = []
        for k, (utterance, piece) in enumerate(zip(said, pieces[1:], strict=True)):
            start, end = len(ids), self._end_ids(piece)
            ids += utterance
            ids += end if k == len(said) - 1 else self._encode(piece)
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


def _may_overlap(one: str, other: str) -> bool:
    """Tell whether two tokens can share a character of a text."""
    ends = range(1, min(len(one), len(other)))
    return (
        one in other
        or other in one
        or any(one[-n:] == other[:n] or other[-n:] == one[:n] for n in ends)
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

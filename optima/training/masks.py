"""Which tokens of a training row carry loss (method.md section 3).

The conversation is rendered turn by turn, so that the place of every utterance is known as a span
of characters, and tokenised once, with offsets. Nothing is searched for: neither names nor token
ids. A template whose pieces do not add up to the whole is refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from optima.errors import ModelError
from optima.types import Message, TrainingRow

IGNORED = -100  # the label that torch's cross entropy leaves out

Render = Callable[[Sequence[Message], bool], str]


@dataclass(frozen=True)
class MaskedRow:
    """Token ids of one row and, for each, whether it carries loss."""

    input_ids: tuple[int, ...]
    is_trained: tuple[bool, ...]

    @property
    def labels(self) -> list[int]:
        """The ids where they carry loss, ``IGNORED`` elsewhere; not shifted."""
        pairs = zip(self.input_ids, self.is_trained, strict=True)
        return [token if trained else IGNORED for token, trained in pairs]


@dataclass(frozen=True)
class Span:
    """Characters [start, content_end) are an utterance, [content_end, end) close its turn."""

    start: int
    content_end: int
    end: int


def template_renderer(tokenizer: Any) -> Render:
    """Return a function that renders messages with the tokenizer's chat template."""

    def render(messages: Sequence[Message], add_generation_prompt: bool) -> str:
        rows = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return str(
                tokenizer.apply_chat_template(
                    rows, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
        except Exception as error:  # jinja2 raises TemplateError, other libraries ValueError
            roles = ", ".join(message.role for message in messages)
            raise ModelError(
                f"{tokenizer.name_or_path}: the chat template refuses the roles {roles}: {error}"
            ) from error

    return render


def trained_spans(row: TrainingRow, render: Render) -> tuple[str, list[Span]]:
    """Return the whole string and where in it the trained utterances are.

    Raises ModelError when the template changes earlier text as messages are added, or writes an
    utterance otherwise than after its generation prompt.
    """
    whole = render(row.messages, False)
    spans = []
    for index in row.trained:
        message = row.messages[index]
        where = f"problem {row.problem_id}, message {index} ({message.role})"
        header = render(row.messages[:index], True) if index else ""
        piece = render(row.messages[: index + 1], False)
        if not whole.startswith(piece):
            raise ModelError(
                f"{where}: the chat template rewrites it when later messages are added, so what "
                "is trained would differ from what was generated; use another chat template"
            )
        content = message.content.strip()
        start = len(header)
        if not piece.startswith(header) or not piece.startswith(content, start):
            raise ModelError(
                f"{where}: the chat template does not write the utterance directly after its "
                f"generation prompt (which ends in {header[-40:]!r}); use another chat template"
            )
        spans.append(Span(start, start + len(content), len(piece)))
    return whole, spans


def mask_row(row: TrainingRow, tokenizer: Any) -> MaskedRow:
    """Tokenise a row and mark the tokens of the trained utterances and of their ends of turn.

    A token that overlaps an utterance is trained, and so is the first special token after it,
    whatever the padding token is. Raises ModelError when a turn has no such token.
    """
    whole, spans = trained_spans(row, template_renderer(tokenizer))
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    ids, places = encoded["input_ids"], _without_gaps(encoded["offset_mapping"])
    special = special_token_ids(tokenizer)
    trained = [False] * len(ids)
    first = 0
    for span in spans:
        while first < len(ids) and places[first][1] <= span.start:
            first += 1
        at = first
        while at < len(ids) and places[at][0] < span.content_end:
            trained[at] = True
            at += 1
        while at < len(ids) and ids[at] not in special and places[at][0] < span.end:
            at += 1
        if at >= len(ids) or places[at][0] >= span.end:
            raise ModelError(
                f"{tokenizer.name_or_path}: the chat template closes an assistant turn with "
                f"{whole[span.content_end : span.end]!r}, which holds no special token; the model "
                "could never learn to stop. Use an instruction-tuned model with an end-of-turn token"
            )
        trained[at] = True
        first = at
    return MaskedRow(tuple(ids), tuple(trained))


def special_token_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids that text is not split into: declared special tokens and added ones."""
    added = {
        token_id
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if str(token).strip()  # some vocabularies add runs of spaces
    }
    return frozenset(tokenizer.all_special_ids) | added


def require_offsets(tokenizer: Any) -> None:
    """Refuse a tokenizer that cannot say which characters its tokens cover."""
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{tokenizer.name_or_path}: its tokenizer gives no character offsets; use a model "
            "with a tokenizer.json"
        )
    if not tokenizer.chat_template:
        raise ModelError(
            f"{tokenizer.name_or_path}: no chat template; use an instruction-tuned model"
        )


def _without_gaps(offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Give characters that no token claims (trimmed spaces) to the token after them."""
    places = []
    reached = 0
    for start, end in offsets:
        places.append((min(start, reached) if start > reached else start, max(start, end)))
        reached = max(reached, end)
    return places

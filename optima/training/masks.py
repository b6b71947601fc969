"""From a training row to token ids and the mask of what carries loss (method.md section 3).

The row is rendered turn by turn with the template that generation used: each trained message must
continue the very prompt that its speaker was given, and the pieces must add up to the whole. Only
then the whole is tokenised, once, and the mask is laid over it by character positions. Token ids
are never searched for.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from optima.conversation.template import ChatTemplate
from optima.errors import ModelError
from optima.types import Message, PreferenceRow, TrainingRow

IGNORED = -100


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """Token ids, and for each whether it is trained; both have one entry per token."""

    input_ids: list[int]
    is_trained: list[bool]

    @property
    def labels(self) -> list[int]:
        """The token ids, -100 where no loss is taken."""
        pairs = zip(self.input_ids, self.is_trained, strict=True)
        return [token if trained else IGNORED for token, trained in pairs]


@dataclass(frozen=True, slots=True)
class TokenizedPair:
    """Token ids of a prompt and of the two utterances after it, each with its end of turn."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def n_longest(self) -> int:
        """Tokens of the prompt with the longer utterance."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


@dataclass(frozen=True, slots=True)
class Span:
    """Characters of a trained message in the rendered text: its content, and where it ends."""

    start: int
    end: int
    message_end: int


def trained_spans(row: TrainingRow, template: ChatTemplate) -> tuple[str, tuple[Span, ...]]:
    """Return the rendered row and the place of each trained message in it.

    ModelError when a message does not continue the prompt at which it was generated.
    """
    whole = template.render(row.messages, add_generation_prompt=False)
    spans = []
    for k in row.trained:
        prompt = template.render(row.messages[:k], add_generation_prompt=True)
        so_far = template.render(row.messages[: k + 1], add_generation_prompt=False)
        if not so_far.startswith(prompt) or not whole.startswith(so_far):
            raise ModelError(
                f"{template.origin}: message {k} of problem {row.problem_id} does not continue "
                "the prompt it was generated from, so training would differ from generation; the "
                "chat template rewrites earlier messages. Give the model a template that does not"
            )
        content = _as_rendered(row.messages[k].content, so_far[len(prompt) :])
        if content is None:
            raise ModelError(
                f"{template.origin}: the chat template changes the content of message {k} of "
                f"problem {row.problem_id}; give the model a template that keeps it"
            )
        spans.append(Span(len(prompt), len(prompt) + len(content), len(so_far)))
    return whole, tuple(spans)


def tokenize_row(
    row: TrainingRow, template: ChatTemplate, tokenizer: Any, special_ids: frozenset[int]
) -> TokenizedRow:
    """Return the row's tokens; trained are those of trained contents and their ends of turn.

    ``special_ids`` are the tokenizer's special tokens (see ``special_token_ids``). The end of turn
    is the first of them after the content; ModelError where the message ends without one.
    """
    whole, spans = trained_spans(row, template)
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    input_ids: list[int] = list(encoded["input_ids"])
    starts, ends = _token_places(encoded["offset_mapping"])
    is_trained = [False] * len(input_ids)
    for span in spans:
        # Both lists rise, so the tokens that overlap the content are one run.
        first = bisect_left(ends, span.start + 1)
        after = bisect_left(starts, span.end)
        for position in range(first, after):
            is_trained[position] = True
        stop = bisect_left(starts, span.message_end)
        end_of_turn = next((i for i in range(after, stop) if input_ids[i] in special_ids), None)
        if end_of_turn is None:
            raise ModelError(
                f"{template.origin}: no special token ends an assistant message, so the model "
                "could not learn to stop; add an end-of-turn token to the chat template"
            )
        is_trained[end_of_turn] = True
    return TokenizedRow(input_ids=input_ids, is_trained=is_trained)


def tokenize_rows(
    rows: Sequence[TrainingRow], template: ChatTemplate, tokenizer: Any
) -> Iterator[TokenizedRow]:
    """Yield each row's tokens, in order; ModelError where the tokenizer has no offsets."""
    special_ids = special_token_ids(tokenizer)
    for row in rows:
        yield tokenize_row(row, template, tokenizer, special_ids)


def tokenize_pairs(
    rows: Sequence[PreferenceRow], template: ChatTemplate, tokenizer: Any
) -> Iterator[TokenizedPair]:
    """Yield each pair's tokens, in order, by the same rules as an SFT row's.

    ModelError where the prompt's tokens are not the same before both utterances.
    """
    special_ids = special_token_ids(tokenizer)
    for row in rows:
        chosen_prompt, chosen = _last_utterance(row, row.chosen, template, tokenizer, special_ids)
        prompt, rejected = _last_utterance(row, row.rejected, template, tokenizer, special_ids)
        if chosen_prompt != prompt:
            raise ModelError(
                f"{template.origin}: problem {row.problem_id}: the tokens of a prompt depend on "
                "the utterance after it, so a pair would not share its prompt; use a model whose "
                "chat template ends the prompt with a special token or a line break"
            )
        yield TokenizedPair(prompt_ids=prompt, chosen_ids=chosen, rejected_ids=rejected)


def special_token_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids of named special tokens and of added tokens marked as special.

    ModelError where the tokenizer cannot say which characters a token covers.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{getattr(tokenizer, 'name_or_path', 'model.path')}: its tokenizer does not say which "
            "characters a token covers; use a model with a tokenizer.json"
        )
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(added | set(tokenizer.all_special_ids))


def _last_utterance(
    row: PreferenceRow,
    utterance: Sequence[Message],
    template: ChatTemplate,
    tokenizer: Any,
    special_ids: frozenset[int],
) -> tuple[list[int], list[int]]:
    """Return (prompt, utterance) as token ids; the utterance ends with its end of turn."""
    whole = TrainingRow(
        problem_id=row.problem_id,
        n=0,
        agent=row.agent,
        messages=(*row.prompt, *utterance),
        trained=(len(row.prompt),),
    )
    tokens = tokenize_row(whole, template, tokenizer, special_ids)
    places = [i for i, trained in enumerate(tokens.is_trained) if trained]
    start, stop = places[0], places[-1] + 1
    return tokens.input_ids[:start], tokens.input_ids[start:stop]


def _as_rendered(content: str, rest: str) -> str | None:
    for candidate in (content, content.strip()):
        if rest.startswith(candidate):
            return candidate
    return None


def _token_places(offsets: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Return where each token starts and ends, with the white space that offsets leave out.

    Byte-level tokenizers report a token without its leading space, and a token of white space as
    empty. A token that starts inside the one before it (bytes of one character) keeps its start.
    """
    starts, ends = [], []
    previous = 0
    for start, end in offsets:
        starts.append(min(start, previous))
        ends.append(max(end, previous))
        previous = ends[-1]
    return starts, ends

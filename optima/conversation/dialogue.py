"""Conversations of N agents: what each speaker sees, the turn loop, its stop reasons and faults.

A speaker sees its own prompt and everything said so far, in its template's roles.

A conversation ends when an answer is marked that is the last one marked before it, by the
comparison that scores the task, or after ``max_turns`` (paper section 3); a partner who says
nothing but that answer again agrees as well. An agent alone speaks once. An utterance ends where
a speaker's label begins. A conversation that cannot go on is a record with a stop reason, not a
crash.

Thousands are held at once: as many workers as the servers bear take dialogues from a stream.
Nothing is kept: a dialogue is made when a worker takes it, a conversation is handed to ``keep``
when it ends, so memory does not grow with the number of conversations.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar

from optima.conversation.codec import HOLE, ChatCodec, Encoder, Ids, TokenRow
from optima.errors import ContextOverflowError, ModelError, OptimaError
from optima.recipe.schema import ConversationSection
from optima.sandbox import bounded
from optima.seeding import derive_seed, rng
from optima.tasks.answers import last_marked_answer
from optima.types import AnswerStyle, Conversation, Fault, Message, StopReason, Turn

OPENING = "(You speak first.)"  # the user message before an opening utterance
N_PROVEN_TURNS = 6
MIN_TURN_TOKENS = 32  # below this a turn is not worth asking for: the context is full
_LOOK_S = 0.5  # between two looks at whether more can be done at once
T = TypeVar("T")
View = tuple[tuple[Message, ...], tuple[int, ...]]  # messages, and which are the speaker's own


@dataclass(frozen=True, slots=True)
class Speaker:
    """One agent of one conversation: its index from 0, name, own prompt and model's codec.

    ``cue`` ends what it hears from partners, where roles alternate.
    """

    agent: int
    name: str
    system_prompt: str
    codec: ChatCodec
    cue: str = ""

    @property
    def label(self) -> str:
        """What every utterance of this speaker begins with; it is prompted, never sampled."""
        return f"{self.name}:"

    def prompt_ids(self, turns: Sequence[Turn]) -> Ids:
        """Return the exact ids this speaker's model continues with its next utterance.

        They end with ``Name:``, so that the model can neither speak for a partner nor forget who
        it is (docs/method.md, 1), and hold its earlier utterances as it sampled them.
        """
        messages, _, said = self._view_with_holes(turns)
        return self.codec.prompt_ids(messages, said, self.label)

    def rows(self, turns: Sequence[Turn]) -> list[TokenRow]:
        """Return what trains this speaker's utterances, mostly one row; none if it said nothing."""
        messages, own, said = self._view_with_holes(turns)
        return self.codec.rows(messages, own, said, self.label) if own else []

    def continuation(self, turns: Sequence[Turn], turn: Turn) -> Ids:
        """Return the ids of ``turn`` after ``turns``, with its end of turn."""
        messages, _, _ = self._view_with_holes(turns)
        return self.codec.ended(messages, self._said(turn), self.label)

    def n_spoken(self, text: str) -> int:
        """Return the tokens of an utterance by the paper's count: label in, end of turn out."""
        return len(self.codec.encoder.encode_once(f"{self.label}{text}"))

    def view(self, turns: Sequence[Turn]) -> View:
        """Return (messages, own): what this speaker sees, and which messages are its own."""
        return self._view(turns, [utterance(turn) for turn in turns])

    def _view(self, turns: Sequence[Turn], texts: Sequence[str]) -> View:
        if self.codec.template.roles == "assistant":
            said = [Message(role="assistant", content=text) for text in texts]
            messages = (Message(role="system", content=self.system_prompt), *said)
            own = tuple(i for i, turn in enumerate(turns, start=1) if turn.agent == self.agent)
            return messages, own
        return self._alternating_view(turns, texts)

    def _view_with_holes(
        self, turns: Sequence[Turn]
    ) -> tuple[tuple[Message, ...], tuple[int, ...], list[Ids]]:
        """Return (messages, own, said) with the speaker's own words as ids beside the messages."""
        mine = f"{self.label}{HOLE}"
        texts = [mine if turn.agent == self.agent else utterance(turn) for turn in turns]
        messages, own = self._view(turns, texts)
        return messages, own, [self._said(turn) for turn in turns if turn.agent == self.agent]

    def _said(self, turn: Turn) -> Ids:
        sampled = turn.token_ids
        return self.codec.encoder.encode_said(turn.text) if sampled is None else sampled

    def _heard(self, heard: Sequence[str]) -> str:
        """Return the user message of what was heard since this speaker spoke."""
        return "\n\n".join(filter(None, (*(heard or (OPENING,)), self.cue)))

    def _alternating_view(self, turns: Sequence[Turn], texts: Sequence[str]) -> View:
        has_system = self.codec.template.has_system
        messages = [Message(role="system", content=self.system_prompt)] if has_system else []
        heard = [] if has_system else [self.system_prompt]
        own = []
        for turn, text in zip(turns, texts, strict=True):
            if turn.agent != self.agent:
                heard.append(text)
                continue
            # A user message precedes every own one, also when nobody has spoken yet.
            messages.append(Message(role="user", content=self._heard(heard)))
            heard = []
            own.append(len(messages))
            messages.append(Message(role="assistant", content=text))
        if heard or not turns:
            messages.append(Message(role="user", content=self._heard(heard)))
        return tuple(messages), tuple(own)


@bounded()
def prove_talk(codec: ChatCodec, names: Sequence[str]) -> None:
    """Hold a made-up conversation; ModelError when a prompt or training row of it goes wrong.

    So all that generation and training need of a chat template is known before a server starts.
    """
    n_turns = N_PROVEN_TURNS if len(names) > 1 else 1  # an agent alone speaks once
    turns = tuple(_made_up_turn(k, names) for k in range(n_turns))
    for agent, name in enumerate(names):
        speaker = Speaker(agent, name, f"optima-prompt of {name}", codec)
        rows = speaker.rows(turns)
        if not all(row.trained for row in rows):
            raise ModelError(f"{codec.template.origin}: nothing of an utterance is trained")
        for n in range(agent, n_turns, len(names)):
            seen = codec.encoder.decode(speaker.prompt_ids(turns[:n]))
            texts = [speaker.system_prompt, *(utterance(turn) for turn in turns[:n])]
            lost = next((text for text in texts if text not in seen), None)
            if lost is not None:
                raise ModelError(
                    f"{codec.template.origin}: the chat template or tokenizer leaves out or "
                    f"changes {lost!r} in the prompt of turn {n + 1}; use a model whose template "
                    "keeps system prompt and messages, or give it such a chat_template.jinja"
                )


def _made_up_turn(k: int, names: Sequence[str]) -> Turn:
    agent = k % len(names)
    return Turn(
        agent=agent, name=names[agent], text=f" optima-turn {k}", answer=None, n_prompt_tokens=0,
        n_tokens=0, finish_reason="stop", seconds=0.0,
    )  # fmt: skip


def utterance(turn: Turn) -> str:
    """Return the turn as every agent sees it."""
    return f"{turn.name}:{turn.text}"


@dataclass(frozen=True)
class Completion:
    """What a server generated for one turn, and which one did.

    Tokens are those of its usage, the end of turn included. ``finish_reason`` is ``length`` when
    the token limit cut the turn, ``label`` when a stop text ended it. ``token_ids`` are the sampled
    ones, special ones and those of a stop text included; None where they are not given.
    """

    text: str
    finish_reason: Literal["stop", "length", "label"]
    n_prompt_tokens: int
    n_tokens: int
    token_ids: tuple[int, ...] | None = None
    server: Any = None


@dataclass(frozen=True, slots=True)
class Request:
    """One turn to be generated: who speaks, the exact prompt, what ends it, its limit and seed.

    ``stop`` are texts, which are not part of the turn, ``stop_token`` the end of turn.
    """

    agent: int
    prompt_ids: tuple[int, ...]
    stop: tuple[str, ...]
    stop_token: int
    max_tokens: int
    seed: int


Complete = Callable[[Request], Awaitable[Completion]]


class Agreement(Protocol):
    """How answers about one problem are compared, as the task scores them."""

    async def is_same(self, answer: str, other: str) -> bool:
        """Tell whether two marked answers mean the same."""

    def is_restated(self, text: str, answer: str) -> bool:
        """Tell whether an utterance without a mark says nothing but that ``answer`` is right."""


@dataclass(frozen=True, slots=True)
class Dialogue:
    """The conversation number ``n`` about a problem, before or while it is held."""

    problem_id: str
    n: int
    speakers: tuple[Speaker, ...]
    answer_style: AnswerStyle
    agreement: Agreement
    limits: ConversationSection
    seed: int
    format_id: str | None = None
    choices: tuple[str, ...] = ()

    async def converse(self, complete: Complete, turns: Sequence[Turn] = ()) -> Conversation:
        """Hold the conversation to its end, from ``turns`` on; ``complete`` generates one turn."""
        while not isinstance(said := await self.go_on(turns, complete), Conversation):
            turns = (*turns, said)
        return said

    async def go_on(self, turns: Sequence[Turn], complete: Complete) -> Turn | Conversation:
        """Return what is said after ``turns``, or the conversation where it ends with them."""
        if (stop := await self.ending(turns)) is not None:
            return self.record(turns, stop)
        try:
            return await self.speak(turns, complete)
        except ContextOverflowError:
            return self.record(turns, "context_overflow")
        except OptimaError as failure:
            return self.record(turns, "error", str(failure))

    async def ending(self, turns: Sequence[Turn]) -> StopReason | None:
        """Return why a conversation ends after ``turns``; None when it goes on."""
        if turns and await self._is_agreed(turns):
            return "agreement"
        if turns and len(self.speakers) == 1:
            return "alone"
        return "max_turns" if len(turns) >= self.limits.max_turns else None

    async def _is_agreed(self, turns: Sequence[Turn]) -> bool:
        before, last = last_answer(turns[:-1]), turns[-1]
        if before is None:
            return False
        if last.answer is not None:
            return await self.agreement.is_same(last.answer, before)
        may_restate = self.limits.assent_ends and turns[-2].answer is not None
        return may_restate and self.agreement.is_restated(last.text, before)

    def record(
        self, turns: Sequence[Turn], stop: StopReason, error: str | None = None
    ) -> Conversation:
        """Return the conversation that consists of ``turns``."""
        return Conversation(
            problem_id=self.problem_id,
            n=self.n,
            format_id=self.format_id,
            turns=tuple(turns),
            stop_reason=stop,
            answer=last_answer(turns),
            faults=find_faults(turns, stop, [speaker.name for speaker in self.speakers]),
            error=error,
        )

    async def speak(self, turns: Sequence[Turn], complete: Complete) -> Turn:
        """Let the agent whose turn it is say the next utterance.

        Raises ContextOverflowError when its prompt leaves no room, and what ``complete`` raises.
        """
        speaker = self.speakers[self.next_agent(turns)]
        request = Request(
            agent=speaker.agent,
            prompt_ids=speaker.prompt_ids(turns),
            stop=self._stop_texts(speaker),
            stop_token=speaker.codec.end_token,
            max_tokens=self.limits.max_turn_tokens,
            seed=derive_seed(self.seed, self.problem_id, self.n, len(turns)),
        )
        started = time.monotonic()
        while True:
            try:
                completion = await complete(request)
                break
            except ContextOverflowError:
                # vLLM refuses prompts that leave less room than max_tokens: ask for less.
                request = replace(request, max_tokens=request.max_tokens // 4)
                if request.max_tokens < MIN_TURN_TOKENS:
                    raise
        text = clean_utterance(completion.text, speaker.name)
        return Turn(
            agent=speaker.agent,
            name=speaker.name,
            text=text,
            answer=last_marked_answer(text, self.answer_style, self.choices),
            n_prompt_tokens=completion.n_prompt_tokens,
            n_tokens=completion.n_tokens,
            n_spoken=speaker.n_spoken(text),
            finish_reason=completion.finish_reason,
            seconds=round(time.monotonic() - started, 4),
            token_ids=sampled_ids(completion, text, speaker.codec.encoder),
        )

    def next_agent(self, turns: Sequence[Turn]) -> int:
        """Return the agent who speaks after ``turns`` (``conversation.order``).

        It does not depend on the sample: siblings in a tree are one agent's words.
        """
        n, k = len(self.speakers), len(turns)
        if self.limits.order == "random" and turns and n > 2:
            others = [agent for agent in range(n) if agent != turns[-1].agent]
            return rng(self.seed, "order", self.problem_id, k).choice(others)
        if self.limits.order == "hub" and n > 2:
            return 1 + k // 2 % (n - 1) if k % 2 else 0
        return k % n

    def _stop_texts(self, speaker: Speaker) -> tuple[str, ...]:
        """Return what ends an utterance: a partner's label, or the speaker's own on a new line."""
        partners = (other.label for other in self.speakers if other.agent != speaker.agent)
        return (*partners, f"\n{speaker.label}")


def sampled_ids(completion: Completion, text: str, encoder: Encoder) -> tuple[int, ...] | None:
    """Return the ids of an utterance as they were sampled, without the end of turn.

    None when they are not known or are not ``text``: a special token in its midst, a label cut
    off inside a token. White space before the end of turn is part of what was sampled.
    """
    ids = completion.token_ids
    if ids is None:
        return None
    n = len(ids)
    while n and ids[n - 1] in encoder.special_ids:
        n -= 1
    if completion.finish_reason == "label":
        while n and len(encoder.decode(ids[:n]).rstrip()) > len(text):
            n -= 1
        while n and encoder.decode(ids[: n - 1]).rstrip() == text:
            n -= 1  # the line break before the label
    kept = tuple(ids[:n])
    is_exact = encoder.decode(kept).rstrip() == text and encoder.special_ids.isdisjoint(kept)
    return kept if is_exact else None


def last_answer(turns: Sequence[Turn]) -> str | None:
    """Return the last marked answer; None when none was."""
    return next((turn.answer for turn in reversed(turns) if turn.answer is not None), None)


def clean_utterance(text: str, name: str) -> str:
    """Return what follows ``Name:``: one leading own label and trailing white space removed."""
    label = f"{name}:"
    if text.lstrip().startswith(label):
        text = text.lstrip()[len(label) :]
    return text.rstrip()


def find_faults(turns: Sequence[Turn], stop: StopReason, names: Sequence[str]) -> tuple[Fault, ...]:
    """Return what bars a conversation from selection (docs/method.md, 1).

    ``role_leakage``: an utterance carries the label of a speaker, or nothing was left of it where
    a label ended it. ``overflow``: a turn was cut at its token limit, or the window was full.
    """
    faults: list[Fault] = []
    label = re.compile(rf"\b(?:{'|'.join(map(re.escape, names))})\s*:")
    if any(
        label.search(turn.text) or (turn.finish_reason == "label" and not turn.text.strip())
        for turn in turns
    ):
        faults.append("role_leakage")
    if stop == "context_overflow" or any(turn.finish_reason == "length" for turn in turns):
        faults.append("overflow")
    return tuple(faults)


# Makes a turn, by the server that is named if it can: its cache holds what was said before.
Generate = Callable[[Request, object], Awaitable[Completion]]


async def hold_conversations(
    dialogues: Iterable[Dialogue],
    generate: Generate,
    keep: Callable[[Conversation], None],
    *,
    concurrency: Callable[[], int],
) -> None:
    """Hold all dialogues, ``concurrency()`` at a time, which may change meanwhile.

    Errors of a conversation are records; anything else (a bug, a full disk in ``keep``) stops all
    workers and rises.
    """

    async def hold(dialogue: Dialogue) -> None:
        server: object = None

        async def complete(request: Request) -> Completion:
            nonlocal server
            completion = await generate(request, server)
            server = completion.server
            return completion

        keep(await dialogue.converse(complete))

    await work_through(dialogues, hold, concurrency)


async def work_through(
    items: Iterable[T], act: Callable[[T], Awaitable[None]], concurrency: Callable[[], int]
) -> None:
    """Act on every item once, ``concurrency()`` of them at a time, looked at again and again.

    The first failure stops all and rises.
    """
    stream = iter(items)
    n_working = 0
    is_over = asyncio.Event()  # nothing is left to be taken

    async def work() -> None:
        nonlocal n_working
        try:
            while n_working <= max(1, concurrency()):
                for item in stream:  # shared by all workers: each item is taken once
                    await act(item)
                    break
                else:
                    is_over.set()
                    return
        finally:
            n_working -= 1

    try:
        async with asyncio.TaskGroup() as group:
            while not is_over.is_set():
                for _ in range(max(1, concurrency()) - n_working):
                    n_working += 1
                    group.create_task(work())
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(is_over.wait(), _LOOK_S)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures

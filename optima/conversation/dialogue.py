"""One conversation of N agents: the turn loop, its stop reasons and its faults.

Ends when an answer is marked that equals the last one marked before it, or after ``max_turns``
(paper section 3); an agent alone speaks once. A conversation that cannot go on is a record with a
stop reason, not a crash.
"""

import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from optima.conversation.agent import Speaker
from optima.errors import ContextOverflowError, OptimaError
from optima.recipe.schema import ConversationSection
from optima.seeding import derive_seed
from optima.tasks.answers import is_same_answer, last_marked_answer
from optima.types import AnswerStyle, Conversation, Fault, StopReason, Turn

MIN_TURN_TOKENS = 32  # below this a turn is not worth asking for: the context is full


class Completion(Protocol):
    """What a server returns for one turn; ``optima.serving.client`` has the real one."""

    @property
    def text(self) -> str:
        """The generated text, without the prompt."""

    @property
    def n_prompt_tokens(self) -> int:
        """Tokens of the prompt, from the server's usage."""

    @property
    def n_tokens(self) -> int:
        """Tokens generated, the end of turn included, from the server's usage."""

    @property
    def finish_reason(self) -> Literal["stop", "length"]:
        """``length`` when the token limit cut the turn."""


@dataclass(frozen=True, slots=True)
class Request:
    """One turn to be generated: who speaks, the exact prompt, its token limit and its seed."""

    agent: int
    prompt: str
    max_tokens: int
    seed: int


Complete = Callable[[Request], Awaitable[Completion]]


@dataclass(frozen=True, slots=True)
class Dialogue:
    """The conversation number ``n`` about a problem, before or while it is held."""

    problem_id: str
    n: int
    speakers: tuple[Speaker, ...]
    answer_style: AnswerStyle
    limits: ConversationSection
    seed: int
    format_id: str | None = None

    async def converse(self, complete: Complete, turns: Sequence[Turn] = ()) -> Conversation:
        """Hold the conversation to its end, from ``turns`` on; ``complete`` generates one turn."""
        turns = list(turns)
        while (stop := self.ending(turns)) is None:
            try:
                turns.append(await self.speak(turns, complete))
            except ContextOverflowError:
                return self.record(turns, "context_overflow")
            except OptimaError as failure:
                return self.record(turns, "error", str(failure))
        return self.record(turns, stop)

    def ending(self, turns: Sequence[Turn]) -> StopReason | None:
        """Return why a conversation ends after ``turns``; None when it goes on."""
        if turns and turns[-1].answer is not None:
            before = last_answer(turns[:-1])
            if before is not None and is_same_answer(turns[-1].answer, before, self.answer_style):
                return "agreement"
        if turns and len(self.speakers) == 1:
            return "alone"
        return "max_turns" if len(turns) >= self.limits.max_turns else None

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
        speaker = self.speakers[len(turns) % len(self.speakers)]
        prompt = speaker.next_prompt(turns)
        seed = derive_seed(self.seed, self.problem_id, self.n, len(turns))
        max_tokens = self.limits.max_turn_tokens
        started = time.monotonic()
        while True:
            try:
                completion = await complete(Request(speaker.agent, prompt, max_tokens, seed))
                break
            except ContextOverflowError:
                # vLLM refuses prompts that leave less room than max_tokens: ask for less.
                max_tokens //= 4
                if max_tokens < MIN_TURN_TOKENS:
                    raise
        text = clean_utterance(completion.text, speaker.name)
        return Turn(
            agent=speaker.agent,
            name=speaker.name,
            text=text,
            answer=last_marked_answer(text, self.answer_style),
            n_prompt_tokens=completion.n_prompt_tokens,
            n_tokens=completion.n_tokens,
            finish_reason=completion.finish_reason,
            seconds=round(time.monotonic() - started, 4),
        )


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
    """Return what bars a conversation from selection (method.md section 2, "ours").

    ``role_leakage``: an utterance carries the label of a speaker. ``overflow``: a turn was cut at
    its token limit, or the context window was full.
    """
    faults: list[Fault] = []
    label = re.compile(rf"\b(?:{'|'.join(map(re.escape, names))})\s*:")
    if any(label.search(turn.text) for turn in turns):
        faults.append("role_leakage")
    if stop == "context_overflow" or any(turn.finish_reason == "length" for turn in turns):
        faults.append("overflow")
    return tuple(faults)

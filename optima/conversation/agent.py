"""What one speaker sees: its own prompt and everything said so far, in its template's roles."""

from collections.abc import Sequence
from dataclasses import dataclass

from optima.conversation.template import ChatTemplate
from optima.types import Message, Turn


@dataclass(frozen=True, slots=True)
class Speaker:
    """One agent of one conversation: its index from 0, name, own prompt and model's template."""

    agent: int
    name: str
    system_prompt: str
    template: ChatTemplate

    def next_prompt(self, turns: Sequence[Turn]) -> str:
        """Return the exact string this speaker's model continues with its next utterance.

        It ends with ``Name:``, so that the model can neither speak for a partner nor forget who
        it is (method.md section 1).
        """
        messages, _ = self.view(turns)
        return self.template.render(messages, add_generation_prompt=True) + f"{self.name}:"

    def view(self, turns: Sequence[Turn]) -> tuple[tuple[Message, ...], tuple[int, ...]]:
        """Return (messages, own): what this speaker sees, and which messages are its own."""
        if self.template.roles == "assistant":
            said = [Message(role="assistant", content=utterance(turn)) for turn in turns]
            messages = (Message(role="system", content=self.system_prompt), *said)
            own = tuple(i for i, turn in enumerate(turns, start=1) if turn.agent == self.agent)
            return messages, own
        return self._alternating_view(turns)

    def _alternating_view(
        self, turns: Sequence[Turn]
    ) -> tuple[tuple[Message, ...], tuple[int, ...]]:
        has_system = self.template.has_system
        messages = [Message(role="system", content=self.system_prompt)] if has_system else []
        heard = [] if has_system else [self.system_prompt]
        own = []
        for turn in turns:
            if turn.agent != self.agent:
                heard.append(utterance(turn))
                continue
            # A user message precedes every own one, also when nobody has spoken yet.
            messages.append(Message(role="user", content=_joined(heard)))
            heard = []
            own.append(len(messages))
            messages.append(Message(role="assistant", content=utterance(turn)))
        if heard or not turns:
            messages.append(Message(role="user", content=_joined(heard)))
        return tuple(messages), tuple(own)


def utterance(turn: Turn) -> str:
    """Return the turn as every agent sees it."""
    return f"{turn.name}:{turn.text}"


def _joined(heard: Sequence[str]) -> str:
    return "\n\n".join(heard) if heard else "(You speak first.)"

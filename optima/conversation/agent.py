"""What one speaker sees: its own prompt and everything said so far, in its template's roles."""

from collections.abc import Sequence
from dataclasses import dataclass

from optima.conversation.tokens import HOLE, ChatCodec, Ids, TokenRow
from optima.errors import ModelError
from optima.types import Message, Turn

OPENING = "(You speak first.)"  # the user message before an opening utterance
N_PROVEN_TURNS = 6


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

    def view(self, turns: Sequence[Turn]) -> tuple[tuple[Message, ...], tuple[int, ...]]:
        """Return (messages, own): what this speaker sees, and which messages are its own."""
        if self.codec.template.roles == "assistant":
            said = [Message(role="assistant", content=utterance(turn)) for turn in turns]
            messages = (Message(role="system", content=self.system_prompt), *said)
            own = tuple(i for i, turn in enumerate(turns, start=1) if turn.agent == self.agent)
            return messages, own
        return self._alternating_view(turns)

    def _view_with_holes(
        self, turns: Sequence[Turn]
    ) -> tuple[tuple[Message, ...], tuple[int, ...], list[Ids]]:
        """Return (messages, own, said) with the speaker's own words as ids beside the messages."""
        mine = [turn for turn in turns if turn.agent == self.agent]
        hollow = [
            turn.model_copy(update={"text": HOLE}) if turn.agent == self.agent else turn
            for turn in turns
        ]
        messages, own = self.view(hollow)
        return messages, own, [self._said(turn) for turn in mine]

    def _said(self, turn: Turn) -> Ids:
        sampled = turn.token_ids
        return self.codec.encoder.encode_said(turn.text) if sampled is None else sampled

    def _heard(self, heard: Sequence[str]) -> str:
        """Return the user message of what was heard since this speaker spoke."""
        return "\n\n".join(filter(None, (*(heard or (OPENING,)), self.cue)))

    def _alternating_view(
        self, turns: Sequence[Turn]
    ) -> tuple[tuple[Message, ...], tuple[int, ...]]:
        has_system = self.codec.template.has_system
        messages = [Message(role="system", content=self.system_prompt)] if has_system else []
        heard = [] if has_system else [self.system_prompt]
        own = []
        for turn in turns:
            if turn.agent != self.agent:
                heard.append(utterance(turn))
                continue
            # A user message precedes every own one, also when nobody has spoken yet.
            messages.append(Message(role="user", content=self._heard(heard)))
            heard = []
            own.append(len(messages))
            messages.append(Message(role="assistant", content=utterance(turn)))
        if heard or not turns:
            messages.append(Message(role="user", content=self._heard(heard)))
        return tuple(messages), tuple(own)


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

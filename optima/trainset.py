"""From selected conversations to training rows: one per agent that spoke (method.md section 3).

A row holds what that agent saw, byte for byte as at generation without the pool, and which of
the messages are its own: only these carry loss.
"""

from collections.abc import Iterable, Sequence

from optima.conversation.agent import Speaker
from optima.seeding import SEED_BITS, derive_seed
from optima.types import TrainingRow, Turn


def conversation_rows(
    problem_id: str, n: int, turns: Sequence[Turn], speakers: Iterable[Speaker]
) -> list[TrainingRow]:
    """Return one row for each speaker that said something.

    A row ends with the speaker's last utterance: what partners said after it carries no loss and
    conditions nothing that does, so leaving it out changes no gradient and saves its tokens.
    """
    rows = []
    for speaker in speakers:
        messages, own = speaker.view(turns)
        if own:
            rows.append(
                TrainingRow(
                    problem_id=problem_id,
                    n=n,
                    agent=speaker.agent,
                    messages=messages[: own[-1] + 1],
                    trained=own,
                )
            )
    return rows


def is_held_out(problem_id: str, *, seed: int, share: float) -> bool:
    """Tell whether a problem's rows measure evaluation loss; all its rows go together."""
    return derive_seed(seed, "held_out", problem_id) < int(share * 2**SEED_BITS)

"""From selected conversations to training rows: one per agent that spoke (docs/method.md, 3).

A row holds the token ids that agent was given and those it sampled, the very ones of generation
without the pool; only what it sampled carries loss.
"""

from collections.abc import Iterable, Sequence

from optima.conversation.dialogue import Speaker
from optima.seeding import SEED_BITS, derive_seed
from optima.selection import share_of
from optima.types import TrainingRow, Turn


def conversation_rows(
    problem_id: str, n: int, turns: Sequence[Turn], speakers: Iterable[Speaker]
) -> list[TrainingRow]:
    """Return one row for each speaker that said something (see ``ChatCodec.rows``).

    A row ends with the speaker's last utterance: what partners said after it carries no loss and
    conditions nothing that does, so leaving it out changes no gradient and saves its tokens.
    """
    rows = []
    for speaker in speakers:
        mine = [turn for turn in turns if turn.agent == speaker.agent]
        found = speaker.rows(turns)
        for k, row in enumerate(found):
            covered = mine if len(found) == 1 else mine[k : k + 1]
            rows.append(
                TrainingRow(
                    problem_id=problem_id,
                    n=n,
                    agent=speaker.agent,
                    input_ids=row.input_ids,
                    trained=row.trained,
                    n_utterances=len(covered),
                    n_retokenised=sum(turn.token_ids is None for turn in covered),
                )
            )
    return rows


def is_held_out(problem_id: str, *, seed: int, share: float) -> bool:
    """Tell whether a problem's rows measure evaluation loss; all its rows go together."""
    return derive_seed(seed, "held_out", problem_id) < share_of(share, 2**SEED_BITS)

"""Evaluated conversations read lightly: the few fields that figures and tables need.

A run holds some 100,000 conversations; checking every field of every turn takes most of the time
of reading them, so here lines are only parsed. What a stage writes is checked when it is written.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from optima.errors import StageError
from optima.evaluation.summary import Judged
from optima.files import CONVERSATIONS, REWARDS


def read_judged(folder: Path) -> Iterator[Judged]:
    """Yield the conversations of an evaluated model with their task scores, in their order.

    Raises StageError for a line that is no record.
    """
    conversations = _rows(folder / "talk" / CONVERSATIONS)
    rewards = _rows(folder / "rank" / REWARDS)
    for conversation, parts in zip(conversations, rewards, strict=True):
        turns = conversation["turns"]
        yield Judged(
            problem_id=conversation["problem_id"],
            score=parts["task"],
            n_tokens=sum(turn.get("n_spoken") or turn["n_tokens"] for turn in turns),
            n_generated=sum(turn["n_tokens"] for turn in turns),
            n_turns=len(turns),
            is_answered=conversation["answer"] is not None,
            has_failed=conversation["error"] is not None or parts["error"] is not None,
        )


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise StageError(
                    f"{path}:{number}: no JSON record ({error}); remove the stage's directory, "
                    "then run again"
                ) from error

"""Preferences in the common conversational format: prompt, chosen and rejected.

One JSON object a line, each value a list of messages with ``role`` and ``content``. Other keys of a
line are ignored on reading. Refuses a line whose sides are not one assistant message each.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from optima.conversation.codec import ChatCodec
from optima.errors import DataError
from optima.types import Message, PreferenceRow

SIDES = ("prompt", "chosen", "rejected")


def to_conversational(row: PreferenceRow) -> dict[str, list[dict[str, str]]]:
    """Return the row as trainers of other projects take it."""
    tree: dict[str, Any] = row.model_dump(mode="json", include=set(SIDES))
    return {side: tree[side] for side in SIDES}


def export_lines(rows: Iterable[PreferenceRow]) -> Iterator[str]:
    """Yield one line of JSON per row, with its newline."""
    for row in rows:
        yield json.dumps(to_conversational(row), ensure_ascii=False) + "\n"


def read_conversational(path: Path, codec: ChatCodec) -> tuple[PreferenceRow, ...]:
    """Read a file of preferences and tokenise them; DataError names the first line that is none."""
    try:
        lines = path.read_bytes().split(b"\n")  # texts may hold other ends of lines, as U+2028
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check pairs.path") from error
    return tuple(
        _row(line, f"{path}:{number}", number, codec)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    )


def _row(line: bytes, place: str, number: int, codec: ChatCodec) -> PreferenceRow:
    try:
        tree = json.loads(line)
        prompt, chosen, rejected = (
            tuple(Message.model_validate(message) for message in _messages(tree[side]))
            for side in SIDES
        )
    except (ValueError, KeyError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else repr(error)
        raise DataError(
            f"{place}: is not a preference ({reason}); write lists of messages under prompt, "
            "chosen and rejected"
        ) from error
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if len(side) != 1 or side[0].role != "assistant":
            roles = ", ".join(f"role {message.role}" for message in side) or "no message"
            raise DataError(
                f"{place}: {name}: {roles}: a side of a preference is one assistant message"
            )
    if not prompt:
        raise DataError(f"{place}: prompt: is empty; a preference needs at least one message")
    prompt_ids, chosen_ids = codec.continuation(prompt, chosen[0])
    return PreferenceRow(
        problem_id=f"imported/{number}",
        agent=0,
        prompt=prompt,
        chosen=(chosen[0],),
        rejected=(rejected[0],),
        prompt_ids=prompt_ids,
        chosen_ids=chosen_ids,
        rejected_ids=codec.continuation(prompt, rejected[0])[1],
        n_retokenised=2,
    )


def _messages(value: Any) -> list[dict[str, Any]]:
    return [{"role": message["role"], "content": message["content"]} for message in value]

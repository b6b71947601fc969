"""Rows of the real tokenizer for trainings: lamps in cities."""

from pathlib import Path

from optima.conversation.codec import ChatCodec
from optima.conversation.dialogue import Speaker
from optima.search.pairs import preference_row
from optima.trainset import conversation_rows
from optima.types import PreferencePair, PreferenceRow, TrainingRow
from tests.talks import turn

CITIES = ("Riga", "Turku", "Lyon", "Graz")


def training_row(codec: ChatCodec, k: int) -> TrainingRow:
    """Return Alice's row of a talk about lamp ``k``, of which she says the first and last words."""
    city = CITIES[k % len(CITIES)]
    alice = Speaker(0, "Alice", f"You are Alice. Lamp {k} is in {city}. Where is it?", codec)
    sampled = [codec.encoder.encode(text) for text in (f" lamp {k}: {city}.", f"<A>{city}</A>")]
    talk = (
        turn(0, f" lamp {k}: {city}.", ids=sampled[0]),
        turn(1, f" <A>{city}</A>"),
        turn(0, f"<A>{city}</A>", ids=sampled[1]),
    )
    return conversation_rows(f"p{k}", 0, talk, [alice])[0]


def pair_row(codec: ChatCodec, k: int, rejected: str | None = None) -> PreferenceRow:
    """Return a pair about lamp ``k`` whose chosen side is terse and whose rejected side is not."""
    city = CITIES[k % len(CITIES)]
    wordy = f" Well, I looked at what I was told and I would say that it is {city}."
    alice = Speaker(0, "Alice", f"You are Alice. Lamp {k} is in {city}.", codec)
    pair = PreferencePair(
        problem_id=f"p{k}", parent=1, history=(turn(1, " Where is the lamp?"),),
        chosen=turn(0, f"<A>{city}</A>", ids=codec.encoder.encode(f"<A>{city}</A>")),
        rejected=turn(0, wordy if rejected is None else rejected),
        chosen_value=1.0, rejected_value=0.0,
    )  # fmt: skip
    return preference_row(pair, [alice])


def write_rows(path: Path, rows: "list[TrainingRow] | list[PreferenceRow]") -> Path:
    """Write a line of JSON per row."""
    lines = (row.model_dump_json() + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path

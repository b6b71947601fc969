"""Numbers on a command line: within bounds, and refused with them before anything is read."""

import argparse
from collections.abc import Callable

MANY = 10_000_000  # problems or conversations, as in recipes
MAX_TEMPERATURE = 2.0


def whole(low: int, high: int) -> Callable[[str], int]:
    """Return the type of an option that takes a whole number from ``low`` to ``high``."""

    def read(text: str) -> int:
        is_number = text.isascii() and text.removeprefix("-").isdigit() and len(text) < 40
        if not is_number or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(
                f"{text[:40]}: must be a whole number from {low} to {high}"
            )
        return int(text)

    return read


def temperature(text: str) -> float:
    """Return a sampling temperature; the type of an option."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= MAX_TEMPERATURE:  # nan is neither
        raise argparse.ArgumentTypeError(
            f"{text[:40]}: must be a number from 0 to {MAX_TEMPERATURE:g}"
        )
    return value

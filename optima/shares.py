"""Shares of counts, exactly: in floating point 0.7 of 90 is 62.99…, and the 63rd is lost."""

from fractions import Fraction


def share_of(share: float, count: int) -> Fraction:
    """Return ``share * count`` of the share as it is written; ``int`` rounds it down."""
    return Fraction(repr(share)) * count

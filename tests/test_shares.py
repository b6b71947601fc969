from fractions import Fraction

import pytest

from optima.shares import share_of


@pytest.mark.parametrize(
    ("share", "count", "expected"),
    [(0.7, 90, 63), (0.29, 100, 29), (0.57, 100, 57), (0.07, 100, 7), (1e-3, 3000, 3), (1.0, 7, 7)],
)
def test_share_of_a_count_is_that_of_the_number_as_written(
    share: float, count: int, expected: int
) -> None:
    # In floating point 0.7 * 90, 0.29 * 100 and 0.57 * 100 lie below, 0.07 * 100 lies above.
    assert share_of(share, count) == expected


def test_rounding_is_left_to_the_caller() -> None:
    assert share_of(0.7, 5) == Fraction(7, 2)
    assert int(share_of(0.7, 5)) == 3

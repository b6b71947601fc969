"""A trained model that lost its speech."""

import pytest

from optima.evaluation.health import find_loss_of_speech


def _metrics(marked: float, empty: float = 0.0, n: float = 100.0) -> dict[str, float]:
    return {"health/marked": marked, "health/empty": empty, "conversations": n}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        # says nothing: at least 90 % with an empty utterance, and next to no marks
        (_metrics(0.8), _metrics(0.0, empty=0.9), "90 % of its conversations hold an utterance"),
        (_metrics(0.0), _metrics(0.0, empty=1.0), "100 % of its conversations hold"),
        (_metrics(0.8), _metrics(0.8, empty=1.0), None),  # one agent is silent, the other answers
        (_metrics(0.0, empty=1.0), _metrics(0.0, empty=1.0), None),  # it never spoke
        (_metrics(0.0), _metrics(0.0, empty=0.89), None),
        # marks under a tenth of what the earlier one marked, where that made five marks or more
        (_metrics(0.5), _metrics(0.04), "4 % of its conversations mark an answer, of 50 % before"),
        (_metrics(0.5), _metrics(0.05), None),
        (_metrics(0.5, n=10), _metrics(0.0, n=10), "0 % of its conversations mark"),
        (_metrics(0.5, n=9), _metrics(0.0, n=9), None),  # 4.5 marks: none by chance
        (_metrics(0.0), _metrics(0.0), None),
        ({}, {}, None),  # of a run whose metrics do not tell
    ],
)
def test_model_that_lost_its_speech_in_training_is_told_from_one_that_had_none(
    before: dict[str, float], after: dict[str, float], expected: str | None
) -> None:
    said = find_loss_of_speech(before, after)
    assert said is None if expected is None else (said or "").startswith(expected)

"""Estimates: questions whose answer is a number that need not be hit exactly.

    {"question": "How many minutes has a week?", "answer": 10080}

One agent estimates, the other audits. An answer that is off by a tenth or more of the gold number
scores 0, an exact one 1, and what lies between in proportion.
"""

from collections.abc import Sequence
from pathlib import Path

from optima.seeding import digest
from optima.tasks import Dealing, MalformedRowError, Metric, Problem, RoleSet, Row, Task, text_field
from optima.tasks.numbers import stated_number

TOLERANCE = 0.1


def closeness(answer: str, gold: str, choices: Sequence[str]) -> float:
    """Return 1 for the gold number, 0 for one that is off by TOLERANCE of it or more."""
    said, wanted = stated_number(answer), stated_number(gold)
    if said is None or wanted is None:
        return 0.0
    return max(0.0, 1.0 - float(abs(said - wanted) / abs(wanted)) / TOLERANCE)


def parse(row: Row, dealing: Dealing) -> Problem:
    """Return the problem of a row; every agent is told the question only."""
    question, answer = text_field(row, "question"), row.get("answer")
    if not isinstance(answer, int) or isinstance(answer, bool) or not answer:
        raise MalformedRowError(f"field 'answer' is {answer!r}, not a whole number other than 0")
    key = digest(question, str(answer))
    return Problem(
        problem_id=f"estimates-{key}", task="estimates", question=question, golds=(str(answer),)
    )


ESTIMATORS = RoleSet(("estimator", "auditor"), "estimator", Path(__file__).parent / "roles")
TASK = Task(
    name="estimates",
    title="Estimates (example)",
    setting="debate",
    answer_style="boxed",
    metric=Metric("closeness", closeness),
    has_evidence=False,
    train_files=("train.jsonl",),
    test_files=("test.jsonl",),
    parse=parse,
    roles=ESTIMATORS,
)

r"""MATH (Hendrycks et al., 2021): competition problems, the gold is the last ``\boxed{}``.

{"problem": "What is $2^3$?", "solution": "It is $2*2*2=\\boxed{8}$.", "level": "Level 1"}
"""

from optima.seeding import digest
from optima.tasks.answers import last_marked_answer
from optima.tasks.dealing import Dealing
from optima.tasks.metrics import MATH
from optima.tasks.task import (
    HubSource,
    MalformedRowError,
    Row,
    Task,
    file_names,
    gold_field,
    text_field,
)
from optima.types import Fact, Problem


def parse(row: Row, dealing: Dealing) -> Problem:
    """Return the problem of a MATH row; the evidence is the whole solution, boxes included."""
    question, solution = text_field(row, "problem"), gold_field(row, "solution")
    gold = last_marked_answer(solution, "boxed")
    if gold is None:
        raise MalformedRowError(r"field 'solution' has no \boxed{answer}")
    return Problem(
        problem_id=f"math-{digest(question, solution)}",
        task="math",
        question=question,
        golds=(gold,),
        evidence=(Fact(agent=0, text=solution),),
    )


TASK = Task(
    name="math",
    title="MATH",
    setting="debate",
    answer_style="boxed",
    metric=MATH,
    has_evidence=True,
    hub=HubSource(
        "EleutherAI/hendrycks_math",
        (
            "algebra",
            "counting_and_probability",
            "geometry",
            "intermediate_algebra",
            "number_theory",
            "prealgebra",
            "precalculus",
        ),
        "train",
        "test",
    ),
    train_files=(*file_names("train"), "train/**/*.json"),
    test_files=(*file_names("test"), "test/**/*.json"),
    parse=parse,
)

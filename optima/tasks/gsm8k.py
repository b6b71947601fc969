r"""GSM8K (Cobbe et al., 2021): grade-school word problems whose answer is a number.

{"question": "Ann has 3 boxes of 6 eggs. How many eggs?", "answer": "3*6=<<3*6=18>>18\n#### 18"}
"""

import re

from optima.seeding import digest
from optima.tasks.dealing import Dealing
from optima.tasks.metrics import EXACT_MATCH
from optima.tasks.numbers import parse_number
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

_CALCULATOR = re.compile(r"<<[^<>]*>>")  # annotations such as <<48/2=24>>


def parse(row: Row, dealing: Dealing) -> Problem:
    """Return the problem of a GSM8K row; the gold is what stands behind ``####``."""
    question, solution = text_field(row, "question"), gold_field(row, "answer")
    rationale, mark, gold = solution.rpartition("####")
    gold = gold.strip()
    if not mark:
        raise MalformedRowError("field 'answer' has no line '#### number'")
    if parse_number(gold) is None:
        raise MalformedRowError(f"the text behind '####' is {gold!r}, not a number")
    lines = [" ".join(_CALCULATOR.sub("", line).split()) for line in rationale.splitlines()]
    return Problem(
        problem_id=f"gsm8k-{digest(question, solution)}",
        task="gsm8k",
        question=question,
        golds=(gold,),
        evidence=tuple(Fact(agent=0, text=line) for line in lines if line),
    )


TASK = Task(
    name="gsm8k",
    title="GSM8K",
    setting="debate",
    answer_style="boxed",
    metric=EXACT_MATCH,
    has_evidence=True,
    hub=HubSource("openai/gsm8k", ("main",), "train", "test"),
    train_files=file_names("train"),
    test_files=file_names("test"),
    parse=parse,
)

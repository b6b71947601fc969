"""MMLU (Hendrycks et al., 2021): four choices, 57 subjects; trained on auxiliary_train.

auxiliary_train contains the questions of ARC; ``loading`` drops them (method.md section 7).
"""

import string
from collections.abc import Mapping

from optima.tasks.arc import choice_problem
from optima.tasks.dealing import Dealing
from optima.tasks.task import (
    HubSource,
    MalformedRowError,
    Row,
    Task,
    describe,
    file_names,
    text_field,
    texts_field,
)
from optima.types import Problem


def parse(row: Row, dealing: Dealing) -> Problem:
    """Return the problem of an MMLU row; ``answer`` is an index from 0 or a letter."""
    row = unnested(row)
    stem, choices = text_field(row, "question"), texts_field(row, "choices")
    answer = row.get("answer")
    if isinstance(answer, str):
        answer = string.ascii_uppercase.find(answer.strip()) if answer.strip() else -1
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        shown = describe(row.get("answer"))
        raise MalformedRowError(f"field 'answer' is {shown}, not an index of the choices")
    return choice_problem("mmlu", stem, choices, answer)


def unnested(row: Row) -> Row:
    """Return the row itself; one configuration of the hub wraps it in a field ``train``."""
    inner = row.get("train")
    return inner if isinstance(inner, Mapping) else row


TASK = Task(
    name="mmlu",
    title="MMLU",
    setting="debate",
    answer_style="tag",
    metric="exact_match",
    has_evidence=False,
    hub=HubSource("cais/mmlu", ("all",), "auxiliary_train", "test"),
    train_files=file_names("auxiliary_train", "train"),
    test_files=file_names("test"),
    parse=parse,
)

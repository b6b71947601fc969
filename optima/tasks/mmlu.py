"""MMLU (Hendrycks et al., 2021): four choices, 57 subjects; trained on auxiliary_train.

auxiliary_train contains the questions of ARC; ``loading`` drops them (docs/method.md, 6).
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
    gold_field,
    text_field,
    texts_field,
)
from optima.types import Problem


def parse(row: Row, dealing: Dealing) -> Problem:
    """Return the problem of an MMLU row; ``answer`` is an index from 0 or a letter."""
    row = unnested(row)
    stem, choices = text_field(row, "question"), texts_field(row, "choices")
    return choice_problem("mmlu", stem, choices, _gold_index(row, len(choices)))


def _gold_index(row: Row, n_choices: int) -> int:
    """Return the index that field ``answer`` is, or whose letter it is; a bool is neither."""
    answer = row.get("answer")
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < n_choices:
        return answer
    letters = list(string.ascii_uppercase[:n_choices])
    if (answer is None or isinstance(answer, str)) and gold_field(row, "answer") in letters:
        return letters.index(gold_field(row, "answer"))
    raise MalformedRowError(
        f"field 'answer' is {describe(answer)}, not an index of the {n_choices} choices"
    )


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
    reads=frozenset({"conversation.choice_answer"}),
)

"""ARC-Challenge (Clark et al., 2018): science questions with three to five choices.

    {"question": "What do plants take in?", "answerKey": "B",
     "choices": {"text": ["iron", "light", "wood"], "label": ["A", "B", "C"]}}

Some rows label their choices 1 to 4; every choice is shown, and answered, by its letter. The
choice's full text is accepted as well, unless it could be taken for another choice.
MMLU shares the form.
"""

import re
import string
from collections.abc import Mapping, Sequence

from optima.seeding import digest
from optima.tasks.choices import choice_letter
from optima.tasks.dealing import Dealing
from optima.tasks.metrics import EXACT_MATCH, exact_match
from optima.tasks.task import (
    HubSource,
    MalformedRowError,
    Row,
    Task,
    describe,
    file_names,
    gold_field,
    texts_field,
)
from optima.tasks.task import text_field as text
from optima.types import Problem

MAX_CHOICES = len(string.ascii_uppercase)


def parse(row: Row, dealing: Dealing) -> Problem:
    """Return the problem of an ARC row, in the hub's form or the official one."""
    stem, labels, choices = _choices(row)
    value = row.get("answerKey")
    key = str(value) if _is_index(value) else gold_field(row, "answerKey")
    if key not in labels or len(set(labels)) < len(labels):
        raise MalformedRowError(
            f"answerKey is {key!r}, which is not exactly one of the labels {describe(labels)}"
        )
    return choice_problem("arc", stem, choices, labels.index(key))


def choice_problem(task: str, stem: str, choices: Sequence[str], gold: int) -> Problem:
    """Return a multiple-choice problem; ``gold`` is the index of the right choice."""
    if not 2 <= len(choices) <= MAX_CHOICES or not all(choice.strip() for choice in choices):
        raise MalformedRowError(
            f"the choices {describe(list(choices))} are too few, too many or empty"
        )
    letters = string.ascii_uppercase[: len(choices)]
    texts = tuple(choice.strip() for choice in choices)
    lines = [f"{k}. {choice}" for k, choice in zip(letters, texts, strict=True)]
    accepted = texts[gold]
    others = [choice for index, choice in enumerate(texts) if index != gold]
    is_ambiguous = choice_letter(accepted) or any(exact_match(c, accepted) for c in others)
    golds = (letters[gold],) if is_ambiguous else (letters[gold], accepted)
    return Problem(
        problem_id=f"{task}-{digest(stem, *choices, letters[gold])}",
        task=task,
        question="\n".join([stem, *lines]),
        golds=golds,
        choices=texts,
    )


def question_key(stem: str) -> str:
    """Return the letters and digits of a question, to find it in another dataset."""
    return re.sub(r"[\W_]+", "", stem.lower())


def stem_of(row: Row) -> str:
    """Return the question of an ARC row, without its choices."""
    return _choices(row)[0]


def _choices(row: Row) -> tuple[str, list[str], list[str]]:
    """Return question, labels and texts of a row in either form."""
    question = row.get("question")
    if isinstance(question, Mapping):  # official: {"stem": ..., "choices": [{"text", "label"}]}
        stem, pairs = text(question, "stem"), question.get("choices")
        if not isinstance(pairs, list) or not all(isinstance(pair, Mapping) for pair in pairs):
            raise MalformedRowError(f"field 'choices' is {describe(pairs)}, not a list of objects")
        return stem, [text(pair, "label") for pair in pairs], [text(pair, "text") for pair in pairs]
    stem, columns = text(row, "question"), row.get("choices")
    if not isinstance(columns, Mapping):
        raise MalformedRowError(f"field 'choices' is {describe(columns)}, not an object")
    labels, texts = columns.get("label"), texts_field(columns, "text")
    if not isinstance(labels, list) or len(labels) != len(texts):
        raise MalformedRowError("fields 'label' and 'text' of 'choices' are not equally long lists")
    if not all(isinstance(label, str) or _is_index(label) for label in labels):
        raise MalformedRowError(f"field 'label' is {describe(labels)}, not a list of labels")
    return stem, [str(label).strip() for label in labels], texts


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


TASK = Task(
    name="arc",
    title="ARC-Challenge",
    setting="debate",
    answer_style="tag",
    metric=EXACT_MATCH,
    has_evidence=False,
    hub=HubSource("allenai/ai2_arc", ("ARC-Challenge",), "train", "test"),
    train_files=(*file_names("train"), "ARC-Challenge-Train.jsonl"),
    test_files=(*file_names("test"), "ARC-Challenge-Test.jsonl"),
    parse=parse,
    reads=frozenset({"conversation.choice_answer"}),
)

"""Multiple choice: ARC-Challenge (Clark et al., 2018) and MMLU (Hendrycks et al., 2021).

    {"question": "What do plants take in?", "answerKey": "B",
     "choices": {"text": ["iron", "light", "wood"], "label": ["A", "B", "C"]}}

    {"question": "What do plants take in?", "choices": ["iron", "light", "wood", "sand"],
     "answer": 1, "subject": ""}

ARC has three to five choices, some of its rows label them 1 to 4; MMLU has four, of 57 subjects.
Every choice is shown, and answered, by its letter. The choice's full text is accepted as well,
unless it could be taken for another choice.

docs/method.md, 6: MMLU trains on auxiliary_train without the questions of ARC, which stand there
too and must not be trained on. They carry no mark, so they are found by their text: a question
whose letters and digits are one of ARC's is left out. With ``data.path`` the ARC rows are looked
for in the directory ``arc`` beside it; on the hub both parts of ai2_arc (Challenge and Easy) are
read, all splits.
"""

import logging
import os
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from optima.seeding import digest
from optima.tasks.choices import choice_letter
from optima.tasks.dealing import Dealing
from optima.tasks.metrics import EXACT_MATCH, exact_match
from optima.tasks.rows import RawRow, read_file, read_hub_split
from optima.tasks.task import (
    DataSection,
    Excluded,
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
ARC_SOURCE = HubSource("allenai/ai2_arc", ("ARC-Challenge", "ARC-Easy"), "train", "test")
ARC_SPLITS = ("train", "validation", "test")

logger = logging.getLogger(__name__)


def parse_arc(row: Row, dealing: Dealing) -> Problem:
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


def _is_index(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


ARC = Task(
    name="arc",
    title="ARC-Challenge",
    setting="debate",
    answer_style="tag",
    metric=EXACT_MATCH,
    has_evidence=False,
    hub=HubSource("allenai/ai2_arc", ("ARC-Challenge",), "train", "test"),
    train_files=(*file_names("train"), "ARC-Challenge-Train.jsonl"),
    test_files=(*file_names("test"), "ARC-Challenge-Test.jsonl"),
    parse=parse_arc,
    reads=frozenset({"conversation.choice_answer"}),
)


def parse_mmlu(row: Row, dealing: Dealing) -> Problem:
    """Return the problem of an MMLU row; ``answer`` is an index from 0 or a letter."""
    row = unnested(row)
    stem, choices = text(row, "question"), texts_field(row, "choices")
    return choice_problem("mmlu", stem, choices, _gold_index(row, len(choices)))


def _gold_index(row: Row, n_choices: int) -> int:
    """Return the index that field ``answer`` is, or whose letter it is; a bool is neither."""
    answer = row.get("answer")
    if _is_index(answer) and 0 <= answer < n_choices:
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


@dataclass(frozen=True, slots=True)
class ArcQuestions:
    """The keys of ARC's questions and where they were read."""

    place: str
    keys: frozenset[str]

    def reason(self, row: Row) -> str | None:
        """Return why an MMLU row must go, None when it may stay."""
        question = unnested(row).get("question")
        if isinstance(question, str) and question_key(question) in self.keys:
            return f"the question also stands in {self.place}"
        return None


def arc_questions(data: DataSection) -> ArcQuestions | None:
    """Return ARC's questions from beside ``data.path`` or the hub; None, with a warning, if none.

    The hub is asked exactly when MMLU itself comes from there, so a run on local files never
    depends on the network.
    """
    if data.path is None:
        return collect(
            ARC_SOURCE.dataset_id,
            (r for name in ARC_SPLITS for r in read_hub_split(ARC_SOURCE, name)),
        )
    folder = Path(os.path.expanduser(data.path)).resolve().parent / "arc"  # noqa: PTH111
    patterns = ("*.jsonl", "*.json", "*.parquet")
    files = sorted({file for pattern in patterns for file in folder.glob(pattern)})
    if not files:
        logger.warning(
            "mmlu train: no ARC rows in %s, so ARC's questions in auxiliary_train are NOT left "
            "out; put the files of arc there",
            folder,
        )
        return None
    return collect(str(folder), (row for file in files for row in read_file(file)))


def collect(place: str, rows: Iterable[RawRow]) -> ArcQuestions:
    """Return the questions of ``rows``; rows that have none are passed over."""
    keys = set()
    for row in rows:
        try:
            keys.add(question_key(stem_of(row.checked())))
        except MalformedRowError:
            continue
    logger.info("mmlu train: leaving out the %d questions of %s", len(keys), place)
    return ArcQuestions(place, frozenset(keys))


def unwanted(data: DataSection) -> Excluded | None:
    """Return what tells ARC's questions apart in a row."""
    found = arc_questions(data)
    return None if found is None else found.reason


MMLU = Task(
    name="mmlu",
    title="MMLU",
    setting="debate",
    answer_style="tag",
    metric=EXACT_MATCH,
    has_evidence=False,
    hub=HubSource("cais/mmlu", ("all",), "auxiliary_train", "test"),
    train_files=file_names("auxiliary_train", "train"),
    test_files=file_names("test"),
    parse=parse_mmlu,
    reads=frozenset({"conversation.choice_answer"}),
    exclude=unwanted,
)

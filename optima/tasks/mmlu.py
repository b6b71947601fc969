"""MMLU (Hendrycks et al., 2021): four choices, 57 subjects; trained on auxiliary_train.

    {"question": "What do plants take in?", "choices": ["iron", "light", "wood", "sand"],
     "answer": 1, "subject": ""}

docs/method.md, 6: it trains on auxiliary_train without the questions of ARC, which stand there too
and must not be trained on. They carry no mark, so they are found by their text: a question whose
letters and digits are one of ARC's is left out. With ``data.path`` the ARC rows are looked for in
the directory ``arc`` beside it; on the hub both parts of ai2_arc (Challenge and Easy) are read, all
splits.
"""

import logging
import string
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from optima.tasks.arc import choice_problem, question_key, stem_of
from optima.tasks.data import DataSection
from optima.tasks.dealing import Dealing
from optima.tasks.metrics import EXACT_MATCH
from optima.tasks.rows import RawRow, read_file, read_hub_split
from optima.tasks.task import (
    Excluded,
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

ARC = HubSource("allenai/ai2_arc", ("ARC-Challenge", "ARC-Easy"), "train", "test")
ARC_SPLITS = ("train", "validation", "test")

logger = logging.getLogger(__name__)


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
            ARC.dataset_id, (r for name in ARC_SPLITS for r in read_hub_split(ARC, name))
        )
    folder = Path(data.path).expanduser().resolve().parent / "arc"
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


TASK = Task(
    name="mmlu",
    title="MMLU",
    setting="debate",
    answer_style="tag",
    metric=EXACT_MATCH,
    has_evidence=False,
    hub=HubSource("cais/mmlu", ("all",), "auxiliary_train", "test"),
    train_files=file_names("auxiliary_train", "train"),
    test_files=file_names("test"),
    parse=parse,
    reads=frozenset({"conversation.choice_answer"}),
    exclude=unwanted,
)

"""ARC's questions, which MMLU's auxiliary_train contains and a model must not be trained on.

docs/method.md, 6: MMLU trains on auxiliary_train without ARC's questions. They carry no mark, so
they are found by their text: a question whose letters and digits are one of ARC's is left out.
With ``data.path`` the ARC rows are looked for in the directory ``arc`` beside it; on the hub both
parts of ai2_arc (Challenge and Easy) are read, all splits.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from optima.tasks.arc import question_key, stem_of
from optima.tasks.data import DataSection
from optima.tasks.mmlu import unnested
from optima.tasks.rows import RawRow, read_file, read_hub_split
from optima.tasks.task import HubSource, MalformedRowError, Row

HUB = HubSource("allenai/ai2_arc", ("ARC-Challenge", "ARC-Easy"), "train", "test")
HUB_SPLITS = ("train", "validation", "test")

logger = logging.getLogger(__name__)


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
            HUB.dataset_id, (r for name in HUB_SPLITS for r in read_hub_split(HUB, name))
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

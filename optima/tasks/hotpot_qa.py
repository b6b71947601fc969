"""HotpotQA, distractor setting (Yang et al., 2018): two paragraphs of ten hold the answer.

Rows in the hub's form (``context`` as an object of lists) and in the official one (a list of
[title, sentences]) are read; 2WikiMultiHopQA shares both.
"""

import json
from collections.abc import Mapping
from typing import Any

from optima.seeding import digest
from optima.tasks.dealing import Dealing, Gold, Paragraph, deal_paragraphs, unique_titles
from optima.tasks.task import HubSource, MalformedRowError, Row, Task, describe, file_names
from optima.tasks.task import text_field as text
from optima.types import Problem


def parse(row: Row, dealing: Dealing) -> Problem:
    """Return the problem of a HotpotQA row."""
    return parse_multi_hop("hotpot_qa", row, dealing)


def parse_multi_hop(task: str, row: Row, dealing: Dealing) -> Problem:
    """Return the problem of a row with titled paragraphs and supporting facts.

    Gold indices past the end of a paragraph, which both releases have, are passed over; a row
    without any gold sentence left is malformed.
    """
    question, answer = text(row, "question"), text(row, "answer")
    paragraphs = unique_titles(
        [
            Paragraph(title, tuple(sentences))
            for title, sentences in _pairs(row, "context", ("title",), ("sentences", "content"))
            if _is_texts(sentences)
        ]
    )
    if not paragraphs:
        raise MalformedRowError("field 'context' has no paragraphs of title and sentences")
    index_by_title = {paragraph.title: index for index, paragraph in enumerate(paragraphs)}
    golds = []
    for title, sentence in _pairs(row, "supporting_facts", ("title",), ("sent_id",)):
        if title not in index_by_title:
            raise MalformedRowError(f"supporting title {title!r} is not in the context")
        index = index_by_title[title]
        sentences = paragraphs[index].sentences
        if isinstance(sentence, int) and 0 <= sentence < len(sentences):
            golds.append(Gold(index, sentence))
    if not golds:
        raise MalformedRowError("no supporting fact points at a sentence of the context")
    key = digest(question, answer, *(part for p in paragraphs for part in (p.title, *p.sentences)))
    hands = deal_paragraphs(paragraphs, golds, dealing, key)
    return Problem(
        problem_id=f"{task}-{key}",
        task=task,
        question=question,
        golds=(answer,),
        contexts=hands.contexts,
        evidence=hands.evidence,
    )


def _pairs(
    row: Row, name: str, first: tuple[str, ...], second: tuple[str, ...]
) -> list[tuple[str, Any]]:
    """Return the pairs of a field in any of its forms: object of lists, list of pairs, JSON."""
    value = row.get(name)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise MalformedRowError(f"field {name!r} is no JSON: {error}") from error
    if isinstance(value, Mapping):
        lists = [
            next((value[key] for key in keys if isinstance(value.get(key), (list, tuple))), None)
            for keys in (first, second)
        ]
        if lists[0] is None or lists[1] is None or len(lists[0]) != len(lists[1]):
            raise MalformedRowError(f"field {name!r} has no two lists of equal length")
        value = list(zip(*lists, strict=True))
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str)
        for pair in value
    ):
        raise MalformedRowError(f"field {name!r} is {describe(value)}, not a list of pairs")
    return [(pair[0], pair[1]) for pair in value]


def _is_texts(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)


TASK = Task(
    name="hotpot_qa",
    title="HotpotQA (distractor)",
    setting="information_exchange",
    answer_style="tag",
    metric="f1",
    has_evidence=True,
    hub=HubSource("hotpotqa/hotpot_qa", ("distractor",), "train", "validation"),
    train_files=(*file_names("train"), "hotpot_train_v1.1.json"),
    test_files=(*file_names("test", "validation", "dev"), "hotpot_dev_distractor_v1.json"),
    parse=parse,
)

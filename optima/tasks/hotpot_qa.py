"""HotpotQA, distractor setting (Yang et al., 2018), and 2WikiMultiHopQA (Ho et al., 2020).

    {"question": "Who made the lamp of Bob?", "answer": "Ann",
     "supporting_facts": {"title": ["Bob", "Lamp"], "sent_id": [0, 1]},
     "context": {"title": ["Lamp", "Cup", "Bob"],
                 "sentences": [["A lamp.", "Ann made it."], ["A cup."], ["Bob has a lamp."]]}}

Two paragraphs of ten hold the answer, in 2WikiMultiHopQA two or four. Rows in the hub's form (as
above) and in the official one (lists of [title, sentences] and of [title, index]) are read.
"""

import html
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from optima.seeding import digest
from optima.tasks.dealing import Dealing, Gold, Paragraph, deal_paragraphs, distinct_paragraphs
from optima.tasks.metrics import F1
from optima.tasks.rows import read_json
from optima.tasks.task import (
    HubSource,
    MalformedRowError,
    Row,
    Task,
    describe,
    file_names,
    gold_field,
)
from optima.tasks.task import text_field as text
from optima.types import Problem


def parse(task: str, row: Row, dealing: Dealing) -> Problem:
    """Return the problem of a row with titled paragraphs and supporting facts.

    Both releases have gold indices past the end of a paragraph: it is a supporting one all the
    same, and where no other gold sentence of it is there, its last sentence stands for it.
    """
    question, answer = text(row, "question"), gold_field(row, "answer")
    facts = _pairs(row, "supporting_facts", ("title",), ("sent_id",))
    paragraphs = distinct_paragraphs(
        [
            Paragraph(title, _sentences(title, sentences))
            for title, sentences in _pairs(row, "context", ("title",), ("sentences", "content"))
        ]
    )
    if not paragraphs:
        raise MalformedRowError("field 'context' has no paragraph with a text")
    golds = _golds(facts, paragraphs)
    if not golds:
        raise MalformedRowError("no supporting fact points at a paragraph of the context")
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


def _golds(facts: Sequence[tuple[str, Any]], paragraphs: Sequence[Paragraph]) -> list[Gold]:
    """Return the gold sentences in the order of the facts, each supporting paragraph with one."""
    places = []
    for title, sentence in facts:
        if not isinstance(sentence, int) or isinstance(sentence, bool) or sentence < 0:
            raise MalformedRowError(f"the fact of {title!r} has the index {describe(sentence)}")
        places.append((_titled(title, paragraphs), sentence))
    has_gold = {
        index
        for indices, sentence in places
        if (index := _with_sentence(indices, sentence, paragraphs)) is not None
    }
    golds = []
    for indices, sentence in places:
        index = _with_sentence(indices, sentence, paragraphs)
        if index is not None:
            golds.append(Gold(index, sentence))
        elif not has_gold.intersection(indices):
            texts = paragraphs[indices[0]].sentences
            golds.append(Gold(indices[0], max(i for i, t in enumerate(texts) if t.strip())))
    return list(dict.fromkeys(golds))


def _titled(title: str, paragraphs: Sequence[Paragraph]) -> list[int]:
    """Return the paragraphs of a title as written or, if there are none, loosely compared."""
    for form in (str, _loose):
        found = [i for i, p in enumerate(paragraphs) if form(p.title) == form(title)]
        if found:
            return found
    raise MalformedRowError(f"supporting title {title!r} is not in the context, or has no text")


def _loose(title: str) -> list[str]:
    """Return a title's words without what differs between the fields of a row: case and form."""
    return unicodedata.normalize("NFKC", html.unescape(title)).casefold().split()


def _with_sentence(
    indices: Sequence[int], sentence: int, paragraphs: Sequence[Paragraph]
) -> int | None:
    """Return the first of the paragraphs that has this sentence, with a text."""
    for index in indices:
        texts = paragraphs[index].sentences
        if sentence < len(texts) and texts[sentence].strip():
            return index
    return None


def _pairs(
    row: Row, name: str, first: tuple[str, ...], second: tuple[str, ...]
) -> list[tuple[str, Any]]:
    """Return the pairs of a field in any of its forms: object of lists, list of pairs, JSON."""
    value = row.get(name)
    if isinstance(value, str):
        try:
            value = read_json(value)
        except ValueError as error:  # also for numbers of thousands of digits
            raise MalformedRowError(f"field {name!r} is not JSON: {error}") from error
    if isinstance(value, Mapping):
        lists = [
            next((value[key] for key in keys if isinstance(value.get(key), (list, tuple))), None)
            for keys in (first, second)
        ]
        if lists[0] is None or lists[1] is None or len(lists[0]) != len(lists[1]):
            raise MalformedRowError(f"field {name!r} does not have two lists of equal length")
        value = list(zip(*lists, strict=True))
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str)
        for pair in value
    ):
        raise MalformedRowError(f"field {name!r} is {describe(value)}, not a list of pairs")
    return [(pair[0], pair[1]) for pair in value]


def _sentences(title: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise MalformedRowError(f"paragraph {title!r} is {describe(value)}, not a list of texts")
    return tuple(value)


TASK = Task(
    name="hotpot_qa",
    title="HotpotQA (distractor)",
    setting="information_exchange",
    answer_style="tag",
    metric=F1,
    has_evidence=True,
    hub=HubSource("hotpotqa/hotpot_qa", ("distractor",), "train", "validation"),
    train_files=(*file_names("train"), "hotpot_train_v1.1.json"),
    test_files=(
        *file_names("validation", "dev"),
        "hotpot_dev_distractor_v1.json",
        *file_names("test"),
    ),
    parse=partial(parse, "hotpot_qa"),
    reads=frozenset({"data.paragraphs", "data.max_context_words"}),
    n_original_test=1000,
)
MWH_QA = replace(
    TASK,
    name="mwh_qa",
    title="2WikiMultiHopQA",
    # xanhho/2WikiMultihopQA, the authors' own, is a loading script, which datasets 4 and later
    # refuse; this copy is parquet in HotpotQA's form, its validation split their dev.
    hub=HubSource("framolfese/2WikiMultihopQA", ("default",), "train", "validation"),
    train_files=file_names("train"),
    test_files=file_names("dev", "validation", "test"),
    parse=partial(parse, "mwh_qa"),
)

"""TriviaQA, reading comprehension (Joshi et al., 2017): passages found for a trivia question.

    {"question": "Who built the tower?", "answer": {"value": "Ann Lee", "aliases": ["A. Lee"]},
     "search_results": {"title": ["Towers"], "description": ["Ann Lee built it."],
                        "search_context": ["The tower is old. Ann Lee built it."]}}

As in the reference, the agents are told the ``description`` snippets of the search results, some
250 tokens in all; ``data.passages: document`` deals the whole web documents, thousands of tokens
each. A row without search results gives its Wikipedia pages instead (the reference: nothing), of
which the snippet is the text before the first empty line; a row without either is malformed. No
sentence is marked as evidence in the release: the sentences that contain an answer stand in for it.
"""

import re

from optima.seeding import digest
from optima.tasks.dealing import Dealing, Paragraph, deal_passages, split_sentences
from optima.tasks.metrics import F1
from optima.tasks.task import (
    WITHHELD,
    HubSource,
    MalformedRowError,
    Row,
    Task,
    file_names,
    gold_field,
    mapping_field,
    text_field,
    texts_field,
)
from optima.types import Problem

_LEAD_END = re.compile(r"\n\s*\n")


def parse(row: Row, dealing: Dealing) -> Problem:
    """Return the problem of a TriviaQA row; golds are the value, then its aliases."""
    question = text_field(row, "question")
    answer = mapping_field(row, "answer")
    value = gold_field(answer, "value")
    aliases = [alias.strip() for alias in texts_field(answer, "aliases")]
    golds = tuple(dict.fromkeys((value, *(a for a in aliases if a.lower() not in WITHHELD))))
    is_short = dealing.passages == "description"
    found = _titled(row, "search_results", "description" if is_short else "search_context")
    if is_short:
        found = [("", snippet) for _, snippet in found]  # the reference shows no titles
    if not found:
        found = _titled(row, "entity_pages", "wiki_context")
        if is_short:
            found = [(title, _LEAD_END.split(body)[0]) for title, body in found]
    passages = list(dict.fromkeys(Paragraph(title, split_sentences(body)) for title, body in found))
    if not passages:
        raise MalformedRowError("neither search_results nor entity_pages has a text")
    key = digest(question, *golds, *(part for p in passages for part in (p.title, *p.sentences)))
    hands = deal_passages(passages, golds, question, dealing, key)
    return Problem(
        problem_id=f"trivia_qa-{key}",
        task="trivia_qa",
        question=question,
        golds=golds,
        contexts=hands.contexts,
        evidence=hands.evidence,
    )


def _titled(row: Row, source: str, field: str) -> list[tuple[str, str]]:
    """Return the texts of a field that are not empty, stripped, each after its title."""
    if row.get(source) is None:
        return []
    pages = mapping_field(row, source)
    texts = texts_field(pages, field)
    titles = texts_field(pages, "title") if pages.get("title") is not None else []
    if len(titles) != len(texts):
        titles = [""] * len(texts)
    return [
        (title.strip(), body.strip())
        for title, body in zip(titles, texts, strict=True)
        if body.strip()
    ]


TASK = Task(
    name="trivia_qa",
    title="TriviaQA (rc)",
    setting="information_exchange",
    answer_style="tag",
    metric=F1,
    has_evidence=True,
    hub=HubSource("mandarjoshi/trivia_qa", ("rc",), "train", "validation"),
    train_files=file_names("train"),
    test_files=file_names("validation", "dev", "test"),
    parse=parse,
    reads=frozenset({"data.passages", "data.max_context_words"}),
    n_original_test=1000,
)

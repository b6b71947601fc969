"""TriviaQA, reading comprehension (Joshi et al., 2017): passages found for a trivia question.

The passages are the search results; a row without any gives its Wikipedia pages instead, and a
row without either is malformed. No sentence is marked as evidence in the release: the sentences
that contain an answer stand in for it.
"""

from optima.seeding import digest
from optima.tasks.dealing import Dealing, Paragraph, deal_passages, split_sentences
from optima.tasks.task import (
    HubSource,
    MalformedRowError,
    Row,
    Task,
    file_names,
    mapping_field,
    text_field,
    texts_field,
)
from optima.types import Problem


def parse(row: Row, dealing: Dealing) -> Problem:
    """Return the problem of a TriviaQA row; golds are the value, then its aliases."""
    question = text_field(row, "question")
    answer = mapping_field(row, "answer")
    value = text_field(answer, "value")
    aliases = texts_field(answer, "aliases")
    golds = tuple(dict.fromkeys(a.strip() for a in (value, *aliases) if a.strip()))
    passages = _passages(row, "search_results", "search_context")
    passages = passages or _passages(row, "entity_pages", "wiki_context")
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


def _passages(row: Row, source: str, field: str) -> list[Paragraph]:
    if row.get(source) is None:
        return []
    pages = mapping_field(row, source)
    texts = texts_field(pages, field)
    titles = texts_field(pages, "title") if pages.get("title") is not None else []
    if len(titles) != len(texts):
        titles = [""] * len(texts)
    found = [
        Paragraph(title.strip(), split_sentences(body))
        for title, body in zip(titles, texts, strict=True)
    ]
    return list(dict.fromkeys(passage for passage in found if passage.sentences))


TASK = Task(
    name="trivia_qa",
    title="TriviaQA (rc)",
    setting="information_exchange",
    answer_style="tag",
    metric="f1",
    has_evidence=True,
    hub=HubSource("mandarjoshi/trivia_qa", ("rc",), "train", "validation"),
    train_files=file_names("train"),
    test_files=file_names("test", "validation", "dev"),
    parse=parse,
)

"""Children's Book Test, common nouns (Hill et al., 2016): the word missing after 20 sentences.

    {"sentences": ["Ann had a boat .", "The boat was red ."], "question": "She took the XXXXX .",
     "options": ["boat", "cup"], "answer": "boat"}

The ten candidates are part of the question, as in the benchmark's definition. The agents get
consecutive parts of the story (the paper deals sentences at random). Evidence is where the answer
was mentioned, which the release does not mark.
"""

from optima.seeding import digest
from optima.tasks.dealing import Dealing, deal_story
from optima.tasks.metrics import F1
from optima.tasks.task import (
    HubSource,
    MalformedRowError,
    Row,
    Task,
    file_names,
    gold_field,
    text_field,
    texts_field,
)
from optima.types import Problem

BLANK = "XXXXX"  # how the release writes the missing word


def parse(row: Row, dealing: Dealing) -> Problem:
    """Return the problem of a CBT row."""
    sentences = [" ".join(s.split()) for s in texts_field(row, "sentences") if s.strip()]
    options = [option.strip() for option in texts_field(row, "options")]
    query, answer = text_field(row, "question"), gold_field(row, "answer")
    if len(sentences) < dealing.n_agents:
        raise MalformedRowError(f"{len(sentences)} sentences are too few to split")
    if BLANK not in query:
        raise MalformedRowError(f"the question has no {BLANK}")
    if answer not in options:
        raise MalformedRowError(f"the answer {answer!r} is not one of the options")
    key = digest(query, answer, *options, *sentences)
    hands = deal_story(sentences, answer, dealing)
    return Problem(
        problem_id=f"cbt-{key}",
        task="cbt",
        question=(
            f"Which word belongs in the place of {BLANK}? {query}\nCandidates: {', '.join(options)}"
        ),
        golds=(answer,),
        contexts=hands.contexts,
        evidence=hands.evidence,
    )


TASK = Task(
    name="cbt",
    title="Children's Book Test (CN)",
    setting="information_exchange",
    answer_style="tag",
    metric=F1,
    has_evidence=True,
    hub=HubSource("cam-cst/cbt", ("CN",), "train", "test"),
    train_files=file_names("train"),
    test_files=file_names("test"),
    parse=parse,
    reads=frozenset({"data.max_context_words"}),
    n_original_test=1000,
)

"""The context split of information exchange: who is told what.

Supporting paragraphs are dealt out in turn, so that with two of them or more no agent has all of
the evidence; the others go out at random in even numbers. Everything random depends on
(seed, "deal", problem key) only, so the order of rows in a file changes nothing. Paper section 4;
docs/paper_map.md says how this differs from the reference.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from optima.seeding import rng
from optima.types import Fact

NO_CONTEXT = "(no passage)"  # the context of an agent for whom nothing was left to deal
_SENTENCE_END = re.compile(
    r"(?:(?<=[.!?])|(?<=[.!?][\"'”)\]]))(?<!\b[A-Z]\.)(?<!\b(?:Mr|Dr|St|Sr|Jr|Mt)\.)(?<!\bMrs\.)"
    r"\s+(?=[\"'“\u2018(\[]?[A-Z0-9])"
)


@dataclass(frozen=True, slots=True)
class Dealing:
    """How contexts are split: among how many agents, by which seed, and how much of them."""

    n_agents: int
    seed: int
    paragraphs: Literal["whole", "lead_sentence"] = "whole"
    max_context_words: int | None = None
    passages: Literal["description", "document"] = "description"

    def rng(self, problem_key: str) -> random.Random:
        """Return the generator of the deal of one problem."""
        return rng(self.seed, "deal", problem_key)


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A titled passage, in sentences; ``title`` may be empty."""

    title: str
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Gold:
    """The place of a sentence that a reader needs: index of the paragraph and of the sentence."""

    paragraph: int
    sentence: int


@dataclass(frozen=True, slots=True)
class Hands:
    """The texts that the agents are told, and who can say each piece of the evidence."""

    contexts: tuple[str, ...]
    evidence: tuple[Fact, ...]


def split_sentences(text: str) -> tuple[str, ...]:
    """Return the sentences of ``text``: lines, cut after a full stop before a capital or digit."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return tuple(part for line in lines if line for part in _SENTENCE_END.split(line) if part)


def distinct_paragraphs(paragraphs: Sequence[Paragraph]) -> list[Paragraph]:
    """Return the paragraphs that have a text, each once.

    A repeated one would put its evidence in two hands. A title may head two different texts.
    """
    seen: dict[tuple[str, str], Paragraph] = {}
    for paragraph in paragraphs:
        if body := _body(paragraph):
            seen.setdefault((" ".join(paragraph.title.split()), body), paragraph)
    return list(seen.values())


def _body(paragraph: Paragraph) -> str:
    """Return the text of a paragraph, to tell copies by."""
    return " ".join(" ".join(paragraph.sentences).split())


def deal_paragraphs(
    paragraphs: Sequence[Paragraph], golds: Sequence[Gold], dealing: Dealing, problem_key: str
) -> Hands:
    """Deal paragraphs with known evidence: the supporting ones in turn, the others at random.

    ``golds`` come in the order in which a reader needs them. Which agent gets the first
    supporting paragraph is random. Where one paragraph alone supports, it is cut between its gold
    sentences, so that its evidence is in two hands too; a copy of a supporting one under another
    title is dealt to nobody.
    """
    if dealing.paragraphs == "whole":
        paragraphs, golds = _with_evidence_apart(paragraphs, golds)
    generator = dealing.rng(problem_key)
    supporting = list(dict.fromkeys(gold.paragraph for gold in golds))
    evident = {_body(paragraphs[index]) for index in supporting}
    others = [index for index, other in enumerate(paragraphs) if _body(other) not in evident]
    generator.shuffle(others)
    offset = generator.randrange(dealing.n_agents)
    hands: list[list[int]] = [[] for _ in range(dealing.n_agents)]
    for position, index in enumerate(supporting + others):
        hands[(offset + position) % dealing.n_agents].append(index)
    for hand in hands:
        generator.shuffle(hand)
    return _finish(paragraphs, hands, golds, dealing)


def deal_passages(
    passages: Sequence[Paragraph], answers: Sequence[str], question: str, dealing: Dealing, key: str
) -> Hands:
    """Deal passages without known evidence: shuffled, then in turn.

    Where there are fewer passages than agents, the longest are cut between sentences. Evidence is
    what can be found: for each agent the sentence with an answer that shares most words with the
    question, the best of them last. Passages have no lead sentence, so all of them is dealt.
    """
    generator = dealing.rng(key)
    pieces = _cut(passages, dealing.n_agents)
    generator.shuffle(pieces)
    hands = [list(range(k, len(pieces), dealing.n_agents)) for k in range(dealing.n_agents)]
    phrases = _phrases(answers)
    found = [_best_sentence(pieces, hand, phrases, question) for hand in hands]
    golds = [gold for _, gold in sorted(filter(None, found), key=lambda scored: scored[0])]
    return _finish(pieces, hands, golds, replace(dealing, paragraphs="whole"))


def deal_story(sentences: Sequence[str], answer: str, dealing: Dealing) -> Hands:
    """Deal a story: the first part of its sentences to the first agent, and so on.

    Evidence is the last sentence of each part that has ``answer`` in it.
    """
    n_parts = dealing.n_agents
    bounds = [len(sentences) * k // n_parts for k in range(n_parts + 1)]
    parts = [Paragraph("", tuple(sentences[start:end])) for start, end in pairwise(bounds)]
    phrases = _phrases((answer,))
    golds: list[Gold] = []
    for index, part in enumerate(parts):
        places = [i for i, text in enumerate(part.sentences) if _has_phrase(text, phrases)]
        golds.extend(Gold(index, place) for place in places[-1:])
    whole = replace(dealing, paragraphs="whole")  # a story has no lead sentence
    return _finish(parts, [[index] for index in range(n_parts)], golds, whole)


def _finish(
    paragraphs: Sequence[Paragraph],
    hands: Sequence[Sequence[int]],
    golds: Sequence[Gold],
    dealing: Dealing,
) -> Hands:
    """Trim what each agent holds, render it, and say who holds which evidence."""
    if dealing.paragraphs == "lead_sentence":
        golds = [gold for gold in golds if gold.sentence == 0]
    owners = {index: agent for agent, hand in enumerate(hands) for index in hand}
    contexts = []
    for hand in hands:
        kept = _kept_sentences(paragraphs, hand, golds, dealing)
        contexts.append(_render(paragraphs, hand, kept) or NO_CONTEXT)
    evidence = [
        Fact(
            agent=owners[gold.paragraph],
            text=paragraphs[gold.paragraph].sentences[gold.sentence].strip(),
        )
        for gold in dict.fromkeys(golds)
    ]
    return Hands(tuple(contexts), tuple(fact for fact in evidence if fact.text))


def _kept_sentences(
    paragraphs: Sequence[Paragraph], hand: Sequence[int], golds: Sequence[Gold], dealing: Dealing
) -> set[Gold]:
    """Return the places that fit into ``max_context_words``: evidence always, distractors last."""
    supporting = {gold.paragraph for gold in golds}
    n_kept = 1 if dealing.paragraphs == "lead_sentence" else None
    places = [Gold(p, s) for p in hand for s in range(len(paragraphs[p].sentences[:n_kept]))]
    limit = dealing.max_context_words
    if limit is None:
        return set(places)
    gold_places = set(golds)
    places.sort(key=lambda place: (place not in gold_places, place.paragraph not in supporting))
    kept: set[Gold] = set()
    titled: set[int] = set()
    n_words = 0
    for place in places:
        paragraph = paragraphs[place.paragraph]
        title = "" if place.paragraph in titled else paragraph.title
        n_more = len(title.split()) + len(paragraph.sentences[place.sentence].split())
        if kept and place not in gold_places and n_words + n_more > limit:
            break  # an agent always keeps one sentence, so the first may exceed the limit
        kept.add(place)
        titled.add(place.paragraph)
        n_words += n_more
    return kept


def _render(paragraphs: Sequence[Paragraph], hand: Sequence[int], kept: set[Gold]) -> str:
    lines = []
    for index in hand:
        paragraph = paragraphs[index]
        texts = [
            text.strip()
            for position, text in enumerate(paragraph.sentences)
            if Gold(index, position) in kept
        ]
        body = " ".join(text for text in texts if text)
        if body:
            lines.append(f"{paragraph.title}: {body}" if paragraph.title else body)
    return "\n".join(lines)


def _cut(passages: Sequence[Paragraph], n_pieces: int) -> list[Paragraph]:
    """Return at least ``n_pieces`` passages where the sentences suffice, cutting the longest."""
    pieces = list(passages)
    while len(pieces) < n_pieces:
        longest = max(range(len(pieces)), key=lambda index: len(pieces[index].sentences))
        piece = pieces[longest]
        middle = (len(piece.sentences) + 1) // 2
        if middle == len(piece.sentences):
            break
        pieces[longest : longest + 1] = [
            replace(piece, sentences=piece.sentences[:middle]),
            replace(piece, sentences=piece.sentences[middle:]),
        ]
    return pieces


def _with_evidence_apart(
    paragraphs: Sequence[Paragraph], golds: Sequence[Gold]
) -> tuple[Sequence[Paragraph], Sequence[Gold]]:
    """Cut a sole supporting paragraph before its second gold sentence; leave all else as it is."""
    places = sorted({gold.sentence for gold in golds})
    if len({gold.paragraph for gold in golds}) != 1 or len(places) == 1:
        return paragraphs, golds
    sole, cut = golds[0].paragraph, places[1]
    whole = paragraphs[sole]
    halves = (
        replace(whole, sentences=whole.sentences[:cut]),
        replace(whole, sentences=whole.sentences[cut:]),
    )
    moved = [
        gold if gold.sentence < cut else Gold(len(paragraphs), gold.sentence - cut)
        for gold in golds
    ]
    return [*paragraphs[:sole], halves[0], *paragraphs[sole + 1 :], halves[1]], moved


def _best_sentence(
    passages: Sequence[Paragraph], hand: Sequence[int], phrases: frozenset[str], question: str
) -> tuple[int, Gold] | None:
    wanted = set(_words(question))
    best: tuple[int, Gold] | None = None
    for index in hand:
        for position, text in enumerate(passages[index].sentences):
            if _has_phrase(text, phrases):
                n_shared = len(wanted.intersection(_words(text)))
                if best is None or n_shared > best[0]:
                    best = n_shared, Gold(index, position)
    return best


def _phrases(answers: Sequence[str]) -> frozenset[str]:
    """Return the answers as they are looked for in ``_has_phrase``."""
    return frozenset(f" {' '.join(_words(answer))} " for answer in answers if _words(answer))


def _has_phrase(text: str, phrases: frozenset[str]) -> bool:
    words = f" {' '.join(_words(text))} "
    return any(phrase in words for phrase in phrases)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())

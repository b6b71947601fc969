from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optima.tasks.dealing import (
    NO_CONTEXT,
    Dealing,
    Gold,
    Hands,
    Paragraph,
    deal_paragraphs,
    deal_passages,
    deal_story,
    distinct_paragraphs,
    split_sentences,
)


def _paragraphs(n: int) -> list[Paragraph]:
    return [Paragraph(f"T{k}", (f"s{k}a one two.", f"s{k}b three four.")) for k in range(n)]


@settings(max_examples=200)
@given(
    n_agents=st.integers(2, 4),
    n_supporting=st.integers(2, 4),
    n_others=st.integers(0, 8),
    seed=st.integers(0, 2**31),
)
def test_no_agent_holds_all_evidence_and_nothing_is_lost(
    n_agents: int, n_supporting: int, n_others: int, seed: int
) -> None:
    paragraphs = _paragraphs(n_supporting + n_others)
    golds = [Gold(k, 0) for k in range(n_supporting)]
    hands = deal_paragraphs(paragraphs, golds, Dealing(n_agents, seed), "key")
    assert len(hands.contexts) == n_agents
    assert len({fact.agent for fact in hands.evidence}) == min(n_agents, n_supporting)
    for paragraph in paragraphs:
        assert sum(paragraph.sentences[0] in context for context in hands.contexts) == 1
    for fact in hands.evidence:
        assert fact.text in hands.contexts[fact.agent]
    sizes = [0 if c == NO_CONTEXT else len(c.splitlines()) for c in hands.contexts]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=200)
@given(limit=st.integers(20, 80), seed=st.integers(0, 1000))
def test_trimming_keeps_evidence_and_drops_distractors_first(limit: int, seed: int) -> None:
    paragraphs = _paragraphs(20)
    golds = [Gold(0, 1), Gold(1, 0)]
    hands = deal_paragraphs(paragraphs, golds, Dealing(2, seed, max_context_words=limit), "key")
    for context in hands.contexts:
        assert len(context.split()) <= limit
    for fact in hands.evidence:
        assert fact.text in hands.contexts[fact.agent]
    joined = "\n".join(hands.contexts)
    assert all(text in joined for k in (0, 1) for text in paragraphs[k].sentences)


def test_evidence_is_kept_even_above_the_limit() -> None:
    long = " ".join(["word"] * 50) + "."
    paragraphs = [Paragraph("T", (long,)), Paragraph("U", (long,)), Paragraph("V", ("short.",))]
    hands = deal_paragraphs(
        paragraphs, [Gold(0, 0), Gold(1, 0)], Dealing(2, 0, max_context_words=20), "key"
    )
    assert all(long in context for context in hands.contexts)
    assert "short." not in "".join(hands.contexts)


def test_lead_sentence_gives_only_the_first_sentence() -> None:
    hands = deal_paragraphs(
        _paragraphs(4), [Gold(0, 0), Gold(1, 1)], Dealing(2, 0, "lead_sentence"), "key"
    )
    joined = "\n".join(hands.contexts)
    assert "s0a" in joined
    assert "s1b" not in joined
    assert [fact.text for fact in hands.evidence] == ["s0a one two."]


def test_the_deal_depends_on_seed_and_key_only() -> None:
    def deal(seed: int, key: str) -> Hands:
        return deal_paragraphs(_paragraphs(8), [Gold(0, 0), Gold(1, 0)], Dealing(2, seed), key)

    assert deal(1, "k") == deal(1, "k")
    assert len({deal(seed, "k") for seed in range(6)}) > 1
    assert len({deal(1, key) for key in "abcdef"}) > 1


def test_repeated_titles_are_dealt_once() -> None:
    paragraphs = [Paragraph("A", ("x",)), Paragraph("B", ("y",)), Paragraph("A", ("x",))]
    assert distinct_paragraphs(paragraphs) == paragraphs[:2]
    others = [Paragraph("A ", (" x",)), Paragraph("A", ("other",)), Paragraph("C", (" ",))]
    assert distinct_paragraphs([*paragraphs, *others]) == [*paragraphs[:2], others[1]]


def test_a_single_passage_is_cut_between_sentences() -> None:
    passage = Paragraph("P", ("One is here.", "Two is Paris.", "Three."))
    hands = deal_passages([passage], ["Paris"], "where is two?", Dealing(2, 0), "key")
    assert sorted(hands.contexts) == ["P: One is here. Two is Paris.", "P: Three."]
    (fact,) = hands.evidence
    assert fact.text == "Two is Paris."
    assert fact.text in hands.contexts[fact.agent]


def test_an_agent_for_whom_nothing_is_left_is_told_so() -> None:
    hands = deal_passages([Paragraph("", ("Only Paris.",))], ["Paris"], "q", Dealing(2, 0), "key")
    assert sorted(hands.contexts) == [NO_CONTEXT, "Only Paris."]


def test_the_best_passage_sentence_comes_last() -> None:
    passages = [
        Paragraph("", ("Paris is big.", "The capital of France is Paris.")),
        Paragraph("", ("Paris sleeps.",)),
    ]
    hands = deal_passages(passages, ["paris"], "capital of France?", Dealing(2, 3), "key")
    assert [f.text for f in hands.evidence] == ["Paris sleeps.", "The capital of France is Paris."]
    assert len({fact.agent for fact in hands.evidence}) == 2


def test_an_answer_is_found_as_whole_words_only() -> None:
    hands = deal_passages([Paragraph("", ("A catalogue.", "x."))], ["cat"], "q", Dealing(2, 0), "k")
    assert hands.evidence == ()


@pytest.mark.parametrize("n_agents", [2, 3, 4])
def test_a_story_is_split_into_consecutive_parts(n_agents: int) -> None:
    sentences = [f"sentence {k} ." for k in range(20)]
    hands = deal_story(sentences, "19", Dealing(n_agents, 0))
    assert " ".join(hands.contexts) == " ".join(sentences)
    assert [f.agent for f in hands.evidence] == [n_agents - 1]


def test_sentences_are_cut_behind_stops_but_not_behind_initials() -> None:
    text = 'Dr. No met J. Smith. "Hello." He left.\nNext line'
    assert split_sentences(text) == ("Dr. No met J. Smith.", '"Hello."', "He left.", "Next line")


def test_the_order_of_gold_sentences_is_the_order_of_facts() -> None:
    for order in permutations(range(3)):
        golds = [Gold(k, 0) for k in order]
        hands = deal_paragraphs(_paragraphs(5), golds, Dealing(2, 0), "key")
        assert [fact.text[:2] for fact in hands.evidence] == [f"s{k}" for k in order]

from itertools import permutations
from typing import Literal

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


@pytest.mark.parametrize(
    ("n_agents", "expected"),
    [(2, ("T0 T3 T4", "T5 T2 T1")), (3, ("T2 T4", "T1 T0", "T5 T3"))],
)
def test_the_deal_stays_the_same_from_release_to_release(
    n_agents: int, expected: tuple[str, ...]
) -> None:
    # a resumed run must tell the agents what it told them before
    hands = deal_paragraphs(_paragraphs(6), [Gold(4, 1), Gold(1, 0)], Dealing(n_agents, 0), "key")
    assert hands.contexts == tuple(
        "\n".join(f"T{k}: s{k}a one two. s{k}b three four." for k in (t[1:] for t in held.split()))
        for held in expected
    )
    owners = [next(a for a, held in enumerate(expected) if title in held) for title in ("T4", "T1")]
    assert [(fact.agent, fact.text) for fact in hands.evidence] == [
        (owners[0], "s4b three four."), (owners[1], "s1a one two."),
    ]  # fmt: skip


def test_a_sole_supporting_paragraph_is_cut_and_both_parts_keep_its_title() -> None:
    hands = deal_paragraphs(_paragraphs(3), [Gold(1, 0), Gold(1, 1)], Dealing(2, 0), "key")
    lines = [line for context in hands.contexts for line in context.splitlines()]
    assert sorted(lines) == [
        "T0: s0a one two. s0b three four.", "T1: s1a one two.", "T1: s1b three four.",
        "T2: s2a one two. s2b three four.",
    ]  # fmt: skip
    texts = [fact.text for fact in hands.evidence]
    assert texts == ["s1a one two.", "s1b three four."]
    assert all(f.text in hands.contexts[f.agent] for f in hands.evidence)


def test_a_limit_counts_titles_once_and_is_kept_to_the_word() -> None:
    # the gold sentence with its title has 4 words, the rest of its paragraph 3: 7; the first
    # sentence of a distractor with its title 4: 11
    golds = [Gold(0, 1), Gold(1, 0)]
    held = {
        limit: deal_paragraphs(
            _paragraphs(4), golds, Dealing(2, 0, max_context_words=limit), "key"
        ).contexts
        for limit in (6, 7, 10, 11)
    }
    assert held[6] == ("T0: s0b three four.", "T1: s1a one two.")
    whole = tuple(f"T{k}: s{k}a one two. s{k}b three four." for k in (0, 1))
    assert held[7] == held[10] == whole
    assert held[11] == (f"{whole[0]}\nT2: s2a one two.", f"T3: s3a one two.\n{whole[1]}")


def test_passages_are_cut_where_the_longest_is_longest_and_dealt_in_turn() -> None:
    passage = Paragraph("P", ("a.", "b.", "c.", "d.", "e."))
    hands = deal_passages([passage], ["x"], "q", Dealing(3, 0), "key")
    assert sorted(hands.contexts) == ["P: a. b.", "P: c.", "P: d. e."]
    assert hands.evidence == ()
    even = Paragraph("P", ("a.", "b.", "c.", "d."))
    held = deal_passages([even], ["x"], "q", Dealing(2, 0), "key").contexts
    assert sorted(held) == ["P: a. b.", "P: c. d."]
    four = [Paragraph("", (f"Paris {k}.", "The capital is Paris.", "End.")) for k in range(4)]
    hands = deal_passages(four, ["paris", "?"], "capital?", Dealing(3, 1, "lead_sentence"), "k")
    told = [f"Paris {k}. The capital is Paris. End." for k in range(4)]
    assert hands.contexts == (f"{told[0]}\n{told[2]}", told[1], told[3])
    assert [(f.agent, f.text) for f in hands.evidence] == [
        (agent, "The capital is Paris.") for agent in range(3)
    ]


@pytest.mark.parametrize("paragraphs", ["whole", "lead_sentence"])
def test_evidence_of_a_story_is_the_last_mention_in_each_part(
    paragraphs: Literal["whole", "lead_sentence"],
) -> None:
    sentences = ["Ann a .", "Ann b .", "c .", "d ann .", "Annie e ."]
    hands = deal_story(sentences, "Ann", Dealing(2, 0, paragraphs))
    assert hands.contexts == ("Ann a . Ann b .", "c . d ann . Annie e .")
    assert [(f.agent, f.text) for f in hands.evidence] == [(0, "Ann b ."), (1, "d ann .")]
    trimmed = deal_story(sentences, "Ann", Dealing(2, 0, paragraphs, max_context_words=3))
    assert trimmed.contexts == ("Ann b .", "d ann .")

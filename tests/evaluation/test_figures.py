"""Figures of conversations, counted by hand."""

from dataclasses import replace
from pathlib import Path

import pytest

from optima.evaluation.figures import (
    Figures,
    Judged,
    JudgedConversation,
    figures_of,
    mean_of_tasks,
    tally,
)
from optima.evaluation.statistics import estimate_mean, estimate_mean_of_means
from optima.records import write_records
from optima.runs.reader import Run
from optima.types import Conversation, Problem, RewardParts, Turn
from tests.reporting.made import Maker

# In each: problem, score, tokens, generated tokens, turns, whether answered and whether failed
FIRST = [
    Judged("p", 1.0, 10, 12, 2, True, False),
    Judged("q", 0.0, 40, 50, 5, False, True),
    Judged("p", 0.5, 30, 31, 4, True, False),
]
SECOND = [Judged("p", 0.0, 100, 7, 1, False, False), Judged("q", 0.25, 300, 8, 1, True, True)]


def test_tally_counts_problem_by_problem() -> None:
    counted = tally(FIRST)
    assert sorted(counted.counts) == [10, 30, 40]
    assert counted.n_generated == 93
    assert counted.turns == pytest.approx(11 / 3)
    assert counted.answered == pytest.approx(2 / 3)
    assert counted.failed == pytest.approx(1 / 3)
    assert counted.score_by_problem == {"p": 0.75, "q": 0.0}
    assert counted.tokens_by_problem == {"p": 20.0, "q": 40.0}


def test_models_measured_together_have_the_figures_of_each_alone() -> None:
    first, second = figures_of({"first": tally(FIRST), "second": tally(SECOND)}, seed=3)
    assert (first.label, second.label) == ("first", "second")
    assert (first.n_problems, first.n_conversations) == (2, 3)
    assert first.score == estimate_mean([0.75, 0.0], seed=3)
    assert first.tokens == estimate_mean([20.0, 40.0], seed=3)
    assert first.tokens_median == 30.0
    assert first.tokens_p95 == pytest.approx(39.0)
    assert (first.generated, first.n_generated) == (31.0, 93)
    assert (second.generated, second.n_generated) == (7.5, 15)
    assert second.score.mean == 0.125
    assert second.tokens.mean == 200.0
    assert (second.turns, second.answered, second.failed) == (1.0, 0.5, 0.5)


def test_intervals_are_drawn_by_the_seed() -> None:
    many = tally(Judged(str(k), k / 40, k, k, 1, True, False) for k in range(40))
    (found,) = figures_of({"many": many}, seed=3)
    assert found.score == estimate_mean([k / 40 for k in range(40)], seed=3)
    assert found.score != estimate_mean([k / 40 for k in range(40)], seed=4)


def test_one_conversation_has_its_own_figures() -> None:
    (alone,) = figures_of({"one": tally(FIRST[:1])}, seed=0)
    assert (alone.generated, alone.tokens_median, alone.turns) == (12.0, 10.0, 2.0)
    assert (alone.answered, alone.failed) == (1.0, 0.0)


def test_conversations_and_rewards_are_counted_as_they_are(tmp_path: Path) -> None:
    turns = tuple(
        Turn(
            agent=0, name="Alice", text=" a", answer=None, n_prompt_tokens=1, n_tokens=9,
            n_spoken=spoken, finish_reason="stop", seconds=0.0,
        )
        for spoken in (0, 15)  # a turn of no tokens has none
    )  # fmt: skip
    talks = [
        Conversation(
            problem_id=key, n=0, format_id=None, turns=turns, stop_reason="max_turns",
            answer=answer, error=error,
        )
        for key, answer, error in (("p", "x", None), ("q", None, "lost"), ("r", "y", None))
    ]  # fmt: skip
    parts = [
        RewardParts(
            problem_id=key, n=0, task=task, token=0.0, loss=None, loss_term=0.0, total=None,
            n_tokens=1, is_eligible=True, error=error,
        )
        for key, task, error in (("p", 1.0, None), ("q", 0.0, None), ("r", 0.5, "no loss"))
    ]  # fmt: skip
    run = Maker(tmp_path / "run")
    run.model("model", [0, 0, 0], [1, 1, 1])
    write_records(run.root / "model/talk/conversations.jsonl", talks)
    write_records(run.root / "model/rank/rewards.jsonl", parts)
    (figures,) = Run(run.root).figures
    assert (figures.score.mean, figures.tokens.mean, figures.generated) == (0.5, 15.0, 18.0)
    assert figures.turns == 2.0
    assert figures.answered == pytest.approx(2 / 3)
    assert figures.failed == pytest.approx(2 / 3)


def test_no_conversation_has_no_figures() -> None:
    with pytest.raises(ValueError, match="a mean needs at least one value"):
        figures_of({"none": tally([])}, seed=0)


def test_samples_of_a_vote_are_one_answer_of_all_their_tokens() -> None:
    counted = tally([*FIRST, Judged("p", 0.0, 5, 5, 1, False, False)], {"p": 1.0, "q": 0.25})
    assert counted.score_by_problem == {"p": 1.0, "q": 0.25}  # the vote's, not the samples' mean
    assert counted.tokens_by_problem == {"p": 45.0, "q": 40.0}
    assert (counted.counts, counted.n_conversations) == ((45, 40), 4)
    assert counted.answered == 0.5  # of two votes: one sample of p answered, none of q


def test_mean_of_tasks_is_of_their_own_figures_and_counts_are_of_all_conversations() -> None:
    other = [Judged("r", 0.25, 100, 7, 1, False, False), Judged("s", 0.75, 300, 8, 1, True, True)]
    one, two = figures_of({"base": tally(FIRST), "of the other task": tally(other)}, seed=3)
    one = replace(one, model="models/base", reward=0.5, seconds=20.0, made_in_s=7.0)
    two = replace(two, model="models/same", reward=-0.25, seconds=1.5, made_in_s=8.0)
    assert mean_of_tasks([one, two], seed=3) == Figures(
        label="base",
        model="models/base",
        counts=(10, 30, 40, 100, 300),
        n_conversations=5,
        n_generated=93 + 15,
        turns=(11 / 3 + 1) / 2,
        answered=(2 / 3 + 1 / 2) / 2,
        failed=(1 / 3 + 1 / 2) / 2,
        score_by_problem={"p": 0.75, "q": 0.0, "r": 0.25, "s": 0.75},
        tokens_by_problem={"p": 20.0, "q": 40.0, "r": 100.0, "s": 300.0},
        score=estimate_mean_of_means([[0.75, 0.0], [0.25, 0.75]], seed=3),
        tokens=estimate_mean_of_means([[20.0, 40.0], [100.0, 300.0]], seed=3),
        reward=0.125,
        seconds=21.5,
        made_in_s=7.0,
    )
    assert mean_of_tasks([one, replace(two, reward=None)], seed=3).reward is None


def test_row_of_a_model_holds_its_figures_by_name() -> None:
    first, second = figures_of({"first": tally(FIRST), "second": tally(SECOND)}, seed=3)
    assert second.row() == {
        "label": "second",
        "score": 0.125,
        "score_low": second.score.low,
        "score_high": second.score.high,
        "tokens": 200.0,
        "tokens_low": second.tokens.low,
        "tokens_high": second.tokens.high,
        "generated": 7.5,
        "turns": 1.0,
        "answered": 0.5,
        "reward": None,
    }
    assert first.row()["tokens_low"] < first.row()["tokens"] < first.row()["tokens_high"]


def test_row_of_a_conversation_holds_what_was_asked_said_and_scored() -> None:
    said = Turn(
        agent=0, name="Alice", text=" <A>x</A>", answer="x", n_prompt_tokens=1, n_tokens=9,
        n_spoken=11, finish_reason="stop", seconds=0.0,
    )  # fmt: skip
    talk = Conversation(
        problem_id="p", n=2, format_id=None, answer="x", stop_reason="agreement",
        turns=(said, said.model_copy(update={"name": "Bob"})),
    )  # fmt: skip
    reward = RewardParts(
        problem_id="p", n=2, task=1.0, token=0.5, loss=None, loss_term=0.0, total=0.75,
        n_tokens=22, is_eligible=True, error=None,
    )  # fmt: skip
    problem = Problem(problem_id="p", task="cbt", question="Which?", golds=("x", "y"))
    assert JudgedConversation(problem, talk, reward).row() == {
        "problem_id": "p",
        "n": 2,
        "question": "Which?",
        "golds": ["x", "y"],
        "answer": "x",
        "score": 1.0,
        "reward": 0.75,
        "tokens": 22,
        "generated": 18,
        "turns": 2,
        "stop_reason": "agreement",
        "text": "Alice: <A>x</A>\nBob: <A>x</A>",
    }

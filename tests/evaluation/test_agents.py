"""What each agent adds, counted in made-up conversations."""

from collections.abc import Sequence
from dataclasses import replace

from optima.evaluation.figures import AgentFigures, JudgedConversation, agents_of
from optima.reporting.tables import agents_table
from optima.tasks import Metric, get_metric
from optima.types import Conversation, Problem, RewardParts, Turn

PROBLEM = Problem(problem_id="p", task="two_hop", question="Who?", golds=("Ann Lee",))


def turn(agent: int, answer: str | None, tokens: int = 5, spoken: int | None = None) -> Turn:
    return Turn(
        agent=agent, name=("Alice", "Bob")[agent], text=answer or "hm", answer=answer,
        n_prompt_tokens=9, n_tokens=tokens, n_spoken=spoken, finish_reason="stop", seconds=0.5,
    )  # fmt: skip


def judged(turns: Sequence[Turn]) -> JudgedConversation:
    talk = Conversation(
        problem_id="p", n=0, format_id=None, turns=tuple(turns), stop_reason="max_turns",
        answer=turns[-1].answer,
    )  # fmt: skip
    reward = RewardParts(
        problem_id="p", n=0, task=0.0, token=1.0, loss=None, loss_term=0.0, total=0.0,
        n_tokens=talk.n_tokens, is_eligible=True,
    )  # fmt: skip
    return JudgedConversation(PROBLEM, talk, reward)


def test_firsts_changes_and_their_worth_are_counted_per_agent() -> None:
    talks = [
        judged([turn(0, None), turn(1, "Bo"), turn(0, "Ann Lee"), turn(1, "ann lee.")]),
        judged([turn(0, "Ann Lee"), turn(1, "Ann"), turn(0, "Bo")]),
        judged([turn(0, "Ann", 7, 8), turn(1, "Ann")]),
    ]
    alice, bob = agents_of(talks, get_metric("f1"))
    # F1 of "Ann" for "Ann Lee" is 2/3. Alice: Bo -> Ann Lee is better, Ann -> Bo is worse.
    assert alice == AgentFigures(
        "Alice", n_conversations=3, n_turns=5, n_tokens=28, seconds=2.5, n_marked=4, n_first=2,
        n_scored=2, n_changed=2, first_score=1.0 + 2 / 3, n_better=1, n_worse=1,
    )  # fmt: skip
    # Bob: "ann lee." says the same words again; Ann Lee -> Ann is worse.
    assert bob == AgentFigures(
        "Bob", n_conversations=3, n_turns=4, n_tokens=20, seconds=2.0, n_marked=4, n_first=1,
        n_scored=1, n_changed=1, first_score=0.0, n_better=0, n_worse=1,
    )  # fmt: skip


def test_changes_that_score_as_before_are_neither_better_nor_worse() -> None:
    said = ("Ann Lee", "Bo", "Cy", "Ann Lee", "Ann", "Bo")
    talk = judged([turn(k % 2, answer) for k, answer in enumerate(said)])
    alice, bob = agents_of([talk], get_metric("f1"))
    # Alice: Bo -> Cy is as wrong, Ann Lee -> Ann is worse. Bob: worse, better, worse.
    assert (alice.n_changed, alice.n_better, alice.n_worse) == (2, 0, 1)
    assert (bob.n_changed, bob.n_better, bob.n_worse) == (3, 1, 2)


def test_texts_of_choices_are_answers_too() -> None:
    problem = PROBLEM.model_copy(update={"choices": ("iron", "ice"), "golds": ("B",)})
    talk = replace(judged([turn(0, "iron"), turn(1, "ice")]), problem=problem)
    alice, bob = agents_of([talk], get_metric("exact_match"))
    assert (alice.first_score, bob.n_better) == (0.0, 1)


def test_a_slow_metric_scores_no_answer_on_the_way() -> None:
    (alice, bob) = agents_of([judged([turn(0, "Bo"), turn(1, "Ann Lee")])], get_metric("math"))
    assert (alice.name, bob.name) == ("Alice", "Bob")
    assert (alice.first_score, bob.n_better, bob.n_worse) == (None, None, None)
    assert (alice.n_first, bob.n_changed) == (1, 1)


def score_of_known_names(answer: str, gold: str, choices: Sequence[str]) -> float:
    if answer == "?":
        raise ValueError("it names nobody")
    return float(answer == gold)


def test_answers_that_cannot_be_scored_are_left_out_and_not_counted_as_wrong() -> None:
    metric = Metric("names", score_of_known_names)
    talks = [
        judged([turn(0, "?"), turn(1, "Bo"), turn(0, "Ann Lee")]),
        judged([turn(0, "Ann Lee"), turn(1, "?"), turn(0, "Bo")]),
    ]
    alice, bob = agents_of(talks, metric)
    # Of Alice's first answers one can be scored, and is right. ? -> Bo and Ann Lee -> ? are neither
    # better nor worse, nor is ? -> Bo in the second talk; Bo -> Ann Lee is better.
    assert (alice.n_first, alice.n_scored, alice.first_score) == (2, 1, 1.0)
    assert (alice.n_changed, alice.n_better, alice.n_worse) == (2, 1, 0)
    assert (bob.n_changed, bob.n_better, bob.n_worse) == (2, 0, 0)
    table = agents_table([((), alice), ((), bob)], ())
    column = table.head.index("their score")
    assert [row[column] for row in table.rows] == ["100.0", ""]


def test_an_agent_alone_has_a_line_of_its_own() -> None:
    (alice,) = agents_of([judged([turn(0, "Ann Lee")])] * 2, get_metric("f1"))
    assert (alice.n_conversations, alice.n_first, alice.first_score) == (2, 2, 2.0)
    assert agents_of([], get_metric("f1")) == ()

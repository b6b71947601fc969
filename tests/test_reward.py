import math
from pathlib import Path

import pytest

from optima.recipe.loading import load_recipe
from optima.recipe.schema import RewardSection
from optima.reward import compute_reward, has_repeated_utterance, needs_losses, search_reward
from optima.tasks.task import JudgeError
from optima.types import Conversation, Fault, RewardParts, Turn

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def turn(text: str, n_tokens: int = 10) -> Turn:
    return Turn(
        agent=0, name="Alice", text=text, answer=None, n_prompt_tokens=5, n_tokens=n_tokens,
        finish_reason="stop", seconds=0.1,
    )  # fmt: skip


def conversation(
    *texts: str, faults: tuple[Fault, ...] = (), error: str | None = None
) -> Conversation:
    return Conversation(
        problem_id="p", n=0, format_id=None, turns=tuple(turn(text) for text in texts),
        stop_reason="agreement", answer="x", faults=faults, error=error,
    )  # fmt: skip


def test_worked_example_of_the_paper_equation() -> None:
    # 20 tokens of at most 50, the worse turn at 4 nats: 1 - 0.6 * 20/50 + 1 / 4 = 1.01
    parts = compute_reward(
        conversation(" a", " b"),
        task_score=1.0,
        normaliser_tokens=50,
        turn_losses=(2.0, 4.0),
        section=RewardSection(lambda_token=0.6, lambda_loss=1.0),
    )
    assert parts.token == pytest.approx(0.4)
    assert parts.loss == 4.0
    assert parts.loss_term == pytest.approx(0.25)
    assert parts.total == pytest.approx(1.01)
    assert parts.is_eligible


def test_more_tokens_than_the_normaliser_cost_no_more_than_all_of_it() -> None:
    parts = compute_reward(
        conversation(" a", " b"), task_score=1.0, normaliser_tokens=10, turn_losses=None,
        section=RewardSection(lambda_token=0.6, lambda_loss=0.0),
    )  # fmt: skip
    assert (parts.n_tokens, parts.token) == (20, 1.0)
    assert parts.total == pytest.approx(0.4)


def test_weights_scale_their_parts_and_zero_turns_them_off() -> None:
    plain = compute_reward(
        conversation(" a"), task_score=0.5, normaliser_tokens=10, turn_losses=None,
        section=RewardSection(lambda_token=0.0, lambda_loss=0.0),
    )  # fmt: skip
    assert plain.total == 0.5
    assert plain.loss is None
    weighted = compute_reward(
        conversation(" a"), task_score=0.5, normaliser_tokens=10, turn_losses=(2.0,),
        section=RewardSection(lambda_token=0.25, lambda_loss=0.5),
    )  # fmt: skip
    assert weighted.total == pytest.approx(0.5 - 0.25 * 1 + 0.5 / 2)


def test_repeated_utterance_sets_the_loss_term_to_zero() -> None:
    repeated = conversation(" same", " same ", " <A>x</A>")
    assert has_repeated_utterance(repeated)
    for is_on, expected in ((True, 0.0), (False, 0.5)):
        parts = compute_reward(
            repeated, task_score=0.0, normaliser_tokens=30, turn_losses=(2.0, 2.0, 2.0),
            section=RewardSection(repeat_zeroes_loss=is_on),
        )  # fmt: skip
        assert parts.loss_term == pytest.approx(expected)


def test_confirmation_that_ends_a_talk_is_no_repetition() -> None:
    confirmed = conversation(" <A>x</A>", " <A>x</A>")
    assert not has_repeated_utterance(confirmed)
    endless = confirmed.model_copy(update={"stop_reason": "max_turns"})
    assert has_repeated_utterance(endless)


def ruled(
    made: Conversation, score: float, losses: tuple[float | None, ...], **rules: float | bool
) -> RewardParts:
    """Return the reward by Eq. 1 with lambda_token 0.6, lambda_loss 0.5 and the rules given."""
    section = RewardSection.model_validate({"lambda_token": 0.6, "lambda_loss": 0.5, **rules})
    return compute_reward(
        made, task_score=score, normaliser_tokens=100, turn_losses=losses, section=section
    )


def test_part_of_the_tokens_of_a_short_conversation_is_minus_one_in_the_total() -> None:
    talk = conversation(" a", " b", " c")  # 30 tokens
    # 1 - 0.6 * 30/100 + 0.5 / 2 = 1.07; by the rule 1 - 1 + 0.5 / 2 = 0.25
    assert ruled(talk, 1.0, (1.0, 2.0, 1.0)).total == pytest.approx(1.07)
    short = ruled(talk, 1.0, (1.0, 2.0, 1.0), min_tokens=40)
    assert short.total == pytest.approx(0.25)
    assert (short.token, short.token_term) == (0.3, -1.0)
    assert ruled(talk, 1.0, (1.0, 2.0, 1.0), min_tokens=30).total == pytest.approx(0.25)
    assert ruled(talk, 1.0, (1.0, 2.0, 1.0), min_tokens=29).total == pytest.approx(1.07)
    heavier = ruled(talk, 1.0, (1.0, 2.0, 1.0), min_tokens=40, lambda_token=0.1)
    assert heavier.total == short.total
    one = talk.model_copy(update={"turns": (turn(" a", n_tokens=1),)})
    assert ruled(one, 1.0, (1.0,), min_tokens=1).token_term == -1.0  # 0 alone turns the rule off


def test_part_of_the_loss_of_a_long_conversation_is_minus_one_in_the_total() -> None:
    talk = conversation(" a", " b")  # 20 tokens: 1 - 0.6 * 20/100 - 1 = -0.12
    long = ruled(talk, 1.0, (1.0, 2.0), max_loss_tokens=19)
    assert long.total == pytest.approx(-0.12)
    assert long.loss_term == -1.0
    assert ruled(talk, 1.0, (1.0, 2.0), max_loss_tokens=20).total == pytest.approx(0.88 + 0.25)
    unreadable = ruled(talk, 1.0, (1.0, None), max_loss_tokens=19)
    assert unreadable.total == pytest.approx(-0.12)  # the rule asks for no loss


def test_overflow_costs_one_in_place_of_the_tokens_where_the_recipe_says_so() -> None:
    cut = conversation(" a", faults=("overflow",))  # 10 tokens
    assert ruled(cut, 0.0, (2.0,)).total == pytest.approx(-0.6 * 0.1 + 0.25)
    penalised = ruled(cut, 0.0, (2.0,), penalise_overflow=True)
    assert penalised.total == pytest.approx(-1 + 0.25)
    leaking = conversation(" a", faults=("role_leakage",))
    plain = ruled(leaking, 0.0, (2.0,), penalise_overflow=True)
    assert plain.total == pytest.approx(-0.6 * 0.1 + 0.25)


def test_silence_costs_one_in_place_of_the_loss_where_the_recipe_says_so() -> None:
    silent = conversation(" ", "")
    assert ruled(silent, 0.0, (None, None)).total is None
    # 0 - 0.6 * 20/100 - 1; of no turns at all 0 - 0 - 1, and with every rule of the reference -2
    assert ruled(silent, 0.0, (None, None), penalise_empty=True).total == pytest.approx(-1.12)
    assert ruled(conversation(), 0.0, (), penalise_empty=True).total == pytest.approx(-1.0)
    everything = ruled(conversation(), 0.0, (), penalise_empty=True, min_tokens=40)
    assert everything.total == pytest.approx(-2.0)


def test_parts_of_minus_one_are_the_same_whatever_the_weights() -> None:
    # without weights 1 by its answer; each rule takes its whole 1 off
    none = {"lambda_token": 0.0, "lambda_loss": 0.0}
    talk = conversation(" a", faults=("overflow",))  # 10 tokens
    assert ruled(talk, 1.0, (2.0,), **none, min_tokens=10).total == 0.0
    assert ruled(talk, 1.0, (2.0,), **none, penalise_overflow=True).total == 0.0
    assert ruled(talk, 1.0, (2.0,), **none, max_loss_tokens=9).total == 0.0
    assert ruled(conversation(" "), 0.0, (None,), **none, penalise_empty=True).total == -1.0


def test_silence_has_no_reward_without_losses_either() -> None:
    parts = compute_reward(
        conversation(" ", ""), task_score=0.0, normaliser_tokens=20, turn_losses=None,
        section=RewardSection(lambda_loss=0.0),
    )  # fmt: skip
    assert parts.total is None
    assert parts.error == "every utterance is empty"


def test_total_of_role_leakage_may_be_fixed() -> None:
    leaking = conversation(" a", faults=("role_leakage",))
    fixed = ruled(leaking, 1.0, (1.0,), fault_total=-10.0, exclude_faults=False)
    assert fixed.total == -10.0
    assert fixed.is_eligible
    # Overflow alone is another rule's: 0 - 0.6 * 10/100 + 0.5 / 1
    cut = conversation(" a", faults=("overflow",))
    assert ruled(cut, 0.0, (1.0,), fault_total=-10.0).total == pytest.approx(0.44)


def test_rules_of_the_reference_other_than_repetition_are_off() -> None:
    section = RewardSection()
    assert (section.min_tokens, section.max_loss_tokens, section.fault_total) == (0, None, None)
    assert not section.penalise_overflow
    assert not section.penalise_empty
    assert section.repeat_zeroes_loss


@pytest.mark.parametrize("fault", ["role_leakage", "overflow"])
def test_faulty_conversation_is_rewarded_but_not_eligible(fault: Fault) -> None:
    parts = compute_reward(
        conversation(" a", faults=(fault,)), task_score=1.0, normaliser_tokens=10,
        turn_losses=(1.0,), section=RewardSection(),
    )  # fmt: skip
    assert parts.total is not None
    assert not parts.is_eligible


@pytest.mark.parametrize(
    ("made", "score", "losses", "reason"),
    [
        (conversation(" a", error="no server"), JudgeError("the judge hung"), (None,), "no server"),
        (conversation(" a"), JudgeError("the judge hung"), (None,), "the judge hung"),
        (conversation(), 1.0, (), "every utterance is empty"),
        (conversation(" a"), 1.0, (None,), "turn 0: the base model gave no finite loss"),
        (conversation("", " b"), 1.0, (None, None), "turn 1: the base model gave no finite loss"),
        (conversation(" ", ""), 1.0, (None, None), "every utterance is empty"),
        (conversation(" a"), 1.0, (0.0,), "R_loss is 0.0, which has no inverse"),
    ],
)
def test_reward_that_cannot_be_computed_is_an_error_and_never_a_number(
    made: Conversation, score: float | JudgeError, losses: tuple[float | None, ...], reason: str
) -> None:
    parts = compute_reward(
        made, task_score=score, normaliser_tokens=10, turn_losses=losses, section=RewardSection()
    )
    assert (parts.total, parts.is_eligible, parts.error) == (None, False, reason)
    assert parts.task == (0.0 if isinstance(score, JudgeError) else score)
    assert (parts.loss, parts.loss_term) == (None, 0.0)


@pytest.mark.parametrize("losses", [(1.0,), (1.0, 1.0, 1.0)])
def test_losses_of_another_number_of_turns_are_a_mistake_of_the_caller(
    losses: tuple[float, ...],
) -> None:
    with pytest.raises(ValueError, match=r"zip\(\)"):
        ruled(conversation(" a", " b"), 1.0, losses)


def test_empty_utterance_beside_a_spoken_one_does_not_count_for_the_loss() -> None:
    parts = compute_reward(
        conversation(" a", ""), task_score=1.0, normaliser_tokens=20, turn_losses=(2.0, None),
        section=RewardSection(),
    )  # fmt: skip
    assert parts.loss == 2.0
    assert parts.total is not None
    assert math.isfinite(parts.total)


def test_trees_are_rewarded_with_the_weights_of_search_where_it_has_any() -> None:
    recipe = load_recipe(RECIPES / "dpo" / "arc.yaml", ("reward.lambda_token=0.5",))
    assert recipe.search is not None
    both = {"lambda_token": 0.25, "lambda_loss": 0.0}
    weighted = recipe.model_copy(update={"search": recipe.search.model_copy(update=both)})
    assert search_reward(weighted) == recipe.reward.model_copy(update=both)
    assert needs_losses(weighted)  # its own candidates' rewards do
    without = recipe.reward.model_copy(update={"lambda_loss": 0.0})
    unweighted = weighted.model_copy(update={"reward": without})
    assert not needs_losses(unweighted)
    by_trees = recipe.search.model_copy(update={"lambda_loss": 0.5})
    assert needs_losses(unweighted.model_copy(update={"search": by_trees}))
    none = {"lambda_token": None, "lambda_loss": None}
    plain = recipe.model_copy(update={"search": recipe.search.model_copy(update=none)})
    assert search_reward(plain) == recipe.reward
    assert search_reward(recipe.model_copy(update={"search": None})) == recipe.reward

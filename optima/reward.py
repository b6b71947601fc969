"""The reward of one conversation (paper Eq. 1, App. H.2); pure arithmetic.

    R(tau) = R_task(tau) - lambda_token * R_token(tau) + lambda_loss / R_loss(tau)

R_task in [0, 1]; R_token = tokens / largest token count of the problem's group, in [0, 1];
R_loss = largest mean negative log-likelihood (nats per token) of a turn under the base model.
The reference's further rules are fields of ``RewardSection``; docs/method.md says which are on.
"""

import math
from collections.abc import Sequence

from optima.recipe.schema import Recipe, RewardSection
from optima.tasks.task import JudgeError
from optima.types import Conversation, RewardParts


def compute_reward(
    conversation: Conversation,
    *,
    task_score: float | JudgeError,
    normaliser_tokens: int,
    turn_losses: Sequence[float | None] | None,
    section: RewardSection,
) -> RewardParts:
    """Return the reward with its parts.

    ``task_score`` is R_task, or why it could not be computed. ``normaliser_tokens`` is
    the largest token count of the group (search: of the probe; evaluation: of the first model).
    ``turn_losses`` has one entry per turn, None where the turn is empty or could not be scored;
    it may be None as a whole when lambda_loss is 0. A reward that cannot be computed has
    ``total=None`` and says why.
    """
    n_tokens = conversation.n_tokens
    error = conversation.error
    if error is None and isinstance(task_score, JudgeError):
        error = str(task_score)
    loss, of_loss = None, 0.0
    if error is None:
        loss, of_loss, error = loss_term(conversation, turn_losses, section)
    task = 0.0 if isinstance(task_score, JudgeError) else task_score
    token = min(1.0, n_tokens / normaliser_tokens)
    of_tokens = token_term(conversation, token, section)
    total: float | None = None
    if error is None:
        total = task + of_tokens + of_loss
        if section.fault_total is not None and "role_leakage" in conversation.faults:
            total = section.fault_total
    return RewardParts(
        problem_id=conversation.problem_id,
        n=conversation.n,
        task=task,
        token=token,
        token_term=of_tokens,
        loss=loss,
        loss_term=of_loss,
        total=total,
        n_tokens=n_tokens,
        is_eligible=error is None and not (section.exclude_faults and conversation.faults),
        error=error,
    )


def search_reward(recipe: Recipe) -> RewardSection:
    """Return the reward while trees grow: the recipe's, with the weights of ``search``."""
    search = recipe.search
    if search is None:
        return recipe.reward
    weights = {"lambda_token": search.lambda_token, "lambda_loss": search.lambda_loss}
    given = {name: value for name, value in weights.items() if value is not None}
    return recipe.reward.model_copy(update=given)


def scores_trees(recipe: Recipe) -> bool:
    """Tell whether trees are scored by losses of the base model while they grow."""
    return search_reward(recipe).lambda_loss > 0


def needs_losses(recipe: Recipe) -> bool:
    """Tell whether a run ever takes losses of the base model: for its rewards or its trees'."""
    members = recipe.members().values()
    return any(one.reward.lambda_loss > 0 or scores_trees(one) for one in members)


def token_term(conversation: Conversation, token: float, section: RewardSection) -> float:
    """Return what R_token = ``token`` adds: -lambda_token * R_token; -1 by a rule of the reference.

    The rules are ``min_tokens`` and ``penalise_overflow``.
    """
    is_short = conversation.n_tokens <= section.min_tokens and section.min_tokens > 0
    is_cut = section.penalise_overflow and "overflow" in conversation.faults
    return -1.0 if is_short or is_cut else -section.lambda_token * token


def loss_term(
    conversation: Conversation, turn_losses: Sequence[float | None] | None, section: RewardSection
) -> tuple[float | None, float, str | None]:
    """Return (R_loss, what it adds, error): lambda_loss / R_loss, or what a rule says.

    -1 above ``max_loss_tokens`` and, by ``penalise_empty``, where nothing is said, whatever
    lambda_loss; 0 for a repeated utterance. R_loss is None where it is not needed.
    """
    is_silent = not any(turn.text.strip() for turn in conversation.turns)
    if not section.penalise_empty and is_silent:
        return None, 0.0, "every utterance is empty"
    is_long = conversation.n_tokens > (section.max_loss_tokens or math.inf)
    if is_silent or is_long:
        return None, -1.0, None
    if section.lambda_loss == 0:
        return None, 0.0, None
    if turn_losses is None:
        raise ValueError("turn_losses are needed when lambda_loss > 0")
    loss, error = _worst_loss(conversation, turn_losses)
    if loss is None or (section.repeat_zeroes_loss and has_repeated_utterance(conversation)):
        return loss, 0.0, error
    return loss, section.lambda_loss / loss, None


def has_repeated_utterance(conversation: Conversation) -> bool:
    """Tell whether two turns say the same, white space at the ends aside.

    The last turn of an agreement may: a partner confirms an answer best by its mark alone.
    """
    has_agreed = conversation.stop_reason == "agreement"
    turns = conversation.turns[:-1] if has_agreed else conversation.turns
    texts = [turn.text.strip() for turn in turns]
    return len(set(texts)) < len(texts)


def _worst_loss(
    conversation: Conversation, turn_losses: Sequence[float | None]
) -> tuple[float | None, str | None]:
    losses: list[float] = []
    for t, (turn, turn_loss) in enumerate(zip(conversation.turns, turn_losses, strict=True)):
        if not turn.text.strip():
            continue  # nothing was said, so nothing can be unreadable
        if turn_loss is None:
            return None, f"turn {t}: the base model gave no finite loss"
        losses.append(turn_loss)
    worst = max(losses)
    if worst <= 0:
        return None, f"R_loss is {worst}, which has no inverse"
    return worst, None

"""A conversation whose best play is known, for trees: pure functions, no server.

Every utterance is a word and a number. A conversation ends when a number is said twice in a row;
its reward is that number over 10. What is said depends on (prompt, seed) alone.
"""

import hashlib
from collections.abc import Sequence

from optima.conversation.dialogue import Completion, Dialogue, Request, Speaker
from optima.recipe.schema import ConversationSection
from optima.types import Conversation, RewardParts
from tests.talks import Reply, SameText
from tests.tokenizers import codec, text_of

WORDS = ("ash", "birch", "cedar", "dogwood", "elder", "fir", "hazel", "juniper")


def dialogue(names: tuple[str, ...] = ("Alice", "Bob"), max_turns: int = 6) -> Dialogue:
    speakers = tuple(
        Speaker(i, name, f"You are {name}, place {i}.", codec("chatml", roles="assistant"))
        for i, name in enumerate(names)
    )
    return Dialogue(
        problem_id="p", n=0, speakers=speakers, answer_style="tag", agreement=SameText(),
        limits=ConversationSection(max_turns=max_turns, max_turn_tokens=8), seed=11,
    )  # fmt: skip


async def complete(request: Request) -> Completion:
    drawn = hashlib.blake2b(
        f"{text_of(request.prompt_ids)}|{request.seed}".encode(), digest_size=3
    ).digest()
    word, number = WORDS[drawn[0] % len(WORDS)] * 3, drawn[1] % 4
    return Reply(f" {word} {drawn[2] % 8} <A>{number}</A>", n_tokens=4)


async def reward(conversations: Sequence[Conversation]) -> list[RewardParts]:
    return [rate(conversation) for conversation in conversations]


def rate(conversation: Conversation) -> RewardParts:
    is_sound = conversation.error is None
    agreed = conversation.stop_reason == "agreement" and conversation.answer is not None
    total = int(conversation.answer or 0) / 10 if agreed else -0.5
    return RewardParts(
        problem_id=conversation.problem_id, n=conversation.n, task=0.0, token=0.0, loss=None,
        loss_term=0.0, total=total if is_sound else None, n_tokens=conversation.n_tokens,
        is_eligible=is_sound, error=conversation.error,
    )  # fmt: skip

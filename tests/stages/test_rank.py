"""Rewards while trees grow: batches across trees, and no tree that waits for another."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from optima.errors import ProcessError
from optima.recipe.schema import RewardSection
from optima.stages.rank import RewardDesk, Yardstick
from optima.tasks.judging import Judge
from optima.tasks.metrics import EXACT_MATCH, MATH
from optima.types import Conversation, Problem, RewardParts
from tests.talks import turn

HANGS = "9^{9^{9^{9^9}}}"


def _problem(problem_id: str, gold: str) -> Problem:
    return Problem(problem_id=problem_id, task="math", question="?", golds=(gold,))


def _conversation(problem_id: str, answer: str, *texts: str) -> Conversation:
    turns = tuple(turn(i % 2, text) for i, text in enumerate(texts or ("so it is",)))
    return Conversation(
        problem_id=problem_id, n=0, format_id=None, turns=turns, stop_reason="agreement",
        answer=answer,
    )  # fmt: skip


def test_answer_that_hangs_delays_its_own_tree_only() -> None:
    yardstick = Yardstick(MATH, RewardSection(lambda_loss=0.0), 10, None)
    problems = [_problem("hangs", "8"), _problem("other", r"\frac12")]

    async def reward_both() -> list[str]:
        ended: list[str] = []

        async def tree(problem_id: str, answer: str) -> None:
            (parts,) = await desk.rewards_for()([_conversation(problem_id, answer)])
            ended.append(problem_id)
            assert (parts.error is None) == (problem_id == "other")

        hanging = asyncio.create_task(tree("hangs", HANGS))
        await asyncio.sleep(0)  # it is asked first
        await tree("other", "0.5")
        await hanging
        return ended

    with RewardDesk(problems, yardstick, Judge(cpu_limit_s=1.0)) as desk:
        assert asyncio.run(reward_both()) == ["other", "hangs"]


def test_choices_of_the_problem_reach_the_judge() -> None:
    problem = Problem(
        problem_id="p", task="arc", question="?", golds=("B",), choices=("wood", "iron")
    )
    yardstick = Yardstick(EXACT_MATCH, RewardSection(lambda_loss=0.0), 10, None)
    answers = {"iron": 1.0, "B. iron": 1.0, "B. wood": 0.0, "wood": 0.0, "B or A": 0.0}
    with RewardDesk([problem], yardstick) as desk:
        told = [_conversation("p", answer) for answer in answers]
        rewards = asyncio.run(_gathered(desk, told))
    assert [parts.task for parts in rewards] == list(answers.values())


async def _gathered(desk: RewardDesk, told: list[Conversation]) -> list[RewardParts]:
    return await desk.rewards_for()(told)


def test_losses_of_many_trees_are_asked_for_together_and_of_a_tree_once() -> None:
    asked: list[list[str]] = []
    has_begun, is_free = threading.Event(), threading.Event()

    def losses(texts: list[str]) -> Sequence[float | None]:
        asked.append(texts)
        has_begun.set()
        is_free.wait(10.0)
        return [2.0 for _ in texts]

    async def grow() -> None:
        trees = [desk.rewards_for() for _ in range(4)]
        told = [_conversation("p", "8", f"first {i}", "second") for i in range(4)]
        waiting = [
            asyncio.create_task(_reward(tree, conversation))
            for tree, conversation in zip(trees, told, strict=True)
        ]
        await asyncio.to_thread(has_begun.wait, 10.0)
        is_free.set()
        await asyncio.gather(*waiting)
        n_batches = len(asked)
        await _reward(trees[0], _conversation("p", "8", "first 0", "second", "third"))
        assert asked[n_batches:] == [["third"]]  # the rest of this tree is known

    async def _reward(tree: object, conversation: Conversation) -> None:
        (parts,) = await tree([conversation])  # type: ignore[operator]
        assert parts.loss == 2.0
        assert parts.total == pytest.approx(1.0 - 0.6 * parts.n_tokens / 10 + 1 / 2.0)

    yardstick = Yardstick(EXACT_MATCH, RewardSection(), 10, losses)
    with RewardDesk([_problem("p", "8")], yardstick) as desk:
        asyncio.run(grow())
    assert sum(map(len, asked)) == 4 * 2 + 1
    assert len(asked) <= 3  # while the first batch was out, all others gathered in the next


def test_scorer_that_is_gone_is_an_error_of_the_stage_and_no_reward() -> None:
    def losses(texts: list[str]) -> Sequence[float | None]:
        raise ProcessError("scorer 0: died again after its restart")

    yardstick = Yardstick(EXACT_MATCH, RewardSection(), 10, losses)
    with RewardDesk([_problem("p", "8")], yardstick) as desk:
        reward = desk.rewards_for()
        with pytest.raises(ProcessError, match="died again"):
            asyncio.run(reward([_conversation("p", "8")]))  # type: ignore[arg-type]

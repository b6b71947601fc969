"""Many trees at once: each takes its own rounds, server and rewards."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from optima.conversation.dialogue import Dialogue, Request
from optima.recipe.schema import SearchSection
from optima.search.tree import Forest, Reward, TreeGrower
from optima.types import Conversation, RewardParts, TreeRound
from tests.search.game import complete, dialogue, reward
from tests.talks import Reply

SECTION = SearchSection(n_rounds=2)


def _dialogues(n: int) -> list[Dialogue]:
    return [replace(dialogue(max_turns=4), problem_id=f"p{k}") for k in range(n)]


def _alone(held: Dialogue) -> list[TreeRound]:
    kept: list[TreeRound] = []
    asyncio.run(TreeGrower(held, SECTION, complete, reward).grow([], kept.append))
    return kept


def _timeless(rounds: Sequence[TreeRound]) -> list[str]:
    """Return rounds without the seconds that utterances took."""
    return [re.sub(r'"seconds":[^,}]*', "", one.model_dump_json()) for one in rounds]


@dataclass
class Servers:
    """Answers as the game does; every answer says which server it came from."""

    n_busy: int = 0
    n_most: int = 0
    n_asked: int = 0

    async def generate(self, request: Request, preferred: object) -> Reply:
        self.n_asked += 1
        self.n_busy += 1
        self.n_most = max(self.n_most, self.n_busy)
        await asyncio.sleep(0)
        self.n_busy -= 1
        reply = await complete(request)
        return Reply(reply.text, n_tokens=reply.n_tokens, server=preferred or f"s{self.n_asked}")


def _grow(
    servers: Servers, rounds: dict[str, Sequence[TreeRound]], n: int = 5, concurrency: int = 2
) -> list[TreeRound]:
    kept: list[TreeRound] = []
    forest = Forest(SECTION, servers.generate, lambda: reward, kept.append, lambda: concurrency)
    asyncio.run(forest.grow(_dialogues(n), rounds))
    return kept


def test_every_tree_of_a_forest_grows_as_it_does_alone() -> None:
    kept = _grow(Servers(), {})
    for held in _dialogues(5):
        grown = [one for one in kept if one.problem_id == held.problem_id]
        assert _timeless(grown) == _timeless(_alone(held))


def test_finished_rounds_are_not_grown_again() -> None:
    done = _alone(_dialogues(1)[0])
    kept = _grow(Servers(), {"p0": done, "p1": ()}, n=2)
    assert {one.problem_id for one in kept} == {"p1"}
    half = _grow(Servers(), {"p0": done[:1]}, n=1)
    assert _timeless(half) == _timeless(done[1:])


def test_as_many_trees_grow_at_a_time_as_are_allowed() -> None:
    one, three = Servers(), Servers()
    _grow(one, {}, concurrency=1)
    _grow(three, {}, concurrency=3)
    per_tree = SECTION.n_rollouts
    assert one.n_most <= per_tree < three.n_most <= 3 * per_tree


def test_a_tree_stays_with_the_server_of_its_last_answer() -> None:
    asked: list[object] = []

    async def generate(request: Request, preferred: object) -> Reply:
        asked.append(preferred)
        reply = await complete(request)
        return Reply(reply.text, n_tokens=reply.n_tokens, server="s1")

    forest = Forest(SECTION, generate, lambda: reward, lambda one: None, lambda: 1)
    asyncio.run(forest.grow(_dialogues(2), {}))
    assert asked.count(None) == 2 * 1  # the first question of either tree
    assert set(asked) == {None, "s1"}


def test_each_tree_has_a_reward_function_of_its_own_and_its_failure_rises() -> None:
    made: list[Reward] = []

    def rewards_for() -> Reward:
        async def own(conversations: Sequence[Conversation]) -> list[RewardParts]:
            if len(made) == 2:
                raise RuntimeError("the scorer is gone")
            return await reward(conversations)

        made.append(own)
        return own

    servers = Servers()
    forest = Forest(SECTION, servers.generate, rewards_for, lambda one: None, lambda: 1)
    with pytest.raises(RuntimeError, match="the scorer is gone"):
        asyncio.run(forest.grow(_dialogues(3), {}))
    assert len(made) == 2

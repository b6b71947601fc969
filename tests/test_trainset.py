import pytest

from optima.conversation.agent import Speaker
from optima.conversation.template import ChatTemplate
from optima.trainset import conversation_rows, is_held_out
from optima.types import Turn
from tests.templates import FAMILIES, SPECIAL_TOKENS


def turn(agent: int, text: str) -> Turn:
    return Turn(
        agent=agent, name=("Alice", "Bob", "Carol")[agent], text=text, answer=None,
        n_prompt_tokens=1, n_tokens=1, finish_reason="stop", seconds=0.0,
    )  # fmt: skip


def speakers(family: str, n: int = 2) -> list[Speaker]:
    template = ChatTemplate(FAMILIES[family], SPECIAL_TOKENS[family])
    names = ("Alice", "Bob", "Carol")[:n]
    return [Speaker(i, name, f"Prompt of {name}.", template) for i, name in enumerate(names)]


TALK = [turn(0, " one"), turn(1, " two"), turn(0, " three")]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_each_agent_gets_a_row_with_its_own_prompt_that_trains_its_own_utterances(
    family: str,
) -> None:
    alice, bob = conversation_rows("p", 3, TALK, speakers(family))
    for row, name, said in ((alice, "Alice", (" one", " three")), (bob, "Bob", (" two",))):
        assert row.n == 3
        assert f"Prompt of {name}." in row.messages[0].content
        trained = [row.messages[index] for index in row.trained]
        assert [m.content for m in trained] == [f"{name}:{text}" for text in said]
        assert all(message.role == "assistant" for message in trained)


def test_row_ends_with_the_last_own_utterance() -> None:
    _, bob = conversation_rows("p", 0, TALK, speakers("chatml"))
    assert [m.content for m in bob.messages] == ["Prompt of Bob.", "Alice: one", "Bob: two"]


def test_agent_that_never_spoke_has_no_row() -> None:
    rows = conversation_rows("p", 0, TALK[:2], speakers("chatml", 3))
    assert [row.agent for row in rows] == [0, 1]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_training_prompt_is_the_generation_prompt_byte_for_byte(family: str) -> None:
    alice, _ = speakers(family)
    row = conversation_rows("p", 0, TALK, [alice])[0]
    whole = alice.template.render(row.messages, add_generation_prompt=False)
    assert whole.startswith(alice.next_prompt([]) + " one")
    assert whole.startswith(alice.next_prompt(TALK[:2]) + " three")


def test_held_out_share_is_by_problem_and_seed() -> None:
    ids = [f"problem-{i}" for i in range(5000)]
    held_out = {i for i in ids if is_held_out(i, seed=0, share=0.02)}
    assert 60 < len(held_out) < 140  # 2 % of 5,000 is 100, three standard deviations are 30
    assert held_out == {i for i in ids if is_held_out(i, seed=0, share=0.02)}
    assert held_out != {i for i in ids if is_held_out(i, seed=1, share=0.02)}
    assert not any(is_held_out(i, seed=0, share=0.0) for i in ids)

import pytest

from optima.conversation.dialogue import Speaker
from optima.trainset import conversation_rows, is_held_out
from tests.talks import NAMES, ids_of, speakers, turn
from tests.templates import FAMILIES
from tests.tokenizers import codec_of, text_of

TALK = [turn(0, " one"), turn(1, " two"), turn(0, " three")]
ENDS = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "alternating": "<end_of_turn>"}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_each_agent_gets_a_row_with_its_own_prompt_that_trains_its_own_utterances(
    family: str,
) -> None:
    alice, bob = conversation_rows("p", 3, TALK, speakers(family))
    for row, name, said in ((alice, "Alice", (" one", " three")), (bob, "Bob", (" two",))):
        assert (row.problem_id, row.n, row.agent) == ("p", 3, NAMES.index(name))
        text = text_of(row.input_ids)
        assert f"You are {name}." in text
        trained = [text_of(row.input_ids[start:stop]) for start, stop in row.trained]
        assert trained == [spoken + ENDS[family] for spoken in said]
        for (start, _), spoken in zip(row.trained, said, strict=True):
            assert text_of(row.input_ids[:start]).endswith(f"{name}:"), spoken
        assert row.n_utterances == len(said)


def test_row_ends_with_the_last_own_utterance() -> None:
    _, bob = conversation_rows("p", 0, TALK, speakers("chatml"))
    assert text_of(bob.input_ids) == (
        "<|im_start|>system\nYou are Bob.<|im_end|>\n<|im_start|>user\nAlice: one<|im_end|>\n"
        "<|im_start|>assistant\nBob: two<|im_end|>"
    )
    assert bob.trained[-1][1] == len(bob.input_ids)


def test_agent_that_never_spoke_has_no_row() -> None:
    rows = conversation_rows("p", 0, TALK[:2], speakers("chatml", NAMES))
    assert [row.agent for row in rows] == [0, 1]


def test_utterances_whose_ids_were_not_sampled_are_counted() -> None:
    talk = [
        turn(0, " one", ids=ids_of(" one")), turn(1, " two"),
        turn(0, " three"), turn(1, " four"), turn(0, " five", ids=ids_of(" ", "five")),
    ]  # fmt: skip
    alice, bob = conversation_rows("p", 0, talk, speakers())
    assert (alice.n_utterances, alice.n_retokenised) == (3, 1)
    assert (bob.n_utterances, bob.n_retokenised) == (2, 2)


def test_held_out_share_is_by_problem_and_seed() -> None:
    ids = [f"problem-{i}" for i in range(5000)]
    held_out = {i for i in ids if is_held_out(i, seed=0, share=0.02)}
    assert 60 < len(held_out) < 140  # 2 % of 5,000 is 100, three standard deviations are 30
    assert held_out == {i for i in ids if is_held_out(i, seed=0, share=0.02)}
    assert held_out != {i for i in ids if is_held_out(i, seed=1, share=0.02)}
    assert not any(is_held_out(i, seed=0, share=0.0) for i in ids)


def test_the_problems_held_out_stay_the_same_from_release_to_release() -> None:
    # a resumed run must not move a problem from training to evaluation
    held_out = [i for i in range(200) if is_held_out(f"problem-{i}", seed=0, share=0.02)]
    assert held_out == [8, 90, 119, 134, 153, 182, 195]


def test_rows_of_one_utterance_each_count_their_own_only() -> None:
    # a template that rewrites earlier messages trains every utterance in a row of its own
    rewriting = FAMILIES["chatml"].replace(
        "{{ message['content'] }}",
        "{% if loop.last and message['role'] == 'assistant' %}<no thoughts>\n{% endif %}"
        "{{ message['content'] }}",
    )
    alice = Speaker(0, "Alice", "You are Alice.", codec_of(rewriting))
    talk = [turn(0, " one", ids=ids_of(" one")), turn(1, " two"), turn(0, " three")]
    rows = conversation_rows("p", 0, talk, (alice,))
    assert [(row.n_utterances, row.n_retokenised) for row in rows] == [(1, 0), (1, 1)]

"""The stand-in's answers: deterministic, marked, and ending in agreement."""

import pytest

from optima.serving.fake import compose
from optima.tasks.answers import last_marked_answer

PROMPT = (
    "<|im_start|>system\nMark it as <A>answer</A>. Iris lives in Bern. Kira lives in Porto."
    "<|im_end|>\n<|im_start|>assistant\nAlice:"
)


def test_equal_prompts_and_seeds_give_equal_texts() -> None:
    assert compose(PROMPT, 1) == compose(PROMPT, 1)
    assert len({compose(PROMPT, seed) for seed in range(50)}) > 10


def test_answers_come_from_the_prompt_and_not_from_the_instructions() -> None:
    answers = {last_marked_answer(compose(PROMPT, seed), "tag") for seed in range(200)}
    assert answers == {None, "Bern", "Porto"}


def test_marked_answer_is_mostly_agreed_with() -> None:
    prompt = PROMPT + " It is <A>Bern</A>.<|im_end|>\n<|im_start|>assistant\nBob:"
    answers = [last_marked_answer(compose(prompt, seed), "tag") for seed in range(200)]
    assert 150 < answers.count("Bern") < 200


@pytest.mark.parametrize("seed", range(20))
def test_boxed_answers_are_numbers_and_texts_start_with_a_space(seed: int) -> None:
    text = compose("Use \\boxed{}. There are 12 eggs and 30 hens.<|im_end|>Alice:", seed)
    assert text.startswith(" ")
    assert text[1] != " "
    assert last_marked_answer(text, "boxed") in ("12", "30", None)

"""The stand-in's answers: deterministic, marked, and ending in agreement."""

import asyncio
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from optima.serving.fake import Behaviour, FakeServer, compose
from optima.tasks.answers import last_marked_answer
from tests.tokenizers import codec, encoder, tiny_tokenizer

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


def test_cue_that_names_the_marks_is_no_answer_to_agree_with() -> None:
    cue = "<|im_start|>user\n(Alice, your answer goes between <A> and </A>.)<|im_end|>\n"
    prompt = PROMPT.replace("<|im_start|>assistant", cue + "<|im_start|>assistant")
    answers = {last_marked_answer(compose(prompt, seed), "tag") for seed in range(200)}
    assert answers == {None, "Bern", "Porto"}


@pytest.mark.parametrize("seed", range(20))
def test_boxed_answers_are_numbers_and_texts_start_with_a_space(seed: int) -> None:
    text = compose("Use \\boxed{}. There are 12 eggs and 30 hens.<|im_end|>Alice:", seed)
    assert text.startswith(" ")
    assert text[1] != " "
    assert last_marked_answer(text, "boxed") in ("12", "30", None)


IDS = encoder().encode(PROMPT)
END = codec("chatml").end_token


def ask(has_tokenizer: bool = True, **asked: Any) -> dict[str, Any]:
    """Return what a fake server answers, over HTTP: its choice and its usage."""
    tokenizer = tiny_tokenizer() if has_tokenizer else None
    server = FakeServer(["m"], "", Behaviour(), tokenizer)

    async def exchange() -> dict[str, Any]:
        runner = web.ServerRunner(web.Server(server.handle))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.post(
                    f"http://127.0.0.1:{runner.addresses[0][1]}/v1/completions",
                    json={"model": "m", "prompt": IDS, "max_tokens": 99, "seed": 3, **asked},
                ) as response,
            ):
                answer = await response.json()
        finally:
            await runner.cleanup()
        return {**answer["choices"][0], **answer["usage"]}

    return asyncio.run(exchange())


def test_prompt_of_ids_is_answered_as_its_text_is() -> None:
    by_ids, by_text = ask(), ask(prompt=PROMPT)
    assert by_ids == by_text
    assert by_ids["text"] == compose(PROMPT, 3)
    assert by_ids["prompt_tokens"] == len(IDS)
    assert ask(seed=None)["text"] == compose(PROMPT, 0)


def test_ids_of_the_text_come_back_when_asked_for_and_are_what_usage_counts() -> None:
    said = encoder().encode(compose(PROMPT, 3))
    assert ask()["token_ids"] is None
    answer = ask(return_token_ids=True, stop_token_ids=[END])
    assert answer["token_ids"] == [*said, END]
    assert (answer["finish_reason"], answer["stop_reason"]) == ("stop", END)
    assert answer["completion_tokens"] == len(said) + 1


def test_limit_of_tokens_cuts_text_and_ids_alike() -> None:
    said = encoder().encode(compose(PROMPT, 3))
    answer = ask(return_token_ids=True, stop_token_ids=[END], max_tokens=4)
    assert answer["token_ids"] == list(said[:4])
    assert answer["text"] == encoder().decode(said[:4])
    assert (answer["finish_reason"], answer["stop_reason"]) == ("length", None)


def test_stop_text_is_cut_off_the_text_and_left_in_the_ids() -> None:
    whole = compose(PROMPT, 3)
    stop = whole.split()[2][:2]  # in the midst of a word
    answer = ask(return_token_ids=True, stop=["never said", stop], stop_token_ids=[END])
    assert answer["text"] == whole[: whole.index(stop)]
    assert (answer["finish_reason"], answer["stop_reason"]) == ("stop", stop)
    assert stop in encoder().decode(answer["token_ids"])
    assert stop not in encoder().decode(answer["token_ids"][:-1])  # none was sampled after it


def test_without_a_tokenizer_words_are_counted_and_no_ids_given() -> None:
    answer = ask(has_tokenizer=False, prompt=PROMPT, return_token_ids=True)
    assert answer["text"] == compose(PROMPT, 3)
    assert answer["token_ids"] is None
    assert answer["completion_tokens"] == len(answer["text"].split()) + 1
    by_ids = ask(has_tokenizer=False)
    assert by_ids["text"] == compose(" ".join(map(str, IDS)), 3)
    assert by_ids["prompt_tokens"] == len(IDS)

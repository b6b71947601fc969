"""Replies of servers, read at the border: right ones, wrong ones, and refusals in many words."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import orjson
import pytest

from optima.errors import ContextOverflowError, ServerError
from optima.serving.reply import (
    KeyRefusedError,
    RetryableError,
    check_reply,
    message_of,
    read_reply,
    refusal,
    retry_after_s,
)

URL = "http://host:1"
CHOICE: dict[str, Any] = {"text": " hi", "finish_reason": "stop", "token_ids": [4, 2]}
USAGE: dict[str, Any] = {"prompt_tokens": 3, "completion_tokens": 2}

# (status, body) as the servers write it.
OVERFLOWS = {
    "vLLM": (
        400,
        '{"error": {"message": "This model\'s maximum context length is 2048 tokens. However, you '
        'requested 2000 output tokens and your prompt contains 99 input tokens.", "code": 400}}',
    ),
    "vLLM, by its engine": (
        400,
        '{"message": "The decoder prompt (length 99) is longer than the maximum model length of '
        '64. Make sure that `max_model_len` is no smaller than the number of text tokens."}',
    ),
    "vLLM, too many new tokens": (
        400,
        '{"error": {"message": "max_tokens=2000 cannot be greater than max_model_len=512."}}',
    ),
    "SGLang, prompt": (
        400,
        '{"object": "error", "message": "The input (99 tokens) is longer than the model\'s context '
        'length (64 tokens).", "type": "BadRequestError"}',
    ),
    "SGLang, total": (
        400,
        '{"message": "Requested token count exceeds the model\'s maximum context length of 64"}',
    ),
    "SGLang, scheduler": (
        400,
        '{"message": "Input length (99 tokens) exceeds the maximum allowed length (63 tokens)."}',
    ),
    "llama.cpp": (
        400,
        '{"error": {"code": 400, "message": "request (99 tokens) exceeds the available context '
        'size (64 tokens), try increasing it", "type": "exceed_context_size_error"}}',
    ),
    "llama.cpp, by its code": (400, '{"error": {"type": "exceed_context_size_error"}}'),
    "llama.cpp, while it generates": (
        500,
        '{"error": {"code": 500, "message": "Context size has been exceeded.", '
        '"type": "server_error"}}',
    ),
    "llama-cpp-python": (
        400,
        '{"error": {"message": "Requested tokens (99) exceed context window of 64"}}',
    ),
    "TGI, total": (
        422,
        '{"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 64. '
        'Given: 50 `inputs` tokens and 50 `max_new_tokens`", "error_type": "validation"}',
    ),
    "TGI, prompt": (
        422,
        '{"error": "Input validation error: `inputs` must have less than 64 tokens. Given: 99"}',
    ),
    "Ollama": (400, '{"error": "prompt too long; exceeded max context length by 9 tokens"}'),
    "Ollama, input": (400, '{"error": "the input length exceeds the context length"}'),
    "LM Studio": (
        400,
        '{"error": "Trying to keep the first 99 tokens when context the overflows. However, the '
        'model is loaded with context length of only 64 tokens, which is not enough."}',
    ),
    "LiteLLM": (
        400,
        '{"error": {"message": "litellm.ContextWindowExceededError: litellm.BadRequestError: x"}}',
    ),
    "OpenAI, by its code": (
        400,
        '{"error": {"message": "Please check.", "code": "context_length_exceeded"}}',
    ),
    "OpenAI, new tokens": (
        400,
        '{"error": {"message": "max_tokens is too large: 2000. This model supports at most 512 '
        'completion tokens."}}',
    ),
    "Anthropic": (400, '{"error": {"message": "prompt is too long: 99 tokens > 64 maximum"}}'),
    "a proxy": (413, "<html><title>413 Request Entity Too Large</title></html>"),
    "nobody": (413, ""),
}
OTHERS = {
    "a wrong value": (400, '{"error": {"message": "temperature must be non-negative"}}'),
    "ids are no prompt": (422, '{"detail": [{"loc": ["body", "prompt"], "msg": "not a string"}]}'),
    "TGI reads no ids": (
        422,
        "Failed to deserialize the JSON body into the target type: prompt: invalid type: sequence",
    ),
    "a limit of requests": (429, '{"error": {"message": "Rate limit: too many tokens"}}'),
    "a crash": (500, '{"error": {"message": "CUDA error; max_model_len=4096"}}'),
    "a gateway": (502, "<html><title>502 Bad Gateway</title></html>"),
}


@pytest.mark.parametrize("name", OVERFLOWS)
def test_a_prompt_that_is_too_long_is_told_in_the_words_of_every_server(name: str) -> None:
    status, body = OVERFLOWS[name]
    assert isinstance(refusal(URL, status, body.encode()), ContextOverflowError)


@pytest.mark.parametrize("name", OTHERS)
def test_other_refusals_are_no_overflow(name: str) -> None:
    status, body = OTHERS[name]
    error = refusal(URL, status, body.encode())
    assert type(error) is (RetryableError if status in (429, 500, 502) else ServerError)
    assert f"{URL}: HTTP {status}: " in str(error)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520, 529])
def test_what_passes_is_tried_again(status: int) -> None:
    assert isinstance(refusal(URL, status, b""), RetryableError)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 410, 422])
def test_what_does_not_pass_is_an_error_at_once(status: int) -> None:
    error = refusal(URL, status, b"no")
    assert isinstance(error, ServerError)
    assert not isinstance(error, RetryableError)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_told_with_where_it_is_read_from(status: int) -> None:
    error = refusal(URL, status, b'{"error":"Unauthorized"}')
    assert isinstance(error, KeyRefusedError)
    assert "OPTIMA_API_KEY" in str(error)
    assert "\n" not in str(error)


def test_a_redirect_is_refused_with_where_it_leads() -> None:
    error = refusal(URL, 307, b"", {"Location": "https://host/v1/completions"})
    assert "redirects to https://host/v1/completions" in str(error)
    assert not isinstance(error, RetryableError)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"error": {"message": "a\\nb"}}', "a b"),
        ('{"error": "a"}', "a"),
        ('{"message": "a"}', "a"),
        ('{"detail": "a"}', "a"),
        ('{"detail": [{"loc": ["body"], "msg": "a"}]}', "a"),
        ('{"error": {"error": {"message": "a"}}}', "a"),
        ('{"other": 1}', '{"other": 1}'),
        ('"a"', "a"),
        ("<html>\n<head><TITLE>502 Bad\nGateway</TITLE>", "an HTML page, '502 Bad\\nGateway'"),
        ("plain\n text", "plain text"),
        ("", "no message"),
        ("[]", "[]"),
        ('{"error": null}', '{"error": null}'),
    ],
)
def test_the_words_of_a_server_come_on_one_line(body: str, words: str) -> None:
    assert message_of(body.encode()) == words


def answer(choice: dict[str, Any] | None = None, usage: Any = USAGE) -> bytes:
    return orjson.dumps({"choices": [{**CHOICE, **(choice or {})}], "usage": usage})


def test_a_completion_is_read_as_it_is() -> None:
    reply = read_reply(URL, answer())
    assert (reply.choice.text, reply.choice.token_ids, reply.n_tokens) == (" hi", (4, 2), 2)
    check_reply(URL, reply, max_tokens=2, n_vocabulary=5)


@pytest.mark.parametrize(
    ("choice", "is_ended_by_text"),
    [
        ({"stop_reason": "Bob:"}, True),  # vLLM
        ({"matched_stop": "Bob:"}, True),  # SGLang
        ({"stop_reason": 2}, False),
        ({"matched_stop": 2}, False),
        ({"stop_reason": None}, False),
        ({}, False),
    ],
)
def test_the_stop_text_that_ended_a_completion_is_known(
    choice: dict[str, Any], is_ended_by_text: bool
) -> None:
    assert read_reply(URL, answer(choice)).choice.is_ended_by_text == is_ended_by_text


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 3}])
def test_tokens_are_counted_from_the_ids_where_there_is_no_usage(usage: Any) -> None:
    assert read_reply(URL, answer(usage=usage)).n_tokens == 2
    with pytest.raises(RetryableError, match=r"usage.completion_tokens: is missing"):
        read_reply(URL, answer({"token_ids": None}, usage=usage))


@pytest.mark.parametrize(
    ("body", "place_and_value"),
    [
        (answer({"text": 17}), "choices.0.text: 17: "),
        (answer({"text": None}), "choices.0.text: null: "),
        (answer({"text": ["a"]}), 'choices.0.text: ["a"]: '),
        (answer({"finish_reason": "abort"}), 'choices.0.finish_reason: "abort": '),
        (answer({"finish_reason": None}), "choices.0.finish_reason: null: "),
        (answer({"token_ids": ["4"]}), 'choices.0.token_ids.0: "4": '),
        (answer({"token_ids": [4, -2]}), "choices.0.token_ids.1: -2: "),
        (answer({"token_ids": [True]}), "choices.0.token_ids.0: true: "),
        (answer({"token_ids": [4.0]}), "choices.0.token_ids.0: 4.0: "),
        (answer({"token_ids": [2**63]}), "choices.0.token_ids.0: 9223372036854775808: "),
        (answer({"token_ids": "4"}), 'choices.0.token_ids: "4": '),
        (answer(usage={"completion_tokens": "seven"}), 'usage.completion_tokens: "seven": '),
        (answer(usage={"completion_tokens": -5}), "usage.completion_tokens: -5: "),
        (answer(usage={"completion_tokens": True}), "usage.completion_tokens: true: "),
        (answer(usage={"completion_tokens": 1.5}), "usage.completion_tokens: 1.5: "),
        (answer(usage={"prompt_tokens": -1}), "usage.prompt_tokens: -1: "),
        (answer(usage=3), "usage: 3: "),
        (answer().replace(b"2}", b"NaN}"), "usage.completion_tokens: NaN: "),
        (b"{}", "choices: is missing"),
        (b'{"choices": []}', "choices: []: "),
        (b'{"choices": null}', "choices: null: "),
        (b'{"choices": [17]}', "choices.0: 17: "),
        (b"[]", "the reply: []: "),
        (b"", "did not answer with JSON: no message"),
        (answer()[:-9], "did not answer with JSON: "),
        (b"<html><title>Log in</title>", "did not answer with JSON: an HTML page, 'Log in'"),
    ],
)
def test_a_reply_of_another_type_is_one_line_with_place_and_value(
    body: bytes, place_and_value: str
) -> None:
    with pytest.raises(RetryableError) as got:
        read_reply(URL, body)
    assert place_and_value in str(got.value)
    assert str(got.value).startswith(f"{URL}: ")
    assert "\n" not in str(got.value)


@pytest.mark.parametrize(
    ("choice", "usage", "message"),
    [
        ({}, {"completion_tokens": 51}, "51: must be at most the 50 tokens asked for"),
        ({}, {"completion_tokens": 0}, "0: must be more for the text ' hi'"),
        ({"token_ids": [4, 100]}, USAGE, "token_ids: 100: must be an id of the tokenizer"),
    ],
)
def test_a_reply_that_answers_something_else_is_refused(
    choice: dict[str, Any], usage: Any, message: str
) -> None:
    reply = read_reply(URL, answer(choice, usage))
    with pytest.raises(RetryableError, match=message):
        check_reply(URL, reply, max_tokens=50, n_vocabulary=100)


def test_nothing_said_in_no_tokens_is_a_completion() -> None:
    reply = read_reply(URL, answer({"text": "", "token_ids": []}, {"completion_tokens": 0}))
    check_reply(URL, reply, max_tokens=50, n_vocabulary=100)
    assert reply.n_tokens == 0


def test_an_error_under_a_good_status_is_what_it_says() -> None:
    with pytest.raises(ContextOverflowError):
        read_reply(URL, b'{"error": {"code": 400, "message": "context length exceeded"}}')
    with pytest.raises(KeyRefusedError):
        read_reply(URL, b'{"error": {"code": "401", "message": "no"}}')
    with pytest.raises(RetryableError, match="HTTP 500: overloaded"):
        read_reply(URL, b'{"error": "overloaded"}')


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("3", 3.0),
        (" 0.5 ", 0.5),
        ("-1", 0.0),
        ("soon", None),
        ("nan", None),
        (None, None),
        ("Mon, 01 Jan 2024 00:00:00 +99999999999999999999", None),
    ],
)
def test_retry_after_is_read_in_seconds(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header) == seconds


def test_words_of_a_server_can_be_logged_whatever_they_hold() -> None:
    payload, said = b'{"error": "half \\ud83d of a\\ncharacter"}', r"half \ud83d of a character"
    for status in (400, 401, 404, 413, 429, 500):
        assert str(refusal(URL, status, payload)).partition(said)[1].encode()
    with pytest.raises(RetryableError, match=r"half \\ud83d of a character"):
        read_reply(URL, payload)


def test_retry_after_is_read_as_a_date() -> None:
    soon = datetime.now(UTC) + timedelta(seconds=30)
    assert 27 < (retry_after_s(format_datetime(soon, usegmt=True)) or 0) <= 30
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    error = refusal(URL, 503, b"", {"Retry-After": "7"})
    assert isinstance(error, RetryableError)
    assert error.pause_s == 7.0


@pytest.mark.parametrize("body", [100_000 * "[", 5_000 * '{"error":' + "1" + 5_000 * "}"])
def test_a_reply_that_is_nested_too_deeply_is_one_line(body: str) -> None:
    with pytest.raises(RetryableError) as said:
        read_reply("http://u", body.encode())
    assert len(str(said.value)) < 700
    for status in (200, 400, 503):
        assert len(str(refusal("http://u", status, body.encode()))) < 700

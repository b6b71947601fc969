"""An instant stand-in for a vLLM server: ``python -m optima.serving.fake --port P``.

For tests, dry measurements of the orchestrator, and trying a recipe without a model. It speaks
/v1/completions, /v1/models and /health with the key from VLLM_API_KEY, as vLLM does, and can be
made slow, failing, dying or deaf. A completion is a pure function of (prompt, seed): a few words
and mostly a marked answer, taken from the prompt or, once one is marked there, agreeing with it.
Arguments of a real server that it does not know are ignored.
"""

import argparse
import asyncio
import hashlib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from aiohttp import web

HOST = "127.0.0.1"
CHARS_PER_TOKEN = 4
_P_MARK, _P_AGREE = 0.8, 0.85
_BACKLOG = 4096
_END_OF_MESSAGE = re.compile(r"<\|im_end\|>|<\|eot_id\|>|<\|end\|>|<end_of_turn>|</s>|\[/INST\]")
_MARKED = {"tag": re.compile(r"<A>([^<>]*)</A>"), "boxed": re.compile(r"\\boxed\{([^{}]*)\}")}
_CANDIDATES = {
    "letter": re.compile(r"(?:^|[\s(])([A-E])[.):]\s", re.MULTILINE),
    "place": re.compile(r"\bin ([A-Z][a-z]+)"),
    "word": re.compile(r"\b([A-Z][a-z]{2,})\b"),
    "number": re.compile(r"\b(\d+)\b"),
}
_FILLERS = (
    "I", "think", "that", "the", "facts", "I", "was", "given", "point", "there", "so", "let", "us",
    "compare", "what", "we", "know",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What is wrong with this server, if anything."""

    latency_s: float = 0.0
    fail_rate: float = 0.0
    die_after: int | None = None
    is_never_ready: bool = False
    overflow_chars: int | None = None
    max_model_len: int | None = None


class FakeServer:
    """The requests' handler."""

    def __init__(self, models: Sequence[str], api_key: str, behaviour: Behaviour) -> None:
        self._models = tuple(models)
        self._authorization = f"Bearer {api_key}" if api_key else None
        self._behaviour = behaviour
        self._n_completions = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        path = request.path
        if path == "/health":
            return web.Response(status=503 if self._behaviour.is_never_ready else 200)
        if self._authorization and request.headers.get("Authorization") != self._authorization:
            return web.Response(
                body=b'{"error":"Unauthorized"}', status=401, content_type="application/json"
            )
        if path == "/v1/completions" and request.method == "POST":
            return await self._complete(await request.read())
        if path == "/v1/models":
            return _answer({"object": "list", "data": [{"id": name} for name in self._models]})
        return _error(404, "Not Found")

    async def _complete(self, body: bytes) -> web.Response:
        behaviour = self._behaviour
        self._n_completions += 1
        if behaviour.die_after is not None and self._n_completions > behaviour.die_after:
            sys.stderr.write("RuntimeError: the fake server dies as it was told\n")
            sys.stderr.flush()
            os._exit(1)
        if behaviour.latency_s:
            await asyncio.sleep(behaviour.latency_s)
        if behaviour.fail_rate and self._draw_failure():
            return _error(500, "the fake server fails as it was told")
        try:
            asked = orjson.loads(body)
            prompt, max_tokens = asked["prompt"], asked["max_tokens"]
            model, seed = asked["model"], asked.get("seed") or 0
        except (ValueError, KeyError, TypeError) as error:
            return _error(400, f"bad request: {error!r}")
        if model not in self._models:
            return _error(404, f"The model `{model}` does not exist.")
        n_prompt = len(prompt) // CHARS_PER_TOKEN + 1
        problem = self._overflow(prompt, n_prompt, max_tokens)
        if problem:
            return _error(400, problem)
        words = compose(prompt, seed).split(" ")
        is_cut = len(words) > max_tokens  # the leading space stands for the end of turn
        text = " ".join(words[:max_tokens])
        n_tokens = min(len(words), max_tokens)
        return _answer(
            {
                "id": f"cmpl-{self._n_completions}",
                "object": "text_completion",
                "model": model,
                "choices": [
                    {"index": 0, "text": text, "finish_reason": "length" if is_cut else "stop"}
                ],
                "usage": {
                    "prompt_tokens": n_prompt,
                    "completion_tokens": n_tokens,
                    "total_tokens": n_prompt + n_tokens,
                },
            }
        )

    def _overflow(self, prompt: str, n_prompt: int, max_tokens: int) -> str | None:
        limits = self._behaviour
        limit = limits.max_model_len
        if limits.overflow_chars is not None and len(prompt) > limits.overflow_chars:
            limit = limits.overflow_chars // CHARS_PER_TOKEN
        elif limit is None or n_prompt + max_tokens <= limit:
            return None
        return (
            f"This model's maximum context length is {limit} tokens. However, you requested "
            f"{max_tokens} output tokens and your prompt contains {n_prompt} input tokens."
        )

    def _draw_failure(self) -> bool:
        key = str(self._n_completions).encode()
        drawn = int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big")
        return drawn < self._behaviour.fail_rate * 2**32


def compose(prompt: str, seed: int) -> str:
    """Return the completion of ``prompt``; equal arguments give equal texts."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=16, salt=seed.to_bytes(8, "big"))
    draws = digest.digest()
    style = "boxed" if "\\boxed" in prompt else "tag"
    first_end = _END_OF_MESSAGE.search(prompt)  # before it stand the instructions
    said = prompt[first_end.end() :] if first_end else ""
    marked = _MARKED[style].findall(said)
    start = draws[0] % len(_FILLERS)
    words = [_FILLERS[(start + i) % len(_FILLERS)] for i in range(draws[1] % 16)]
    if marked and draws[2] < _P_AGREE * 256:
        answer = marked[-1]
        words = ["Yes,", *words[: draws[1] % 4]]
    elif marked or draws[2] < _P_MARK * 256:
        answer = _candidate(prompt, style, draws[3])
    else:
        return " " + " ".join([*words, "what", "do", "you", "know?"])
    mark = f"\\boxed{{{answer}}}." if style == "boxed" else f"<A>{answer}</A>."
    return " " + " ".join([*words, "it", "is", mark])


def _candidate(prompt: str, style: str, draw: int) -> str:
    """Return something in the prompt that looks like an answer."""
    kinds = ("number",) if style == "boxed" else ("letter", "place", "word")
    for kind in kinds:
        found = sorted(set(_CANDIDATES[kind].findall(prompt)))
        if found:
            return str(found[draw % len(found)])
    return str(draw % 10)


def _answer(content: object) -> web.Response:
    return web.Response(body=orjson.dumps(content), content_type="application/json")


def _error(status: int, message: str) -> web.Response:
    content = {"error": {"message": message, "type": "BadRequestError", "code": status}}
    return web.Response(body=orjson.dumps(content), status=status, content_type="application/json")


async def serve(server: FakeServer, host: str, port: int) -> None:
    """Serve until cancelled."""
    runner = web.ServerRunner(web.Server(server.handle, access_log=None, keepalive_timeout=60))
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=_BACKLOG).start()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="optima.serving.fake", allow_abbrev=False)
    parser.add_argument("--host", default=HOST)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", help="name of the model if --served-model-name gives none")
    parser.add_argument("--served-model-name")
    parser.add_argument("--lora-modules", nargs="*", default=[], metavar="NAME=PATH")
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--latency-ms", type=float, default=0.0, help="pause before an answer")
    parser.add_argument("--fail-rate", type=float, default=0.0, help="share of answers 500")
    parser.add_argument("--die-after", type=int, metavar="N", help="exit after N completions")
    parser.add_argument("--never-ready", action="store_true", help="/health answers 503")
    parser.add_argument("--overflow-chars", type=int, metavar="N", help="refuse longer prompts")
    options, _ = parser.parse_known_args(argv)
    models = [options.served_model_name or options.model or "policy"]
    models += [module.split("=", 1)[0] for module in options.lora_modules]
    behaviour = Behaviour(
        latency_s=options.latency_ms / 1000,
        fail_rate=options.fail_rate,
        die_after=options.die_after,
        is_never_ready=options.never_ready,
        overflow_chars=options.overflow_chars,
        max_model_len=options.max_model_len,
    )
    server = FakeServer(models, os.environ.get("VLLM_API_KEY", ""), behaviour)
    try:
        asyncio.run(serve(server, options.host, options.port))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

"""An instant stand-in for a vLLM server: ``python -m optima.serving.fake --port P``.

For tests, dry measurements of the orchestrator, and trying a recipe without a model. It speaks
/v1/completions, /v1/models and /health with the key from VLLM_API_KEY, as vLLM does, and can be
made slow, failing, dying or deaf, or to lack what vLLM has: /health, token ids. With
VLLM_SERVER_DEV_MODE it takes other weights and sleeps as vLLM does. A completion is a pure function
of (prompt, seed): a few words and mostly a marked answer, taken from the prompt or, once one is
marked there, agreeing with it.
Prompts are token ids or text. With the tokenizer of ``--tokenizer`` or ``--model`` it reads ids,
gives them back and counts in them; without one words are its tokens, and ids are read as numbers.
The log-probabilities of a prompt are a pure function of its ids and the weights in the directory.
Arguments of a real server that it does not know are ignored.
"""

import argparse
import asyncio
import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web
from tokenizers import Tokenizer

from optima.serving.made_up import token_logprobs as token_logprobs

HOST = "127.0.0.1"
CHARS_PER_TOKEN = 4
_P_MARK, _P_AGREE = 0.8, 0.85
_BACKLOG = 4096
_LORA_PATHS = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
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


@dataclass
class Behaviour:
    """What is wrong with this server, if anything; the options of its command line set it."""

    latency_ms: float = 0.0
    fail_rate: float = 0.0
    die_after: int | None = None
    hang_after: int | None = None
    never_ready: bool = False
    mute: str | None = None
    overflow_chars: int | None = None
    max_model_len: int | None = None
    no_health: bool = False
    no_token_ids: bool = False
    only_text: bool = False
    no_logprobs: bool = False
    reload: str = "works"
    no_sleep: bool = False
    notes: Path | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Said:
    """What is answered: a text, its tokens, why it ended, and the stop that ended it, if any."""

    text: str
    n_tokens: int
    finish_reason: str
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None


class FakeServer:
    """The requests' handler."""

    def __init__(
        self,
        models: Sequence[str],
        api_key: str,
        behaviour: Behaviour,
        tokenizer: Tokenizer | None = None,
        weights: Path | None = None,
        adapters: Mapping[str, Path] | None = None,
    ) -> None:
        self._models = tuple(models)
        self._weights = weights
        self._adapters = dict(adapters or {})
        self._has_other_weights = adapters is None
        self._tokenizer = tokenizer
        self._authorization = f"Bearer {api_key}" if api_key else None
        self._behaviour = behaviour
        self._n_completions = 0
        self._n_held = 2 if behaviour.reload == "late" else 0
        self._is_asleep = False

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        path = request.path
        if path == "/health" and not self._behaviour.no_health:
            return web.Response(status=503 if self._behaviour.never_ready else 200)
        if self._authorization and request.headers.get("Authorization") != self._authorization:
            return web.Response(
                body=b'{"error":"Unauthorized"}', status=401, content_type="application/json"
            )
        if path == "/v1/completions" and request.method == "POST":
            if self._is_asleep:
                return _error(500, "the fake server is asleep")
            return await self._complete(await request.read())
        if path == "/v1/models":
            return _answer({"object": "list", "data": [{"id": name} for name in self._models]})
        if path in _LORA_PATHS and os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") == "1":
            return self._hold(path, await request.read())
        if request.method == "POST" and os.environ.get("VLLM_SERVER_DEV_MODE") == "1":
            return self._obey(path, request.query, await request.read())
        return _error(404, "Not Found")

    def _hold(self, path: str, body: bytes) -> web.Response:
        """Load an adapter or forget one."""
        self._note(body)
        how, asked = self._behaviour.reload, orjson.loads(body)
        name, is_held = asked["lora_name"], asked["lora_name"] in self._models
        if how == "fails" or is_held == (path == _LORA_PATHS[0]):
            return _error(400, f"the fake server does not do that with the adapter {name}")
        if not is_held:
            self._models = (*self._models, name)
            if how != "stale" and not self._has_other_weights:  # else it answers with its base
                self._adapters[name] = Path(asked["lora_path"])
        else:
            self._models = tuple(model for model in self._models if model != name)
            self._adapters.pop(name, None)
        return _answer({})

    def _note(self, body: bytes) -> None:
        if self._behaviour.notes is not None:
            with self._behaviour.notes.open("ab") as notes:
                notes.write(body + b"\n")

    def _obey(self, path: str, query: Mapping[str, str], body: bytes) -> web.Response:
        """Do what a request for development tells."""
        how = self._behaviour.reload
        if path == "/collective_rpc":
            if how == "dies":
                os._exit(1)
            if how == "fails":
                return _error(500, "the fake server takes no weights, as it was told")
            if how != "stale":
                self._behaviour.model = orjson.loads(body)["kwargs"]["weights_path"]
                self._weights = Path(self._behaviour.model or "")
        elif path == "/reset_prefix_cache":
            self._n_held -= 1
            return _answer({"success": self._n_held < 0 and how != "held"})
        elif path == "/sleep" and not self._behaviour.no_sleep:
            self._is_asleep, self._weights = True, None
        elif path == "/wake_up":
            self._is_asleep = query["tags"] != "kv_cache"
        elif path not in ("/pause", "/resume"):
            return _error(404, "Not Found")
        return _answer({})

    async def _complete(self, body: bytes) -> web.Response:
        behaviour = self._behaviour
        self._n_completions += 1
        if behaviour.die_after is not None and self._n_completions > behaviour.die_after:
            sys.stderr.write("RuntimeError: the fake server dies as it was told\n")
            sys.stderr.flush()
            os._exit(1)
        if behaviour.hang_after is not None and self._n_completions > behaviour.hang_after:
            await asyncio.Event().wait()
        if behaviour.latency_ms:
            await asyncio.sleep(behaviour.latency_ms / 1000)
        if behaviour.fail_rate and self._draw_failure():
            return _error(500, "the fake server fails as it was told")
        try:
            asked = orjson.loads(body)
            prompt, max_tokens = asked["prompt"], asked["max_tokens"]
            model, seed = asked["model"], asked.get("seed") or 0
        except (ValueError, KeyError, TypeError) as error:
            return _error(400, f"bad request: {error!r}")
        self._note(body)
        if model not in self._models:
            return _error(404, f"The model `{model}` does not exist.")
        if behaviour.only_text and not isinstance(prompt, str):  # the words of TGI
            return _error(422, "prompt: invalid type: sequence, expected a string")
        text, n_prompt = self._read(prompt)
        problem = self._overflow(text, n_prompt, max_tokens)
        if problem:
            return _error(400, problem)
        is_mute = behaviour.mute is not None and behaviour.mute in (behaviour.model or "")
        said = self._say("" if is_mute else compose(text, seed), asked)
        choice = {
            "index": 0,
            "text": said.text,
            "finish_reason": said.finish_reason,
            "stop_reason": said.stop_reason,
            "token_ids": said.token_ids if asked.get("return_token_ids") else None,
        }
        if behaviour.no_token_ids:
            del choice["token_ids"]
        if asked.get("prompt_logprobs") is not None:
            choice["prompt_logprobs"] = self._score(prompt, model)
        usage = {
            "prompt_tokens": n_prompt,
            "completion_tokens": said.n_tokens,
            "total_tokens": n_prompt + said.n_tokens,
        }
        head = {"id": f"cmpl-{self._n_completions}", "object": "text_completion", "model": model}
        return _answer({**head, "choices": [choice], "usage": usage})

    def _score(
        self, prompt: list[int], model: str
    ) -> list[dict[str, dict[str, float]] | None] | None:
        """Return what vLLM says of the tokens of a prompt of ids."""
        if self._behaviour.no_logprobs:
            return None
        weights = self._adapters.get(model, self._weights)
        values = zip(prompt[1:], token_logprobs(weights, prompt), strict=True)
        return [None, *({str(i): {"logprob": value}} for i, value in values)]

    def _read(self, prompt: str | list[int]) -> tuple[str, int]:
        """Return the prompt as text and its number of tokens."""
        if isinstance(prompt, str):
            if self._tokenizer is None:
                return prompt, len(prompt) // CHARS_PER_TOKEN + 1
            return prompt, len(self._tokenizer.encode(prompt, add_special_tokens=False).ids)
        if self._tokenizer is None:
            return " ".join(map(str, prompt)), len(prompt)
        return self._tokenizer.decode(prompt, skip_special_tokens=False), len(prompt)

    def _say(self, text: str, asked: dict[str, Any]) -> Said:
        """End ``text`` as vLLM would: by a stop text, by the end of turn or at the limit."""
        limit, ends = asked["max_tokens"], asked.get("stop_token_ids") or ()
        tokens, join = self._split(text, ends), self._join
        stops = [stop for stop in asked.get("stop") or () if stop in join(tokens)]
        ended = (k for k in range(len(tokens)) if any(stop in join(tokens[:k]) for stop in stops))
        n = next(ended, len(tokens))
        is_cut, kept = n > limit, tokens[: min(n, limit)]
        text, stop_reason = join(kept), next(iter(ends), None)
        if is_cut:
            stop_reason = None
        elif stops:
            stop_reason = min((stop for stop in stops if stop in text), key=text.index)
            text = text[: text.index(stop_reason)]
        return Said(
            text=text,
            n_tokens=len(kept),
            finish_reason="length" if is_cut else "stop",
            stop_reason=stop_reason,
            token_ids=None if self._tokenizer is None else kept,
        )

    def _split(self, text: str, ends: Sequence[int]) -> list[Any]:
        """Return the tokens of a whole completion, its end of turn included."""
        if self._tokenizer is None:
            return text.split(" ")  # the leading space stands for the end of turn
        return [*self._tokenizer.encode(text, add_special_tokens=False).ids, *ends[:1]]

    def _join(self, tokens: list[Any]) -> str:
        return " ".join(tokens) if self._tokenizer is None else self._tokenizer.decode(tokens)

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
    # A cue that names the marks, "between <A> and </A>", marks no answer.
    marked = [answer for answer in _MARKED[style].findall(said) if answer != " and "]
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


def load_tokenizer(model: str | None) -> Tokenizer | None:
    """Return the tokenizer in the directory of a model, if there is one."""
    path = Path(model or "") / "tokenizer.json"
    return Tokenizer.from_file(str(path)) if path.is_file() else None


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
    parser.add_argument("--model", help="its directory; its name without --served-model-name")
    parser.add_argument("--tokenizer", help="the directory of another tokenizer")
    parser.add_argument("--served-model-name")
    parser.add_argument("--lora-modules", nargs="*", default=[], metavar="NAME=PATH")
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--latency-ms", type=float, help="pause before an answer")
    parser.add_argument("--fail-rate", type=float, help="share of answers 500")
    parser.add_argument("--die-after", type=int, metavar="N", help="exit after N completions")
    parser.add_argument("--hang-after", type=int, metavar="N", help="answer N completions only")
    parser.add_argument("--no-health", action="store_true", help="there is no /health")
    parser.add_argument("--no-token-ids", action="store_true", help="completions have no ids")
    parser.add_argument("--only-text", action="store_true", help="prompts of ids are refused")
    parser.add_argument("--no-logprobs", action="store_true", help="prompt_logprobs are null")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="those that it has instead")
    parser.add_argument("--reload", choices=("works", "fails", "stale", "dies", "late", "held"),
                        help="what comes of other weights; late, held: of the cache")  # fmt: skip
    parser.add_argument("--no-sleep", action="store_true", help="/sleep is not there")
    parser.add_argument("--never-ready", action="store_true", help="/health answers 503")
    parser.add_argument("--mute", metavar="PART", help="say nothing as a model of this path")
    parser.add_argument("--overflow-chars", type=int, metavar="N", help="refuse longer prompts")
    parser.add_argument("--notes", type=Path, metavar="FILE", help="append every request to it")
    options: Any = Behaviour()  # with the other options beside it
    parser.parse_known_args(argv, options)
    models = [options.served_model_name or options.model or "policy"]
    adapters = dict(module.split("=", 1) for module in options.lora_modules)
    models += adapters
    tokenizer = load_tokenizer(options.tokenizer or options.model)
    key, weights = os.environ.get("VLLM_API_KEY", ""), options.weights or Path(options.model or ".")
    own = None if options.weights else {name: Path(folder) for name, folder in adapters.items()}
    server = FakeServer(models, key, options, tokenizer, weights, own)
    try:
        asyncio.run(serve(server, options.host, options.port))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()

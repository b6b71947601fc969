"""The part of a recipe that says how models are served."""

import re
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from optima.types import Section

_URL = re.compile(r"https?://([^/\s?#@:\[\]]+|\[[^/\s\]]+\])(:(?P<port>\d{1,5}))?(/[^\s?#]*)?")
_OPTION = re.compile(r"--?[A-Za-z][\w-]*")  # what stands before "=", a space or a "."
_SECOND = re.compile(r"^[^{\[\"']*\s--[A-Za-z]")  # another option, and not inside of JSON
_ROUTE = re.compile(r"/v1/.+|/(health|metrics|completions)$")
# Options of a vLLM server that are set for it, and what says the same in a recipe. An abbreviation
# counts as well: the server's parser takes it. Each is refused, with what to do instead.
_OWN_OPTIONS = {
    "--model": "set model.path",
    "--tokenizer": "set model.tokenizer",
    "--revision": "set model.revision",
    "--dtype": "set model.dtype",
    "--max-model-len": "set model.max_model_len",
    "--trust-remote-code": "set model.trust_remote_code",
    "--port": "set serving.port",
    "--max-num-seqs": "set serving.max_num_seqs",
    "--gpu-memory-utilization": "set serving.gpu_memory_utilization",
    "--tensor-parallel-size": "set serving.tensor_parallel",
    "-tp": "set serving.tensor_parallel",
    "--enforce-eager": "set serving.enforce_eager",
    "--generation-config": "set sampling.temperature and sampling.top_p",
    "--override-generation-config": "set sampling.temperature and sampling.top_p",
    "--enable-lora": "set train.lora",
    "--max-loras": "set train.lora",
    "--max-lora-rank": "set train.lora.rank",
    "--lora-modules": "set train.lora",
    "--served-model-name": "remove it: servers are asked by a name of our own",
    "--host": "remove it: servers listen on 127.0.0.1 only; others stand in serving.endpoints",
    "--api-key": "remove it: each start draws a key of its own",
    "--uds": "remove it: servers are asked over 127.0.0.1",
    "--ssl-keyfile": "remove it: servers are asked over 127.0.0.1, without TLS",
    "--ssl-certfile": "remove it: servers are asked over 127.0.0.1, without TLS",
    "--headless": "remove it: every server answers requests",
    "--config": "write the file's options here, one element each",
}


class ServingSection(Section):
    """The vLLM servers."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where servers and training run; ``auto`` looks for GPUs."""
    gpus: tuple[Annotated[int, Field(ge=0, le=1023)], ...] | None = None
    """GPU indices to use; None takes all visible ones."""
    tensor_parallel: int = Field(default=1, ge=1, le=1_024)
    """GPUs per server; the number of servers is GPUs / tensor_parallel."""
    endpoints: tuple[str, ...] = ()
    """Base URLs of servers already running elsewhere that serve the start model; the key is read
    from OPTIMA_API_KEY. Such servers are never started or stopped."""
    port: int | None = Field(default=None, ge=1, le=65535)
    """Port of the first server, the others follow it; None takes what the kernel gives, so that
    runs share a host."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of GPU memory that vLLM takes."""
    max_num_seqs: int = Field(default=1024, ge=1, le=65_536)
    """Sequences a server decodes at once."""
    concurrency: int = Field(default=512, ge=1, le=65_536)
    """Conversations in flight per server."""
    cpu_kv_cache_gb: int = Field(default=2, ge=1, le=65_536)
    """GiB of key-value cache of a CPU server."""
    enforce_eager: bool = False
    """Skip compilation: a faster start and slower tokens."""
    extra_args: tuple[str, ...] = ()
    """Further arguments of the vLLM server, one element each."""
    start_timeout_s: float = Field(default=900.0, gt=0, le=604_800)
    """Deadline for a server to answer its health probe."""
    request_timeout_s: float = Field(default=600.0, gt=0, le=604_800)
    """Deadline for one completion, retries on other servers not included."""
    max_attempts: int = Field(default=5, ge=1, le=1_000)
    """Tries per completion, each on another server where there is one."""
    max_restarts: int = Field(default=3, ge=0, le=1_000)
    """Restarts of one dead server before the stage fails."""
    scorer_batch_tokens: int = Field(default=16384, ge=256, le=100_000_000)
    """Padded tokens per forward of the base-model scorer."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for endpoint in self.endpoints:
            _check_endpoint(endpoint)
        addresses = [_address(endpoint) for endpoint in self.endpoints]
        for index, endpoint in enumerate(self.endpoints):
            if addresses[index] in addresses[:index]:
                raise ValueError(f"endpoints: {endpoint!r} is named twice; remove one")
        _check_extra_args(self.extra_args)
        group = self.tensor_parallel
        if self.gpus is not None and len(self.gpus) % group:
            raise ValueError(
                f"gpus: {list(self.gpus)} must be a multiple of tensor_parallel={group} GPUs; "
                "list more or fewer"
            )
        return self


def base_url(endpoint: str) -> str:
    """Return an endpoint's URL without the version that clients often append."""
    return endpoint.rstrip("/").removesuffix("/v1").rstrip("/")


def _address(endpoint: str) -> str:
    """Return what tells an endpoint from others: host and port, and what stands before ``/v1``."""
    scheme, _, rest = base_url(endpoint).partition("://")
    host, slash, path = rest.partition("/")
    default = {"http": ":80", "https": ":443"}[scheme]
    return f"{scheme}://{host.lower().removesuffix(default)}{slash}{path}"


def _check_endpoint(endpoint: str) -> None:
    if "@" in endpoint:
        raise ValueError(
            "endpoints: a password in a URL would stand in recipes and logs; write "
            "http://host:port and set OPTIMA_API_KEY"
        )
    url = _URL.fullmatch(endpoint)
    if url is None or not 0 < int(url["port"] or 80) < 2**16:
        raise ValueError(f"endpoints: {endpoint!r} must be a URL; write http://host:port")
    if _ROUTE.search(endpoint):
        raise ValueError(
            f"endpoints: {endpoint!r} names a route; write what stands before it, http://host:port"
        )


def _check_extra_args(arguments: Sequence[str]) -> None:
    """Each element is one word of a command line, and none sets what a field sets."""
    if arguments and not arguments[0].startswith("-"):
        raise ValueError(
            f"extra_args: {arguments[0]!r} is not an option; write --option before its value"
        )
    for argument in arguments:
        if not argument or "\0" in argument:
            raise ValueError(f"extra_args: {argument!r} is not an argument; remove it")
        option = _OPTION.match(argument)
        name = option[0].replace("_", "-").replace("--no-", "--", 1) if option else "a value"
        own = next((own for own in _OWN_OPTIONS if own.startswith(name)), None)
        if own is not None:
            raise ValueError(f"extra_args: {argument!r} sets {own}; {_OWN_OPTIONS[own]}")
        is_joined = option is not None and argument[option.end() :][:1].isspace()
        if is_joined or _SECOND.search(argument):
            words = ", ".join(argument.split())
            raise ValueError(
                f"extra_args: {argument!r} holds more than one argument; write one element each: "
                f"[{words}]"
            )

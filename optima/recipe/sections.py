"""Sections of a recipe for the programs it starts: training (Table 8), trees and pairs; serving."""

import re
from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from optima.types import PathText, Section

MAX_SERVED_RANK = 512  # of vLLM
API_KEY = "OPTIMA_API_KEY"  # the variable with the key of servers of others
_URL = re.compile(r"https?://([^/\s?#@:\[\]]+|\[[^/\s\]]+\])(:(?P<port>\d{1,5}))?(/[^\s?#]*)?")
_HOST = re.compile(r"[\w.-]+:\d{1,5}")  # of a URL without its scheme
_CLUSTER = re.compile(r"auto|([^/\s@:\[\]]+|\[[^/\s\]]+\]):\d{1,5}")
_OPTION = re.compile(r"--?[A-Za-z][\w-]*")  # what stands before "=", a space or a "."
_SECOND = re.compile(r"^[^{\[\"']*\s--[A-Za-z]")  # another option, and not inside of JSON
_APART = re.compile(r"(?<!\S)(--[\w-]+)\s+(?!-)")  # a long option and its value
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
    "--host": "remove it: servers listen on 127.0.0.1, those of nodes on the node's --address",
    "--api-key": "remove it: each start draws a key of its own",
    "--uds": "remove it: servers are asked over 127.0.0.1",
    "--ssl-keyfile": "remove it: servers are asked over 127.0.0.1, without TLS",
    "--ssl-certfile": "remove it: servers are asked over 127.0.0.1, without TLS",
    "--enable-sleep-mode": "set serving.keep",
    "--headless": "remove it: every server answers requests",
    "--config": "write the file's options here, one element each",
}


class LoraSection(Section):
    """Low-rank adapters instead of full fine-tuning."""

    rank: int = Field(default=16, ge=1, le=1_024)
    """Rank r."""
    alpha: int = Field(default=32, ge=1, le=65_536)
    """Scale alpha."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter input."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Layers that get an adapter, by the last parts of their names; each must be in the model."""
    serve: Literal["merged", "adapter"] = "merged"
    """Serve merged weights, or the adapter over the base model."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.target_modules:
            raise ValueError("target_modules: [] adapts nothing; name layers, or write all-linear")
        if self.serve == "adapter" and self.rank > MAX_SERVED_RANK:
            raise ValueError(
                f"rank: {self.rank} is above {MAX_SERVED_RANK}, the most that servers take of an "
                "adapter; lower it, or write serve: merged"
            )
        return self


class TrainSection(Section):
    """How a model is trained, shared by SFT and DPO (paper Table 8)."""

    learning_rate: float = Field(default=2e-5, gt=0, le=1)
    """Peak learning rate."""
    epochs: float = Field(default=1.0, gt=0, le=1_000)
    """Passes over the rows."""
    batch_size: int = Field(default=32, ge=1, le=65_536)
    """Rows per optimiser step, over all devices and accumulation steps."""
    micro_batch_size: int = Field(default=4, ge=1, le=65_536)
    """Rows per forward on one device; lowered to batch_size / devices where it is larger."""
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    """Share of steps over which the learning rate rises."""
    scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """Learning-rate schedule."""
    weight_decay: float = Field(default=0.0, ge=0, le=10)
    """AdamW weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0, le=1_000_000)
    """Gradient clipping."""
    max_loss_growth: float = Field(default=10.0, gt=1, le=1_000_000)
    """Times the start's loss (at least 1 nat) above which a training fails."""
    max_length: int = Field(default=2048, ge=16, le=1_000_000)
    """Tokens per row; longer rows are counted and dropped, never cut silently."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of forward and backward."""
    optimizer_state_dtype: Literal["float32", "model"] = "float32"
    """Master weights in float32 with bf16 autocast, or everything in ``dtype``."""
    gradient_checkpointing: bool = True
    """Trade compute for memory."""
    batching: Literal["length_grouped", "packing", "plain"] = "length_grouped"
    """How rows of SFT are put together: similar lengths, packed to max_length, or as they come.
    Pairs of DPO are taken as they come."""
    start: Literal["auto", "previous", "base"] = "auto"
    """Model each SFT starts from; ``auto``: previous for information exchange, base for debate
    (paper). DPO always goes on from the last model, so a dpo run does not read it."""
    eval_share: float = Field(default=0.02, ge=0, lt=1)
    """Share of the problems whose rows measure evaluation loss and are not trained on."""
    lora: LoraSection | None = None
    """LoRA; None is full fine-tuning."""
    parallelism: Literal["auto", "none", "ddp", "zero3", "fsdp"] = "auto"
    """How several GPUs share the training; ``auto``: none on one device, zero3 on several. With
    fsdp and preferences each process holds the whole weights in host memory while it loads them."""
    save_steps: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """Optimiser steps between checkpoints; None saves one every ten minutes."""
    save_total_limit: int = Field(default=1, ge=1, le=1_000)
    """Checkpoints kept on disk while training."""
    logging_steps: int = Field(default=1, ge=1, le=1_000_000_000)
    """Optimiser steps between log lines."""
    report_to: tuple[str, ...] = ()
    """transformers trackers, such as wandb or tensorboard."""
    timeout_s: float = Field(default=86400.0, gt=0, le=31_536_000)
    """Deadline of one training process."""


class SearchSection(Section):
    """Dialogue trees (paper Alg. 4, 5, App. H.1); used by dpo and sft_dpo."""

    n_rounds: int = Field(default=8, ge=1, le=1_000)
    """Expansion rounds per problem."""
    n_rollouts: int = Field(default=3, ge=2, le=1_000)
    """Conversations rolled out from the chosen node per round."""
    n_candidates: int = Field(default=10, ge=1, le=100_000)
    """Eligible nodes of highest value among which the softmax draws."""
    min_distance: float = Field(default=0.25, ge=0, le=1)
    """Least normalised edit distance to every expanded node for a node to be eligible."""
    merge_distance: float = Field(default=0.1, ge=0, le=1)
    """A new child nearer than this to a sibling is merged into it."""
    n_probe: int = Field(default=100, ge=1, le=10_000_000)
    """Problems of the token probe."""
    probe_percentile: float = Field(default=85.0, gt=0, le=100)
    """Percentile of the probe's token counts, plus 1, that normalises R_token (80 for sft_dpo)."""
    n_problems: int | None = Field(default=None, ge=1, le=10_000_000)
    """Problems with a tree per iteration; None takes ``data.n_train``."""
    lambda_token: float | None = Field(default=None, ge=0, le=1_000)
    """Weight of the normalised token count while trees grow; None takes the reward's."""
    lambda_loss: float | None = Field(default=None, ge=0, le=1_000)
    """Weight of 1 / R_loss while trees grow; None takes the reward's."""
    concurrency: int = Field(default=256, ge=1, le=65_536)
    """Trees that grow at once per server, each with ``n_rollouts`` conversations in flight."""
    scorer_gpus: int = Field(default=0, ge=0, le=1_024)
    """GPUs that score losses and serve nothing while trees grow; 0 shares the servers' GPUs."""
    gpu_memory_utilization: float = Field(default=0.7, gt=0, le=1)
    """Share of GPU memory that vLLM takes while a scorer shares its GPUs."""


class InfluenceSection(Section):
    """Influence of pairs on a validation reward, in the spirit of DITS (arXiv 2502.00955)."""

    n_groups: int = Field(default=4, ge=2, le=1_000)
    """Groups of problems whose pairs are tried by one short training each."""
    n_problems: int = Field(default=64, ge=1, le=10_000_000)
    """Problems of the train split, none of them with a tree in this iteration, that measure a
    trial; fewer where there are not so many."""


class PairSection(Section):
    """Preference pairs from trees (paper Alg. 5)."""

    theta_filter: float = Field(default=0.4, ge=-1000, le=1000)
    """The best child's value must exceed this."""
    theta_diff: float = Field(default=0.2, ge=0, le=1_000)
    """Best minus worst must exceed this."""
    keep_share: float = Field(default=0.5, gt=0, le=1)
    """Share of a problem's pairs kept, by the best child's value, at least one."""
    strategy: Literal["value", "random", "influence"] = "value"
    """Which of the pairs above both thresholds are kept: those with the best chosen child (paper),
    as many drawn at random, or those whose training helps most on held-out problems (DITS)."""
    min_share: float = Field(default=0.05, ge=0, le=1)
    """Least share of an iteration's problems that must give a pair, as in ``select``."""
    path: PathText | None = None
    """JSON Lines file of further preferences (prompt, chosen, rejected as lists of messages) that
    every iteration trains on beside its own pairs."""
    influence: InfluenceSection = InfluenceSection()
    """How the influence is measured; other strategies do not look at it. Null is the default."""

    @field_validator("influence", mode="before")
    @classmethod
    def _fill(cls, given: object) -> object:
        return {} if given is None else given


class DpoSection(Section):
    """Direct preference optimisation; with nll_weight > 0 it is RPO (paper Eq. 4, Table 8).

    What is not named here is as in ``train``.
    """

    beta: float = Field(default=0.1, gt=0, le=1_000)
    """KL strength."""
    nll_weight: float = Field(default=1.0, ge=0, le=1_000)
    """Alpha: weight of the negative log-likelihood of the chosen utterance; 0 for sft_dpo."""
    reference: Literal["precomputed", "live"] = "precomputed"
    """Reference log-probabilities ahead of training, or a second model in memory."""
    learning_rate: float = Field(default=5e-7, gt=0, le=1)
    """Peak learning rate."""
    epochs: float = Field(default=1.0, gt=0, le=1_000)
    """Passes over the pairs."""
    batch_size: int = Field(default=64, ge=1, le=65_536)
    """Pairs per optimiser step, over all devices and accumulation steps."""
    micro_batch_size: int = Field(default=2, ge=1, le=65_536)
    """Pairs per forward on one device; each is two rows."""
    max_length: int = Field(default=4096, ge=16, le=1_000_000)
    """Tokens of a prompt with one of its utterances; longer pairs are counted and dropped."""


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
    nodes: str | None = None
    """Folder on storage that all nodes share, by which nodes that run `optima serve-node` serve
    beside this one; ``auto`` is ``nodes`` in the run directory, None takes this node alone."""
    ray: str | None = None
    """Ray cluster whose other nodes all run `optima serve-node` for this run, through ``nodes``:
    HOST:PORT of its head, or ``auto`` for RAY_ADDRESS or the cluster that this node is of."""
    node_timeout_s: float = Field(default=60.0, ge=1, le=86_400)
    """Without a sign of life for this long a node is gone for the run, and a run for its nodes."""
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
    keep: Literal["auto", "restart", "reload", "sleep", "stay"] = "auto"
    """What becomes of servers when another model is to be served or something else computed.
    ``restart`` starts them for every model. ``reload`` puts the weights of another trained model
    into those that run, and stops them before scoring and training on their devices. ``sleep`` has
    them give their memory back meanwhile (GPUs only), ``stay`` lets them keep it: training has to
    fit beside serving.gpu_memory_utilization. ``auto`` is sleep on GPUs and stay on a CPU where a
    training surely has room beside them, else reload."""
    training_nodes: int = Field(default=1, ge=1, le=1_024)
    """Nodes that share each training: this one, and others of ``nodes`` with as many GPUs, which
    serve nothing meanwhile."""
    training_address: str | None = None
    """Address of this node by which the others reach it in a training; None takes that of its host
    name. They meet at a free port of it."""
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
            check_endpoint(endpoint, "endpoints")
        addresses = [_address(endpoint) for endpoint in self.endpoints]
        for index, endpoint in enumerate(self.endpoints):
            if addresses[index] in addresses[:index]:
                raise ValueError(f"endpoints: {endpoint!r} is named twice; remove one")
        if self.nodes is not None and self.endpoints:
            raise ValueError(
                "nodes: cannot stand beside endpoints, which serve the start model only; remove one"
            )
        if self.nodes is None and self.training_nodes > 1:
            raise ValueError(
                f"training_nodes: {self.training_nodes}: needs nodes, the folder by which they are "
                "found; write nodes: auto"
            )
        if self.ray is not None and _CLUSTER.fullmatch(self.ray) is None:
            raise ValueError(
                f"ray: {self.ray!r} must be auto, or HOST:PORT of the head of a Ray cluster"
            )
        if self.ray is not None and self.nodes is None:
            raise ValueError(
                "ray: needs nodes, the folder by which they are told what to do; write nodes: auto"
            )
        _check_extra_args(self.extra_args)
        group = self.tensor_parallel
        if self.gpus and self.device == "cpu":
            raise ValueError(
                f"gpus: {list(self.gpus)} are not used with device=cpu; remove one of them"
            )
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


def in_elements(words: str) -> str:
    """Return words of a shell as the elements of a list; an option takes its value by ``=``."""
    return ", ".join(_APART.sub(r"\1=", words).split())


def check_endpoint(endpoint: str, key: str) -> None:
    """Raise ValueError, which begins with ``key``, for what is no base URL of a server."""
    if "@" in endpoint:
        raise ValueError(
            f"{key}: a password in a URL would stand in recipes and logs; write "
            "http://host:port and set OPTIMA_API_KEY"
        )
    url = _URL.fullmatch(endpoint)
    if url is None or not 0 < int(url["port"] or 80) < 2**16:
        meant = endpoint if _HOST.fullmatch(endpoint) else "host:port"
        raise ValueError(f"{key}: {endpoint!r} must be a URL; write http://{meant}")
    if _ROUTE.search(endpoint):
        raise ValueError(
            f"{key}: {endpoint!r} names a route; write what stands before it, http://host:port"
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
            raise ValueError(
                f"extra_args: {argument!r} holds more than one argument; write one element each: "
                f"[{in_elements(argument)}]"
            )

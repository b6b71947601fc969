"""What serves a model: which fleets on which GPUs, the command line and variables of each server,
and the endpoints of others with their keys."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from optima.errors import ModelError, UsageError
from optima.processes.devices import Devices
from optima.processes.environment import Environment
from optima.recipe.schema import Recipe
from optima.recipe.sections import API_KEY, MAX_SERVED_RANK
from optima.serving.client import HOST, MODEL_NAME, served_name
from optima.types import EndpointRef, ModelRef, TeamRef

GATE = "optima.serving.gate.Gate"  # as vLLM imports it
_LORA_RANKS = (8, 16, 32, 64, 128, 256, MAX_SERVED_RANK)  # the limits that every release takes


def gpu_groups(recipe: Recipe, devices: Devices) -> tuple[tuple[int, ...], ...]:
    """Return the GPUs of each server; one empty group on a CPU."""
    if devices.kind == "cpu":
        return ((),)
    size = recipe.serving.tensor_parallel
    starts = range(0, len(devices.gpus), size)
    return tuple(devices.gpus[start : start + size] for start in starts)


def server_argv(
    model: ModelRef,
    *,
    recipe: Recipe,
    devices: Devices,
    env: Environment,
    port: int,
    host: str = HOST,
) -> tuple[str, ...]:
    """Return the argument list of a server of ``model`` on ``port``; the key is not in it."""
    serving = recipe.serving
    argv = [str(env.python), "-m", "vllm.entrypoints.openai.api_server"]
    argv += ["--host", host, "--port", str(port), "--model", model.path]
    if recipe.model.tokenizer is not None:
        argv += ["--tokenizer", recipe.model.tokenizer]
    dtype = recipe.model.dtype
    if dtype == "auto" and not devices.has_bfloat16:
        dtype = "float32"
    argv += ["--dtype", dtype, "--max-num-seqs", str(serving.max_num_seqs)]
    # Sampling is the recipe's alone: a model's generation_config.json may bring a top_k or a
    # repetition penalty of its own. Its stop tokens still count.
    argv += ["--generation-config", "vllm"]
    argv += ["--uvicorn-log-level", "warning"]  # no line per request
    argv += ["--middleware", GATE]
    argv += ["--served-model-name", MODEL_NAME]
    if room := lora_room(model, recipe, devices):
        argv += ["--enable-lora", "--max-loras", str(room.n), "--max-lora-rank", str(room.rank)]
    if adapters := adapters_by_name(model):
        argv += ["--lora-modules", *(f"{name}={path}" for name, path in adapters.items())]
    if recipe.model.revision is not None and model.path == recipe.model.path:
        argv += ["--revision", recipe.model.revision]
    if recipe.model.max_model_len is not None:
        argv += ["--max-model-len", str(recipe.model.max_model_len)]
    if devices.kind == "cuda":
        argv += ["--gpu-memory-utilization", str(serving.gpu_memory_utilization)]
        argv += ["--tensor-parallel-size", str(serving.tensor_parallel)]
    else:
        # A prefix is cached by whole blocks; of the 128 tokens that are vLLM's default on a CPU a
        # short conversation has few. 32 took a generation of 193 s to 154 s (2026-11-23).
        argv += ["--block-size", "32"]
    switches = {
        # On a CPU compilation more than doubles the start (120 s instead of 51 s, 2026-11-22).
        "enforce-eager": serving.enforce_eager or devices.kind == "cpu",
        # A prompt prefilled in pieces makes the CPU worker rewind the generator of a seeded
        # request, which torch cannot do on a CPU: the engine dies (vLLM 0.32, 2026-11-23).
        "no-enable-chunked-prefill": devices.kind == "cpu",
        "trust-remote-code": recipe.model.trust_remote_code,
        "enable-sleep-mode": serving.keep == "sleep",
    }
    argv += [f"--{name}" for name, is_on in switches.items() if is_on]
    return (*argv, *serving.extra_args)


def server_environ(
    model: ModelRef, *, recipe: Recipe, devices: Devices, gpus: tuple[int, ...], api_key: str
) -> dict[str, str]:
    """Return the variables a server needs beyond those of its Python environment."""
    variables = {
        "VLLM_API_KEY": api_key,
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if recipe.serving.keep != "restart":
        variables["VLLM_SERVER_DEV_MODE"] = "1"  # its paths want the key: serving/gate
        if lora_room(model, recipe, devices):
            variables["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    tokenizer = recipe.model.tokenizer
    if Path(model.path).is_dir() and (tokenizer is None or Path(tokenizer).is_dir()):
        variables["HF_HUB_OFFLINE"] = "1"
    if devices.kind == "cuda":
        variables["CUDA_VISIBLE_DEVICES"] = devices.mask(gpus)
    else:
        variables["VLLM_CPU_KVCACHE_SPACE"] = str(recipe.serving.cpu_kv_cache_gb)
        variables["CUDA_VISIBLE_DEVICES"] = ""
    return variables


class LoraRoom(NamedTuple):
    """How many adapters a server holds at once, and of which rank at most."""

    n: int
    rank: int


def lora_room(model: ModelRef, recipe: Recipe, devices: Devices) -> LoraRoom | None:
    """Return the room that servers of ``model`` have for adapters; None for none.

    Servers that stay, or may (on a CPU that is seen at each training), have it for those that
    trainings are to bring.
    """
    lora, adapters = recipe.train.lora, set(model.adapters)
    may_stay = recipe.serving.keep == "stay" or (
        recipe.serving.keep == "auto" and devices.kind == "cpu"
    )
    ranks = [_rank_limit(adapter, recipe) for adapter in adapters]
    n = len(adapters)
    if lora is not None and lora.serve == "adapter" and may_stay:
        ranks.append(_least_limit(lora.rank))
        n = max(n, len(set(recipe.agents.policies)), 1)
    return LoraRoom(n, max(ranks)) if ranks else None


def adapters_by_name(model: ModelRef) -> dict[str, str]:
    """Return the directories of the adapters that servers of ``model`` hold, by their names."""
    members = model.member_by_policy.values() if isinstance(model, TeamRef) else (model,)
    return {served_name(one): one.adapter for one in members if one.adapter is not None}


def _rank_limit(adapter: str, recipe: Recipe) -> int:
    """Return the least limit vLLM takes that fits the adapter (the recipe's until it exists)."""
    rank = 16 if recipe.train.lora is None else recipe.train.lora.rank
    config = Path(adapter) / "adapter_config.json"
    if config.is_file():
        try:
            settings = json.loads(config.read_text(encoding="utf-8"))
            rank = max([settings["r"], *settings.get("rank_pattern", {}).values()])
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{config}: is not an adapter configuration: {error!r}") from error
    if rank > _LORA_RANKS[-1]:
        raise ModelError(
            f"{adapter}: rank {rank}: vLLM serves ranks up to {_LORA_RANKS[-1]}; merge it"
        )
    return _least_limit(rank)


def _least_limit(rank: int) -> int:
    return next(limit for limit in _LORA_RANKS if rank <= limit)


@dataclass(frozen=True, slots=True)
class Share:
    """What one fleet of a model serves, and what it has for it.

    ``is_shared`` tells whether others serve on the same GPUs.
    """

    part: ModelRef
    recipe: Recipe
    devices: Devices
    first_index: int
    is_shared: bool


def shares_of(model: ModelRef, recipe: Recipe, devices: Devices) -> tuple[Share, ...]:
    """Return the fleets of a model, each with its servers' place.

    Several have GPUs of their own, as many each as may be, the first ones one server more; where
    there are fewer servers than fleets, all are on the same GPUs and have an equal part of
    ``serving.gpu_memory_utilization``. On a CPU they stand beside each other.
    """
    parts, groups = parts_of(model, recipe), gpu_groups(recipe, devices)
    n_own = sum(not uses_endpoints(part, recipe) for part in parts)
    is_shared = devices.kind == "cuda" and n_own > len(groups)
    is_split = devices.kind == "cuda" and not is_shared
    if is_shared:
        share = recipe.serving.gpu_memory_utilization / n_own
        recipe = recipe.changed(serving={"gpu_memory_utilization": round(share, 3)})
    shares, n_servers, k = [], 0, 0
    for part in parts:
        own = groups
        if uses_endpoints(part, recipe):
            n = 1 if isinstance(part, EndpointRef) else len(recipe.serving.endpoints)
        else:
            own = groups[k::n_own] if is_split else groups
            n, k = len(own), k + 1
        gpus = tuple(gpu for group in own for gpu in group)
        shares.append(Share(part, recipe, replace(devices, gpus=gpus), n_servers, is_shared))
        n_servers += n
    return tuple(shares)


def parts_of(model: ModelRef, recipe: Recipe) -> tuple[ModelRef, ...]:
    """Return what each fleet of a model serves: of a team, what plays the recipe's agents."""
    if isinstance(model, TeamRef) and recipe.agents.policies:
        return model.parts(recipe.agents.policies)
    return (model,)


def uses_endpoints(model: ModelRef, recipe: Recipe) -> bool:
    """Return whether servers of others serve ``model``: one that is an endpoint, or the start model
    where ``serving.endpoints`` hold it."""
    if isinstance(model, EndpointRef):
        return True
    start = recipe.model.path
    is_start = model.path == start or (
        Path(start).is_dir() and Path(model.path).resolve() == Path(start).resolve()
    )
    return bool(recipe.serving.endpoints) and not model.adapters and is_start


def endpoint_key(policy: str | None = None) -> str:
    """Return the key for endpoints, or for that of a policy. UsageError when it cannot be sent.

    A policy has its own alone: no key goes to a server that it was not given for.
    """
    variable = f"{API_KEY}_{policy.upper()}" if policy is not None else API_KEY
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UsageError(
            f"{variable}: holds characters that no HTTP header takes; set it to the key alone"
        )
    return key


def endpoint_field(ref: EndpointRef) -> str:
    """Return the field of a recipe that names an endpoint."""
    return f"policies.{ref.policy}.endpoint"

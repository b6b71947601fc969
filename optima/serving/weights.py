"""Other weights for a running server, in place of another start (``serving.keep``).

vLLM's development endpoints pause it, let it read a folder, drop the prefix cache, whose blocks
are of the old weights, and let it go on. Each of these steps has failed silently in some release
(vLLM 17103, 32718, 54235), so what is then served is compared with the log-probabilities that a
training wrote beside its model. A model without any is started anew. Adapters over the same base
are loaded beside it, each under a name of its own, where servers have room for them. After any
error a server is of no more use.
"""

import time
from collections.abc import Mapping
from pathlib import Path

from optima.conversation.loading import ModelFiles
from optima.errors import ServerError
from optima.recipe.schema import ModelSection, Recipe
from optima.serving.client import Server, served_name
from optima.serving.command import LoraRoom, adapters_by_name
from optima.serving.probe import ask, check_served, difference, prompt_logprobs, read_logprobs
from optima.serving.reply import message_of
from optima.types import ModelRef

_COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "generation_config.json",
)  # fmt: skip
_NO_DIFFERENCE = ("transformers_version", "_name_or_path", "_model_name_or_path", "use_cache")
_SEVERAL_PROCESSES = ("--api-server-count", "-asc", "--data-parallel", "-dp")
_RESET_S = 10.0  # for blocks that a request held until just now
_RESET_POLL_S = 0.2


def read_kept(ref: ModelRef, section: ModelSection) -> dict[str, object]:
    """Return, by their files, what a server keeps of the model that it was started with.

    That is all but the weights. Raises ModelError when a file cannot be read.
    """
    files = ModelFiles(ref.path, section.revision if ref.path == section.path else None)
    config = files.tree("config.json")
    config.setdefault("dtype", config.pop("torch_dtype", None))  # its name in older releases
    known = {key: value for key, value in config.items() if key not in _NO_DIFFERENCE}
    return {"config.json": known, **{name: files.text(name) for name in _COMPANIONS}}


def obstacle(
    old: ModelRef, kept: Mapping[str, object], new: ModelRef, section: ModelSection
) -> str | None:
    """Return why servers that keep this of ``old`` cannot take the weights of ``new``, or None."""
    if old.adapters or new.adapters:
        return f"{new.place} is not over the same base as {old.place}, and one has adapters"
    if read_logprobs(Path(new.path)) is None:
        return f"{new.path} has no log-probabilities to compare its servers with"
    for name, wanted in read_kept(new, section).items():
        if wanted != kept[name]:
            return f"{name} of {new.path} differs from that of {old.path}"
    return None


def obstacle_to_adapters(
    new: ModelRef, recipe: Recipe, room: LoraRoom | None, wanted: LoraRoom | None
) -> str | None:
    """Return why servers of the same base with ``room`` for adapters cannot take those, or None."""
    if wanted is None:
        return None
    if room is None or wanted.n > room.n or wanted.rank > room.rank:
        return f"they have no room for the adapters of {new.place}"
    if many := [arg for arg in recipe.serving.extra_args if arg.startswith(_SEVERAL_PROCESSES)]:
        return f"of several API processes ({many[0]}) only one would hear of an adapter"
    return None


def load_adapters(
    server: Server, old: ModelRef, new: ModelRef, timeout_s: float, is_asleep: bool
) -> None:
    """Have a server that is awake serve the adapters of ``new`` over its base, and compare them.

    Raises ServerError (or a kind of it) when it does not do as it is told, StageError when it
    serves others after it.
    """
    assert not is_asleep
    held, wanted = adapters_by_name(old), adapters_by_name(new)
    for name in held.keys() - wanted.keys():
        _order(server, "/v1/unload_lora_adapter", timeout_s, {"lora_name": name})
    for name in wanted.keys() - held.keys():
        given = {"lora_name": name, "lora_path": wanted[name]}
        _order(server, "/v1/load_lora_adapter", timeout_s, given)
    check_served(server, new, timeout_s)


def load_weights(
    server: Server, old: ModelRef, new: ModelRef, timeout_s: float, is_asleep: bool
) -> None:
    """Have a server of ``old`` serve ``new``, for which there is no obstacle, and compare it.

    Raises ServerError (or a kind of it) when it does not do as it is told or serves another model
    after it.
    """
    expected = read_logprobs(Path(new.path))
    assert expected is not None
    name = served_name(new)
    before = None
    if is_asleep:
        _order(server, "/wake_up?tags=weights", timeout_s)
    else:
        before = prompt_logprobs(server, name, expected.token_ids, timeout_s)
        _order(server, "/pause?mode=abort&clear_cache=true", timeout_s)
    reload = {"method": "reload_weights", "kwargs": {"weights_path": new.path}}
    _order(server, "/collective_rpc", timeout_s, reload)
    if is_asleep:
        _order(server, "/wake_up?tags=kv_cache", timeout_s)
    _drop_cache(server, timeout_s)
    _order(server, "/resume", timeout_s)
    found = prompt_logprobs(server, name, expected.token_ids, timeout_s)
    what = difference(found, expected)
    if found == before:  # of a training that changed next to nothing no difference tells
        what = "its log-probabilities are those of before to the last bit"
    if what is not None:
        raise ServerError(f"server {server.index}: {what}")


def put_to_sleep(server: Server, timeout_s: float) -> None:
    """Have a server give back its memory, weights and all; ServerError when it does not."""
    _order(server, "/sleep?level=2&mode=abort", timeout_s)


def _drop_cache(server: Server, timeout_s: float) -> None:
    deadline = time.monotonic() + _RESET_S
    while b'"success":false' in _order(server, "/reset_prefix_cache", timeout_s).replace(b" ", b""):
        if time.monotonic() > deadline:
            raise ServerError(f"server {server.index}: does not drop its prefix cache")
        time.sleep(_RESET_POLL_S)


def _order(server: Server, path: str, timeout_s: float, body: object = None) -> bytes:
    status, _, payload = ask(server, "POST", path, body, timeout_s)
    if status != 200:
        raise ServerError(
            f"server {server.index}: {path}: HTTP {status}: {message_of(payload)[:200]}"
        )
    return payload

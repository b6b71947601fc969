"""Other weights for a running server, in place of another start (``serving.keep``).

vLLM's development endpoints pause it, let it read a folder, drop the prefix cache, whose blocks
are of the old weights, and let it go on. Each of these steps has failed silently in some release
(vLLM 17103, 32718, 54235), so what is then served is compared with the log-probabilities that a
training wrote beside its model. A model without any is started anew, and so is an adapter: of
several API processes only one would hear of it. After any error a server is of no more use.
"""

import time
from collections.abc import Mapping
from pathlib import Path

from optima.conversation.loading import ModelFiles
from optima.errors import ServerError
from optima.recipe.schema import ModelSection
from optima.serving.client import MODEL_NAME, Server
from optima.serving.probe import ask, difference, prompt_logprobs, read_logprobs
from optima.serving.reply import message_of
from optima.types import ModelRef

_COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "generation_config.json",
)  # fmt: skip
_NO_DIFFERENCE = ("transformers_version", "_name_or_path", "_model_name_or_path", "use_cache")
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
    """Return why servers that keep this of ``old`` cannot serve ``new``; None if they can."""
    if old.adapters or new.adapters:
        return "adapters are started anew"
    if read_logprobs(Path(new.path)) is None:
        return f"{new.path} has no log-probabilities to compare its servers with"
    for name, wanted in read_kept(new, section).items():
        if wanted != kept[name]:
            return f"{name} of {new.path} differs from that of {old.path}"
    return None


def load_weights(server: Server, model: ModelRef, timeout_s: float, is_asleep: bool) -> None:
    """Have a server serve ``model``, for which there is no obstacle, and compare what it serves.

    Raises ServerError (or a kind of it) when it does not do as it is told or serves another model
    after it.
    """
    expected = read_logprobs(Path(model.path))
    assert expected is not None
    before = None
    if is_asleep:
        _order(server, "/wake_up?tags=weights", timeout_s)
    else:
        before = prompt_logprobs(server, MODEL_NAME, expected.token_ids, timeout_s)
        _order(server, "/pause?mode=abort&clear_cache=true", timeout_s)
    reload = {"method": "reload_weights", "kwargs": {"weights_path": model.path}}
    _order(server, "/collective_rpc", timeout_s, reload)
    if is_asleep:
        _order(server, "/wake_up?tags=kv_cache", timeout_s)
    _drop_cache(server, timeout_s)
    _order(server, "/resume", timeout_s)
    found = prompt_logprobs(server, MODEL_NAME, expected.token_ids, timeout_s)
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

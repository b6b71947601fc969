"""Reading what a model's directory, or its place on the hub, holds of templates, tokenizers and
the length of its context.

The hub is asked for single files, a few seconds at most; what is here already is not asked for.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from optima.conversation.codec import ChatCodec, ChatTemplate, Encoder, Roles
from optima.errors import ModelError
from optima.models import check_fetched
from optima.records import THEN, explain_disk_error

HUB_TIMEOUT_S = 5.0  # for one look at the hub; the library retries a few times
# Where the server looks for the number of positions (vLLM 0.32): the smallest counts, or the last.
_WINDOW_KEYS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
    *("max_sequence_length", "max_seq_length", "seq_len", "model_max_length"),
)
_LEAST_WINDOW, _MOST_WINDOW = 256, 100_000_000  # tokens: as model.max_model_len, beyond any model
# Kinds of rope scaling whose factor is in the number of positions already.
_SCALED = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")


def load_codec(
    model: str,
    *,
    revision: str | None = None,
    roles: Roles | Literal["auto"] = "auto",
    field: str = "model.path",
) -> ChatCodec:
    """Read template and tokenizer of a model and prove that conversations can be trained on.

    ``field`` is where the model is named, for messages. Raises ModelError with the reason when they
    cannot.
    """
    files = ModelFiles(model, revision, field)
    template = load_template(files, roles)
    named = template.special_tokens.get("eos_token")
    ends = () if named is None else (named,)  # which tokenizer.json may not call special
    return ChatCodec.of(template, load_encoder(files, ends))


def load_template(files: "ModelFiles", roles: Roles | Literal["auto"] = "auto") -> ChatTemplate:
    """Read the template of a model; ModelError when there is none."""
    config = files.tree("tokenizer_config.json")
    found: object = files.text("chat_template.jinja") or config.get("chat_template")
    if not found:  # where models that see images used to keep it
        found = files.tree("chat_template.json").get("chat_template")
    if not found:
        raise ModelError(
            f"{files.place}: no chat_template.jinja and no chat_template in "
            "tokenizer_config.json; use an instruction-tuned model"
        )
    source = _default_of(found, files.place)
    tokens: dict[str, str] = {}
    for table in (files.tree("special_tokens_map.json"), config):
        for key, value in table.items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                tokens[key] = text
    return ChatTemplate(source, tokens, roles=roles, origin=files.model)


def load_encoder(files: "ModelFiles", stop_tokens: Sequence[str] = ()) -> Encoder:
    """Read ``tokenizer.json`` of a model; ModelError without one."""
    path = files.path("tokenizer.json")
    if path is None:
        raise ModelError(
            f"{files.place}: has no tokenizer.json, which conversations are tokenised with; load "
            "its tokenizer with transformers and save it there (save_pretrained writes one)"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise ModelError(f"{files.place}: tokenizer.json is not a tokenizer ({error})") from error
    config = files.tree("config.json")
    below = config.get("text_config")
    n_rows = config.get("vocab_size", below.get("vocab_size") if isinstance(below, dict) else None)
    return Encoder(tokenizer, stop_tokens, n_rows if isinstance(n_rows, int) else 0)


def context_window(files: "ModelFiles", asked: int | None) -> int:
    """Return the tokens that a conversation may have: ``asked``, ``model.max_model_len``, or all.

    Raises ModelError where the model's config.json has no number that a server starts with, or a
    smaller one than is asked for.
    """
    config = files.config()
    below = config.get("text_config")
    config = below if isinstance(below, dict) else config
    found = {key: config[key] for key in _WINDOW_KEYS if config.get(key) is not None}
    for key, value in found.items():
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (whole and _LEAST_WINDOW <= value <= _MOST_WINDOW):
            raise ModelError(
                f"{files.place}: config.json: {key}: {value!r:.40} must be a whole number of tokens"
                f" from {_LEAST_WINDOW} to {_MOST_WINDOW:,}; correct it, or fetch the model again"
            )
    if not found:
        if asked is not None:
            return asked
        raise ModelError(
            f"{files.place}: config.json: {_WINDOW_KEYS[0]}: is missing, so nothing tells how long "
            "a conversation may be; set model.max_model_len, or fetch the model again"
        )
    last = _WINDOW_KEYS[-1]
    key = last if last in found else min(found, key=lambda key: found[key])
    longest = int(found[key] * _rope_factor(files, config))
    if asked is not None and asked > longest:
        raise ModelError(
            f"model.max_model_len: {asked}: {files.model} has {longest} positions; lower it"
        )
    return asked or longest


def _rope_factor(files: "ModelFiles", config: dict[str, Any]) -> float:
    """Return by what the rope scaling of a model multiplies its positions."""
    name = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    scaling = config.get(name) or {}
    if not isinstance(scaling, dict):
        raise ModelError(
            f"{files.place}: config.json: {name}: {scaling!r:.40} must be a section or null; "
            "correct it, or fetch the model again"
        )
    factor = 1.0
    nested = [value for value in scaling.values() if isinstance(value, dict)]  # by kind of layer
    for one in nested or [scaling]:
        kind = one.get("rope_type", one.get("type"))
        value = one.get("factor")
        if value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and 1 <= value <= _MOST_WINDOW):
            raise ModelError(
                f"{files.place}: config.json: {name}.factor: {value!r:.40} must be a number of at "
                "least 1; correct it, or fetch the model again"
            )
        if kind not in _SCALED and "gemma3" not in str(config.get("model_type")):
            factor = float(value)
    return factor


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files in a model's directory, or at its place on the hub; ``field`` names the model.

    Raises ModelError when there is no such model, or it or a file cannot be read.
    """

    model: str
    revision: str | None = None
    field: str = "model.path"

    @property
    def place(self) -> str:
        """What messages begin with."""
        return f"{self.field}={self.model}"

    def tree(self, name: str) -> dict[str, Any]:
        """Return a JSON file, {} when there is none."""
        text = self.text(name)
        try:
            tree = json.loads(text) if text is not None else {}
        except (ValueError, RecursionError) as error:
            raise self._unreadable(name, error) from error
        if not isinstance(tree, dict):
            raise self._unreadable(name, "it is not a mapping")
        return tree

    def config(self) -> dict[str, Any]:
        """Return the model's config.json; ModelError when it has none that can be read."""
        config = self.tree("config.json")
        if not config:
            raise ModelError(f"{self.place}: has no config.json; fetch the model again")
        return config

    def text(self, name: str) -> str | None:
        """Return a file as text, None when there is none."""
        path = self.path(name)
        try:
            return path.read_text(encoding="utf-8") if path else None
        except (OSError, UnicodeDecodeError) as error:
            raise self._unreadable(name, error) from error

    def path(self, name: str) -> Path | None:
        """Return where a file is on this host, None when there is none."""
        directory = Path(self.model)
        if directory.is_dir():
            path = directory / name
            return path if path.is_file() else None
        check_fetched(self.model, self.place)
        is_path = directory.is_absolute() or self.model.startswith((".", "~"))
        if is_path or self.model.count("/") != 1:
            raise ModelError(
                f"{self.place}: no such directory and not a hub id; give the directory of a model "
                "in Hugging Face format, or an id such as meta-llama/Meta-Llama-3-8B-Instruct"
            )
        return _hub_file(self, name)

    def _unreadable(self, name: str, reason: object) -> ModelError:
        return ModelError(f"{self.place}: {name} cannot be read ({reason}); fetch the model again")


def _default_of(found: object, place: str) -> str:
    """Return the template that is meant without naming one, of one template or named ones."""
    if isinstance(found, list):
        named = [item for item in found if isinstance(item, dict) and "name" in item]
        found = {str(item["name"]): item.get("template") for item in named}
    if isinstance(found, dict):
        names = ", ".join(sorted(map(str, found))) or "none"
        if "default" not in found:
            raise ModelError(
                f"{place}: none of its chat templates ({names}) is called default; save the one to "
                "use as chat_template.jinja in the model's directory"
            )
        found = found["default"]
    if not isinstance(found, str):
        raise ModelError(f"{place}: its chat template is {found!r:.60}, not a text; replace it")
    return found


def _hub_file(files: ModelFiles, name: str) -> Path | None:
    """Fetch one file of a hub model, or find it in the local cache; None when it has none."""
    try:  # its variables (HF_HUB_...) are read when it is imported
        from huggingface_hub import errors, hf_hub_download
    except Exception as error:
        raise _unusable_hub(files, error) from error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs each of its retries
    try:
        return Path(
            hf_hub_download(files.model, name, revision=files.revision, etag_timeout=HUB_TIMEOUT_S)
        )
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{files.place}: access to it must be asked for on the hub; then set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"{files.place}: the hub knows no such model; check the id, or set HF_TOKEN"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise ModelError(
            f"{files.place}: not in the local cache, and the hub cannot be reached; give the "
            "directory of a model, or fetch it where there is a network"
        ) from error
    except errors.EntryNotFoundError:
        return None
    except errors.HFValidationError as error:
        raise ModelError(
            f"{files.place}: no such directory and not a hub id ({error}); give the directory of a "
            "model, or an id such as meta-llama/Meta-Llama-3-8B-Instruct"
        ) from error
    except Exception as error:
        raise _unusable_hub(files, error) from error


def _unusable_hub(files: ModelFiles, error: Exception) -> ModelError:
    """Return the error for what the library of the hub says of the network, or of its variables."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, OSError) and (said := explain_disk_error(error, Path("its cache"))):
        return ModelError(
            f"{files.place}: the hub's files cannot be kept: {said.removesuffix(THEN)} (HF_HOME "
            "names it)"
        )
    return ModelError(
        f"{files.place}: not readable from the hub ({reason[:200]}); check the id, the network and "
        "the variables HF_* and *_PROXY"
    )

"""Reading what a model's directory, or its place on the hub, holds of templates and tokenizers.

The hub is asked for single files, a few seconds at most; what is here already is not asked for.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer

from optima.conversation.template import ChatTemplate, Roles
from optima.conversation.tokens import ChatCodec, Encoder
from optima.errors import ModelError
from optima.models import check_fetched

HUB_TIMEOUT_S = 5.0  # for one look at the hub; the library retries a few times


def load_codec(
    model: str,
    *,
    revision: str | None = None,
    roles: Roles | Literal["auto"] = "auto",
    field: str = "model.path",
) -> ChatCodec:
    """Read template and tokenizer of a model and prove that conversations can be trained on.

    Raises ModelError with the reason when they cannot.
    """
    template = load_template(model, revision=revision, roles=roles, field=field)
    named = template.special_tokens.get("eos_token")
    ends = () if named is None else (named,)  # which tokenizer.json may not call special
    return ChatCodec.of(template, load_encoder(model, ends, revision=revision, field=field))


def load_template(
    model: str,
    *,
    revision: str | None = None,
    roles: Roles | Literal["auto"] = "auto",
    field: str = "model.path",
) -> ChatTemplate:
    """Read the template of a model directory or hub id; ModelError when there is none.

    ``field`` is where the model is named, for the message.
    """
    place = f"{field}={model}"
    config = model_json(model, "tokenizer_config.json", revision, place=place)
    found: object = model_text(model, "chat_template.jinja", revision, place=place)
    found = found or config.get("chat_template")
    if not found:  # where models that see images used to keep it
        legacy = model_json(model, "chat_template.json", revision, place=place)
        found = legacy.get("chat_template")
    if not found:
        raise ModelError(
            f"{place}: no chat_template.jinja and no chat_template in "
            "tokenizer_config.json; use an instruction-tuned model"
        )
    source = _default_of(found, place)
    tokens: dict[str, str] = {}
    tokens_map = model_json(model, "special_tokens_map.json", revision, place=place)
    for table in (tokens_map, config):
        for key, value in table.items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                tokens[key] = text
    return ChatTemplate(source, tokens, roles=roles, origin=model)


def load_encoder(
    model: str,
    stop_tokens: Sequence[str] = (),
    *,
    revision: str | None = None,
    field: str = "model.path",
) -> Encoder:
    """Read ``tokenizer.json`` of a model directory or hub id; ModelError without one."""
    place = f"{field}={model}"
    path = model_file(model, "tokenizer.json", revision, place=place)
    if path is None:
        raise ModelError(
            f"{place}: has no tokenizer.json, which conversations are tokenised with; load "
            "its tokenizer with transformers and save it there (save_pretrained writes one)"
        )
    return Encoder(_read(path, place), stop_tokens, _n_rows(model, revision, place))


def model_json(model: str, name: str, revision: str | None, *, place: str) -> dict[str, Any]:
    """Return a JSON file of a model, {} when it has none; ModelError when it is no mapping."""
    text = model_text(model, name, revision, place=place)
    try:
        tree = json.loads(text) if text is not None else {}
    except ValueError as error:
        raise ModelError(_unreadable(place, name, error)) from error
    if not isinstance(tree, dict):
        raise ModelError(_unreadable(place, name, "it is no mapping"))
    return tree


def model_text(model: str, name: str, revision: str | None, *, place: str) -> str | None:
    """Return a file of a model as text, None when it has none; ModelError when it is unreadable."""
    path = model_file(model, name, revision, place=place)
    try:
        return path.read_text(encoding="utf-8") if path else None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(_unreadable(place, name, error)) from error


def _unreadable(place: str, name: str, reason: object) -> str:
    return f"{place}: {name} cannot be read ({reason}); fetch the model again"


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


def model_file(model: str, name: str, revision: str | None, *, place: str) -> Path | None:
    """Return a file of a model directory or hub id, None when it has none of this name.

    Raises ModelError, beginning with ``place``, when there is no such model or it is not reached.
    """
    directory = Path(model)
    if directory.is_dir():
        path = directory / name
        return path if path.is_file() else None
    check_fetched(model, place)
    if directory.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise ModelError(
            f"{place}: no such directory and no hub id; give the directory of a model "
            "in Hugging Face format, or an id such as meta-llama/Meta-Llama-3-8B-Instruct"
        )
    return _hub_file(model, name, revision, place)


def _hub_file(model: str, name: str, revision: str | None, place: str) -> Path | None:
    """Fetch one file of a hub model, or find it in the local cache; None when it has none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs each of its retries
    try:
        return Path(hf_hub_download(model, name, revision=revision, etag_timeout=HUB_TIMEOUT_S))
    except GatedRepoError as error:
        raise ModelError(
            f"{place}: access to it must be asked for on the hub; then set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{place}: the hub knows no such model; check the id, or set HF_TOKEN"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelError(
            f"{place}: not in the local cache, and the hub cannot be reached; give the "
            "directory of a model, or fetch it where there is a network"
        ) from error
    except EntryNotFoundError:
        return None
    except OSError as error:
        raise ModelError(
            f"{place}: not readable from the hub ({type(error).__name__}); check the "
            "id and the network"
        ) from error


def _read(path: Path, place: str) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        raise ModelError(f"{place}: tokenizer.json is no tokenizer ({error})") from error


def _n_rows(model: str, revision: str | None, place: str) -> int:
    """Return the embeddings that the model's configuration speaks of; 0 where it does not."""
    config = model_json(model, "config.json", revision, place=place)
    below = config.get("text_config")
    n_rows = config.get("vocab_size", below.get("vocab_size") if isinstance(below, dict) else None)
    return n_rows if isinstance(n_rows, int) else 0

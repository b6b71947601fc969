"""Chat templates, rendered here once for generation, training and scoring alike.

Roles are a property of the model's template: own = assistant, partner = user, and the system prompt
inside the first user message where there is no system role. Llama-3, the paper's model, keeps the
paper's way, every utterance as ``assistant``; with other models the second agent then repeats the
first (docs/decisions/0004-roles.md).
"""

import json
import logging
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, Literal

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from optima.errors import ModelError
from optima.models import check_fetched
from optima.types import Message

Roles = Literal["assistant", "alternate"]
# Families that take a run of assistant messages well, by what their templates write around a role.
RUNS_OF_ASSISTANT = ("<|start_header_id|>",)
FIXED_DATE = date(2024, 7, 26)  # the one that Llama-3's template falls back to
HUB_TIMEOUT_S = 5.0  # for one look at the hub; the library retries a few times
_PROBES = ("optima-probe-one", "optima-probe-two", "optima-probe-three")


class _GenerationBlock(Extension):
    """Accepts ``{% generation %}`` blocks, which some templates use to mark assistant text."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it as a plain class attribute

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_inner"), [], [], body).set_lineno(line)

    def _inner(self, caller: Any) -> str:
        return str(caller())


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys,
    )  # fmt: skip


class ChatTemplate:
    """The chat template of one model.

    ``roles`` says how utterances map to chat roles, ``has_system`` whether the template takes a
    system message, ``special_tokens`` are those that it may name, such as ``eos_token``.
    """

    def __init__(
        self,
        source: str,
        special_tokens: dict[str, str],
        *,
        roles: Roles | Literal["auto"] = "auto",
        origin: str = "chat template",
    ) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        # A prompt that contains today's date would differ between generation, training and resume.
        environment.globals["strftime_now"] = FIXED_DATE.strftime
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(f"{origin}: the chat template does not parse: {error}") from error
        self.special_tokens = special_tokens
        self.origin = origin
        # Templates of models that see images take a message as a list of parts.
        self._takes_parts = False
        self._takes_parts = not self._accepts("user", "assistant")
        self.has_system = self._accepts("system", "user", "assistant")
        self._accepts_runs = self.has_system and self._accepts("system", "assistant", "assistant")
        suits_runs = self._accepts_runs and any(mark in source for mark in RUNS_OF_ASSISTANT)
        self.roles: Roles = (
            ("assistant" if suits_runs else "alternate") if roles == "auto" else roles
        )
        if self.roles == "assistant" and not self._accepts_runs:
            raise ModelError(
                f"model.roles=assistant: {origin} refuses a system prompt followed by several "
                "assistant messages; write model.roles=auto"
            )
        if not self._accepts("user", "assistant"):
            raise ModelError(
                f"{origin}: the chat template does not render a user and an assistant message "
                f"({self._refusal}); use an instruction-tuned model"
            )

    @classmethod
    def load(
        cls,
        model: str,
        *,
        revision: str | None = None,
        roles: Roles | Literal["auto"] = "auto",
        field: str = "model.path",
    ) -> "ChatTemplate":
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
        return cls(source, tokens, roles=roles, origin=model)

    @property
    def other_roles(self) -> Roles | None:
        """The roles that are not in use, None where the template refuses them."""
        if self.roles == "assistant":
            return "alternate"
        return "assistant" if self._accepts_runs else None

    def render(self, messages: Sequence[Message]) -> str:
        """Return the messages as one string.

        A model's next utterance is prompted with the text before an assistant message's content,
        so no generation prompt is asked for, which some templates write otherwise than the message
        that follows. Reasoning is switched off where a template lets it: utterances are short.
        """
        try:
            return self._template.render(
                messages=[{"role": m.role, "content": self._content(m)} for m in messages],
                # As transformers does: many templates ask whether there are tools.
                tools=None,
                documents=None,
                add_generation_prompt=False,
                enable_thinking=False,
                **self.special_tokens,
            )
        except Exception as error:
            roles = ", ".join(message.role for message in messages)
            raise ModelError(
                f"{self.origin}: the chat template refuses the roles {roles}: "
                f"{str(error) or type(error).__name__}"
            ) from error

    def assistant_header(self) -> str:
        """Return what the template writes before the content of a lone assistant message."""
        probe = Message(role="assistant", content=_PROBES[0])
        try:
            text = self.render([probe])
        except ModelError:
            user = Message(role="user", content="")
            text = self.render([user, probe])
        return text[: text.index(_PROBES[0])]

    def _accepts(self, *roles: Literal["system", "user", "assistant"]) -> bool:
        messages = [
            Message(role=role, content=probe) for role, probe in zip(roles, _PROBES, strict=False)
        ]
        try:
            text = self.render(messages)
        except ModelError as error:
            self._refusal = str(error)
            return False
        places = [text.find(message.content) for message in messages]
        self._refusal = "it leaves out a message or changes their order"
        return -1 not in places and places == sorted(places)

    def _content(self, message: Message) -> str | list[dict[str, str]]:
        return [{"type": "text", "text": message.content}] if self._takes_parts else message.content


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

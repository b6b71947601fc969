"""Chat templates, rendered here once for generation, training and scoring alike.

Roles are a property of the model's template: own = assistant, partner = user, and the system prompt
inside the first user message where there is no system role. Llama-3, the paper's model, keeps the
paper's way, every utterance as ``assistant``; with other models the second agent then repeats the
first (docs/decisions/0004-roles.md).
"""

import json
from collections.abc import Sequence
from datetime import date
from typing import Any, Literal

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from optima.errors import ModelError
from optima.types import Message

Roles = Literal["assistant", "alternate"]
# Families that take a run of assistant messages well, by what their templates write around a role.
RUNS_OF_ASSISTANT = ("<|start_header_id|>",)
FIXED_DATE = date(2024, 7, 26)  # the one that Llama-3's template falls back to
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

import json
from pathlib import Path
from typing import Literal

import pytest

from optima.conversation.agent import Speaker
from optima.conversation.template import ChatTemplate
from optima.errors import ModelError
from optima.types import Message
from tests.talks import turn
from tests.templates import ALTERNATING, CHATML, FAMILIES, LLAMA3, SPECIAL_TOKENS
from tests.tokenizers import codec, text_of


def template(family: str) -> ChatTemplate:
    return ChatTemplate(FAMILIES[family], SPECIAL_TOKENS[family], origin=family)


TALK = [turn(0, " Hello."), turn(1, " Hi."), turn(0, " Bye.")]


def test_roles_and_system_role_are_read_off_the_template() -> None:
    # A run of assistant messages is rendered by many templates, and suits Llama-3's models alone.
    assert (template("chatml").roles, template("chatml").has_system) == ("alternate", True)
    assert (template("llama3").roles, template("llama3").has_system) == ("assistant", True)
    assert (template("alternating").roles, template("alternating").has_system) == (
        "alternate",
        False,
    )


def test_llama3_prompt_has_every_utterance_as_assistant_and_ends_with_the_own_label() -> None:
    bob = Speaker(1, "Bob", "PROMPT", codec("llama3"))
    assert text_of(bob.prompt_ids(TALK)) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nPROMPT<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nAlice: Hello.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nBob: Hi.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nAlice: Bye.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nBob:"
    )
    assert bob.view(TALK)[1] == (2,)


def test_chatml_prompt_has_the_partner_as_user_beside_its_system_message() -> None:
    bob = Speaker(1, "Bob", "PROMPT", codec("chatml"))
    assert text_of(bob.prompt_ids(TALK)) == (
        "<|im_start|>system\nPROMPT<|im_end|>\n"
        "<|im_start|>user\nAlice: Hello.<|im_end|>\n"
        "<|im_start|>assistant\nBob: Hi.<|im_end|>\n"
        "<|im_start|>user\nAlice: Bye.<|im_end|>\n"
        "<|im_start|>assistant\nBob:"
    )
    alice = Speaker(0, "Alice", "PROMPT", codec("chatml"))
    assert text_of(alice.prompt_ids([])) == (
        "<|im_start|>system\nPROMPT<|im_end|>\n"
        "<|im_start|>user\n(You speak first.)<|im_end|>\n<|im_start|>assistant\nAlice:"
    )
    assert alice.view(TALK)[1] == (2, 4)
    paper = Speaker(1, "Bob", "PROMPT", codec("chatml", roles="assistant"))
    assert text_of(paper.prompt_ids(TALK)).count("<|im_start|>assistant\n") == 4


def test_alternating_prompt_has_the_partner_as_user_and_no_system_message() -> None:
    bob = Speaker(1, "Bob", "PROMPT", codec("alternating"))
    assert text_of(bob.prompt_ids(TALK)) == (
        "<bos><start_of_turn>user\nPROMPT\n\nAlice: Hello.<end_of_turn>\n"
        "<start_of_turn>model\nBob: Hi.<end_of_turn>\n"
        "<start_of_turn>user\nAlice: Bye.<end_of_turn>\n"
        "<start_of_turn>model\nBob:"
    )
    alice = Speaker(0, "Alice", "PROMPT", codec("alternating"))
    assert text_of(alice.prompt_ids([])) == (
        "<bos><start_of_turn>user\nPROMPT<end_of_turn>\n<start_of_turn>model\nAlice:"
    )
    assert alice.view(TALK)[1] == (1, 3)


def test_three_agents_under_alternation_merge_what_partners_said() -> None:
    carol = Speaker(2, "Carol", "PROMPT", codec("alternating"))
    messages, own = carol.view([turn(0, " a"), turn(1, " b"), turn(2, " c"), turn(0, " d")])
    assert [message.role for message in messages] == ["user", "assistant", "user"]
    assert messages[0].content == "PROMPT\n\nAlice: a\n\nBob: b"
    assert own == (1,)


def test_cue_ends_what_a_speaker_hears_and_stands_in_no_own_message() -> None:
    bob = Speaker(1, "Bob", "PROMPT", codec("alternating"), cue="(Check it.)")
    assert text_of(bob.prompt_ids(TALK)) == (
        "<bos><start_of_turn>user\nPROMPT\n\nAlice: Hello.\n\n(Check it.)<end_of_turn>\n"
        "<start_of_turn>model\nBob: Hi.<end_of_turn>\n"
        "<start_of_turn>user\nAlice: Bye.\n\n(Check it.)<end_of_turn>\n"
        "<start_of_turn>model\nBob:"
    )
    (row,) = bob.rows(TALK)
    assert row.input_ids[: len(bob.prompt_ids(TALK[:1]))] == bob.prompt_ids(TALK[:1])


def test_assistant_header_is_what_stands_before_the_content() -> None:
    assert template("chatml").assistant_header() == "<|im_start|>assistant\n"
    assert template("alternating").assistant_header().endswith("<start_of_turn>model\n")


@pytest.mark.parametrize(
    ("family", "roles", "other"),
    [
        ("chatml", "alternate", "assistant"),
        ("llama3", "assistant", "alternate"),
        ("alternating", "alternate", None),  # refuses two assistant messages in a row
    ],
)
def test_roles_of_a_family_and_those_that_could_be_taken_in_their_place(
    family: str, roles: str, other: Literal["assistant", "alternate"] | None
) -> None:
    assert (template(family).roles, template(family).other_roles) == (roles, other)
    if other is not None:
        assert codec(family, roles=other).template.other_roles == roles


def test_forced_assistant_roles_are_refused_where_the_template_refuses_them() -> None:
    with pytest.raises(ModelError, match=r"model\.roles=assistant"):
        ChatTemplate(ALTERNATING, SPECIAL_TOKENS["alternating"], roles="assistant")
    forced = Speaker(1, "Bob", "P", codec("llama3", roles="alternate"))
    messages, _ = forced.view(TALK[:1])
    assert [m.role for m in messages] == ["system", "user"]


def test_template_is_loaded_from_either_file(tmp_path: Path) -> None:
    config = {"chat_template": CHATML, "eos_token": {"content": "<|im_end|>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    message = Message(role="user", content="hi")
    expected = "<|im_start|>user\nhi<|im_end|>\n"
    loaded = ChatTemplate.load(str(tmp_path))
    assert loaded.render([message]) == expected
    (tmp_path / "chat_template.jinja").write_text(LLAMA3)
    assert "<|eot_id|>" in ChatTemplate.load(str(tmp_path)).render([message])


@pytest.mark.parametrize(
    ("prepare", "reason"),
    [
        (lambda path: None, "no chat_template"),
        (lambda path: (path / "chat_template.jinja").write_text("{% if %}"), "does not parse"),
        (lambda path: (path / "chat_template.jinja").write_text("static"), "does not render"),
    ],
)
def test_model_without_a_usable_template_is_one_clear_error(tmp_path, prepare, reason) -> None:  # type: ignore[no-untyped-def]
    prepare(tmp_path)
    with pytest.raises(ModelError, match=reason):
        ChatTemplate.load(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer_config.json", b'{"eos_token": ', "Expecting value"),
        ("tokenizer_config.json", b"[]", "it is no mapping"),
        ("special_tokens_map.json", b"{", "Expecting property name"),
        ("chat_template.jinja", b"\xff\xfe{", "can't decode byte 0xff"),
    ],
)
def test_file_of_a_model_that_cannot_be_read_is_named(
    name: str, content: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=rf"^model\.path=.*: {name} cannot be read \(.*{reason}"):
        ChatTemplate.load(str(tmp_path))


@pytest.mark.parametrize("named", [{"name": "default"}, "default", {"template": "x"}])
def test_named_templates_without_a_default_one_are_no_template(
    named: object, tmp_path: Path
) -> None:
    config = {"chat_template": [named, {"name": "tools", "template": CHATML}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="no chat_template"):
        ChatTemplate.load(str(tmp_path))
    config["chat_template"] += [{"name": "default", "template": CHATML}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTemplate.load(str(tmp_path)).roles == "alternate"


def test_missing_model_directory_is_named() -> None:
    with pytest.raises(ModelError, match=r"model\.path=\./nowhere"):
        ChatTemplate.load("./nowhere")


def test_template_cannot_reach_the_interpreter(tmp_path: Path) -> None:
    escape = "{{ ().__class__.__bases__[0].__subclasses__() }}{{ messages[0]['content'] }}"
    with pytest.raises(ModelError):
        ChatTemplate(escape, {})

import json
from pathlib import Path
from typing import Literal

import pytest

from optima.conversation.codec import ChatTemplate
from optima.conversation.dialogue import Speaker
from optima.conversation.loading import ModelFiles, load_codec, load_template
from optima.errors import ModelError
from optima.types import Message
from tests.talks import turn
from tests.templates import ALTERNATING, CHATML, FAMILIES, LLAMA3, SPECIAL_TOKENS
from tests.tokenizers import codec, text_of, write_tokenizer


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
    loaded = load_template(ModelFiles(str(tmp_path)))
    assert loaded.render([message]) == expected
    (tmp_path / "chat_template.jinja").write_text(LLAMA3)
    assert "<|eot_id|>" in load_template(ModelFiles(str(tmp_path))).render([message])


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
        load_template(ModelFiles(str(tmp_path)))


SAID = [Message(role="user", content="hi"), Message(role="assistant", content="ho")]


@pytest.mark.parametrize(
    ("filters", "written"),
    [
        ("tojson", '{"b": "é<", "a": 1}'),
        ("tojson(ensure_ascii=True)", '{"b": "\\u00e9<", "a": 1}'),
        ("tojson(separators=(',', ':'))", '{"b":"é<","a":1}'),
        ("tojson(sort_keys=True)", '{"a": 1, "b": "é<"}'),
        ("tojson(indent=1)", '{\n "b": "é<",\n "a": 1\n}'),
    ],
)
def test_template_writes_json_as_transformers_does(filters: str, written: str) -> None:
    source = "{{ {'b': 'é<', 'a': 1} | FILTERS }}\n".replace("FILTERS", filters) + CHATML
    made = ChatTemplate(source, {})
    assert made.render(SAID[:1]) == f"{written}\n<|im_start|>user\nhi<|im_end|>\n"


def test_template_sees_no_tools_and_no_documents() -> None:
    # Undefined is not none: a template would go on to write the tools there are not.
    asks = "{% if tools is not none %}{{ tools | tojson }}{% endif %}"
    asks += "{% if documents is not none %}{{ documents | length }}{% endif %}"
    assert ChatTemplate(asks + CHATML, {}).render(SAID) == ChatTemplate(CHATML, {}).render(SAID)


def test_template_may_mark_what_is_generated_leave_loops_and_write_a_date() -> None:
    source = (
        "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{% if loop.index > 9 %}{% break %}"
        "{% endif %}<|im_start|>{{ m['role'] }}\n{% generation %}{{ m['content'] }}<|im_end|>"
        "{% endgeneration %}{{ '\\n' }}{% endfor %}"
    )
    # The same date always: a prompt of tomorrow equals that of the training.
    assert ChatTemplate(source, {}).render(SAID) == "26 Jul 2024" + ChatTemplate(CHATML, {}).render(
        SAID
    )


@pytest.mark.parametrize(
    "broken",
    ["{{ 1 // 0 }}", "{{ messages[9]['content'] }}", "{{ [1][messages | length] + 1 }}",
     "{{ none.x.y }}", "{{ range(9999999) | list }}", "{{ messages.no() }}"],
)  # fmt: skip
def test_template_that_fails_in_any_way_is_one_clear_error(broken: str) -> None:
    with pytest.raises(ModelError, match="the chat template refuses the roles"):
        ChatTemplate("{% if messages | length > 1 %}" + broken + "{% endif %}" + CHATML, {})


def _save(path: Path, name: str, content: object) -> None:
    (path / name).write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    "named",
    [
        [{"name": "tool_use", "template": "x"}, {"name": "default", "template": CHATML}],
        {"default": CHATML, "rag": "x"},
        CHATML,
    ],
)
def test_of_several_templates_the_default_one_is_taken(tmp_path: Path, named: object) -> None:
    _save(tmp_path, "tokenizer_config.json", {"chat_template": named})
    loaded = load_template(ModelFiles(str(tmp_path)))
    assert loaded.render(SAID[:1]) == "<|im_start|>user\nhi<|im_end|>\n"


def test_template_beside_a_configuration_without_one_is_taken(tmp_path: Path) -> None:
    _save(tmp_path, "tokenizer_config.json", {"eos_token": "<|im_end|>"})
    with pytest.raises(ModelError, match=r"no chat_template\.jinja and no chat_template in"):
        load_template(ModelFiles(str(tmp_path)))
    _save(tmp_path, "chat_template.json", {"chat_template": "{# of a processor #}" + CHATML})
    assert "hi<|im_end|>" in load_template(ModelFiles(str(tmp_path))).render(SAID)
    (tmp_path / "chat_template.jinja").write_text(CHATML.replace("<|im_end|>", "é"), "utf-8")
    assert "hié" in load_template(ModelFiles(str(tmp_path))).render(SAID)


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ([{"name": "tool_use", "template": CHATML}, {"name": "rag", "template": CHATML}],
         r"none of its chat templates \(rag, tool_use\) is called default; save the one"),
        ([CHATML], r"none of its chat templates \(none\) is called default"),
        ({"tool_use": CHATML}, r"\(tool_use\) is called default"),
        ([{"name": "default"}], "its chat template is None, not a text"),
        (17, "its chat template is 17, not a text"),
    ],
)  # fmt: skip
def test_templates_of_which_none_can_be_taken_are_named(
    tmp_path: Path, named: object, reason: str
) -> None:
    _save(tmp_path, "tokenizer_config.json", {"chat_template": named})
    with pytest.raises(ModelError, match=rf"model\.path=.*: .*{reason}"):
        load_template(ModelFiles(str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("chat_template.jinja", CHATML.encode() + b"{# \xe9 #}", "can't decode byte 0xe9"),
        ("tokenizer_config.json", b'{"eos_token": "\xff"}', "can't decode byte 0xff"),
        ("tokenizer_config.json", b'{"eos_token": ', "Expecting value"),
        ("tokenizer_config.json", b"[]", "it is not a mapping"),
        ("special_tokens_map.json", b'"\xff"', "can't decode byte 0xff"),
        ("special_tokens_map.json", b"not json", "Expecting value"),
        ("chat_template.json", b"{", "Expecting property name"),
        ("config.json", b"[]", "it is not a mapping"),
    ],
)
def test_file_of_a_model_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    if name != "chat_template.json":  # which is read where there is no other template
        (tmp_path / "chat_template.jinja").write_text(CHATML)
    write_tokenizer(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=rf"^model\.path=.*: {name} cannot be read \(.*{reason}"):
        load_codec(str(tmp_path))


def test_tokenizer_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    (tmp_path / "tokenizer.json").write_bytes(b'{"version": "\xff"}')
    with pytest.raises(ModelError, match=r"tokenizer\.json.*is not a tokenizer"):
        load_codec(str(tmp_path))


def test_turn_ends_with_the_templates_own_token_whatever_the_model_stops_at(
    tmp_path: Path,
) -> None:
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    write_tokenizer(tmp_path)
    _save(tmp_path, "tokenizer_config.json", {"eos_token": "<|eot_id|>"})
    _save(tmp_path, "generation_config.json", {"eos_token_id": [0]})
    made = load_codec(str(tmp_path))
    assert made.encoder.token(made.end_token) == "<|im_end|>"  # servers are asked to stop there


def test_missing_model_directory_is_named() -> None:
    with pytest.raises(ModelError, match=r"model\.path=\./nowhere"):
        load_template(ModelFiles("./nowhere"))


def test_template_cannot_reach_the_interpreter(tmp_path: Path) -> None:
    escape = "{{ ().__class__.__bases__[0].__subclasses__() }}{{ messages[0]['content'] }}"
    with pytest.raises(ModelError):
        ChatTemplate(escape, {})

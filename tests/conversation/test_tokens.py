"""Prompts and rows as token ids: what carries loss, what templates may do, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers

from optima.conversation.codec import ChatCodec, ChatTemplate, Encoder
from optima.conversation.dialogue import Speaker, prove_talk, sampled_ids
from optima.conversation.loading import ModelFiles, load_codec, load_encoder
from optima.errors import ModelError
from optima.search.pairs import preference_row
from optima.types import Message, PreferencePair
from tests.talks import NAMES, Reply, ids_of, speakers, turn
from tests.templates import CHATML, FAMILIES, SPECIAL_TOKENS
from tests.tokenizers import (
    codec,
    codec_of,
    encoder,
    sentence_tokenizer,
    text_of,
    tiny_tokenizer,
    write_tokenizer,
)

GOLDEN = Path(__file__).parent / "golden"
ENDS = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "alternating": "<end_of_turn>"}
TALK = (
    turn(
        0,
        " The lamp\n\nis Zoë's 🙂: where?",
        ids=ids_of(" The lamp", "\n\n", "is Zoë's 🙂: where?"),
    ),
    turn(1, "<A>Århus</A>", ids=ids_of("<A>", "Århus", "</A>")),
    turn(0, "(to Bob) hm", ids=ids_of("(to", " Bob) hm", "\n")),
    turn(1, " Zoë lives there.\n<A>Århus</A>"),
)
# As Qwen3's does with its thoughts: what is the last message now is written otherwise later.
REWRITING = CHATML.replace(
    "{{ message['content'] }}",
    "{% if loop.last and message['role'] == 'assistant' %}<no thoughts>\n{% endif %}"
    "{{ message['content'] }}",
)


def golden_text(family: str, agent: int) -> str:
    """Return an agent's next prompt as text, its row and a pair as ids: + and - carry loss."""
    everyone = speakers(family)
    speaker = everyone[agent]
    (row,) = speaker.rows(TALK)
    marks = ["."] * len(row.input_ids)
    for start, stop in row.trained:
        marks[start:stop] = "+" * (stop - start)
    history = TALK[: 2 + agent]
    pair = PreferencePair(
        problem_id="p", parent=1, history=history, chosen_value=1.0, rejected_value=0.0,
        chosen=turn(agent, "<A>Riga</A>", ids=ids_of("<A>", "Riga</A>")),
        rejected=turn(agent, " Well,\n\nZoë 🙂 lives there."),
    )  # fmt: skip
    sides = preference_row(pair, everyone)
    parts = ((".", sides.prompt_ids), ("+", sides.chosen_ids), ("-", sides.rejected_ids))
    marked = [(mark, index) for mark, ids in parts for index in ids]
    blocks = {
        "prompt": [text_of(speaker.prompt_ids(TALK[: 4 - agent]))],
        "row": [_line(*pair) for pair in zip(marks, row.input_ids, strict=True)],
        "pair": [_line(mark, index) for mark, index in marked],
    }
    return "".join(f"=== {name}\n" + "\n".join(block) + "\n" for name, block in blocks.items())


def _line(mark: str, index: int) -> str:
    return f"{mark} {index:>4} {json.dumps(encoder().token(index), ensure_ascii=False)}"


def test_ids_of_a_model_are_those_of_its_tokenizer_and_of_its_embeddings(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    n_ids = load_encoder(ModelFiles(str(tmp_path))).n_ids
    tokenizer = tiny_tokenizer()
    assert tokenizer.id_to_token(n_ids - 1) is not None
    assert tokenizer.id_to_token(n_ids) is None
    for config in ({"vocab_size": n_ids + 7}, {"text_config": {"vocab_size": n_ids + 7}}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert load_encoder(ModelFiles(str(tmp_path))).n_ids == n_ids + 7


@pytest.mark.parametrize("agent", [0, 1])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_prompt_row_and_pair_equal_the_golden_file(family: str, agent: int) -> None:
    path = GOLDEN / f"{family}_{agent}.txt"
    assert golden_text(family, agent) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("family", list(FAMILIES))
def test_token_that_ends_a_turn_is_the_templates_own(family: str) -> None:
    assert encoder().token(codec(family).end_token) == ENDS[family]


@pytest.mark.parametrize("agent", [0, 1])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_loss_is_on_own_utterances_and_their_ends_of_turn_only(family: str, agent: int) -> None:
    (row,) = speakers(family)[agent].rows(TALK)
    own = [turn for turn in TALK if turn.agent == agent]
    expected = [(t.token_ids or ids_of(t.text)) + ids_of(ENDS[family]) for t in own]
    assert [row.input_ids[start:stop] for start, stop in row.trained] == expected
    for start, _ in row.trained:  # the label is given, not generated
        assert text_of(row.input_ids[:start]).endswith(f"{NAMES[agent]}:")


def test_partner_that_names_the_speaker_is_not_trained() -> None:
    talk = (turn(1, " Alice: is that you? Alice: yes"), turn(0, " yes"))
    (row,) = speakers()[0].rows(talk)
    assert [text_of(row.input_ids[start:stop]) for start, stop in row.trained] == [" yes<|im_end|>"]


def test_special_tokens_that_a_partner_writes_end_no_turn_of_the_speaker() -> None:
    talk = (turn(1, " one<|im_end|> two"), turn(0, " yes"))
    (row,) = speakers()[0].rows(talk)
    assert [text_of(row.input_ids[start:stop]) for start, stop in row.trained] == [" yes<|im_end|>"]


# Utterances that make borders hard: special tokens and parts of some, white space around them.
HARD = (
    " one<|im_end|> two", "<|im_end|>", "\n\n<|im_start|>\n", "<|im_<|im_end|>end|>",
    " a <|eot_id|>", "<start_of_turn><end_of_turn>\n", "<|im_end|", "  ",
    "Zoë's 🙂<bos> lamp", "<A>Riga</A>",
)  # fmt: skip
HARD_TALK = tuple(turn(k % 3, text) for k, text in enumerate(HARD))


def _changed(change: Callable[[Tokenizer], object]) -> Tokenizer:
    tokenizer = Tokenizer.from_str(tiny_tokenizer().to_str())
    change(tokenizer)
    return tokenizer


def _is_cut_into_parts(made: ChatCodec) -> bool:
    """Compare the ids of a hard talk with those of whole pieces; tell whether pieces are cut."""
    whole = replace(made, borders=None)
    for agent, name in enumerate(NAMES):
        one, other = (Speaker(agent, name, f"You are {name}.", of) for of in (made, whole))
        for n in range(agent, len(HARD_TALK) + 1, len(NAMES)):
            assert one.prompt_ids(HARD_TALK[:n]) == other.prompt_ids(HARD_TALK[:n])
        assert one.rows(HARD_TALK) == other.rows(HARD_TALK)
    return made.borders is not None


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize(
    ("tokenizer", "is_cut"),
    [
        (tiny_tokenizer(), True),
        (sentence_tokenizer(is_legacy=True), True),
        (sentence_tokenizer(is_legacy=False), False),  # a space before the first part only
        (_changed(lambda it: setattr(it, "normalizer", normalizers.NFC())), True),
        (_changed(lambda it: it.add_tokens([AddedToken(" lamp", normalized=False)])), True),
        (_changed(lambda it: it.add_tokens([AddedToken(" <", normalized=False)])), False),
        (_changed(lambda it: it.enable_truncation(50)), False),
        (_changed(lambda it: it.enable_padding(length=50)), False),
    ],
    ids=["plain", "legacy", "metaspace", "normalised", "other", "overlapping", "cut", "padded"],
)
def test_ids_of_pieces_cut_at_special_tokens_are_those_of_the_whole_pieces(
    tokenizer: Tokenizer, is_cut: bool, family: str
) -> None:
    template = ChatTemplate(FAMILIES[family], SPECIAL_TOKENS[family])
    assert _is_cut_into_parts(ChatCodec.of(template, Encoder(tokenizer))) is is_cut


@pytest.mark.parametrize(
    "kind", [{"rstrip": True}, {"lstrip": True}, {"single_word": True}, {"normalized": True}]
)
def test_special_token_that_depends_on_its_neighbours_cuts_no_piece(kind: dict[str, bool]) -> None:
    tree = json.loads(tiny_tokenizer().to_str())
    for token in tree["added_tokens"]:
        token.update(kind)
    encoder_of_kind = Encoder(Tokenizer.from_str(json.dumps(tree)))
    made = ChatCodec.of(ChatTemplate(CHATML, SPECIAL_TOKENS["chatml"]), encoder_of_kind)
    assert not _is_cut_into_parts(made)


class CountingTokenizer:
    """A tokenizer that remembers what it was given."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __getattr__(self, name: str) -> object:
        return getattr(tiny_tokenizer(), name)

    def encode(self, text: str, add_special_tokens: bool) -> object:
        self.texts.append(text)
        return tiny_tokenizer().encode(text, add_special_tokens=add_special_tokens)


def test_of_a_growing_talk_only_what_is_new_is_tokenised() -> None:
    counting = CountingTokenizer()
    made = ChatCodec.of(ChatTemplate(CHATML, {}), Encoder(counting))  # type: ignore[arg-type]
    alice = Speaker(0, "Alice", "You are Alice.", made)
    talk = tuple(turn(k % 2, f" number {k}", ids=ids_of(f" number {k}")) for k in range(6))
    for n in (0, 2, 4):
        alice.prompt_ids(talk[:n])
    counting.texts.clear()
    alice.prompt_ids(talk)
    assert counting.texts == ["user\nBob: number 5"]


def test_rows_do_not_influence_each_other() -> None:
    alice, bob = speakers()
    first = alice.rows(TALK)
    bob.rows(TALK)
    assert alice.rows(TALK) == first


def test_template_that_rewrites_earlier_messages_gives_a_row_for_each_utterance() -> None:
    alice = Speaker(0, "Alice", "You are Alice.", codec_of(REWRITING))
    prompts = [alice.prompt_ids(TALK[:0]), alice.prompt_ids(TALK[:2])]
    sampled = [(TALK[k].token_ids or ()) + ids_of("<|im_end|>") for k in (0, 2)]
    assert text_of(prompts[1]).count("<no thoughts>") == 1  # of two messages of hers
    rows = alice.rows(TALK)
    assert [row.input_ids for row in rows] == [p + s for p, s in zip(prompts, sampled, strict=True)]
    assert [row.trained for row in rows] == [
        ((len(p), len(p) + len(s)),) for p, s in zip(prompts, sampled, strict=True)
    ]


def test_template_that_ends_its_last_message_otherwise_gives_a_row_for_each_utterance() -> None:
    # As GPT-OSS's does. A row of the whole talk would train an end that ends no generation.
    source = CHATML.replace(
        "<|im_end|>",
        "{{ '<|eot_id|>' if loop.last and message['role'] == 'assistant' else '<|im_end|>' }}",
    )
    alice = Speaker(0, "Alice", "You are Alice.", codec_of(source))
    assert encoder().token(alice.codec.end_token) == "<|eot_id|>"
    rows = alice.rows([turn(0, " one"), turn(1, " two"), turn(0, " three")])
    trained = [text_of(row.input_ids[start:stop]) for row in rows for start, stop in row.trained]
    assert len(rows) == 2
    assert trained == [" one<|eot_id|>", " three<|eot_id|>"]
    assert "Alice: one<|im_end|>" in text_of(rows[1].input_ids)


def test_what_a_template_writes_before_the_end_of_turn_carries_no_loss() -> None:
    source = CHATML.replace("<|im_end|>", "\n(done)\n<|im_end|>")
    alice = Speaker(0, "Alice", "You are Alice.", codec_of(source))
    (row,) = alice.rows([turn(0, " one"), turn(1, " two"), turn(0, " three")])
    assert [text_of(row.input_ids[start:stop]) for start, stop in row.trained] == [
        " one", "<|im_end|>", " three", "<|im_end|>",
    ]  # fmt: skip
    assert text_of(row.input_ids).endswith("Alice: three\n(done)\n<|im_end|>")


def test_template_that_takes_content_as_parts_is_given_parts() -> None:
    source = CHATML.replace(
        "{{ message['content'] }}",
        "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
        "{% endif %}{% endfor %}",
    )
    by_parts, by_text = (
        Speaker(1, "Bob", "You are Bob.", made) for made in (codec_of(source), codec("chatml"))
    )
    assert by_parts.prompt_ids(TALK) == by_text.prompt_ids(TALK)
    assert by_parts.rows(TALK) == by_text.rows(TALK)


@pytest.mark.parametrize("names", [NAMES[:2], NAMES])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_families_of_the_tests_can_be_talked_and_trained_with(
    family: str, names: tuple[str, ...]
) -> None:
    prove_talk(codec(family), names)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_agent_alone_speaks_once_and_is_not_asked_to_speak_again(family: str) -> None:
    # It was proven with six utterances in a row, which templates that want alternation refuse.
    prove_talk(codec(family), NAMES[:1])


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("<|im_end|>", "", "no special token ends an assistant message"),
        ("message['content']", "message['content'] | replace('turn 0', 'turn zero')",
         "leaves out or changes 'Alice: optima-turn 0'"),
        ("message['content']", "message['content'] | upper",
         "does not render a user and an assistant message"),
        ("{% for message in messages %}", "{% for message in messages[-3:] %}",
         "renders 2 of 3 assistant messages"),
        ("{{ message['content'] }}",
         "{{ message['content'] if message['role'] != 'assistant' or loop.last else '' }}",
         "assistant messages, so a conversation"),
        ("{% for message in messages %}",
         "{% for message in messages if message['role'] != 'system' or messages | length < 5 %}",
         "leaves out or changes 'optima-prompt of"),
    ],
)  # fmt: skip
def test_template_that_no_talk_can_be_held_with_is_refused_with_the_reason(
    old: str, new: str, reason: str
) -> None:
    with pytest.raises(ModelError, match=f"made up: .*({reason})"):
        prove_talk(codec_of(CHATML.replace(old, new), origin="made up"), NAMES[:2])


def test_tokenizer_that_changes_what_was_said_is_refused() -> None:
    changing = Tokenizer.from_str(tiny_tokenizer().to_str())
    changing.normalizer = normalizers.Lowercase()
    template = ChatTemplate(CHATML, {}, origin="m")
    with pytest.raises(
        ModelError,
        match=r"m: the chat template or tokenizer leaves out or changes 'optima-prompt of",
    ):
        prove_talk(ChatCodec.of(template, Encoder(changing)), NAMES[:2])


def test_messages_from_elsewhere_are_tokenised_with_the_reply_apart() -> None:
    messages = [Message(role="user", content="Where is it?")]
    reply = Message(role="assistant", content="<A>Riga</A>")
    prompt, said = codec("chatml").continuation(messages, reply)
    assert text_of(prompt) == "<|im_start|>user\nWhere is it?<|im_end|>\n<|im_start|>assistant\n"
    assert said == ids_of("<A>Riga</A>", "<|im_end|>")


@pytest.mark.parametrize("is_legacy", [False, True])
@pytest.mark.parametrize("text", [" Hello. lamp", "<A>Riga</A>", "(to Bob) Zoë 🙂", "\nwell"])
def test_tokenizer_that_begins_texts_with_a_space_puts_none_before_an_utterance(
    text: str, is_legacy: bool
) -> None:
    # As Llama-2's and Mistral's. Their ids were taken for another text, and tokenised anew with a
    # space too many.
    tokenizer = sentence_tokenizer(is_legacy=is_legacy)
    made = ChatCodec.of(ChatTemplate(CHATML, {}), Encoder(tokenizer))
    alice = Speaker(0, "Alice", "You are Alice.", made)
    before = made.encoder.encode_once("Alice:\n")  # a line break is a token that never merges
    whole = made.encoder.encode_once(f"Alice:\n{text}")
    assert whole[: len(before)] == before
    said = whole[len(before) :]
    assert made.encoder.decode(said) == text
    completion = Reply(text, token_ids=(*said, made.end_token))
    assert sampled_ids(completion, text, made.encoder) == said
    for known in (said, None):  # also where an utterance is known as text alone
        (row,) = alice.rows([turn(0, text, ids=known)])
        trained = [row.input_ids[start:stop] for start, stop in row.trained]
        assert trained == [(*said, made.end_token)]
    prove_talk(made, NAMES)


def test_codec_is_read_from_the_files_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    with pytest.raises(ModelError, match=r"model\.tokenizer=.*has no tokenizer\.json"):
        load_codec(str(tmp_path), field="model.tokenizer")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"model\.path=.*tokenizer\.json is not a tokenizer"):
        load_codec(str(tmp_path))
    write_tokenizer(tmp_path)
    loaded = Speaker(0, "Alice", "You are Alice.", load_codec(str(tmp_path)))
    assert loaded.prompt_ids(TALK) == speakers()[0].prompt_ids(TALK)


@pytest.mark.parametrize("named", ["</s>", {"content": "</s>", "lstrip": False}])
def test_end_token_that_the_tokenizer_does_not_call_special_is_known_by_its_name(
    named: object, tmp_path: Path
) -> None:
    source = CHATML.replace("<|im_end|>", "</s>")
    (tmp_path / "chat_template.jinja").write_text(source)
    tokenizer = Tokenizer.from_str(tiny_tokenizer().to_str())
    tokenizer.add_tokens([AddedToken("</s>", special=False)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ModelError, match="no special token ends"):
        load_codec(str(tmp_path))
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(json.dumps({"eos_token": named}))
        loaded = load_codec(str(tmp_path))
        assert loaded.end_token == tokenizer.token_to_id("</s>")
        (tmp_path / name).unlink()

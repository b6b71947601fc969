"""Loss masks, token by token, with the real tokenizer and the templates of three families."""

import json
from pathlib import Path
from typing import Any

import pytest

from optima.conversation.agent import Speaker
from optima.conversation.template import ChatTemplate
from optima.errors import ModelError
from optima.types import Message, PreferenceRow, TrainingRow, Turn

transformers = pytest.importorskip("transformers")
masks = pytest.importorskip("optima.training.masks")

MODEL = Path(__file__).resolve().parents[2] / "models" / "smollm2-135m-instruct"
GOLDEN = Path(__file__).parent / "golden"
# Written for these tests after the shape of each family's own template.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else 'user' }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
FAMILIES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "chatml": (CHATML, ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
    "llama3": (
        LLAMA3,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|eot_id|>",
    ),
    "no_system": (NO_SYSTEM, ("<bos>", "<start_of_turn>", "<end_of_turn>"), "<end_of_turn>"),
}


def _tokenizer(family: str) -> Any:
    source, tokens, end = FAMILIES[family]
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    tokenizer.chat_template = source
    tokenizer.bos_token = tokens[0]
    tokenizer.eos_token = tokenizer.pad_token = end  # padding equals the stop token
    if family != "chatml":
        tokenizer.add_special_tokens({"extra_special_tokens": list(tokens)})
    return tokenizer


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _template(family: str) -> ChatTemplate:
    source, tokens, end = FAMILIES[family]
    return ChatTemplate(source, {"bos_token": tokens[0], "eos_token": end}, origin=family)


def _turn(agent: int, text: str) -> Turn:
    return Turn(
        agent=agent,
        name=("Alice", "Bob")[agent],
        text=text,
        answer=None,
        n_prompt_tokens=1,
        n_tokens=1,
        finish_reason="stop",
        seconds=0.0,
    )


TURNS = (
    _turn(0, " The lamp\n\nis Zoë's 🙂: where?"),
    _turn(1, " Zoë lives in Århus.\n<A>Århus</A>"),
    _turn(0, " <A>Århus</A>"),
)


def _row(family: str, agent: int) -> TrainingRow:
    template = _template(family)
    name = ("Alice", "Bob")[agent]
    speaker = Speaker(agent, name, f"You are {name}. Name: the city.", template)
    messages, own = speaker.view(TURNS)
    return TrainingRow(problem_id="p", n=0, agent=agent, messages=messages, trained=own)


def _mask(row: TrainingRow, family: str) -> tuple[Any, Any]:
    tokenizer = _tokenizer(family)
    return next(iter(masks.tokenize_rows([row], _template(family), tokenizer))), tokenizer


@pytest.mark.parametrize("agent", [0, 1])
def test_mask_covers_own_utterances_and_their_ends_of_turn_only(family: str, agent: int) -> None:
    row = _row(family, agent)
    masked, tokenizer = _mask(row, family)
    groups: list[list[int]] = []
    previous = False
    for token, is_trained in zip(masked.input_ids, masked.is_trained, strict=True):
        if is_trained and not previous:
            groups.append([])
        if is_trained:
            groups[-1].append(token)
        previous = is_trained
    end = FAMILIES[family][2]
    assert [tokenizer.decode(group) for group in groups] == [
        row.messages[i].content + end for i in row.trained
    ]


@pytest.mark.parametrize("agent", [0, 1])
def test_tokens_and_mask_equal_the_golden_file(family: str, agent: int) -> None:
    masked, tokenizer = _mask(_row(family, agent), family)
    pieces = tokenizer.convert_ids_to_tokens(list(masked.input_ids))
    marks = ["+" if is_trained else "." for is_trained in masked.is_trained]
    lines = [
        f"{mark} {token_id:>6} {json.dumps(piece, ensure_ascii=False)}"
        for mark, token_id, piece in zip(marks, masked.input_ids, pieces, strict=True)
    ]
    text = "\n".join(lines) + "\n"
    path = GOLDEN / f"mask_{family}_{agent}.txt"
    assert text == path.read_text(encoding="utf-8")


def test_template_renders_as_the_tokenizer_does(family: str) -> None:
    row, tokenizer = _row(family, 0), _tokenizer(family)
    messages = [{"role": m.role, "content": m.content} for m in row.messages]
    for is_prompt in (True, False):
        assert _template(family).render(
            row.messages, add_generation_prompt=is_prompt
        ) == tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=is_prompt
        )


@pytest.mark.parametrize("agent", [0, 1])
def test_every_trained_message_continues_the_prompt_it_was_generated_from(
    family: str, agent: int
) -> None:
    template = _template(family)
    name = ("Alice", "Bob")[agent]
    speaker = Speaker(agent, name, f"You are {name}. Name: the city.", template)
    whole, spans = masks.trained_spans(_row(family, agent), template)
    own = [turn for turn in TURNS if turn.agent == agent]
    assert len(spans) == len(own)
    for turn, span in zip(own, spans, strict=True):
        prompt = speaker.next_prompt(TURNS[: TURNS.index(turn)])
        assert whole[: span.start] + f"{name}:" == prompt
        assert whole[len(prompt) : span.end] == turn.text


def test_labels_are_the_ids_where_trained_and_ignored_elsewhere(family: str) -> None:
    masked, _ = _mask(_row(family, 0), family)
    for token, is_trained, label in zip(
        masked.input_ids, masked.is_trained, masked.labels, strict=True
    ):
        assert label == (token if is_trained else -100)


def test_stop_token_is_trained_although_it_is_the_padding_token(family: str) -> None:
    masked, tokenizer = _mask(_row(family, 0), family)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert masked.labels.count(tokenizer.eos_token_id) == 2


def test_rows_do_not_influence_each_other(family: str) -> None:
    rows = [_row(family, 0), _row(family, 1), _row(family, 0)]
    together = list(masks.tokenize_rows(rows, _template(family), _tokenizer(family)))
    assert together == [_mask(row, family)[0] for row in rows]


def test_partner_that_names_the_speaker_is_not_trained() -> None:
    row = TrainingRow(
        problem_id="p",
        n=0,
        agent=0,
        messages=(
            Message(role="system", content="Alice: hello. Bob: hello."),
            Message(role="assistant", content="Bob: Alice: is that you?"),
            Message(role="assistant", content="Alice: yes"),
        ),
        trained=(2,),
    )
    masked, tokenizer = _mask(row, "chatml")
    kept = [t for t, m in zip(masked.input_ids, masked.is_trained, strict=True) if m]
    assert tokenizer.decode(kept) == "Alice: yes<|im_end|>"


def _pair_row(family: str, agent: int) -> PreferenceRow:
    template = _template(family)
    name = ("Alice", "Bob")[agent]
    speaker = Speaker(agent, name, f"You are {name}. Name: the city.", template)
    history = TURNS[: 1 + (agent == 0)]
    sides = (f"{name}: <A>Århus</A>", f"{name}: Well,\n\nZoë 🙂 lives there.")
    return PreferenceRow(
        problem_id="p",
        agent=agent,
        prompt=speaker.view(history)[0],
        chosen=(Message(role="assistant", content=sides[0]),),
        rejected=(Message(role="assistant", content=sides[1]),),
    )


@pytest.mark.parametrize("agent", [0, 1])
def test_pair_is_the_prompt_of_generation_and_two_utterances_with_their_ends(
    family: str, agent: int
) -> None:
    row, tokenizer = _pair_row(family, agent), _tokenizer(family)
    (pair,) = masks.tokenize_pairs([row], _template(family), tokenizer)
    prompt = _template(family).render(row.prompt, add_generation_prompt=True)
    assert tokenizer.decode(pair.prompt_ids) == prompt
    end = FAMILIES[family][2]
    for ids, side in ((pair.chosen_ids, row.chosen), (pair.rejected_ids, row.rejected)):
        assert tokenizer.decode(ids) == side[0].content + end
        # Side by side they are the tokens of the whole conversation, the template's tail aside.
        whole = _template(family).render((*row.prompt, *side), add_generation_prompt=False)
        tokens = tokenizer(whole, add_special_tokens=False)["input_ids"]
        assert tokens[: len(pair.prompt_ids) + len(ids)] == [*pair.prompt_ids, *ids]
    assert pair.n_longest == len(pair.prompt_ids) + len(pair.rejected_ids)


@pytest.mark.parametrize("agent", [0, 1])
def test_pair_tokens_equal_the_golden_file(family: str, agent: int) -> None:
    tokenizer = _tokenizer(family)
    (pair,) = masks.tokenize_pairs([_pair_row(family, agent)], _template(family), tokenizer)
    parts = {".": pair.prompt_ids, "+": pair.chosen_ids, "-": pair.rejected_ids}
    lines = [
        f"{mark} {token_id:>6} {json.dumps(piece, ensure_ascii=False)}"
        for mark, ids in parts.items()
        for token_id, piece in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)
    ]
    path = GOLDEN / f"pair_{family}_{agent}.txt"
    assert "\n".join(lines) + "\n" == path.read_text(encoding="utf-8")


def test_pair_whose_prompt_is_tokenised_with_its_utterance_is_refused() -> None:
    source = "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}<|im_end|>"
    source += "{% endif %}{% endfor %}"
    template = ChatTemplate(source, {"bos_token": "", "eos_token": "<|im_end|>"}, origin="bare")
    row = PreferenceRow(
        problem_id="p",
        agent=0,
        prompt=(Message(role="user", content="two lamp"),),
        chosen=(Message(role="assistant", content="s are here"),),  # "lamps" is one token
        rejected=(Message(role="assistant", content=" is here"),),
    )
    with pytest.raises(ModelError, match="would not share its prompt"):
        list(masks.tokenize_pairs([row], template, _tokenizer("chatml")))


def test_template_that_rewrites_earlier_messages_is_refused() -> None:
    source = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
        "{% if not loop.last %} (old){% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(ModelError, match="does not continue the prompt"):
        masks.trained_spans(_row("chatml", 0), ChatTemplate(source, {}, origin="m"))


def test_template_that_changes_the_content_is_refused() -> None:
    source = CHATML.replace("m['content']", "m['content'] | replace('lamp', 'lamp post')")
    with pytest.raises(ModelError, match="changes the content of message 1"):
        masks.trained_spans(_row("chatml", 0), ChatTemplate(source, {}, origin="m"))


def test_template_without_an_end_of_turn_is_refused() -> None:
    source = CHATML.replace("<|im_end|>", "")
    template = ChatTemplate(source, {}, origin="m")
    with pytest.raises(ModelError, match="no special token ends an assistant message"):
        list(masks.tokenize_rows([_row("chatml", 1)], template, _tokenizer("chatml")))


def test_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        list(masks.tokenize_rows([_row("chatml", 0)], _template("chatml"), Slow()))

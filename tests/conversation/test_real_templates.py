"""The templates of published models, as TRL brings them: each is proven good or refused."""

import asyncio
import re
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from optima.conversation.codec import ChatCodec, ChatTemplate, Encoder
from optima.conversation.dialogue import Speaker, prove_talk
from optima.errors import ModelError
from tests.conversation.test_token_identity import Spy, dialogue
from tests.talks import NAMES
from tests.tokenizers import tiny_tokenizer

trl = pytest.importorskip("trl")
TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))
REFUSED = {"glm4moe.jinja": "no special token ends an assistant message .*writes '' after it"}
SPECIAL = re.compile(
    r"<[|｜][^<>|｜\s]*[|｜]>|</?s>|<(?:start|end)_of_turn>|<bos>|<eos>|\[/?INST\]|<\|?turn\|?>"
    r"|<turn\|>|<end_of_utterance>|<SPECIAL_\d+>"
)


def codec(path: Path) -> ChatCodec:
    """Return the template with a tokenizer that has its special tokens."""
    source = path.read_text(encoding="utf-8")
    tokenizer = Tokenizer.from_str(tiny_tokenizer().to_str())
    tokenizer.add_special_tokens(sorted({*SPECIAL.findall(source), "<s>", "</s>"}))
    template = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}, origin=path.name)
    return ChatCodec.of(template, Encoder(tokenizer))


def test_there_are_templates_of_many_families() -> None:
    families = {re.split(r"[\d_.]", path.name)[0] for path in TEMPLATES}
    assert {"llama", "qwen", "gemma", "deepseekv", "phi", "gptoss", "cohere"} <= families


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_template_trains_exactly_what_is_sampled_or_is_refused(path: Path) -> None:
    if path.name in REFUSED:
        with pytest.raises(ModelError, match=f"{path.name}: {REFUSED[path.name]}"):
            codec(path)
        return
    made = codec(path)
    prove_talk(made, NAMES[:2])
    everyone = [Speaker(i, name, f"You are {name}.", made) for i, name in enumerate(NAMES)]
    spy = Spy()
    conversation = asyncio.run(dialogue(everyone).converse(spy.complete))
    for speaker in everyone:
        rows, heard = speaker.rows(conversation.turns), spy.by(speaker)
        trained = [row.input_ids[start:stop] for row in rows for start, stop in row.trained]
        assert trained == [said for _, said in heard]
        given = [row.input_ids[:start] for row in rows for start, _ in row.trained]
        assert given == [asked.prompt_ids for asked, _ in heard]
        of_whole_pieces = replace(speaker, codec=replace(made, borders=None))
        assert rows == of_whole_pieces.rows(conversation.turns)

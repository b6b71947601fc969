"""A tiny real tokenizer for tests, which merges across a speaker's label as Llama-3's does.

Byte-level BPE over Llama-3's split of text, trained here on a few sentences: common words are one
or two tokens, and so are ``:<``, ``:(`` and ``:\\n``, which begin in a label and end behind it.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from optima.conversation.codec import ChatCodec, ChatTemplate, Encoder, Roles
from tests.templates import FAMILIES, SPECIAL_TOKENS

VOCABULARY = 900
MERGED = (":<", ":(", ":\n")
SPECIALS = (
    "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>", "<bos>", "<start_of_turn>", "<end_of_turn>",
)  # fmt: skip
# GPT-2's, but that punctuation takes the line breaks after it along.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CORPUS = """\
system user assistant model: You are Alice. You are Bob. You are Carol. You are Ann, Ben and Cleo.
Together with Bob you answer a question. Each of you has notes that nobody else can see.
Your notes: the lamp is in Riga, Turku, Lyon, Graz, Paris or Oslo. Where is it? Name: the city.
Speak in turns and begin every message with "Alice:". Say what your notes tell about the question
and ask for what you lack. Once you are sure, mark the answer, a few words at most, as
<A>answer</A>. The talk ends when the same answer is marked twice in a row. (You speak first.)
I think that the facts I was given point there so let us compare what we know. Yes, it is
<A>Paris</A>. what do you know? Hello. Hi. Bye. one two three Prompt of Alice. Sure? hm, well, no
Alice:<A>Riga</A> Bob:<A>Riga</A> Carol:<A>4</A> Alice:(to Bob) Bob:(to Alice) \\boxed{12}.
Alice:
Bob:
Put the final answer into \\boxed{}: think step by step, and keep it short; the shorter the better.
"""


@cache
def tiny_tokenizer(vocabulary: int = VOCABULARY) -> Tokenizer:
    """Return the tokenizer with the special tokens of all families; nobody may change it."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator([_CORPUS] * 2 + list(MERGED) * 40, trainer)
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


def sentence_tokenizer(*, is_legacy: bool) -> Tokenizer:
    """Return a tokenizer as Llama-2's or Mistral's: a text begins with a space of its own.

    The legacy form puts one at the beginning of every text, the other where there is none yet;
    both leave it out again of what they decode.
    """
    tokenizer = Tokenizer(BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if is_legacy:
        marks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(marks)
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        show_progress=False,
        special_tokens=["<unk>", *(f"<0x{value:02X}>" for value in range(256))],
    )
    tokenizer.train_from_iterator([_CORPUS.replace("\n", " ")] * 2, trainer)
    tree = json.loads(tokenizer.to_str())
    tree["added_tokens"] = []  # the bytes are tokens as all others
    tokenizer = Tokenizer.from_str(json.dumps(tree))
    tokenizer.add_special_tokens(list(SPECIALS))
    return tokenizer


@cache
def encoder() -> Encoder:
    """Return the tokenizer as conversations use it; one for all families."""
    return Encoder(tiny_tokenizer())


def codec(family: str, roles: Roles | Literal["auto"] = "auto") -> ChatCodec:
    """Return the codec of a family of templates."""
    return codec_of(FAMILIES[family], SPECIAL_TOKENS[family], roles=roles, origin=family)


def codec_of(
    source: str,
    special_tokens: dict[str, str] | None = None,
    *,
    roles: Roles | Literal["auto"] = "auto",
    origin: str = "template",
) -> ChatCodec:
    """Return the codec of a template; ModelError where conversations cannot be held with it."""
    template = ChatTemplate(source, special_tokens or {}, roles=roles, origin=origin)
    return ChatCodec.of(template, encoder())


def text_of(ids: Sequence[int]) -> str:
    """Return the text of ids, special tokens in."""
    return str(tiny_tokenizer().decode(list(ids), skip_special_tokens=False))


def write_other_tokenizer(directory: Path) -> None:
    """Write another family's template and another vocabulary into a model's directory."""
    directory.mkdir(exist_ok=True)
    write_tokenizer(directory, "llama3")
    tiny_tokenizer(VOCABULARY // 2).save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(FAMILIES["llama3"])


def write_tokenizer(directory: Path, family: str = "chatml") -> None:
    """Write the tokenizer's files into the directory of a model."""
    tiny_tokenizer().save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(SPECIAL_TOKENS[family]))

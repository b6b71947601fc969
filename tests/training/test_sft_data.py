"""What the trainer of conversations is given: ids, labels and lengths; no model is loaded."""

from pathlib import Path
from typing import Any

from optima.conversation.dialogue import Speaker
from optima.conversation.loading import ModelFiles, load_codec, load_template
from optima.recipe.schema import TrainSection
from optima.training.jobs import TrainJob
from optima.types import ModelRef
from tests.talks import turn
from tests.training.libraries import library
from tests.training.rows import training_row, write_rows

sft = library("optima.training.sft")
transformers = library("transformers")
END = 2  # of SmolLM2's tokenizer, which pads with it as well


def _rows(smollm2: Path, tmp_path: Path, max_length: int = 4096) -> Any:
    codec = load_codec(str(smollm2))
    path = write_rows(tmp_path / "rows.jsonl", [training_row(codec, k) for k in (0, 2, 10_000_000)])
    job = TrainJob(
        model=ModelRef(path=str(smollm2)), rows_path=str(path), output_dir=str(tmp_path),
        train=TrainSection(max_length=max_length), seed=1, device="cpu",
    )  # fmt: skip
    return sft.Rows.read(job.rows_path, job.train.max_length)


def test_labels_are_the_ids_where_trained_and_ignored_elsewhere(
    smollm2: Path, tmp_path: Path
) -> None:
    rows = _rows(smollm2, tmp_path)
    for row, given in zip(rows.rows, rows.dataset(), strict=True):
        assert tuple(given["input_ids"]) == row.input_ids
        places = {i for start, stop in row.trained for i in range(start, stop)}
        expected = [t if i in places else -100 for i, t in enumerate(row.input_ids)]
        assert given["labels"] == expected
    assert rows.n_loss_tokens == sum(b - a for row in rows.rows for a, b in row.trained)


def test_stop_token_is_trained_although_it_is_the_padding_token(
    smollm2: Path, tmp_path: Path
) -> None:
    rows = _rows(smollm2, tmp_path)
    assert transformers.AutoTokenizer.from_pretrained(smollm2).pad_token_id == END
    collator = sft.DataCollatorForLanguageModeling(pad_token_id=END)
    batch = collator(list(rows.dataset()))
    for labels, ids, row in zip(batch["labels"], batch["input_ids"], rows.rows, strict=True):
        n = len(row.input_ids)
        assert labels.tolist()[n:] == [-100] * (len(ids) - n)  # padding
        assert labels.tolist().count(END) == 2  # Alice said two things
    assert {len(row.input_ids) for row in rows.rows} != {batch["input_ids"].shape[1]}


def test_rows_that_fit_are_whole_and_the_others_are_counted(smollm2: Path, tmp_path: Path) -> None:
    everything = _rows(smollm2, tmp_path)
    lengths = [len(row.input_ids) for row in everything.rows]
    assert lengths[2] > max(lengths[:2])
    fitting = _rows(smollm2, tmp_path, max_length=max(lengths[:2]))
    assert (everything.n_dropped, fitting.n_dropped) == (0, 1)
    assert fitting.rows == everything.rows[:2]  # none is cut


def test_first_token_of_a_row_is_no_trained_one_as_nothing_is_before_it() -> None:
    bare = sft.TrainingRow(
        problem_id="p", n=0, agent=0, input_ids=(5, 6, 7), trained=((0, 2),), n_utterances=1,
        n_retokenised=0,
    )  # fmt: skip
    assert sft.Rows((bare,), 0).n_loss_tokens == 1


def test_template_and_tokenizer_are_used_as_their_library_does(smollm2: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2)
    codec = load_codec(str(smollm2))
    alice = Speaker(0, "Alice", "You are Alice. Zoë 🙂 lives in Århus.", codec)
    messages, _ = alice.view([turn(0, " The lamp\n\nis where?"), turn(1, " In <A>Riga</A>.")])
    plain = [message.model_dump() for message in messages]
    text = theirs.apply_chat_template(plain, tokenize=False, add_generation_prompt=False)
    assert load_template(ModelFiles(str(smollm2))).render(messages) == text
    assert list(codec.encoder.encode(text)) == theirs(text, add_special_tokens=False)["input_ids"]
    assert codec.end_token == theirs.eos_token_id

"""The losses of both trainers do not depend on how a step's rows are split over forwards.

Real trainings of a tiny model with random weights, in this process; the expected numbers come from
one plain forward a row.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from optima.recipe.schema import DpoSection, TrainSection
from optima.search.pairs import preference_row
from optima.training.jobs import TrainJob, TrainResult
from optima.trainset import conversation_rows
from optima.types import ModelRef, PreferencePair, PreferenceRow, TrainingRow
from tests.fields import unread_fields
from tests.talks import ids_of, speakers, turn
from tests.tokenizers import write_tokenizer
from tests.training.libraries import library
from tests.training.rows import write_rows

torch = library("torch")
transformers = library("transformers")
accelerate = library("accelerate")
dpo = library("optima.training.dpo")
sft = library("optima.training.sft")

# Of very different lengths: a mean over all tokens is far from the mean of the rows' means.
TEXTS = (
    "<A>Riga</A>", " I think that the facts I was given point there so let us compare it all.",
    " Yes.", " one two three", " the lamp is in Turku, and it is hm, well, no: Oslo. " * 3,
    "<A>Graz</A>", " Where is it?",
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a tiny model."""
    directory = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=1000, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.5,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    write_tokenizer(directory)
    return directory


def _pair(k: int) -> PreferenceRow:
    return preference_row(
        PreferencePair(
            problem_id=f"p{k}", parent=1, history=(turn(1, " Where is the lamp?"),),
            chosen=turn(0, TEXTS[k], ids=ids_of(TEXTS[k])), rejected=turn(0, " what do you know?"),
            chosen_value=1.0, rejected_value=0.0,
        ),
        speakers(),
    )  # fmt: skip


def _row(k: int) -> TrainingRow:
    talk = (turn(0, TEXTS[k], ids=ids_of(TEXTS[k])), turn(1, " Yes."))
    return conversation_rows(f"p{k}", 0, talk, speakers()[:1])[0]


def _train(
    tiny: Path,
    output: Path,
    rows: "list[PreferenceRow] | list[TrainingRow]",
    **train: object,
) -> TrainResult:
    """Train so slowly that every step's loss is that of the start model."""
    is_dpo = isinstance(rows[0], PreferenceRow)
    output.mkdir()
    options = {
        "learning_rate": 1e-12, "epochs": 1.0, "batch_size": len(rows), "dtype": "float32",
        "gradient_checkpointing": False, "batching": "plain", **train,
    }  # fmt: skip
    job = TrainJob(
        model=ModelRef(path=str(tiny)), rows_path=str(write_rows(output / "rows.jsonl", rows)),
        output_dir=str(output), train=TrainSection.model_validate(options), seed=3, device="cpu",
        dpo=DpoSection(nll_weight=0.5) if is_dpo else None,
    )  # fmt: skip
    accelerate.PartialState(cpu=True)
    result: TrainResult = (dpo if is_dpo else sft).run(job)
    return result


def _losses(tiny: Path, ids: Sequence[int]) -> Any:
    """Return the loss of every token after the first."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    with torch.no_grad():
        logs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return -logs.gather(1, torch.tensor(ids)[1:, None])[:, 0]


def _mean_of_pairs(tiny: Path, pairs: Sequence[PreferenceRow]) -> float:
    """Return the mean over pairs of the chosen utterance's loss per token of its own."""
    means = []
    for pair in pairs:
        each = _losses(tiny, (*pair.prompt_ids, *pair.chosen_ids))[len(pair.prompt_ids) - 1 :]
        means.append(float(each.mean()))
    assert max(means) > 1.2 * min(means)
    return sum(means) / len(means)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3, 6])
def test_likelihood_of_a_pair_is_divided_by_its_own_length(
    micro_batch_size: int, tiny: Path, tmp_path: Path
) -> None:
    pairs = [_pair(k) for k in range(6)]
    result = _train(tiny, tmp_path / "out", pairs, micro_batch_size=micro_batch_size)
    assert result.n_steps == 1
    # Before anything is learnt both log-ratios are 0: -log sigmoid(0) + 0.5 * NLL
    expected = math.log(2) + 0.5 * _mean_of_pairs(tiny, pairs)
    assert result.train_loss == pytest.approx(expected, rel=1e-4)


def test_pairs_of_a_last_and_smaller_step_count_alike(tiny: Path, tmp_path: Path) -> None:
    # 7 pairs in steps of 4 and 3; in forwards of 2 the last step is one of 2 and one of 1.
    pairs = [_pair(k) for k in range(7)]
    losses = [
        _train(tiny, tmp_path / f"by{n}", pairs, batch_size=4, micro_batch_size=n).train_loss
        for n in (1, 2, 4)
    ]
    assert losses == [pytest.approx(losses[0], rel=1e-5)] * 3


@pytest.mark.parametrize("micro_batch_size", [1, 2, 6])
def test_supervised_loss_is_the_mean_over_all_trained_tokens_of_a_step(
    micro_batch_size: int, tiny: Path, tmp_path: Path
) -> None:
    rows = [_row(k) for k in range(6)]
    result = _train(tiny, tmp_path / "out", rows, micro_batch_size=micro_batch_size)
    assert result.n_steps == 1
    each = [
        _losses(tiny, row.input_ids)[start - 1 : stop - 1]
        for row in rows
        for start, stop in row.trained
    ]
    assert result.train_loss == pytest.approx(float(torch.cat(each).mean()), rel=1e-4)


# Asked for before the training's process starts, or by the other training.
_ELSEWHERE = {"train.start", "train.eval_share", "train.parallelism", "train.timeout_s"}


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_training_asks_for_every_field_of_how_to_train(
    kind: str, tiny: Path, tmp_path: Path
) -> None:
    lora = {"rank": 2, "alpha": 4}
    rows = [_pair(k) for k in range(3)] if kind == "dpo" else [_row(k) for k in range(3)]
    with unread_fields() as unread:
        _train(tiny, tmp_path / "out", rows, lora=lora)
    own = {"train.batching"} if kind == "dpo" else {k for k in unread if k.startswith("dpo.")}
    # What dpo names takes the place of the same field of train before the process starts.
    own |= {f"dpo.{name}" for name in DpoSection.model_fields if name in TrainSection.model_fields}
    found = {key for key in unread if key.startswith(("train.", "dpo."))}
    assert found - own - _ELSEWHERE == set()

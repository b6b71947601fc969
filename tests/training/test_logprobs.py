"""What a training writes of its model's log-probabilities: real trainings of a tiny model."""

from pathlib import Path

import pytest

from optima.errors import StageError
from optima.recipe.schema import DpoSection, TrainSection
from optima.search.pairs import preference_row
from optima.serving.probe import difference, read_logprobs
from optima.training.jobs import LOGPROBS_FILE, Logprobs, TrainJob
from optima.trainset import conversation_rows
from optima.types import ModelRef, PreferencePair, PreferenceRow, TrainingRow
from tests.talks import ids_of, speakers, turn
from tests.tokenizers import write_tokenizer
from tests.training.libraries import library
from tests.training.rows import write_rows

torch = library("torch")
transformers = library("transformers")
accelerate = library("accelerate")
peft = library("peft")
dpo = library("optima.training.dpo")
sft = library("optima.training.sft")
policy = library("optima.training.policy")

TEXT = " The lamp is in Riga, as I was told." * 9 + " <A>Riga</A>"  # over 64 tokens
TALK = (turn(0, TEXT, ids=ids_of(TEXT)), turn(1, " Yes."))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a tiny model in bfloat16."""
    directory = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=1000, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(directory)
    write_tokenizer(directory)
    return directory


def _row() -> TrainingRow:
    return conversation_rows("p", 0, TALK, speakers()[:1])[0]


def _pair() -> PreferenceRow:
    return preference_row(
        PreferencePair(
            problem_id="p", parent=1, history=(turn(1, " Where is the lamp?"),),
            chosen=TALK[0], rejected=turn(0, " what do you know?"),
            chosen_value=1.0, rejected_value=0.0,
        ),
        speakers(),
    )  # fmt: skip


def _train(tiny: Path, output: Path, kind: str, lora: str | None) -> ModelRef:
    output.mkdir(exist_ok=True)
    rows: list[TrainingRow] | list[PreferenceRow] = [_pair()] if kind == "dpo" else [_row()]
    options = {
        "learning_rate": 0.02, "epochs": 3.0, "batch_size": 1, "dtype": "float32",
        "gradient_checkpointing": False, "batching": "plain", "max_loss_growth": 1000.0,
        "lora": {"rank": 4, "alpha": 8, "serve": lora} if lora else None,
    }  # fmt: skip
    job = TrainJob(
        model=ModelRef(path=str(tiny)), rows_path=str(write_rows(output / "rows.jsonl", rows)),
        output_dir=str(output), train=TrainSection.model_validate(options), seed=3, device="cpu",
        dpo=DpoSection() if kind == "dpo" else None,
    )  # fmt: skip
    accelerate.PartialState(cpu=True)
    ref: ModelRef = (dpo if kind == "dpo" else sft).run(job).model
    return ref


def _independent(ref: ModelRef, ids: tuple[int, ...]) -> list[float]:
    """Return the log-probabilities of a plain forward of what lies on the disk."""
    model = transformers.AutoModelForCausalLM.from_pretrained(ref.path, dtype=torch.bfloat16)
    if ref.adapter is not None:
        model = peft.PeftModel.from_pretrained(model, ref.adapter)
    with torch.no_grad():
        logs = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return [float(logs[k, ids[k + 1]]) for k in range(len(ids) - 1)]


@pytest.mark.parametrize("lora", [None, "merged", "adapter"])
@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_training_writes_the_log_probabilities_of_the_model_in_the_folder(
    kind: str, lora: str | None, tiny: Path, tmp_path: Path
) -> None:
    ref = _train(tiny, tmp_path / "train", kind, lora)
    found = read_logprobs(Path(ref.place))
    assert found is not None
    pair = _pair()
    row = _row().input_ids if kind == "sft" else pair.prompt_ids + pair.chosen_ids
    assert len(row) > 64
    assert found.token_ids == (row[0], *row[-63:])
    trained = _independent(ref, found.token_ids)
    # An adapter is merged for it in bfloat16; elsewhere the values are the same to four places.
    assert found.trained == pytest.approx(trained, abs=0.3 if lora == "adapter" else 1e-4)
    assert found.start == pytest.approx(
        _independent(ModelRef(path=str(tiny)), found.token_ids), abs=1e-4
    )
    assert difference(trained, found) is None
    assert "old weights" in str(difference(found.start, found))


def test_model_that_cannot_run_on_a_cpu_is_trained_all_the_same_and_says_so(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lacks_a_kernel(*_: object, **__: object) -> None:
        raise NotImplementedError("no kernel for CPU")

    (tmp_path / "train").mkdir()
    (tmp_path / "train" / LOGPROBS_FILE).write_text("of an earlier training")
    monkeypatch.setattr("optima.training.policy.token_logprobs", lacks_a_kernel)
    ref = _train(tiny, tmp_path / "train", "sft", None)
    assert (Path(ref.path) / "model.safetensors").is_file()
    assert read_logprobs(Path(ref.path)) is None
    assert "no server of it is compared with it" in caplog.text


def test_log_probability_that_is_no_number_is_a_lost_model(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "optima.training.policy.token_logprobs", lambda *_: torch.tensor([-1.0, float("nan")])
    )
    with pytest.raises(StageError, match="log-probability of a row is not finite at the end"):
        _train(tiny, tmp_path / "train", "sft", None)
    assert not (tmp_path / "train" / "model").exists()


def test_log_probabilities_are_read_back_as_they_were_written() -> None:
    found = Logprobs(token_ids=(1, 2, 3), trained=(-0.5, -1.25), start=(-2.0, -3.0))
    assert Logprobs.model_validate_json(found.model_dump_json()) == found

"""Training rows token by token, of a stored run and of a tokenizer that cuts characters."""

import json
import re
import shutil
import tempfile
from pathlib import Path

import pytest

from optima.cli.main import main
from optima.errors import UsageError
from optima.processes.environment import Environment
from optima.reporting.rows import read_rows
from optima.runs.comparison import find_trained
from optima.runs.reader import Run
from optima.types import TrainingRow
from tests.commands import command
from tests.fake_runs import run as train
from tests.fakes import commands, fake_environment
from tests.tokenizers import encoder

TRAINING = Path(__file__).parents[1] / "data/runs/training"
ENCODERS = dict.fromkeys(("Alice", "Bob"), encoder())
TOLD = "Both of you are asked"


@pytest.mark.parametrize("text", ["Riga", "Łódź, 東京 and 🜁", "<|im_end|>x<|im_end|>", ""])
def test_pieces_are_all_ids_in_order_and_all_of_the_text(text: str) -> None:
    ids = encoder().encode_once(text)
    pieces = encoder().pieces(ids)
    assert tuple(index for held, _ in pieces for index in held) == ids
    assert "".join(shown for _, shown in pieces) == text
    assert all(len(held) == 1 for held, shown in pieces if shown.isascii())


def test_bytes_that_are_no_text_are_shown_and_do_not_swallow_what_follows() -> None:
    (half, *_) = encoder().encode_once("🜁")
    pieces = encoder().pieces((half, *encoder().encode_once("<|im_end|>Riga"), half))
    assert [text for _, text in pieces][1] == "<|im_end|>"
    assert pieces[0][0] == pieces[-1][0] == (half,)


@pytest.mark.parametrize(
    ("label", "parts"),
    [("cold_start", ["row"]), ("iter_0_sft", ["row"]), ("iter_0_dpo", ["chosen", "rejected"])],
)
def test_what_carries_loss_is_what_the_row_says(label: str, parts: list[str]) -> None:
    run = Run(TRAINING)
    shown = read_rows(run, label, 1, 1, ENCODERS)
    assert [row.part for row in shown] == parts
    for row in shown:
        trained = [piece for piece in row.pieces if piece.is_trained]
        assert "".join(piece.text for piece in trained).endswith("<|im_end|>")
        assert not any(TOLD in piece.text for piece in trained)
        text = row.text()
        assert text.startswith(f"{label}, row 1, {row.part}: {row.problem_id} as ")
        assert text.count("\u27e6") == text.count("\u27e7") >= 1
        marked = text.partition("\u27e6")[2].partition("\u27e7")[0]
        assert "You are" not in marked
        n = sum(len(piece.ids) for piece in trained)
        assert f"; {n} of {sum(len(piece.ids) for piece in row.pieces)} tokens carry" in text


def test_rows_past_the_last_and_models_that_are_none_are_named() -> None:
    run, label = find_trained(str(TRAINING))
    assert label == "iter_0_dpo"
    n_rows = sum(1 for _ in run.rows(label))
    with pytest.raises(UsageError, match=f"--first 99: iter_0_dpo was trained on {n_rows} rows"):
        read_rows(run, label, 99, 1, ENCODERS)
    with pytest.raises(UsageError, match="has trained no base; it has cold_start, iter_0_sft"):
        find_trained(f"{TRAINING}:base")
    with pytest.raises(UsageError, match="has trained no model yet"):
        find_trained(str(TRAINING.parent / "inference"))


def test_rows_of_a_model_that_is_gone_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rows", str(TRAINING)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "/made/model" in line


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Environment]:
    """Return a run of one iteration over stand-ins, and their environment."""
    directory = tmp_path_factory.mktemp("trained")
    environment = fake_environment(directory)
    train(directory, environment, "iterations=1", "cold_start=null", "data.n_test=1")
    return directory / "run", environment


def rows(trained: tuple[Path, Environment], *words: str) -> tuple[int, str, str]:
    root, environment = trained
    return command(
        "optima", "rows", f"{root}:iter_0", "--train-env", str(environment.prefix), *words
    )


def test_each_token_that_carries_loss_stands_beside_its_loss(
    trained: tuple[Path, Environment],
) -> None:
    root, environment = trained
    n_before = len(commands(environment))
    words = ("--n", "2", "--losses", f"{root}:base")
    status, out, err = rows(trained, *words, "--json")
    assert status == 0, err
    shown = json.loads(out)
    stored = list(Run(root).rows("iter_0"))[:2]
    for row, one in zip(shown, stored, strict=True):
        assert isinstance(one, TrainingRow)
        ids = [index for piece in row["pieces"] for index in piece["ids"]]
        assert tuple(ids) == one.input_ids
        trained_ids = [index for start, end in one.trained for index in ids[start:end]]
        of_trained = [p for p in row["pieces"] if p["is_trained"]]
        # the stand-in's loss of a token is a function of its id: each stands beside its own
        losses = [loss for piece in of_trained for loss in piece["losses"]]
        assert losses == [index % 64 / 16 for index in trained_ids]
        assert row["loss"] == pytest.approx(sum(losses) / len(losses))
        assert all(not p["losses"] for p in row["pieces"] if not p["is_trained"])
    text = rows(trained, *words)[1]
    assert f"; mean loss {shown[0]['loss']:.4f} nats\n" in text
    begun = next(p for p in shown[0]["pieces"] if p["is_trained"])
    assert f"\u27e6{begun['text']}\u2039{sum(begun['losses']):.2f}\u203a\u00b7" in text
    asked = [argv for argv in commands(environment)[n_before:] if "optima.training.score" in argv]
    assert len(asked) == 2
    assert asked[0][asked[0].index("--model") + 1] == str(root.parent / "model")


def test_model_of_a_run_is_asked_as_it_was_trained_and_fields_change_how(
    trained: tuple[Path, Environment],
) -> None:
    root, environment = trained
    status, _, err = rows(trained, "--losses", str(root), "model.dtype=float32")
    assert status == 0, err
    argv = commands(environment)[-1]
    assert argv[argv.index("--model") + 1] == str(root / "iter_0/train/model")
    assert argv[argv.index("--dtype") + 1] == "float32"


def test_log_that_a_failure_names_is_still_there(
    trained: tuple[Path, Environment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = fake_environment(tmp_path, score_dies_after=0)
    root, _ = trained
    status, _, err = rows((root, environment), "--losses", f"{root}:base")
    assert status == 1
    logs = re.findall(r"/\S+\.log", err)
    assert logs
    assert all(Path(log).is_file() for log in logs)


def test_losses_under_another_tokenizer_are_refused(
    trained: tuple[Path, Environment], tmp_path: Path
) -> None:
    root, _ = trained
    other = tmp_path / "other"
    shutil.copytree(root.parent / "model", other)
    tokenizer = other / "tokenizer.json"
    tree = json.loads(tokenizer.read_text())
    row = next(iter(Run(root).rows("iter_0")))
    assert isinstance(row, TrainingRow)
    first = row.input_ids[0]
    (name,) = (one["content"] for one in tree["added_tokens"] if one["id"] == first)
    tokenizer.write_text(tokenizer.read_text().replace(json.dumps(name)[1:-1], "<|other|>"))
    status, out, err = rows(trained, "--losses", str(other))
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line == (
        f"optima: --losses {other}: reads token {first} as '<|other|>', and the rows hold "
        f"{name!r}; give a model with the tokenizer of the one trained"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("serving.device=cpu",), "serving.device=cpu: is not expected here, where no loss is "),
        (("extra",), "extra: is not expected here, where no loss is computed; name --losses MODEL"),
        (("--losses", "MODEL", "iterations=9"), "iterations=9: changes no loss; change fields of"),
        (("--losses", "MODEL", "model.path=x"), "model.path=x: changes no loss; change fields of"),
        (("--losses", "MODEL", "--losses", "x"), "--losses: is given twice; give it once"),
        (("--losses", "none"), "none: is neither a directory, nor a run's model"),
        (("--losses", "MODEL", "serving.devise=cpu"), "unknown key (did you mean device?)"),
    ],
)
def test_wrong_input_about_losses_is_one_line(
    words: tuple[str, ...], message: str, trained: tuple[Path, Environment]
) -> None:
    model = str(trained[0].parent / "model")
    status, out, err = rows(trained, *(model if word == "MODEL" else word for word in words))
    (line,) = err.splitlines()
    assert (status, out) == (2, "")
    assert message in line

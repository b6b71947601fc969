"""Training rows token by token, of a stored run and of a tokenizer that cuts characters."""

from pathlib import Path

import pytest

from optima.cli.main import main
from optima.errors import UsageError
from optima.reporting.rows import read_rows
from optima.runs.comparison import find_trained
from optima.runs.reader import Run
from tests.tokenizers import encoder

TRAINING = Path(__file__).parents[1] / "data/runs/training"
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
    shown = read_rows(run, label, 1, 1, encoder())
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
        read_rows(run, label, 99, 1, encoder())
    with pytest.raises(UsageError, match="has trained no base; it has cold_start, iter_0_sft"):
        find_trained(f"{TRAINING}:base")
    with pytest.raises(UsageError, match="has trained no model yet"):
        find_trained(str(TRAINING.parent / "inference"))


def test_rows_of_a_model_that_is_gone_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rows", str(TRAINING)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "/made/model" in line

"""Preferences as files of the common conversational format."""

import json
from pathlib import Path

import pytest

from optima.errors import DataError
from optima.search.pairs import export_lines, read_conversational, to_conversational
from optima.types import Message, PreferenceRow
from tests.tokenizers import codec, encoder, text_of

CODEC = codec("chatml")
PROMPT = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nAda: né?<|im_end|>\n"
ROW = PreferenceRow(
    problem_id="p/1",
    agent=1,
    prompt=(Message(role="system", content="Be brief."), Message(role="user", content="Ada: né?")),
    chosen=(Message(role="assistant", content="Bob: yes"),),
    rejected=(Message(role="assistant", content="Bob: well, no"),),
    prompt_ids=(1, 2),
    chosen_ids=(3,),
    rejected_ids=(4,),
    n_retokenised=0,
)
LINE = json.loads(next(iter(export_lines([ROW]))))


def test_exported_lines_hold_the_three_sides_and_nothing_else() -> None:
    assert LINE == {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Ada: né?"},
        ],
        "chosen": [{"role": "assistant", "content": "Bob: yes"}],
        "rejected": [{"role": "assistant", "content": "Bob: well, no"}],
    }
    assert to_conversational(ROW) == LINE
    assert "Ada: né?" in next(iter(export_lines([ROW])))  # as text, not as escapes


def test_what_was_exported_is_imported_equal(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join([*export_lines([ROW, ROW]), ""]), encoding="utf-8")
    rows = read_conversational(path, CODEC)
    assert [(r.prompt, r.chosen, r.rejected) for r in rows] == [
        (ROW.prompt, ROW.chosen, ROW.rejected)
    ] * 2
    assert len({r.problem_id for r in rows}) == 2


def test_imported_sides_are_tokenised_after_their_prompt_with_their_ends_of_turn(
    tmp_path: Path,
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(export_lines([ROW])), encoding="utf-8")
    (row,) = read_conversational(path, CODEC)
    assert text_of(row.prompt_ids) == PROMPT + "<|im_start|>assistant\n"
    end = CODEC.end_token
    assert row.chosen_ids == (*encoder().encode("Bob: yes"), end)
    assert row.rejected_ids == (*encoder().encode("Bob: well, no"), end)
    assert row.n_retokenised == 2


def test_other_ends_of_lines_in_texts_are_no_ends_of_rows(tmp_path: Path) -> None:
    text = "Bob: one\u2028two\u0085three\x0bfour\rfive"
    row = ROW.model_copy(update={"chosen": (Message(role="assistant", content=text),)})
    path = tmp_path / "pairs.jsonl"
    path.write_bytes("".join(export_lines([row, ROW])).encode())
    assert [r.chosen[0].content for r in read_conversational(path, CODEC)] == [text, "Bob: yes"]


def test_bytes_that_are_no_text_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(json.dumps(LINE).encode() + b"\n\xff\xfe{}\n")
    with pytest.raises(DataError, match=r"pairs\.jsonl:2: is not a preference"):
        read_conversational(path, CODEC)


def test_further_keys_of_other_projects_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    line = LINE | {"score_chosen": 9.0}
    line["chosen"] = [{**LINE["chosen"][0], "name": "x"}]
    path.write_text(json.dumps(line))
    assert read_conversational(path, CODEC)[0].chosen == ROW.chosen


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": "yes"}, "is not a preference"),
        ({"chosen": []}, "chosen: no message"),
        ({"rejected": [{"role": "user", "content": "x"}]}, "rejected: role user"),
        ({"prompt": []}, "prompt: is empty"),
        ({"prompt": [{"role": "pope", "content": "x"}]}, "is not a preference"),
    ],
)
def test_wrong_line_is_named(change: dict[str, object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(LINE) + "\n" + json.dumps(LINE | change))
    with pytest.raises(DataError, match=f"pairs.jsonl:2: .*{message}"):
        read_conversational(path, CODEC)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"prompt": []}', json.dumps(LINE)[:-1] + ', "chosen": []}']
)
def test_line_that_is_no_such_object_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=r"pairs\.jsonl:1: is not a preference \(\w+Error\("):
        read_conversational(path, CODEC)


def test_missing_file_names_the_field(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read .*pairs\.path"):
        read_conversational(tmp_path / "nothing.jsonl", CODEC)

"""The files that a training and its run exchange."""

from pathlib import Path

from optima.records import read_records
from optima.types import Message, PreferenceRow


def test_rows_whose_texts_hold_other_ends_of_lines_are_read_whole(tmp_path: Path) -> None:
    # str.splitlines cuts at each of these, and training then failed on half a row.
    text = "Alice: one\u2028two\u2029three\u0085four"
    row = PreferenceRow(
        problem_id="p",
        agent=0,
        prompt=(Message(role="user", content=text),),
        chosen=(Message(role="assistant", content=text),),
        rejected=(Message(role="assistant", content="Alice: no"),),
        prompt_ids=(1, 2),
        chosen_ids=(3,),
        rejected_ids=(4,),
        n_retokenised=2,
    )
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(row.model_dump_json() + "\n" for _ in range(2)), encoding="utf-8")
    assert list(read_records(path, PreferenceRow)) == [row, row]

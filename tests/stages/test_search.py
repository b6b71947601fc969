"""The rounds of trees on disk."""

from pathlib import Path

import pytest

from optima.errors import StageError
from optima.stages.search import StoredRounds, keep_sound_rounds
from optima.types import RewardParts, Rollout, TreeRound


def _round(problem_id: str, number: int, *, has_failed: bool = False) -> TreeRound:
    reward = RewardParts(
        problem_id=problem_id, n=number, task=0.0, token=0.0, loss=None, loss_term=0.0, total=None,
        n_tokens=0, is_eligible=False, error="gone" if has_failed else None,
    )  # fmt: skip
    stop = "error" if has_failed else "max_turns"
    return TreeRound.model_validate(
        {
            "problem_id": problem_id, "number": number, "expanded": 0, "nodes": (),
            "rollouts": (Rollout.model_validate(
                {"n": number, "node_id": 0, "stop_reason": stop, "reward": reward}
            ),),
            "n_merged": 0, "n_tokens": number,
        }
    )  # fmt: skip


def _write(path: Path, *rounds: TreeRound, tail: str = "") -> Path:
    path.write_text("".join(r.model_dump_json() + "\n" for r in rounds) + tail)
    return path


def test_rounds_of_a_tree_are_read_in_their_order_whatever_lies_between(tmp_path: Path) -> None:
    again = _round("a", 1).model_copy(update={"n_tokens": 99})
    path = _write(tmp_path / "r", _round("a", 1), _round("b", 0), _round("a", 0), again)
    stored = StoredRounds(path)
    assert stored["a"] == (_round("a", 0), _round("a", 1))
    assert (stored.n_rounds("a"), stored.n_rounds("b"), stored.n_rounds("c")) == (2, 1, 0)
    assert stored.get("c", ()) == ()
    assert len(stored) == 2


def test_what_follows_a_failed_or_missing_round_leaves_the_file(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "r", _round("failed", 0), _round("failed", 1, has_failed=True),
        _round("failed", 2), _round("torn", 0), _round("torn", 2), tail='{"problem_id": "x'
    )  # fmt: skip
    lost: list[int] = []
    stored = keep_sound_rounds(path, lost.append)
    assert dict(stored) == {"failed": (_round("failed", 0),), "torn": (_round("torn", 0),)}
    assert len(path.read_text().splitlines()) == 2
    assert sorted(lost) == [1, 2, 2]  # rounds 1 and 2 of one tree, round 2 of the other
    assert dict(keep_sound_rounds(tmp_path / "new", lost.append)) == {}


def test_line_that_is_no_round_is_named(tmp_path: Path) -> None:
    path = _write(tmp_path / "r", _round("a", 0), tail="{}\n")
    with pytest.raises(StageError, match="r:2: not a TreeRound record"):
        StoredRounds(path)

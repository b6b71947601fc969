"""The trees that a page shows, of the many that a search grew."""

import json
from pathlib import Path

import pytest

from optima.records import write_records
from optima.reporting.archive import Archive
from optima.reporting.trees import Trees
from optima.runs.reader import Run
from optima.types import DialogueTree, PreferencePair, Rollout, TreeNode, TreeRound, Turn
from tests.reporting.made import Maker, reward_parts

N_TREES = 6


def turn(text: str) -> Turn:
    return Turn(
        agent=0, name="Alice", text=text, answer="a", n_prompt_tokens=9, n_tokens=5,
        finish_reason="stop", seconds=0.1,
    )  # fmt: skip


def tree_round(p: int, number: int) -> TreeRound:
    """Return a round with a good and a bad child of the root."""
    first = 2 * number + 1
    nodes = tuple(
        TreeNode(node_id=first + k, parent=0, turn=turn(f"{word} {number}"))
        for k, word in enumerate(("good", "bad"))
    )
    rollouts = tuple(
        Rollout(
            n=first + k - 1, node_id=first + k, stop_reason="agreement",
            reward=reward_parts(p, first + k - 1, 1.0 - k, 5),
        )
        for k in range(2)
    )  # fmt: skip
    return TreeRound(
        problem_id=f"p{p}", number=number, expanded=0, nodes=nodes, rollouts=rollouts, n_merged=0,
        n_tokens=10,
    )  # fmt: skip


@pytest.mark.parametrize("is_growing", [False, True])
def test_first_trees_are_shown_and_the_others_counted(tmp_path: Path, is_growing: bool) -> None:
    run = Maker(tmp_path / "run", method="dpo")
    folder = run.stage("iter_1/search")
    rounds = [[tree_round(p, number) for number in range(2)] for p in range(N_TREES)]
    if is_growing:  # round by round, all trees in turn
        write_records(folder / "rounds.jsonl", (of[k] for k in range(2) for of in rounds))
    else:
        trees = (DialogueTree(problem_id=of[0].problem_id, rounds=tuple(of)) for of in rounds)
        write_records(folder / "trees.jsonl", trees)
        pairs = (
            PreferencePair(
                problem_id=f"p{p}", parent=0, history=(), chosen=turn("good 0"),
                rejected=turn("bad 1"), chosen_value=1.0, rejected_value=0.0,
            )
            for p in range(1, N_TREES)
        )  # fmt: skip
        write_records(run.stage("iter_1/pairs") / "pairs.jsonl", pairs)
    archive = Archive([Run(tmp_path / "run")])
    shown = Trees(archive, n_most=2)
    assert (len(shown), shown.n_left_out) == (2, N_TREES - 2)
    everything = Trees(archive)
    assert (len(everything), everything.n_left_out) == (N_TREES, 0)
    assert shown.lines() == everything.lines()[:2]
    lines = shown.lines()
    assert [(one["title"], one["rounds"], one["nodes"], one["best"]) for one in lines] == [
        ("p0", 2, 4, 1.0), ("p1", 2, 4, 1.0)
    ]  # fmt: skip
    assert [one["pairs"] for one in lines] == ([0, 0] if is_growing else [0, 1])
    if not is_growing:
        drawn = [json.loads(shown.tree(number))["pairs"] for number in range(2)]
        assert [pair["is_trained"] for pairs in drawn for pair in pairs] == [False, True]
        assert shown.tree(1) == everything.tree(1)

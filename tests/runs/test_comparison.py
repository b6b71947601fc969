"""The problems behind the difference of two models of a stored training."""

import json
from pathlib import Path

import pytest

from optima.cli.main import main
from optima.runs.comparison import compare, decided

TRAINING = Path(__file__).parents[1] / "data/runs/training"
GAINED, LOST = "hotpot_qa-ee62082c798824f4", "hotpot_qa-98ffe3b3b3cd83d9"


def test_problems_behind_a_difference_are_those_with_other_scores() -> None:
    first, other, same = compare([f"{TRAINING}:base", f"{TRAINING}:iter_0_dpo", f"{TRAINING}:base"])
    found = decided(first, other)
    assert {one.problem.problem_id: one.gain for one in found} == {GAINED: 1.0, LOST: -1.0}
    lost, gained = found  # equal differences stand by their ids
    assert (lost.scores, gained.scores) == ((1.0, 0.0), (0.0, 1.0))
    said = {
        one.conversation.problem_id: one for one in other.run.evaluation("iter_0_dpo")
    }  # fmt: skip
    assert gained.answers[1] == said[GAINED].conversation.answer == "Ida"
    assert gained.tokens[1] == said[GAINED].conversation.n_tokens
    assert decided(first, same) == ()


def test_command_lists_who_won_and_who_lost(capsys: pytest.CaptureFixture[str]) -> None:
    specs = (f"{TRAINING}:base", f"{TRAINING}:iter_0_dpo")
    assert main(["compare", *specs]) == 0
    plain = capsys.readouterr().out
    assert GAINED not in plain
    assert main(["compare", *specs, "--problems", "3"]) == 0
    listed = capsys.readouterr().out
    assert listed.startswith(plain.rstrip("\n"))
    better, worse = listed.removeprefix(plain.rstrip("\n")).split(f"{specs[1]} is worse than")
    assert f"{specs[1]} is better than {specs[0]} on 1 problems; 1 of them" in better
    assert [name in better for name in (GAINED, LOST)] == [True, False]
    assert [name in worse for name in (GAINED, LOST)] == [False, True]


def test_comparison_is_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    specs = (f"{TRAINING}:base", f"{TRAINING}:iter_0_dpo")
    assert main(["compare", *specs, "--problems", "1", "--json"]) == 0
    first, other = json.loads(capsys.readouterr().out)["models"]
    assert first["score_difference"] is None
    assert "better" not in first
    assert other["score_difference"]["mean"] == 0.0
    assert [one["problem_id"] for one in other["better"]] == [GAINED]
    assert [one["scores"] for one in other["worse"]] == [[1.0, 0.0]]

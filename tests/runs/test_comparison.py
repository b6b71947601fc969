"""The problems behind the difference of two models of a stored training."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from optima.cli.main import main
from optima.runs.comparison import compare, decided
from optima.runs.layout import file_digest
from optima.runs.reader import Run

TRAINING = Path(__file__).parents[1] / "data/runs/training"
GAINED, LOST = "hotpot_qa-ee62082c798824f4", "hotpot_qa-98ffe3b3b3cd83d9"


def test_problems_behind_a_difference_are_those_with_other_scores() -> None:
    first, other = compare([f"{TRAINING}:base", f"{TRAINING}:iter_0_dpo"])
    (same,) = compare([f"{TRAINING}:base"])
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


def with_problems(directory: Path, change: Callable[[str], str]) -> Path:
    """Return a copy of the training whose held-out problems' lines were changed."""
    other = directory / "other"
    shutil.copytree(TRAINING, other)
    path = other / "problems/test.jsonl"
    path.write_text("".join(map(change, path.read_text().splitlines(keepends=True))))
    done = json.loads((other / "problems/DONE.json").read_text())
    done["outputs"]["test.jsonl"] = file_digest(path)
    done["sizes"]["test.jsonl"] = path.stat().st_size
    (other / "problems/DONE.json").write_text(json.dumps(done))
    return other


def test_one_problem_is_shown_over_all_models_of_all_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    table = tmp_path / "said.csv"
    words = (str(TRAINING), f"{TRAINING}:base", "--problem", GAINED)
    assert main(["compare", *words, "--csv", str(table)]) == 0
    out = capsys.readouterr().out
    run = Run(TRAINING)
    problem = run.problems("test")[GAINED]
    assert out.startswith(f"{GAINED}: {problem.question}\ngold: {' | '.join(problem.golds)}\n\n")
    lines = table.read_text().splitlines()
    assert len(lines) == 1 + len(run.evaluated) + 1
    for label, line in zip((*run.evaluated, "base"), lines[1:], strict=True):
        (one,) = (o for o in run.evaluation(label) if o.problem.problem_id == GAINED)
        talk = one.conversation
        assert line == (
            f"{TRAINING}:{label},1,{100 * one.reward.task:.0f},{talk.n_tokens},"
            f"{len(talk.turns):.1f},{talk.answer or '-'},{talk.stop_reason}"
        )
        said = "\n".join(f"{turn.name}:{turn.text}" for turn in talk.turns)
        assert f"\n\n--- {TRAINING}:{label}\n{said}\n" in f"{out}\n"


def test_run_that_was_not_asked_a_problem_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = with_problems(tmp_path, lambda line: "" if GAINED in line else line)
    why = "was not asked it (4 problems of hotpot_qa)"
    words = (str(other), f"{TRAINING}:iter_0_dpo", "--problem", GAINED)
    assert main(["compare", *words]) == 0
    assert capsys.readouterr().out.endswith(f"\n\n{other}: {why}\n")
    assert main(["compare", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problem"]["problem_id"] == GAINED
    assert found["lacking"] == [{"run": str(other), "why": why}]
    (model,) = found["models"]
    assert (model["label"], len(model["conversations"])) == ("iter_0_dpo", 1)
    (talk,) = model["conversations"]
    assert (talk["answer"], talk["score"]) == ("Ida", 1.0)
    assert talk["tokens"] == sum(turn["n_spoken"] for turn in talk["turns"])
    assert "token_ids" not in talk["turns"][0]


def test_another_problem_of_the_same_name_is_told_from_the_first(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    question = Run(TRAINING).problems("test")[GAINED].question
    other = with_problems(tmp_path, lambda line: line.replace(question, "Who was it?"))
    assert main(["compare", str(TRAINING), str(other), "--problem", GAINED]) == 0
    assert capsys.readouterr().out.endswith(f"{other}: calls another problem so: Who was it?\n")


def test_samples_of_a_problem_are_told_by_their_means(capsys: pytest.CaptureFixture[str]) -> None:
    votes = Run(TRAINING.parent / "consistency")
    (label, *_) = votes.evaluated
    one = next(votes.evaluation(label))
    samples = [o for o in votes.evaluation(label) if o.problem == one.problem]
    words = (f"{votes.root}:{label}", "--problem", one.problem.problem_id)
    assert main(["compare", *words]) == 0
    out = capsys.readouterr().out
    assert f"--- {votes.root}:{label}, the first of {len(samples)}\n" in out
    mean = sum(o.conversation.n_tokens for o in samples) / len(samples)
    (line,) = (line for line in out.splitlines() if line.startswith(f"{votes.root}:{label} "))
    assert line.split()[1:4] == [
        str(len(samples)),
        f"{100 * sum(o.reward.task for o in samples) / len(samples):.0f}",
        f"{mean:.0f}",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--problem", "none"), "--problem none: {run} was not asked it ("),
        (("--problem", "x", "--problems", "3"), "--problems: cannot stand beside --problem"),
        (("{run}",), "{run}: is {run} again; name a model once"),
        (("{run}/../training:base", "{run}:base"), "{run}:base: is {run}/../training:base again"),
    ],
)
def test_problem_that_is_none_is_one_line(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(TRAINING), *(word.format(run=TRAINING) for word in words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message.format(run=TRAINING) in line

"""Baselines, transfer and comparison over fakes at the process borders."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import fake_environment
from tests.pipelines.runs import ROOT, TIMEOUT_S, run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of two iterations."""
    directory = tmp_path_factory.mktemp("trained")
    run(directory, fake_environment(directory))
    return directory / "run"


def optima(*argv: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "optima.cli.main", *argv],
        cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_baselines_are_one_table_of_the_same_problems(finished: Path, tmp_path: Path) -> None:
    environment = fake_environment(tmp_path)
    output = tmp_path / "out"
    status, table, err = optima(
        "baselines", "--model", str(finished.parent / "model"), "--config",
        str(finished / "recipe.yaml"), "--limit", "4", "--n-votes", "3", "--output", str(output),
        "--vllm-env", str(environment.prefix),
    )  # fmt: skip
    assert status == 0, err
    assert [line.split()[0] for line in table.splitlines()[2:6]] == [
        "cot", "sc", "mad", "autoform"
    ]  # fmt: skip
    held = {
        method: [json.loads(line) for line in (output / method / "talk/conversations.jsonl").open()]
        for method in ("cot", "sc", "mad", "autoform")
    }
    asked = {name: {record["problem_id"] for record in records} for name, records in held.items()}
    assert len({frozenset(ids) for ids in asked.values()}) == 1
    assert {len(record["turns"]) for record in held["cot"] + held["sc"]} == {1}
    assert {record["stop_reason"] for record in held["cot"]} == {"alone"}
    assert len(held["sc"]) == 3 * len(held["cot"])
    assert all(record["format_id"] for record in held["autoform"])
    assert not any(record["format_id"] for record in held["mad"])
    results = json.loads((output / "results.json").read_text())
    vote = next(m for m in results["models"] if m["label"] == "sc")["summary"]
    tokens = [sum(turn["n_tokens"] for turn in record["turns"]) for record in held["sc"]]
    assert sum(vote["tokens_by_problem"].values()) == sum(tokens)


def test_transfer_is_a_matrix(finished: Path, tmp_path: Path) -> None:
    environment = fake_environment(tmp_path)
    rows = tmp_path / "gsm8k"
    rows.mkdir()
    row = {"question": "What is 1 + 1?", "answer": "One and one.\n#### 2"}
    (rows / "test.jsonl").write_text(json.dumps(row) + "\n")
    models = ",".join(str(finished / f"iter_{t}/train/model") for t in (0, 1))
    status, table, err = optima(
        "transfer", "--models", models, "--tasks", "two_hop,gsm8k", "--data", f"gsm8k={rows}",
        "--limit", "3", "--output", str(tmp_path / "out"), "--config",
        str(finished / "recipe.yaml"), "--vllm-env", str(environment.prefix),
    )  # fmt: skip
    assert status == 0, err
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == ["model", "two_hop", "gsm8k"]
    assert [line[0] for line in lines[2:4]] == ["run/iter_0", "run/iter_1"]
    assert len((tmp_path / "out/table.csv").read_text().splitlines()) == 3


def test_runs_are_compared_problem_by_problem(finished: Path) -> None:
    status, table, err = optima("compare", f"{finished}:base", f"{finished}:iter_0", str(finished))
    assert status == 0, err
    lines = table.splitlines()[2:5]
    assert "repaid after" in table
    assert [line.split()[0].rpartition(":")[2] for line in lines] == ["base", "iter_0", "iter_1"]
    held = {
        name: {
            record["problem_id"]: sum(turn["n_tokens"] for turn in record["turns"])
            for record in map(
                json.loads, (finished / f"evaluate/{name}/talk/conversations.jsonl").open()
            )
        }
        for name in ("base", "iter_1")
    }
    difference = sum(held["iter_1"][key] - n for key, n in held["base"].items()) / len(held["base"])
    assert f"{difference:+.1f} (" in lines[2]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("compare", "nowhere"), "holds no evaluated model"),
        (("compare", "RUN:iter_9"), "has evaluated no iter_9; it has base"),
        (("baselines", "--model", "x/y", "--task", "arc", "--methods", "cot,mda"), "--methods mda"),
        (("transfer", "--models", "x/y", "--tasks", "arc", "--data", "arc", "--output", "o"),
         "must be TASK=DIR"),
        (("transfer", "--models", "x/y", "--tasks", "arc"), "--output: is missing"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_status_2(
    argv: tuple[str, ...], message: str, finished: Path
) -> None:
    status, _, err = optima(*(part.replace("RUN", str(finished)) for part in argv))
    assert status == 2, err
    assert message in err
    assert len(err.splitlines()) == 1


def test_status_says_that_runs_and_inferences_are_done_or_stopped(
    finished: Path, tmp_path: Path
) -> None:
    status, text, err = optima("status", str(finished))
    assert status == 0, err
    assert text.startswith(f"{finished}: done, ")
    environment = fake_environment(tmp_path)
    output = tmp_path / "out"
    argv = ("baselines", "--model", str(finished.parent / "model"), "--config",
            str(finished / "recipe.yaml"), "--limit", "2", "--methods", "mad", "--output",
            str(output), "--vllm-env", str(environment.prefix))  # fmt: skip
    assert optima(*argv)[0] == 0
    status, text, err = optima("status", str(output))
    assert status == 0, err
    assert text.startswith(f"{output}: done, 3 of 3 stages done in ")
    (output / "mad/rank/DONE.json").unlink()
    (output / "results.json").unlink()
    status, text, _ = optima("status", str(output))
    assert status == 1
    assert "stopped, 2 of 3 stages done" in text

"""What models cost, over stages written here."""

import json
from pathlib import Path

import pytest

from optima.records import write_text
from optima.reporting.results import cost_text
from optima.reporting.tables import Spent
from optima.runs.costs import (
    EvaluationCost,
    ModelCost,
    costs_of_stages,
    evaluation_cost,
    repaid_after,
)
from optima.runs.layout import StageDone, finished_stages, read_attempts


def read_costs(root: Path) -> tuple[ModelCost, ...]:
    return costs_of_stages(finished_stages(root), read_attempts(root))


def _finish(root: Path, name: str, started: float, seconds: float, **metrics: float) -> None:
    done = StageDone(
        stage=name, inputs="", outputs={}, started_unix_s=started, seconds=seconds,
        metrics={key.replace("_", "/", 1): value for key, value in metrics.items()},
    )  # fmt: skip
    (root / name).mkdir(parents=True)
    write_text(root / name / "DONE.json", done.model_dump_json())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    _finish(tmp_path, "problems", 0, 9)
    # 40 of the tokens went into conversations that an interruption took back.
    _finish(tmp_path, "iter_0/generate", 10, 40, tokens_generated=660, tokens_discarded=40)
    _finish(tmp_path, "evaluate/base/talk", 11, 5, tokens_generated=5000)
    _finish(tmp_path, "iter_0/score", 50, 10)
    _finish(tmp_path, "iter_0/select", 60, 1)
    _finish(tmp_path, "iter_0/train", 61, 20, tokens_trained=300)
    _finish(tmp_path, "evaluate/iter_0/talk", 81, 5, tokens_generated=5000)
    _finish(tmp_path, "iter_1/search", 90, 30, tokens_generated=1000)
    _finish(tmp_path, "iter_1/influence/group_0/train", 110, 5, tokens_trained=50)
    _finish(tmp_path, "iter_1/train", 120, 10, tokens_trained=500)
    _finish(tmp_path, "iter_2/search", 130, 30, tokens_generated=1000)  # not yet trained on
    return tmp_path


def test_a_model_costs_what_was_spent_until_it_was_trained_on_all_gpus(root: Path) -> None:
    attempt = {"devices": {"kind": "cuda", "gpus": [0, 1]}}
    write_text(root / "provenance.json", json.dumps({"attempts": [attempt]}))
    assert read_costs(root) == (
        ModelCost("iter_0", 700, 300, {"generate": 80, "score": 20, "train": 40, "other": 2}),
        ModelCost("iter_1", 1700, 850, {"generate": 140, "score": 20, "train": 70, "other": 2}),
    )


def test_a_resumed_run_counts_the_gpus_of_each_attempt(root: Path) -> None:
    attempts = [
        {"started": "1970-01-01T00:00:00Z", "devices": {"gpus": [0, 1]}},
        {"started": "1970-01-01T00:01:30Z", "devices": {"gpus": [0, 1, 2, 3]}},  # from 90 s on
    ]
    write_text(root / "provenance.json", json.dumps({"attempts": attempts}))
    costs = read_costs(root)
    assert costs[0].device_seconds == {"generate": 80, "score": 20, "train": 40, "other": 2}
    # 2 * 40 + 4 * 30 generating, 2 * 20 + 4 * (5 + 10) training
    assert costs[1].device_seconds == {"generate": 200, "score": 20, "train": 100, "other": 2}


def test_evaluations_cost_tokens_and_seconds_too(root: Path) -> None:
    attempt = {"devices": {"kind": "cuda", "gpus": [0, 1]}}
    write_text(root / "provenance.json", json.dumps({"attempts": [attempt]}))
    _finish(root, "evaluate/base/rank", 85, 1)
    stages = [done for done in finished_stages(root) if done.stage.startswith("evaluate/base/")]
    cost = evaluation_cost(stages, read_attempts(root))
    assert cost == EvaluationCost(n_generated=5000, device_seconds=12)
    first = read_costs(root)[0]
    text = cost_text([Spent("base", 100.0, None, cost), Spent("iter_0", 70.0, first)])
    base, trained = (line.split() for line in text.splitlines() if line[:4] in ("base", "iter"))
    assert base == ["base", "0", "0", *["0", "s"] * 4, "5,000", "12", "s"]
    assert trained[-1] == "34"


def test_without_an_untrained_model_nothing_is_repaid_against_another(root: Path) -> None:
    first, second = read_costs(root)
    text = cost_text([Spent("iter_0", 100.0, first), Spent("iter_1", 50.0, second)])
    assert [line.split()[-1] for line in text.splitlines() if line.startswith("iter_")] == ["-"] * 2
    assert "no untrained model is beside them" in text
    known = cost_text([Spent("iter_0", 70.0, first)], before=("run:base", 100.0))
    assert [line.split()[-1] for line in known.splitlines() if line[:4] == "iter"] == ["34"]
    assert "against run:base" in known


def test_tokens_saved_repay_those_spent(root: Path) -> None:
    first, second = read_costs(root)
    # 700 generated + 300 trained, repaid by 100 - 70 = 30 a conversation: 34 * 30 = 1020 >= 1000
    assert repaid_after(first, 100.0, 70.0) == 34
    assert repaid_after(first, 100.0, 100.0) is None
    text = cost_text(
        [Spent("base", 100.0), Spent("iter_0", 70.0, first), Spent("iter_1", 120.0, second)]
    )
    assert [line.split()[-1] for line in text.splitlines() if line.startswith("iter_")] == [
        "34", "never"
    ]  # fmt: skip
    assert "saved against base" in text


def test_a_directory_in_which_nothing_was_trained_has_no_costs(tmp_path: Path) -> None:
    assert read_costs(tmp_path) == ()
    assert cost_text([Spent("base", 1.0)]) == ""

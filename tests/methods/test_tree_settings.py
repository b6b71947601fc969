"""Runs with trees in other settings: debate, three agents, selection by influence."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from optima.runs.status import read_status
from optima.stages.influence import best_groups, deal_groups
from optima.studies.infer import find_models
from tests.fake_runs import attempt, debate_data, results, run, start, wait_until
from tests.fakes import commands, fake_environment

INFLUENCE = (
    "iterations=1", "initialise=false", "pairs.strategy=influence",
    "pairs.influence={n_groups: 3, n_problems: 2}", "train.eval_share=0.0",
)  # fmt: skip


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.open()]


def test_debate_trains_sft_from_the_base_and_preferences_from_that_sft(tmp_path: Path) -> None:
    overrides = [*debate_data(tmp_path), "reward.lambda_loss=0", "pairs.theta_diff=0"]
    run(tmp_path, fake_environment(tmp_path), *overrides, method="sft_dpo")
    root = tmp_path / "run"

    def starts(name: str) -> tuple[str, bool]:
        job = json.loads((root / name / "train/job.json").read_text())
        return job["model"]["path"], job["dpo"] is not None

    for t in (0, 1):
        assert starts(f"iter_{t}_sft") == (str(tmp_path / "model"), False)
        assert starts(f"iter_{t}_dpo") == (str(root / f"iter_{t}_sft/train/model"), True)
        job = json.loads((root / f"iter_{t}_dpo/train/job.json").read_text())
        assert job["dpo"]["nll_weight"] == 0


def test_three_agents_grow_trees_and_are_trained_with_their_own_prompts(tmp_path: Path) -> None:
    names = ("Ann", "Ben", "Cleo")
    overrides = (
        f"agents.names=[{','.join(names)}]", "cold_start=null", "initialise=false",
        "iterations=1", "pairs.theta_diff=0", "pairs.keep_share=1.0", "train.eval_share=0.0",
        "search.n_rounds=6",
    )  # fmt: skip
    run(tmp_path, fake_environment(tmp_path), *overrides, method="dpo")
    root = tmp_path / "run"
    contexts = {p["problem_id"]: p["contexts"] for p in _lines(root / "problems/train.jsonl")}
    depths: dict[int, int] = {}
    for tree in _lines(root / "iter_0/search/trees.jsonl"):
        depths = {0: -1}
        for node in (node for r in tree["rounds"] for node in r["nodes"]):
            depths[node["node_id"]] = depths[node["parent"]] + 1
            assert node["turn"]["name"] == names[depths[node["node_id"]] % 3]
    rows = _lines(root / "iter_0/pairs/rows.jsonl")
    assert {row["agent"] for row in rows} == {0, 1, 2}
    for row in rows:
        told = contexts[row["problem_id"]]
        seen = row["prompt"][0]["content"]
        assert [context in seen for context in told] == [i == row["agent"] for i in range(3)]
        assert row["chosen"][0]["content"].startswith(f"{names[row['agent']]}:")


@pytest.fixture(scope="module")
def influenced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("influence")
    run(directory, fake_environment(directory), *INFLUENCE, method="dpo")
    return directory / "run"


def test_influence_trains_every_group_once_and_keeps_the_best(influenced: Path) -> None:
    root = influenced / "iter_0"
    groups = [
        {row["problem_id"] for row in _lines(path)}
        for path in sorted(root.glob("influence/group_*/rows/rows.jsonl"))
    ]
    metrics = {m["stage"]: m for m in _lines(influenced / "metrics.jsonl")}
    rewards = [
        metrics[f"iter_0/influence/group_{g}/rank"]["reward/total"] for g in range(len(groups))
    ]
    assert len(groups) == 3
    selected = {row["problem_id"] for row in _lines(root / "influence/selected/rows.jsonl")}
    # Half of three groups is one, that after whose training the validation reward is highest.
    assert selected == groups[rewards.index(max(rewards))]
    job = json.loads((root / "train/job.json").read_text())
    assert job["rows_path"] == str(root / "influence/selected/rows.jsonl")


def test_influence_is_measured_on_problems_without_a_tree(influenced: Path) -> None:
    root = influenced / "iter_0"
    with_tree = {tree["problem_id"] for tree in _lines(root / "search/trees.jsonl")}
    test = {problem["problem_id"] for problem in _lines(influenced / "problems/test.jsonl")}
    for part in ("before", "group_0", "group_2"):
        held = _lines(root / "influence" / part / "talk/conversations.jsonl")
        assert len({c["problem_id"] for c in held}) == 2
        assert not {c["problem_id"] for c in held} & (with_tree | test)


def test_models_of_trials_do_not_stay_and_the_run_is_done(influenced: Path) -> None:
    assert list(influenced.glob("iter_0/influence/group_*/train/model")) == []
    assert (influenced / "iter_0/train/model").is_dir()
    status = read_status(influenced)
    assert (status.state, status.n_done) == ("done", status.n_stages)


def test_model_of_an_interrupted_trial_is_no_model_of_the_run(tmp_path: Path) -> None:
    for place in ("iter_0/train/model", "iter_0/influence/group_0/train/model"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "config.json").write_text("{}")
        (tmp_path / place / "model.safetensors").write_bytes(b"x")
    assert [model.label for model in find_models(tmp_path)] == ["iter_0"]


def test_kill_in_a_trial_of_influence_and_the_rerun_equals_an_undisturbed_run(
    influenced: Path, tmp_path: Path
) -> None:
    slow = fake_environment(tmp_path, train_seconds=1.0)
    victim = start(tmp_path, slow, *INFLUENCE, method="dpo")
    part = tmp_path / "run/iter_0/influence/group_1/train"
    wait_until(lambda: (part / "INPUTS").exists(), "the second trial")
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert not (part / "DONE.json").exists()
    shutil.rmtree(tmp_path / "fake_env")
    environment = fake_environment(tmp_path)
    run(tmp_path, environment, *INFLUENCE, method="dpo")
    assert results(tmp_path / "run") == results(influenced)
    trained = [c for c in commands(environment) if "optima.training.dpo" in c]
    assert len(trained) == 3  # the second and third group, and what was selected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.n_problems=9999", "none is left to measure influence on"),
        ("pairs.path=nowhere.jsonl", "nowhere.jsonl: cannot be read"),
    ],
)
def test_what_would_stop_the_selection_stops_the_run_before_it_starts(
    override: str, message: str, tmp_path: Path
) -> None:
    environment = fake_environment(tmp_path)
    status, _, err = attempt(tmp_path, environment, *INFLUENCE, override, method="dpo")
    assert status == 2
    assert message in err
    assert [c for c in commands(environment) if "-c" not in c] == []


def test_groups_hold_every_problem_once_and_the_share_of_the_best_is_kept() -> None:
    groups = deal_groups(["a", "b", "a", "c", "d", "e"], 3, seed=0)
    assert sorted(map(len, groups)) == [1, 2, 2]
    assert set.union(*groups) == set("abcde")
    assert len(deal_groups(["a", "b"], 3, seed=0)) == 2  # none is empty
    assert best_groups([-0.1, 0.3, 0.0, 0.2], 0.5) == [1, 3]
    assert best_groups([0.0, 0.0, 0.0], 0.5) == [0]

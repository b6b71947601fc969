"""Whole iDPO and iSFT-DPO runs over fakes at the process borders: results, resume, kills."""

import json
import re
import shutil
import signal
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optima.studies.sweep import folder_of, read_variants
from tests.commands import command
from tests.fake_runs import (
    attempt,
    finish,
    processes_of,
    results,
    rewind,
    run,
    start,
    wait_until,
    write_recipe,
)
from tests.fakes import commands, fake_environment
from tests.tokenizers import codec, text_of

END = codec("chatml").end_token
STAGES = {
    "dpo": (
        "initial/train",
        "iter_0/probe",
        "iter_0/search",
        "iter_0/train",
        "evaluate/iter_1/talk",
    ),
    "sft_dpo": ("iter_0_sft/train", "iter_0_dpo/search", "iter_1_sft/generate"),
}
LABELS = {
    "dpo": ["base", "cold_start", "initial", "iter_0", "iter_1"],
    "sft_dpo": ["base", "cold_start", "iter_0_sft", "iter_0_dpo", "iter_1_sft", "iter_1_dpo"],
}
METHODS = tuple(STAGES)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, Path]]:
    runs = {}
    for method in METHODS:
        directory = tmp_path_factory.mktemp(method)
        table = run(directory, fake_environment(directory), method=method)
        runs[method] = (table, directory / "run")
    return runs


def _trees(root: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / name / "search/trees.jsonl").open()]


def _rollouts(tree: dict[str, Any]) -> list[dict[str, Any]]:
    return [rollout for r in tree["rounds"] for rollout in r["rollouts"]]


@pytest.mark.parametrize("method", METHODS)
def test_run_ends_with_a_table_of_all_models(
    method: str, undisturbed: dict[str, tuple[str, Path]]
) -> None:
    table, _ = undisturbed[method]
    n = len(LABELS[method])
    assert [line.split()[0] for line in table.splitlines()[2 : 2 + n]] == LABELS[method]


@pytest.mark.parametrize("method", METHODS)
def test_undisturbed_run_keeps_every_token_it_generates(
    method: str, undisturbed: dict[str, tuple[str, Path]]
) -> None:
    lines = [json.loads(line) for line in (undisturbed[method][1] / "metrics.jsonl").open()]
    generating = [line for line in lines if "tokens/generated" in line]
    assert any(line["stage"].endswith("/search") for line in generating)
    assert [line["tokens/discarded"] for line in generating] == [0.0] * len(generating)


def test_preference_training_starts_from_the_last_model_and_refers_to_it(
    undisturbed: dict[str, tuple[str, Path]],
) -> None:
    def start_of(root: Path, name: str) -> str:
        job = json.loads((root / name / "train/job.json").read_text())
        assert (job["dpo"] is None) == (name in ("initial", "iter_0_sft", "iter_1_sft"))
        return str(job["model"]["path"])

    root = undisturbed["dpo"][1]
    assert start_of(root, "initial") == str(root / "cold_start/train/model")
    assert start_of(root, "iter_0") == str(root / "initial/train/model")
    assert start_of(root, "iter_1") == str(root / "iter_0/train/model")
    root = undisturbed["sft_dpo"][1]
    assert start_of(root, "iter_0_dpo") == str(root / "iter_0_sft/train/model")
    assert start_of(root, "iter_1_sft") == str(root / "iter_0_dpo/train/model")
    assert start_of(root, "iter_1_dpo") == str(root / "iter_1_sft/train/model")


def test_given_model_is_not_initialised_again(tmp_path: Path) -> None:
    table = run(
        tmp_path, fake_environment(tmp_path), "initialise=false", "cold_start=null",
        "iterations=1", method="dpo",
    )  # fmt: skip
    assert [line.split()[0] for line in table.splitlines()[2:4]] == ["base", "iter_0"]
    job = json.loads((tmp_path / "run/iter_0/train/job.json").read_text())
    assert job["model"]["path"] == str(tmp_path / "model")


def test_every_tree_is_whole_and_in_the_order_of_the_problems(
    undisturbed: dict[str, tuple[str, Path]],
) -> None:
    _, root = undisturbed["dpo"]
    trees = _trees(root, "iter_0")
    assert len(trees) == 6
    grown = [{tree["problem_id"] for tree in _trees(root, f"iter_{t}")} for t in (0, 1)]
    assert grown[0] != grown[1]  # of problems of its own each time
    for tree in trees:
        assert [r["number"] for r in tree["rounds"]] == [0, 1, 2]
        ids = [node["node_id"] for r in tree["rounds"] for node in r["nodes"]]
        assert ids == list(range(1, len(ids) + 1))
        assert [rollout["n"] for rollout in _rollouts(tree)] == list(range(9))
    metrics = {m["stage"]: m for m in map(json.loads, (root / "metrics.jsonl").open())}
    assert metrics["iter_0/search"]["conversations"] == 6 * 3 * 3
    assert metrics["iter_0/search"]["tokens/generated"] > 0
    assert metrics["iter_0/pairs"]["pairs"] >= 1
    assert metrics["iter_0/probe"]["conversations"] == 4


def test_every_node_is_spoken_and_trained_with_its_own_speakers_prompt(
    undisturbed: dict[str, tuple[str, Path]],
) -> None:
    _, root = undisturbed["dpo"]
    contexts = {
        p["problem_id"]: p["contexts"]
        for p in map(json.loads, (root / "problems/train.jsonl").open())
    }
    names = ("Alice", "Bob")
    for tree in _trees(root, "iter_0"):
        parents = {0: -1}
        for node in (node for r in tree["rounds"] for node in r["nodes"]):
            parents[node["node_id"]] = parents[node["parent"]] + 1
            speaker = parents[node["node_id"]] % 2
            assert node["turn"]["agent"] == speaker
            assert node["turn"]["name"] == names[speaker]
    rows = [json.loads(line) for line in (root / "iter_0/pairs/rows.jsonl").open()]
    assert {row["agent"] for row in rows} == {0, 1}
    sampled = {
        (*node["turn"]["token_ids"], END)
        for tree in _trees(root, "iter_0")
        for r in tree["rounds"]
        for node in r["nodes"]
    }
    for row in rows:
        assert {tuple(row["chosen_ids"]), tuple(row["rejected_ids"])} <= sampled
        assert row["n_retokenised"] == 0
        assert text_of(row["prompt_ids"]).endswith(f"\n{names[row['agent']]}:")
        own, other = (contexts[row["problem_id"]][a] for a in (row["agent"], 1 - row["agent"]))
        assert own in row["prompt"][0]["content"]
        assert other not in row["prompt"][0]["content"]
        for side in ("chosen", "rejected"):
            assert row[side][0]["content"].startswith(f"{names[row['agent']]}:")


def test_normaliser_is_the_percentile_of_the_probe_plus_one(
    undisturbed: dict[str, tuple[str, Path]],
) -> None:
    for method, name, share in (("dpo", "iter_1", 85), ("sft_dpo", "iter_0_dpo", 80)):
        root = undisturbed[method][1]
        held = [json.loads(line) for line in (root / name / "probe/conversations.jsonl").open()]
        counts = [sum(turn["n_spoken"] for turn in c["turns"]) for c in held]
        normaliser = int(np.percentile(counts, share)) + 1
        metrics = {m["stage"]: m for m in map(json.loads, (root / "metrics.jsonl").open())}
        assert metrics[f"{name}/search"]["tokens/normaliser"] == normaliser
        rewards = [r["reward"] for tree in _trees(root, name) for r in _rollouts(tree)]
        assert {r["token"] for r in rewards} == {
            min(1.0, r["n_tokens"] / normaliser) for r in rewards
        }


@pytest.mark.parametrize("reward", ["reward.lambda_loss=0", "search.lambda_loss=0.0"])
def test_no_scorer_runs_beside_the_servers_where_losses_do_not_count(
    reward: str, tmp_path: Path
) -> None:
    environment = fake_environment(tmp_path)
    overrides = (reward, "search.lambda_token=0.25", "iterations=1", "initialise=false")
    run(tmp_path, environment, *overrides, method="dpo")
    rewards = [r["reward"] for t in _trees(tmp_path / "run", "iter_0") for r in _rollouts(t)]
    assert {r["loss"] for r in rewards} == {None}
    for r in rewards:
        assert r["total"] == pytest.approx(r["task"] - 0.25 * r["token"])
    scored = any("optima.training.score" in command for command in commands(environment))
    assert scored == (reward != "reward.lambda_loss=0")  # evaluation still takes its own weights


@pytest.mark.parametrize(
    ("method", "stage"), [(method, stage) for method in METHODS for stage in STAGES[method]]
)
def test_kill_in_any_stage_leaves_no_process_and_the_rerun_equals_an_undisturbed_run(
    method: str, stage: str, undisturbed: dict[str, tuple[str, Path]], tmp_path: Path
) -> None:
    mark = uuid.uuid4().hex
    environment = fake_environment(tmp_path, server=("--latency-ms", "30"), train_seconds=1.0)
    root, copy = undisturbed[method][1], tmp_path / "run"
    rewind(root, copy, stage)
    victim = start(root.parent, environment, run=str(copy), mark=mark, method=method)
    path = copy / stage
    wait_until(lambda: (path / "INPUTS").exists(), f"stage {stage}")
    if stage.endswith("search"):  # some rounds are there, others are not
        wait_until(lambda: (path / "rounds.jsonl").exists(), "the first round")
        wait_until(lambda: (path / "rounds.jsonl").stat().st_size > 0, "the first round")
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    wait_until(lambda: not processes_of(mark), f"the end of {processes_of(mark)}", 15.0)
    assert not (path / "DONE.json").exists()
    shutil.rmtree(tmp_path / "fake_env")
    run(root.parent, fake_environment(tmp_path), run=str(copy), method=method)
    assert results(copy) == results(root)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_while_trees_grow_ends_the_run_and_all_its_processes(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    mark = uuid.uuid4().hex
    environment = fake_environment(tmp_path, server=("--latency-ms", "100"))
    quick = ("initialise=false", "cold_start=null", "evaluation.base=false")
    victim = start(tmp_path, environment, *quick, mark=mark, method="dpo")
    path = tmp_path / "run/iter_0/search/rounds.jsonl"
    wait_until(lambda: path.exists() and path.stat().st_size > 0, "the first round")
    victim.send_signal(number)
    ended, _, err = finish(victim)
    assert ended == status
    assert "the same command goes on from here" in err
    assert "Traceback" not in err
    wait_until(lambda: not processes_of(mark), f"the end of {processes_of(mark)}", 15.0)


def test_trees_grow_on_from_their_finished_rounds_and_never_double(
    undisturbed: dict[str, tuple[str, Path]], tmp_path: Path
) -> None:
    root, copy = undisturbed["dpo"][1], tmp_path / "run"
    shutil.copytree(root, copy)
    search = copy / "iter_0/search"
    for stage in (search, search.with_name("pairs")):
        (stage / "DONE.json").unlink()
    (search.with_name("pairs") / "rows.jsonl").unlink()
    path = search / "rounds.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["number"] < 2]
    last = next(line for line in lines if json.loads(line)["number"] == 2)
    path.write_bytes(b"".join([*kept, kept[0], last[:70]]))  # one doubled, one torn
    run(root.parent, fake_environment(tmp_path), run=str(copy), method="dpo")
    assert results(copy) == results(root)
    again = Counter(
        (r["problem_id"], r["number"]) for r in map(json.loads, path.read_text().splitlines())
    )
    assert set(again.values()) == {1}
    assert len(again) == 6 * 3


def test_server_killed_while_trees_grow_loses_and_doubles_nothing(
    undisturbed: dict[str, tuple[str, Path]], tmp_path: Path
) -> None:
    environment = fake_environment(tmp_path, server=("--die-after", "60"))
    patience = ("serving.max_restarts=50", "serving.max_attempts=10")
    run(tmp_path, environment, *patience, method="dpo")
    assert results(tmp_path / "run") == results(undisturbed["dpo"][1])


def test_scorer_that_dies_for_good_while_trees_grow_fails_the_stage_and_loses_nothing(
    undisturbed: dict[str, tuple[str, Path]], tmp_path: Path
) -> None:
    root, copy = undisturbed["dpo"][1], tmp_path / "run"
    rewind(root, copy, "iter_0/search")
    mark = uuid.uuid4().hex
    broken = fake_environment(tmp_path, score_dies_after=1)
    status, _, err = finish(start(root.parent, broken, run=str(copy), method="dpo", mark=mark))
    assert status == 1
    assert "scorer 0: died again after its restart" in err
    assert "Traceback" not in err
    wait_until(lambda: not processes_of(mark), f"the end of {processes_of(mark)}", 15.0)
    shutil.rmtree(tmp_path / "fake_env")
    run(root.parent, fake_environment(tmp_path), run=str(copy), method="dpo")
    assert results(copy) == results(root)


def test_failed_rollouts_above_the_limit_fail_the_stage_and_are_grown_again(
    undisturbed: dict[str, tuple[str, Path]], tmp_path: Path
) -> None:
    root, copy = undisturbed["dpo"][1], tmp_path / "run"
    rewind(root, copy, "iter_0/search")
    broken = fake_environment(tmp_path, server=("--fail-rate", "0.9"))
    patience = "serving.max_attempts=1"
    status, _, err = attempt(root.parent, broken, patience, run=str(copy), method="dpo")
    assert status == 1
    assert "stage iter_0/search" in err
    assert "conversation.max_error_rate" in err
    shutil.rmtree(tmp_path / "fake_env")
    run(root.parent, fake_environment(tmp_path), run=str(copy), method="dpo")
    assert results(copy) == results(root)


def test_no_pair_says_how_far_the_best_was(tmp_path: Path) -> None:
    environment = fake_environment(tmp_path)
    status, _, err = attempt(tmp_path, environment, "pairs.theta_filter=99.0", method="dpo")
    assert status == 1
    assert "no pair to train on" in err
    assert "pairs.theta_filter is 99.0" in err


def test_run_with_too_few_pairs_goes_on_with_a_lower_least_share(
    undisturbed: dict[str, tuple[str, Path]], tmp_path: Path
) -> None:
    gaps: dict[str, float] = {}
    for pair in map(json.loads, (undisturbed["dpo"][1] / "iter_0/pairs/pairs.jsonl").open()):
        gap, problem = pair["chosen_value"] - pair["rejected_value"], pair["problem_id"]
        gaps[problem] = max(gap, gaps.get(problem, 0.0))
    _, second, *_ = sorted(gaps.values(), reverse=True)
    few = ("iterations=2", f"pairs.theta_diff={second}")  # which some problem passes, not all
    environment = fake_environment(tmp_path)
    status, _, err = attempt(tmp_path, environment, *few, "pairs.min_share=1", method="dpo")
    assert status == 1
    found = re.search(r"pairs from (\d+) of 6 problems, pairs.min_share is 1.0: too few", err)
    assert found is not None
    assert 0 < int(found[1]) < 6
    assert err.endswith("or, to train on so little, run again with a lower pairs.min_share\n")
    begun = len(commands(environment))
    run(tmp_path, environment, *few, "pairs.min_share=0.1", method="dpo")
    (first, *_) = (argv for argv in commands(environment)[begun:] if argv[0] == "-m")
    assert first[1] == "accelerate.commands.launch"  # the trees were not grown again


def _optima(*argv: str) -> tuple[int, str, str]:
    return command("optima", *argv)


def test_pairs_are_rebuilt_with_other_thresholds_and_exported(
    undisturbed: dict[str, tuple[str, Path]], tmp_path: Path
) -> None:
    root, out = undisturbed["dpo"][1], tmp_path / "pairs.jsonl"
    before = results(root)
    status, table, err = _optima("pairs", "--run", str(root), "--out", str(out))
    assert status == 0, err
    stored = [
        json.loads(line)
        for t in (0, 1)
        for name in ("rows", "eval_rows")
        for line in (root / f"iter_{t}/pairs/{name}.jsonl").open()
    ]
    exported = [json.loads(line) for line in out.open()]
    sides = ("prompt", "chosen", "rejected")
    assert Counter(json.dumps([row[side] for side in sides]) for row in exported) == Counter(
        json.dumps([row[side] for side in sides]) for row in stored
    )
    kept = [int(line.split()[3]) for line in table.splitlines()[2:]]
    assert sum(kept) == len(exported)
    # The original spelling of the section, one iteration, a threshold that takes every pair.
    status, table, _ = _optima(
        "pairs", "--run", str(root), "--iteration", "iter_1", "select.theta_diff=0.0",
        "select.keep_share=1.0",
    )  # fmt: skip
    assert status == 0
    (line,) = table.splitlines()[2:]
    assert line.split()[0] == "iter_1"
    assert line.split()[2] == line.split()[3]  # all of them
    assert int(line.split()[3]) > kept[1]
    assert results(root) == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--iteration", "iter_9"), "--iteration iter_9: has no finished trees"),
        (("--out", "nowhere/pairs.jsonl"), "--out: nowhere/pairs.jsonl: its folder does not exist"),
        (("reward.lambda_token=0",), "only fields of pairs"),
        (("pairs.theta_dif=0.1",), "unknown key (did you mean theta_diff?)"),
    ],
)
def test_wrong_question_about_pairs_is_one_line(
    argv: tuple[str, ...], message: str, undisturbed: dict[str, tuple[str, Path]]
) -> None:
    status, _, err = _optima("pairs", "--run", str(undisturbed["dpo"][1]), *argv)
    assert status == 2
    assert message in err
    assert len(err.splitlines()) == 1


def test_imported_preferences_are_trained_on_with_the_runs_own(
    undisturbed: dict[str, tuple[str, Path]], tmp_path: Path
) -> None:
    path = tmp_path / "imported.jsonl"
    row = json.loads((undisturbed["dpo"][1] / "iter_0/pairs/rows.jsonl").open().readline())
    row["chosen"][0]["content"] = "Alice: imported"
    path.write_text(json.dumps(row) + "\n")
    overrides = ("iterations=2", f"pairs.path={path}", "train.eval_share=0.0")
    run(tmp_path, fake_environment(tmp_path), *overrides, method="dpo")
    pairs = tmp_path / "run/iter_0/pairs"
    rows = [json.loads(line) for line in (pairs / "rows.jsonl").open()]
    assert [r["chosen"][0]["content"] for r in rows].count("Alice: imported") == 1
    assert len(rows) == 1 + len((pairs / "pairs.jsonl").read_text().splitlines())
    assert [r["n_retokenised"] for r in rows].count(2) == 1
    figures = json.loads((pairs / "DONE.json").read_text())["metrics"]
    assert figures["rows/retokenised"] == 2


def test_sweep_over_strategies_selects_from_the_same_trees(
    undisturbed: dict[str, tuple[str, Path]], tmp_path: Path
) -> None:
    environment = fake_environment(tmp_path)
    recipe = write_recipe(tmp_path, "dpo")
    root = tmp_path / "sweep"
    argv = (
        "sweep", "--config", str(recipe), "--over", "pairs.strategy=value,random",
        "--run-dir", str(root), "--vllm-env", str(environment.prefix),
        "--train-env", str(environment.prefix),
    )  # fmt: skip
    status, table, err = _optima(*argv)
    assert status == 0, err
    lines = [line.split()[:2] for line in table.splitlines()[2:]]
    assert lines[:3] == [["value", "base"], ["value", "cold_start"], ["value", "initial"]]
    assert ["random", "iter_1"] in lines
    assert ["random", "initial"] not in lines  # shared, so shown once
    trees = [root / value / "iter_0/search/trees.jsonl" for value in ("value", "random")]
    assert trees[0].samefile(trees[1])
    assert not (root / "value/iter_0/pairs/rows.jsonl").samefile(
        root / "random/iter_0/pairs/rows.jsonl"
    )
    # The first is what the command of the method makes, links or not.
    alone = results(undisturbed["dpo"][1])
    shared = results(root / "value")
    assert {name for name in alone if alone[name] != shared.get(name)} == set()
    n_commands = len(commands(environment))
    assert _optima(*argv)[:2] == (0, table)  # run again: nothing is done twice
    found = json.loads(_optima(*argv, "--json")[1])
    assert found["field"] == "pairs.strategy"
    assert {one["value"]: [m["label"] for m in one["models"]] for one in found["values"]} == {
        value: ["base", "cold_start", "initial", "iter_0", "iter_1"]
        for value in ("value", "random")
    }
    started = [c for c in commands(environment)[n_commands:] if "-c" not in c]
    assert started == []


def test_folder_of_a_sweep_is_inside_it_whatever_the_value() -> None:
    assert folder_of("random") == "random"
    assert folder_of("0.5") == "0.5"
    paths = [folder_of(value) for value in ("/models/a", "models/a", "..", "../b")]
    assert len(set(paths)) == 4
    assert not any("/" in path or path.startswith(".") for path in paths)


def test_sweep_over_strategies_may_say_how_influence_is_measured(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "dpo")
    over = "pairs.strategy=value,random,influence"
    variants = read_variants(recipe, over, ["pairs.influence.n_groups=2"])
    assert [r.pairs and r.pairs.influence.n_groups for r in variants.values()] == [2, 2, 2]


@pytest.mark.parametrize("over", ["pairs.strategy", "pairs.strategy=value", "pairs.strategy=a,,b"])
def test_sweep_needs_a_field_and_two_values(over: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "dpo")
    status, _, err = _optima(
        "sweep", "--config", str(recipe), "--over", over, "--run-dir", str(tmp_path / "sweep")
    )
    assert status == 2
    assert "at least two values" in err

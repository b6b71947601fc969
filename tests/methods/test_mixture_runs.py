"""Whole runs of a mixture over fakes: an exchange of information and a debate in one run."""

import json
import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from optima.errors import UsageError
from optima.plan import plan
from optima.records import read_records
from optima.runs.reader import Run, open_run
from optima.types import PreferencePair, RewardParts, TrainingRow
from tests.commands import command
from tests.fake_runs import attempt, debate_data, results, rewind, run
from tests.fakes import fake_environment

TEAM = ["agents=[{name: Alice, policy: solver}, {name: Bob, policy: critic}]",
        "train.lora={serve: adapter}"]  # fmt: skip


def mixed_tasks(directory: Path, weight: str = "") -> str:
    """Return the override that makes a recipe of ``fake_runs`` a mixture of two_hop and arc."""
    data = next(word for word in debate_data(directory) if word.startswith("data.path="))[10:]
    return (
        f"tasks=[{{task: two_hop{weight}}}, {{task: arc, cold_start: null, "
        f"data: {{path: {data}, n_train: 6, n_test: 2}}, reward: {{lambda_token: 0.1}}}}]"
    )


@dataclass(frozen=True)
class Mixture:
    """A finished run of a mixture, and what made it."""

    method: str
    directory: Path
    words: tuple[str, ...]
    table: str

    @property
    def root(self) -> Path:
        return self.directory / "run"

    @property
    def environment(self) -> list[str]:
        prefix = str(self.directory / "fake_env")
        return ["--vllm-env", prefix, "--train-env", prefix]


def made(directory: Path, method: str, *words: str, weight: str = "") -> Mixture:
    every = (mixed_tasks(directory, weight), *words)
    table = run(directory, fake_environment(directory), *every, method=method)
    return Mixture(method, directory, every, table)


@pytest.fixture(scope="module", params=["sft", "sft_dpo"])
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    words = ["iterations=1"] if request.param == "sft_dpo" else []
    return made(tmp_path_factory.mktemp("mixture"), request.param, *words)


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    """An iteration whose tasks are weighted 1 to 3."""
    directory = tmp_path_factory.mktemp("weighted")
    return made(directory, "sft", "iterations=1", "tasks.arc.weight=3.0")


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_run_has_the_stages_of_its_plan_in_folders_of_its_tasks(mixture: Mixture) -> None:
    done = {json.loads(line)["stage"] for line in (mixture.root / "metrics.jsonl").open()}
    assert done == {step.name for step in plan(Run(mixture.root).recipe)}
    label = "iter_0" if mixture.method == "sft" else "iter_0_sft"
    assert {f"{label}/two_hop/generate", f"{label}/arc/select", f"{label}/mix", f"{label}/train",
            "problems/arc", "evaluate/base/two_hop/talk", "cold_start/two_hop/script",
            "cold_start/mix"} <= done  # fmt: skip
    assert "cold_start/arc/script" not in done
    trainings = [name for name in done if name.endswith("/train")]
    assert len(trainings) == 3


def test_a_training_gets_the_rows_of_all_tasks_in_another_order(mixture: Mixture) -> None:
    for label, part in {"sft": [("iter_0", "select"), ("iter_1", "select")],
                        "sft_dpo": [("iter_0_sft", "select"), ("iter_0_dpo", "pairs")]}[
        mixture.method
    ]:  # fmt: skip
        folder = mixture.root / label
        own = [
            line
            for task in ("two_hop", "arc")
            for name in ("rows.jsonl", "eval_rows.jsonl")
            for line in lines(folder / task / part / name)
        ]
        mixed = lines(folder / "mix/rows.jsonl")
        assert sorted([*mixed, *lines(folder / "mix/eval_rows.jsonl")]) == sorted(own)
        tasks = [json.loads(line)["problem_id"].split("-")[0] for line in mixed]
        assert set(tasks) == {"two_hop", "arc"}
        assert sum(one != other for one, other in pairwise(tasks)) > 1  # not one after the other
        job = json.loads((folder / "train/job.json").read_text())
        assert job["rows_path"] == str((folder / "mix/rows.jsonl").resolve())


def test_each_task_has_its_reward_prompts_and_metric(mixture: Mixture) -> None:
    label = "iter_0" if mixture.method == "sft" else "iter_0_sft"
    for task, weight in (("two_hop", 0.6), ("arc", 0.1)):
        rewards = read_records(mixture.root / label / task / "rank/rewards.jsonl", RewardParts)
        for parts in rewards:
            assert parts.token_term == pytest.approx(-weight * parts.token)
    metrics = Run(mixture.root).metrics
    assert metrics["problems/arc"]["problems/train"] == 6
    assert metrics[f"{label}/two_hop/generate"]["conversations"] == 24
    assert metrics[f"{label}/arc/generate"]["conversations"] == 18


@pytest.mark.parametrize("stage", ["arc/generate", "mix"])
def test_run_goes_on_from_any_stage_of_a_task(mixture: Mixture, stage: str, tmp_path: Path) -> None:
    label = "iter_0" if mixture.method == "sft" else "iter_0_sft"
    rewind(mixture.root, tmp_path / "run", f"{label}/{stage}")
    environment = fake_environment(tmp_path)
    status, out, err = attempt(
        mixture.directory, environment, *mixture.words, run=str(tmp_path / "run"),
        method=mixture.method,
    )  # fmt: skip
    assert status == 0, err
    assert results(tmp_path / "run") == results(mixture.root)
    assert "mean" in out


def test_reader_opens_a_mixture_whole_and_as_each_of_its_tasks(mixture: Mixture) -> None:
    whole = open_run(mixture.root)
    hop, arc = whole.tasks
    assert (hop.task, arc.task, arc.recipe.task, arc.name) == ("two_hop", "arc", "arc", "run arc")
    assert open_run(mixture.root, "arc").recipe == arc.recipe
    with pytest.raises(UsageError, match=r"is of two_hop, arc, not of gsm8k"):
        open_run(mixture.root, "gsm8k")
    with pytest.raises(UsageError, match=r"is a mixture, each of whose tasks has its own problems"):
        whole.problems()
    label = whole.evaluated[-1]
    assert hop.evaluated == arc.evaluated == whole.evaluated
    assert len(arc.problems()) == 2
    assert len(list(arc.evaluation(label))) == 2
    assert {one.problem.task for one in hop.evaluation(label)} == {"two_hop"}
    assert list(arc.drawn) == list(hop.drawn)
    assert arc.drawn
    assert not whole.drawn
    mean, *both = (run.figures[-1] for run in (whole, hop, arc))
    assert mean.tokens.mean == pytest.approx(sum(one.tokens.mean for one in both) / 2)
    assert mean.n_problems == 5
    assert whole.costs == arc.costs != ()
    n_rows = sum(1 for _ in whole.rows(label))
    assert n_rows == whole.metrics[f"{label}/mix"]["rows/train"]
    own = (
        sum(len(list(run.selected(label))) for run in (hop, arc)) if mixture.method == "sft" else 0
    )
    assert mixture.method != "sft" or n_rows == 2 * own


def test_weights_keep_the_best_of_each_task_by_their_shares(sft: Mixture) -> None:
    run_ = Run(sft.root)
    mix = run_.metrics["iter_0/mix"]
    n = {task: run_.metrics[f"iter_0/{task}/select"]["selected/problems"]
         for task in ("two_hop", "arc")}  # fmt: skip
    assert n == {"two_hop": 5, "arc": 4}
    # arc weighs three times as much and has 4: 4 of arc, one of two_hop.
    assert (mix["mix/arc/kept"], mix["mix/two_hop/kept"]) == (4, 1)
    assert (mix["mix/arc/left_out"], mix["mix/two_hop/left_out"]) == (0, 4)
    best = json.loads(lines(sft.root / "iter_0/two_hop/select/selected.jsonl")[0])
    rows = [
        row
        for name in ("rows.jsonl", "eval_rows.jsonl")
        for row in read_records(sft.root / "iter_0/mix" / name, TrainingRow)
        if row.problem_id.startswith("two_hop")
    ]
    assert {(row.problem_id, row.n) for row in rows} == {(best["problem_id"], best["n"])}
    assert len(rows) == 2  # both agents'


def test_weights_keep_the_pairs_of_highest_value(tmp_path: Path) -> None:
    made(tmp_path, "dpo", "iterations=2", "initialise=true", "tasks.arc.weight=8.0")
    root = tmp_path / "run"
    mix = Run(root).metrics["iter_0/mix"]
    n_kept = int(mix["mix/two_hop/kept"])
    assert 0 < n_kept < Run(root).metrics["iter_0/two_hop/pairs"]["pairs"]
    pairs = list(read_records(root / "iter_0/two_hop/pairs/pairs.jsonl", PreferencePair))
    best = sorted(pairs, key=lambda pair: -pair.chosen_value)[:n_kept]
    kept = [
        json.loads(line)["chosen"][0]["content"]
        for name in ("rows.jsonl", "eval_rows.jsonl")
        for line in lines(root / "iter_0/mix" / name)
        if json.loads(line)["problem_id"].startswith("two_hop")
    ]
    assert sorted(kept) == sorted(f"{pair.chosen.name}:{pair.chosen.text}" for pair in best)


def test_policies_are_trained_on_the_rows_of_all_tasks(tmp_path: Path) -> None:
    made(tmp_path, "sft", *TEAM, "iterations=1")
    found = {
        policy: {
            (json.loads(line)["agent"], json.loads(line)["problem_id"].split("-")[0])
            for line in lines(tmp_path / f"run/iter_0/train_{policy}/rows.jsonl")
        }
        for policy in ("solver", "critic")
    }
    assert found == {"solver": {(0, "two_hop"), (0, "arc")}, "critic": {(1, "two_hop"), (1, "arc")}}


def test_table_has_each_model_on_each_task_and_the_mean(mixture: Mixture) -> None:
    rows = [line.split()[:2] for line in mixture.table.splitlines()[2:5]]
    assert rows == [["base", "two_hop"], ["base", "arc"], ["base", "mean"]]


def test_dry_run_says_what_each_task_would_do(mixture: Mixture, tmp_path: Path) -> None:
    config = ["--config", str(mixture.root / "recipe.yaml")]
    words = [*config, "--run-dir", str(tmp_path / "new"), "--dry-run", *mixture.environment]
    status, out, err = command(mixture.method, *words)
    assert status == 0, err
    label = "iter_0" if mixture.method == "sft" else "iter_0_sft"
    assert "task       two_hop: information_exchange, f1, 2 agents" in out
    assert "task       arc: debate, exact_match, 2 agents" in out
    assert f"{label}/two_hop: generate 24 conversations by cold_start (8 problems x 3)" in out
    assert f"{label}/arc: generate 18 conversations by cold_start (6 problems x 3)" in out
    assert f"  {label}: mix, train from cold_start" in out
    assert not (tmp_path / "new").exists()


def test_status_counts_the_stages_of_all_tasks(mixture: Mixture, tmp_path: Path) -> None:
    status, out, _ = command("optima", "status", str(mixture.root))
    n = len(plan(Run(mixture.root).recipe))
    assert status == 0
    assert f"done, {n} of {n} stages done" in out
    shutil.copytree(mixture.root, tmp_path / "run")
    (tmp_path / "run/evaluate/base/arc/rank/DONE.json").unlink()
    status, out, _ = command("optima", "status", str(tmp_path / "run"))
    assert f"stopped, {n - 1} of {n} stages done" in out


def test_report_shows_the_tasks_one_by_one_and_together(mixture: Mixture, tmp_path: Path) -> None:
    status, _, err = command("optima", "report", str(mixture.root), "--output", str(tmp_path))
    assert status == 0, err
    together = lines(tmp_path / "tables/tasks-together.csv")
    assert together[0] == "model,two_hop,arc,mean"
    models = lines(tmp_path / "tables/models.csv")
    assert [line.split(",")[:3] for line in models[1:2]] == [["run two_hop", "base", "two_hop"]]
    labels = Run(mixture.root).evaluated
    assert len(models) == 1 + 2 * len(labels)
    differences = lines(tmp_path / "tables/differences.csv")
    assert sum(line.startswith("run arc:") for line in differences) == len(labels)
    costs = lines(tmp_path / "tables/cost.csv")
    assert len(costs) == len(labels)  # a head and those trained, once for all tasks
    rewards = lines(tmp_path / "tables/rewards.csv")
    assert any(line.startswith("run arc,iter_0") for line in rewards)


def test_compare_goes_task_by_task_and_ends_with_the_means(mixture: Mixture) -> None:
    names = [f"{mixture.root}:base", str(mixture.root)]
    status, out, err = command("optima", "compare", *names, "--json", "--problems", "2")
    assert status == 0, err
    models = json.loads(out)["models"]
    assert [one["task"] for one in models] == [
        "two_hop", "two_hop", "arc", "arc", "two_hop+arc", "two_hop+arc",
    ]  # fmt: skip
    assert [one["score_difference"] is None for one in models] == [True, False] * 3
    assert models[5]["n_common"] == 5
    tokens = [models[i]["tokens_difference"]["mean"] for i in (1, 3, 5)]
    assert tokens[2] == pytest.approx((tokens[0] + tokens[1]) / 2)
    status, out, _ = command("optima", "compare", *names)
    assert f"{mixture.root}:base mean" in out


def test_inference_asks_all_tasks_or_the_one_named(sft: Mixture, tmp_path: Path) -> None:
    words = ["--model-root", str(sft.root), "--limit", "2", *sft.environment[:2]]
    status, out, err = command("optima-infer", *words, "--output", str(tmp_path / "all"))
    assert status == 0, err
    assert out.splitlines()[0].split() == ["model", "two_hop", "arc"]
    assert (tmp_path / "all/arc/iter_0/talk/conversations.jsonl").is_file()
    words += ["--task", "arc"]
    status, out, err = command("optima-infer", *words, "--output", str(tmp_path / "arc"))
    assert status == 0, err
    assert "arc, 2 problems." in out
    assert Run(tmp_path / "arc").recipe.reward.lambda_token == 0.1


@pytest.mark.parametrize(
    "words",
    [("rescore", "RUN"), ("export", "RUN", "--output", "OUT")],
)
def test_commands_about_one_task_want_its_name(
    words: tuple[str, ...], sft: Mixture, tmp_path: Path
) -> None:
    named = [{"RUN": str(sft.root), "OUT": str(tmp_path)}.get(word, word) for word in words]
    status, _, err = command("optima", *named)
    assert status == 2
    assert f"{sft.root}: is a mixture of two_hop, arc; take one of its tasks by --task NAME" in err
    status, out, err = command("optima", *named, "--task", "arc")
    assert status == 0, err
    assert "iter_0" in out.replace("-", "_")


@pytest.mark.parametrize(
    ("program", "words", "remedy"),
    [
        ("optima", ("try", "--config", "RECIPE"), "by task=NAME"),
        ("optima", ("prompts", "show", "--recipe", "RECIPE"), "by task=NAME"),
        ("optima", ("baselines", "--run", "RUN", "--output", "OUT"), "whose budget no single task"),
        ("optima-multi-sc", ("--model-root", "RUN", "--output", "OUT"), "by --task NAME"),
    ],
)
def test_what_takes_one_task_refuses_a_mixture_in_one_line(
    program: str, words: tuple[str, ...], remedy: str, sft: Mixture, tmp_path: Path
) -> None:
    places = {"RUN": sft.root, "OUT": tmp_path / "out", "RECIPE": sft.root / "recipe.yaml"}
    status, _, err = command(program, *(str(places.get(word, word)) for word in words))
    assert status == 2
    assert "is a mixture of two_hop, arc" in err
    assert remedy in err
    assert len(err.strip().splitlines()) == 1


def test_min_share_of_a_task_may_be_lowered_when_a_run_goes_on(
    sft: Mixture, tmp_path: Path
) -> None:
    shutil.copytree(sft.root, tmp_path / "run")
    words = [*sft.words, "tasks.arc.select.min_share=0.01"]
    environment = fake_environment(tmp_path)
    status, _, err = attempt(
        sft.directory, environment, *words, run=str(tmp_path / "run"), method="sft"
    )
    assert status == 0, err
    words = [*sft.words, "tasks.arc.select.theta=0.01"]
    status, _, err = attempt(
        sft.directory, environment, *words, run=str(tmp_path / "run"), method="sft"
    )
    assert status == 2
    assert "differs in tasks.1.select.theta" in err


def test_what_models_said_about_a_problem_is_found_in_its_task(sft: Mixture) -> None:
    key = next(iter(open_run(sft.root, "arc").problems()))
    status, out, err = command("optima", "compare", str(sft.root), "--problem", key)
    assert status == 0, err
    assert key in out
    assert "iter_0" in out
    status, _, err = command("optima", "compare", str(sft.root), "--problem", "arc-0")
    assert status == 2
    assert "was not asked it (3 problems of two_hop, 2 problems of arc)" in err
    assert "test.jsonl in or below problems of a run all" in err

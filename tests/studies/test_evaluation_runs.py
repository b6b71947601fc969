"""Baselines, transfer and comparison over fakes at the process borders."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from optima.progress import Progress, read_progress
from optima.recipe.loading import dump_recipe, load_recipe
from optima.recipe.schema import Recipe
from optima.records import read_records
from optima.runs.files import CONVERSATIONS, REWARDS
from optima.studies.baselines import control_recipe
from optima.types import RewardParts
from tests.commands import ROOT, command
from tests.fake_runs import run, wait_until, write_recipe
from tests.fakes import commands, fake_environment
from tests.tokenizers import text_of

ABLATIONS = ("full", "no_token", "no_loss")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of two iterations."""
    directory = tmp_path_factory.mktemp("trained")
    run(directory, fake_environment(directory))
    return directory / "run"


def optima(*argv: str) -> tuple[int, str, str]:
    return command("optima", *argv)


def test_baselines_are_one_table_of_the_same_problems(finished: Path, tmp_path: Path) -> None:
    notes = tmp_path / "requests.jsonl"
    environment = fake_environment(tmp_path, server=("--notes", str(notes)))
    output = tmp_path / "out"
    argv = (
        "baselines", "--model", str(finished.parent / "model"), "--config",
        str(finished / "recipe.yaml"), "--limit", "4", "--output", str(output),
        "--vllm-env", str(environment.prefix),
    )  # fmt: skip
    status, table, err = optima(*argv)
    assert status == 0, err
    requests = [r for r in map(json.loads, notes.open()) if r.get("max_tokens", 0) > 1]
    asked_alone = [r for r in requests if "You are Solver." in text_of(r["prompt"])]
    assert sorted(r["temperature"] for r in asked_alone) == [0.0] * 4 + [0.5] * 4 * 8  # cot, sc
    assert {r["temperature"] for r in requests if r not in asked_alone} == {0.0}
    for problem in map(json.loads, (output / "problems/test.jsonl").open()):
        told = [text_of(r["prompt"]) for r in asked_alone]
        told = [text for text in told if problem["question"] in text]
        assert len(told) == 1 + 8
        assert all(context in text for text in told for context in problem["contexts"])
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
    assert len(held["sc"]) == 8 * len(held["cot"])
    assert all(record["format_id"] for record in held["autoform"])
    assert not any(record["format_id"] for record in held["mad"])
    results = json.loads((output / "results.json").read_text())
    vote = next(m for m in results["models"] if m["label"] == "sc")["summary"]
    tokens = [sum(turn["n_spoken"] for turn in record["turns"]) for record in held["sc"]]
    assert sum(vote["tokens_by_problem"].values()) == sum(tokens)
    assert "evaluated: tokens" in table
    assert json.loads(optima(*argv, "--json")[1]) == results
    # A comparison says of the vote what the table says, not the mean of its samples.
    status, compared, err = optima("compare", f"{output}:cot", f"{output}:sc")
    assert status == 0, err
    sc = compared.splitlines()[3].split()
    assert sc[2] == f"{100 * vote['score']['mean']:.1f}"
    assert f"{vote['tokens']['mean']:.1f}" in sc


def test_vote_is_one_whatever_a_recipe_samples_and_results_are_written_anew_from_the_stages(
    finished: Path, tmp_path: Path
) -> None:
    environment = fake_environment(tmp_path)
    output = tmp_path / "out"
    argv = (
        "baselines", "--model", str(finished.parent / "model"), "--methods", "sc", "--config",
        str(finished / "recipe.yaml"), "--limit", "3", "--n-votes", "3", "--output", str(output),
        "--vllm-env", str(environment.prefix), "evaluation.n_samples=2",
    )  # fmt: skip
    status, table, err = optima(*argv)
    assert status == 0, err
    results = (output / "results.json").read_text()
    summary = json.loads(results)["models"][0]["summary"]
    held = [json.loads(line) for line in (output / "sc/talk/conversations.jsonl").open()]
    tokens = [sum(turn["n_spoken"] for turn in record["turns"]) for record in held]
    assert summary["n_conversations"] == len(held) == 9
    assert sum(summary["tokens_by_problem"].values()) == sum(tokens)
    (output / "results.json").write_text("{")
    status, again, err = optima(*argv)
    assert status == 0, err
    assert (again, (output / "results.json").read_text()) == (table, results)


def test_trained_single_agent_learns_from_its_own_correct_answers_with_the_runs_budget(
    finished: Path, tmp_path: Path
) -> None:
    environment = fake_environment(tmp_path)
    output, control = tmp_path / "out", tmp_path / "single"
    argv = (
        "baselines", "--run", str(finished), "--methods", "cot,trained", "--output", str(output),
        "--control-dir", str(control), "--limit", "20", "--vllm-env", str(environment.prefix),
        "--train-env", str(environment.prefix),
    )  # fmt: skip
    status, table, err = optima(*argv)
    assert status == 0, err
    assert [line.split()[0] for line in table.splitlines()[2:4]] == ["cot", "trained"]
    assert f"Trained single agent: {control}" in table
    held = [json.loads(line) for line in (output / "trained/talk/conversations.jsonl").open()]
    assert {record["stop_reason"] for record in held} == {"alone"}
    loaded = [line.rpartition(" s: ")[2] for line in err.splitlines() if "weights loaded" in line]
    assert loaded[-1] == str(control / "iter_1/train/model")
    # The same data and budget, iteration by iteration.
    for t in (0, 1):
        drawn = [
            [json.loads(line) for line in (run / f"iter_{t}/generate/conversations.jsonl").open()]
            for run in (finished, control)
        ]
        keys = [[(record["problem_id"], record["n"]) for record in of_run] for of_run in drawn]
        assert keys[0] == keys[1]
        selected = [
            json.loads(line) for line in (control / f"iter_{t}/select/selected.jsonl").open()
        ]
        assert selected
        assert all(parts["task"] > 0.5 and parts["total"] == parts["task"] for parts in selected)
        first: dict[str, int] = {}  # the first right answer of every problem that has one
        for line in (control / f"iter_{t}/rank/rewards.jsonl").open():
            parts = json.loads(line)
            if parts["task"] > 0.5:
                first.setdefault(parts["problem_id"], parts["n"])
        assert {parts["problem_id"]: parts["n"] for parts in selected} == first
    recipes = [load_recipe(run / "recipe.yaml") for run in (finished, control)]
    assert recipes[0].train == recipes[1].train
    assert recipes[0].cold_start == recipes[1].cold_start
    rows = [json.loads(line) for line in (control / "cold_start/script/rows.jsonl").open()]
    assert {len(row["trained"]) for row in rows} == {1}
    n_commands = len(commands(environment))
    assert optima(*argv)[:2] == (0, table)  # nothing is trained or asked twice
    assert not [c for c in commands(environment)[n_commands:] if "-c" not in c]
    status, compared, err = optima("compare", str(finished), str(control))
    assert status == 0, err
    assert str(control) in compared


def test_control_of_a_run_with_trees_samples_as_many_answers_as_it_rolled_out(
    tmp_path: Path,
) -> None:
    recipe = load_recipe(
        ROOT / "recipes/dpo/arc.yaml", ["search.n_problems=7", "sampling.format_pool_path=formats"]
    )
    assert recipe.search is not None
    control = control_recipe(recipe)
    assert control.sampling.n_samples == 24  # 8 rounds x 3 rollouts
    assert (recipe.sampling.first_temperature, recipe.sampling.format_pool) == (0.3, True)
    assert (control.sampling.first_temperature, control.sampling.format_pool) == (0.7, False)
    assert (control.reward.lambda_token, control.reward.lambda_loss) == (0, 0)
    assert (control.select.theta, control.select.threshold_on) == (0.5, "task")
    assert (control.select.keep_from, control.select.keep_to) == (0, 1)
    assert control.iterations == recipe.iterations == 6  # the SFT that initialises is one of them
    assert (control.method, control.data.n_train, control.search) == ("sft", 7, None)
    both = load_recipe(ROOT / "recipes/sft_dpo/arc.yaml")
    assert control_recipe(both).sampling.n_samples == both.sampling.n_samples + 24
    assert control_recipe(both).iterations == both.iterations
    (tmp_path / "control.yaml").write_text(dump_recipe(control))
    assert load_recipe(tmp_path / "control.yaml") == control  # nothing in it is of no use


def test_transfer_is_a_matrix(finished: Path, tmp_path: Path) -> None:
    environment = fake_environment(tmp_path)
    rows = tmp_path / "gsm8k"
    rows.mkdir()
    row = {"question": "What is 1 + 1?", "answer": "One and one.\n#### 2"}
    (rows / "test.jsonl").write_text(json.dumps(row) + "\n")
    models = ",".join(str(finished / f"iter_{t}/train/model") for t in (0, 1))
    argv = (
        "transfer", "--models", models, "--tasks", "two_hop,gsm8k", "--data", f"gsm8k={rows}",
        "--limit", "3", "--output", str(tmp_path / "out"), "--config",
        str(finished / "recipe.yaml"), "--vllm-env", str(environment.prefix),
    )  # fmt: skip
    status, table, err = optima(*argv)
    assert status == 0, err
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == ["model", "two_hop", "gsm8k"]
    assert [line[0] for line in lines[2:4]] == ["run/iter_0", "run/iter_1"]
    assert len((tmp_path / "out/table.csv").read_text().splitlines()) == 3
    assert "tokens trained" in table
    tasks = json.loads(optima(*argv, "--json")[1])["tasks"]
    assert {task: len(found["models"]) for task, found in tasks.items()} == {
        "two_hop": 2,
        "gsm8k": 2,
    }
    one = json.loads((tmp_path / "out/gsm8k/results.json").read_text())
    assert tasks["gsm8k"] == one
    for task, n in (("two_hop", 3), ("gsm8k", 1)):  # each asks its own problems, of both models
        talks = list((tmp_path / "out" / task).rglob("conversations.jsonl"))
        assert len(talks) == 2
        for talk in talks:
            asked = [json.loads(line)["problem_id"].rpartition("-")[0] for line in talk.open()]
            assert asked == [task] * n
    status, text, err = optima("status", str(tmp_path / "out"))
    assert status == 0, err
    assert text.splitlines()[0] == f"{tmp_path / 'out'}: done, 2 of 2 runs done"


def test_transfer_takes_runs_and_names_models_by_their_places(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    shutil.copytree(finished.parent / "model", tmp_path / "plain")
    output = tmp_path / "here/out"
    status, text, err = command(
        "optima", "transfer", "--models", f"{finished},../plain", "--tasks", "two_hop", "--limit",
        "2", "--output", "out", "--vllm-env", str(fake_environment(tmp_path).prefix),
        cwd=tmp_path / "here",
    )  # fmt: skip
    assert status == 0, err
    labels = [line.split()[0] for line in text.splitlines()[2:4]]
    assert labels == ["/".join(finished.parts[-2:]), f"{tmp_path.name}/plain"]
    assert all((output / "two_hop" / label / "rank/DONE.json").exists() for label in labels)
    recipe = load_recipe(output / "two_hop/recipe.yaml")
    assert recipe.conversation == load_recipe(finished / "recipe.yaml").conversation


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
        (("compare", "nowhere"), "nowhere: is not a run directory"),
        (("sweep", "--config", "RUN/recipe.yaml", "--over", "seed=1,2", "--run-dir", "d",
          "model.tokenizer=m"), "model.tokenizer: m: a model is trained with the tokenizer in"),
        (("compare", "RUN:iter_9"), "has evaluated no iter_9; it has base"),
        (("baselines", "--model", "x/y", "--task", "arc", "--methods", "cot,mda"), "--methods mda"),
        (("transfer", "--models", "x/y", "--tasks", "arc", "--data", "arc", "--output", "o"),
         "must be TASK=DIR"),
        (("transfer", "--models", "x/y", "--tasks", "arc"), "--output: is missing"),
        (("transfer", "--models", "x/y", "--tasks", "arc,arc", "--output", "o"), "named twice"),
        (("transfer", "--models", "x/y", "--tasks", "arc", "--output", "o", "--data", "arc=d",
          "--data", "arc=e"), "--data arc: is named twice; remove one"),
        (("transfer", "--models", "RUN,RUN/evaluate/../iter_1/train/model", "--tasks", "two_hop",
          "--output", "o"), "iter_1/train/model: is named twice, as "),
        (("baselines", "--model", "x/y", "--task", "arc", "--methods", "cot,mad,cot"),
         "--methods cot: is named twice; remove one"),
        (("sweep", "--config", "RUN/recipe.yaml", "--run-dir", "d", "--over",
          "select.theta=0.5,.5"),
         "--over select.theta=0.5,.5: 0.5 and .5 are one value; remove one of them"),
        (("sweep", "--config", "RUN/recipe.yaml", "--run-dir", "d", "--over",
          "train.learning_rate=1.0e-5,2.0e-5,0.00001"), "1.0e-5 and 0.00001 are one value"),
        (("sweep", "--config", "RUN/recipe.yaml", "--run-dir", "d", "--over", "seed=1,2,1"),
         "1 and 1 are one value"),
        (("sweep", "--config", "RUN/recipe.yaml", "--run-dir", "d", "--over",
          "conversation.assent_ends=true,True"), "true and True are one value"),
        (("sweep", "--config", "RUN/recipe.yaml", "--run-dir", "d", "--over", "seed=1"),
         "must be a field and at least two values"),
        (("transfer", "--models", "x/y", "--tasks", "arc", "--data", "math=d", "--output", "o"),
         "--data math: is not among --tasks arc"),
        (("baselines", "--model", "x/y", "--task", "arc", "--n-votes", "0"), "--n-votes: 0: must"),
        (("baselines", "--model", "x/y", "--task", "arc", "--vote-temperature", "0"),
         "--vote-temperature 0: makes"),
        (("baselines", "--model", "x/y", "--task", "arc", "--methods", "trained"), "needs --run"),
        (("baselines", "--run", "nowhere", "--output", "o"), "nowhere: is not a training run"),
        (("status", "nowhere"), "is not a run directory"),
        (("ablate", "--config", "nowhere.yaml", "--run-dir", "d"),
         "nowhere.yaml: there is no such file"),
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


def test_a_run_whose_path_has_a_colon_is_compared(finished: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "seed:0"
    shutil.copytree(finished, run_dir)
    status, table, err = optima("compare", str(run_dir), f"{run_dir}:base")
    assert status == 0, err
    assert f"{run_dir}:iter_1 " in table


def test_runs_of_two_tasks_are_not_compared(finished: Path, tmp_path: Path) -> None:
    environment = fake_environment(tmp_path)
    (tmp_path / "test.jsonl").write_text('{"question": "1 + 1?", "answer": "Two.\\n#### 2"}\n')
    status, _, err = command(
        "infer", "--model", str(finished), "--task", "gsm8k", "--output", str(tmp_path / "out"),
        f"data.path={tmp_path}", "--vllm-env", str(environment.prefix),
    )  # fmt: skip
    assert status == 0, err
    status, _, err = optima("compare", str(finished), str(tmp_path / "out"))
    assert status == 2
    assert "is scored by exact_match on gsm8k" in err
    assert "by f1 on two_hop" in err


def test_tasks_of_a_transfer_are_all_checked_before_the_first_begins(
    finished: Path, tmp_path: Path
) -> None:
    environment, missing = fake_environment(tmp_path), tmp_path / "missing"
    status, _, err = optima(
        "transfer", "--models", str(finished.parent / "model"), "--tasks", "two_hop,arc", "--data",
        f"arc={missing}", "--output", str(tmp_path / "out"), "--limit", "2",
        "--vllm-env", str(environment.prefix), "serving.device=cpu",
    )  # fmt: skip
    assert status == 2
    assert err.startswith(f"optima: data.path: {missing} is not a directory")
    assert not (tmp_path / "out").exists()


def test_several_runs_are_all_checked_before_the_first_begins(tmp_path: Path) -> None:
    environment = fake_environment(tmp_path)
    config, root = write_recipe(tmp_path, "sft"), tmp_path / "several"
    common = (
        "--config", str(config), "--run-dir", str(root), "--vllm-env", str(environment.prefix),
        "--train-env", str(environment.prefix),
    )  # fmt: skip
    status, plans, err = optima("ablate", *common, "--dry-run")
    assert status == 0, err
    *parts, of_all = plans.split("\n\n")
    assert [part.splitlines()[:2] for part in parts] == [
        [name, f"run        {root / name}"] for name in ABLATIONS
    ]
    assert of_all.startswith("all runs\ndisk       ")
    status, plans, err = optima("sweep", *common, "--over", "seed=1,2", "--dry-run")
    assert status == 0, err
    assert [part.splitlines()[0] for part in plans.split("\n\n")] == ["1", "2", "all runs"]
    missing = tmp_path / "missing.jsonl"
    argv = ("sweep", *common, "--over", f"sampling.format_pool_path=null,{missing}")
    status, _, err = optima(*argv, "sampling.format_pool=true")
    assert status == 2
    assert str(missing) in err
    assert not root.exists()
    assert not any("accelerate.commands.launch" in call for call in commands(environment))


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_ablations_run_and_compare_in_one_command(method: str, tmp_path: Path) -> None:
    environment = fake_environment(tmp_path)
    config = write_recipe(tmp_path, method)
    root = tmp_path / "ablations"
    argv = (
        "ablate", "--config", str(config), "--run-dir", str(root), "--vllm-env",
        str(environment.prefix), "--train-env", str(environment.prefix),
        f"iterations={2 if method == 'dpo' else 1}",  # of dpo the first is SFT
        *(("search.lambda_loss=0.5",) if method == "dpo" else ()),
        "reward.repeat_zeroes_loss=false",
    )  # fmt: skip
    status, table, err = optima(*argv)
    assert status == 0, err
    lines = table.splitlines()[2:5]
    assert [line.split()[0] for line in lines] == [f"{root / name}:iter_0" for name in ABLATIONS]
    assert all("(" in line for line in lines[1:])
    assert "tokens trained" in table
    assert f"against {root / 'full'}:base" in table
    recipes = [load_recipe(root / name / "recipe.yaml") for name in ABLATIONS]
    rewards = [(recipe.reward.lambda_token, recipe.reward.lambda_loss) for recipe in recipes]
    assert rewards == [(0.6, 1.0), (0.0, 1.0), (0.6, 0.0)]
    of_trees = 0.5 if method == "dpo" else 1.0
    assert list(map(search_weights, recipes)) == [(0.6, of_trees), (0.0, of_trees), (0.6, 0.0)]
    labels = ("initial", "iter_0") if method == "dpo" else ("iter_0",)
    for name, weights in zip(ABLATIONS, rewards, strict=True):
        assert_rewarded(root / name / labels[0] / "rank" / REWARDS, *weights)
    trained = [
        str(Path(call[-1]).parent.relative_to(root))
        for call in commands(environment)
        if "accelerate.commands.launch" in call
    ]
    own = [f"{name}/{label}/train" for name in ABLATIONS for label in labels]
    assert trained == ["full/cold_start/train", *own]
    for shared in (
        "cold_start/train/model/model.safetensors",
        f"{labels[0]}/generate/{CONVERSATIONS}",
    ):
        for name in ABLATIONS[1:]:
            assert (root / "full" / shared).samefile(root / name / shared)
    assert not (root / "no_loss/evaluate/base/score").exists()
    assert len((root / "table.csv").read_text().splitlines()) == 4
    of_full = json.loads((root / "results.json").read_text())["models"][0]
    assert of_full["score_difference"] is None
    n_commands = len(commands(environment))
    assert optima(*argv)[:2] == (0, table)
    assert json.loads(optima(*argv, "--json")[1])["models"][0] == of_full
    assert not [c for c in commands(environment)[n_commands:] if "-c" not in c]
    status, text, err = optima("status", str(root))
    assert status == 0, err
    assert text.splitlines()[0] == f"{root}: done, 3 of 3 runs done"
    (root / "no_loss").rename(tmp_path / "aside")
    status, text, _ = optima("status", str(root))
    assert status == 1
    assert text.splitlines()[0] == f"{root}: stopped, 2 of 3 runs done"
    assert "no_loss   not begun" in text


def assert_rewarded(path: Path, lambda_token: float, lambda_loss: float) -> None:
    """Assert that the rewards in ``path`` are those of paper Eq. 1 with these weights."""
    rewards = list(read_records(path, RewardParts))
    assert len(rewards) == 24  # 3 conversations for each of 8 problems
    for parts in rewards:
        assert parts.token > 0
        assert parts.token_term == pytest.approx(-lambda_token * parts.token)
        assert (parts.loss is None) == (lambda_loss == 0)
        assert parts.loss_term == pytest.approx(lambda_loss / (parts.loss or math.inf))
        terms = -lambda_token * parts.token + parts.loss_term
        assert parts.total == pytest.approx(parts.task + terms)


def search_weights(recipe: Recipe) -> tuple[float, float]:
    """Return the weights by which trees grow, or the reward's where none do."""
    reward, search = recipe.reward, recipe.search
    if search is None:
        return reward.lambda_token, reward.lambda_loss
    return (
        reward.lambda_token if search.lambda_token is None else search.lambda_token,
        reward.lambda_loss if search.lambda_loss is None else search.lambda_loss,
    )


NONE = Progress(n_done=0, n_total=1, unit="conversations")


def test_status_of_a_running_evaluation_says_how_far_and_until_when(
    finished: Path, tmp_path: Path
) -> None:
    environment = fake_environment(tmp_path, server=("--latency-ms", "200"))
    output = tmp_path / "out"
    argv = ("multi_sc", "--model-root", str(finished), "--n-samples", "6", "--limit", "20",
            "--output", str(output), "--vllm-env", str(environment.prefix))  # fmt: skip
    running = subprocess.Popen(
        [sys.executable, "-m", "optima.cli", *argv],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        folder = output / "cold_start/talk"
        wait_until(lambda: (read_progress(folder) or NONE).n_done > 0, "the first conversation")
        status, text, err = optima("status", str(output))
        assert status == 0, err
        assert text.startswith(f"{output}: running, 1 of 10 stages done")
        told = r"\d+ of 120 conversations, \d+ tokens/s, 0 errors, score [\d.]+, 0:\d\d:\d\d left"
        assert re.search(rf"now: cold_start/talk, \d+ % of it: {told}\n", text)
        assert re.search(r"left: about 0:\d\d:\d\d, until", text)
    finally:
        running.terminate()
        running.wait(30)
    status, text, err = optima("status", str(output))
    assert status == 1, err
    assert "stopped" in text

"""optima-infer and optima-multi-sc over fakes at the process borders: order, resume, errors."""

import json
import shutil
from pathlib import Path

import pytest

from optima.errors import RecipeError
from optima.processes.devices import free_port
from optima.processes.environment import Environment
from optima.recipe.layers import merge_layers
from optima.recipe.schema import DataSection
from optima.records import write_records
from optima.studies.infer import inference_recipe
from optima.tasks import get_task
from optima.tasks.loading import load_problems
from tests.commands import command
from tests.fake_runs import run, write_recipe
from tests.fakes import commands, fake_environment
from tests.templates import LLAMA3


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of two iterations."""
    directory = tmp_path_factory.mktemp("trained")
    run(directory, fake_environment(directory))
    return directory / "run"


def _command(name: str, environment: Environment, *argv: str) -> tuple[int, str, str]:
    return command(name, *argv, "--vllm-env", str(environment.prefix))


def infer(environment: Environment, *argv: str) -> tuple[int, str, str]:
    return _command("infer", environment, *argv)


def _served(environment: Environment) -> list[str]:
    return [c[c.index("--model") + 1] for c in commands(environment) if "--model" in c]


def test_models_of_a_run_are_evaluated_in_the_order_of_training(
    finished: Path, tmp_path: Path
) -> None:
    environment = fake_environment(tmp_path)
    output = tmp_path / "out"
    base = finished.parent / "model"
    argv = ("--model-root", str(finished), "--base", str(base), "--output", str(output))
    status, table, err = infer(environment, *argv, "--limit", "5")
    assert status == 0, err
    lines = [line.split()[0] for line in table.splitlines()[2:6]]
    assert lines == ["base", "cold_start", "iter_0", "iter_1"]
    assert "two_hop, 5 problems" in table
    results = json.loads((output / "results.json").read_text())
    assert [model["label"] for model in results["models"]] == lines
    for model in results["models"]:
        summary = model["summary"]
        assert summary["n_problems"] == summary["n_conversations"] == 5
        mean = sum(summary["score_by_problem"].values()) / 5
        assert summary["score"]["mean"] == pytest.approx(mean)
        held = (output / model["label"] / "talk/conversations.jsonl").read_text().splitlines()
        turns = [json.loads(line)["turns"] for line in held]
        spoken, generated = (
            [sum(turn[key] for turn in of_one) for of_one in turns]
            for key in ("n_spoken", "n_tokens")
        )
        assert summary["tokens"]["mean"] == pytest.approx(sum(spoken) / 5)
        assert summary["generated"] == pytest.approx(sum(generated) / 5)
        assert summary["n_generated"] == sum(generated)
    assert (output / "table.md").read_text().startswith("| model | problems | score |")
    assert len((output / "table.csv").read_text().splitlines()) == 5
    costs = (output / "costs.csv").read_text().splitlines()
    assert costs[0].startswith("model,tokens generated,tokens trained,generate,score,train,other,")
    assert [line.split(",")[0] for line in costs[1:]] == lines
    assert "| tokens trained |" in (output / "table.md").read_text()
    assert _served(environment) == [str(base)]  # the others' weights are put into its servers
    loaded = [line.rpartition(" s: ")[2] for line in err.splitlines() if "weights loaded" in line]
    assert loaded == [model["model"] for model in results["models"][1:]]
    again = infer(environment, *argv, "--limit", "5")
    assert again[:2] == (0, table)
    printed = infer(environment, *argv, "--limit", "5", "--json")[1]
    assert json.loads(printed) == results
    assert len(_served(environment)) == 1


def test_interrupted_inference_holds_only_what_is_missing(finished: Path, tmp_path: Path) -> None:
    environment = fake_environment(tmp_path)
    output = tmp_path / "out"
    argv = ("--model", str(finished / "iter_1/train/model"), "--config",
            str(finished / "recipe.yaml"), "--output", str(output))  # fmt: skip
    status, table, err = infer(environment, *argv)
    assert status == 0, err
    talk = output / "model/talk"
    (talk / "DONE.json").unlink()
    shutil.rmtree(output / "model/rank")
    path = talk / "conversations.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:40])  # a torn last line
    status, again, err = infer(environment, *argv)
    assert status == 0, err
    assert "held before" in err
    assert again.splitlines()[2].split()[:8] == table.splitlines()[2].split()[:8]
    assert len(path.read_bytes().splitlines()) == len(lines)


def test_another_task_leaves_the_data_of_the_runs_own_behind(
    finished: Path, tmp_path: Path
) -> None:
    environment = fake_environment(tmp_path)
    rows = tmp_path / "gsm8k"
    rows.mkdir()
    row = {"question": "What is 1 + 1?", "answer": "One and one.\n#### 2"}
    for split in ("train", "test"):
        (rows / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    argv = ("--model-root", str(finished), "--task", "gsm8k", "--output", str(tmp_path / "out"))
    status, table, err = infer(environment, *argv, f"data.path={rows}")
    assert status == 0, err
    assert "gsm8k, 1 problems" in table


def test_another_task_leaves_fields_that_it_does_not_read_behind(tmp_path: Path) -> None:
    path = tmp_path / "arc.yaml"
    path.write_text(
        "method: sft\ntask: arc\nmodel: {path: m}\nconversation: {choice_answer: letter}\n"
    )
    answer_by_task = {
        task: inference_recipe(
            merge_layers(path), task=task, overrides=[]
        ).conversation.choice_answer
        for task in ("arc", "mmlu", "gsm8k")
    }
    assert answer_by_task == {"arc": "letter", "mmlu": "letter", "gsm8k": "text"}
    with pytest.raises(RecipeError, match="gsm8k does not read it, only arc, mmlu do"):
        inference_recipe(
            merge_layers(path), task="gsm8k", overrides=["conversation.choice_answer=letter"]
        )


def test_original_spellings_are_understood(finished: Path, tmp_path: Path) -> None:
    environment = fake_environment(tmp_path)
    argv = ("--model_root_path", str(finished), "--dataset_type", "two_hop", "--num_thread", "2",
            "--temperature", "0.0", "--output_path", str(tmp_path / "out"), "--limit", "2",
            "--device", "cpu")  # fmt: skip
    status, table, err = infer(environment, *argv)
    assert status == 0, err
    assert "2 problems" in table


def _half_written(directory: Path) -> Path:
    root = directory / "half/iter_0/train/model"
    root.mkdir(parents=True)
    (root / "config.json").write_text("{}")
    return directory / "half"


def _wrong_recipe(directory: Path) -> Path:
    path = directory / "wrong.yaml"
    path.write_text("method: sft\ntask: arc\nmodel: {path: m}\nreward: 3\n")
    return path


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("nothing", "--model-root or --model: is missing"),
        ("missing", "is not a directory"),
        ("empty", "holds no model"),
        ("half", "has a configuration and no weights"),
        ("no_hub_id", "is neither a directory, nor a run's model such as RUN:iter_0, nor a hub id"),
        ("no_output", "--output: is missing"),
        ("no_task", "--task: is missing"),
        ("wrong_task", "arcc"),
        ("no_section", "reward: 3 must be a section of keys"),
        ("wrong_metric", "--metric exact_match: does not fit two_hop, which is scored by f1"),
        ("wrong_data", "data.path: "),
        ("unknown_key", "unknown key"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    case: str, message: str, finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    model = str(finished / "iter_1/train/model")
    out = ("--output", str(tmp_path / "out"))
    argv = {
        "nothing": out,
        "missing": ("--model-root", str(tmp_path / "none"), *out),
        "empty": ("--model-root", str(tmp_path / "empty"), *out),
        "half": ("--model-root", str(_half_written(tmp_path)), "--task", "two_hop", *out),
        "no_hub_id": ("--model", "nowhere", "--task", "two_hop", *out),
        "no_output": ("--model", model, "--task", "two_hop"),
        "no_task": ("--model", str(finished.parent / "model"), *out),
        "no_section": ("--model", model, "--config", str(_wrong_recipe(tmp_path)), *out),
        "wrong_metric": ("--model", model, "--metric", "exact_match", *out),
        "wrong_data": ("--model", model, "--task", "arc", "data.path=nowhere", *out),
        "wrong_task": ("--model", model, "--task", "arcc", *out),
        "unknown_key": ("--model-root", str(finished), *out, "evaluation.temperatur=1.0"),
    }[case]
    status, _, err = infer(fake_environment(tmp_path), *argv)
    assert status == 2, err
    assert message in err
    complaints = [line for line in err.splitlines() if line.startswith("optima: ")]
    assert len(complaints) == 1
    assert "Traceback" not in err


def test_a_start_with_wrong_data_can_be_given_again_with_the_right_one(
    finished: Path, tmp_path: Path
) -> None:
    environment = fake_environment(tmp_path)
    argv = ("--model", str(finished), "--task", "gsm8k", "--output", str(tmp_path / "out"))
    assert infer(environment, *argv, "data.path=nowhere")[0] == 2
    rows = _sums(tmp_path)
    status, table, err = infer(environment, *argv, f"data.path={rows}")
    assert status == 0, err
    assert "gsm8k, 1 problems" in table


def _sums(directory: Path) -> Path:
    rows = directory / "gsm8k"
    rows.mkdir()
    row = {"question": "What is 1 + 1?", "answer": "One and one.\n#### 2"}
    (rows / "test.jsonl").write_text(json.dumps(row) + "\n")
    return rows


@pytest.mark.parametrize(
    ("name", "cut", "message"),
    [
        ("model/talk/conversations.jsonl", 30, "talk/conversations.jsonl: has"),
        ("model/rank/rewards.jsonl", 30, "rank/rewards.jsonl: has"),
        ("model/rank/rewards.jsonl", None, "rank/rewards.jsonl: has"),
        ("model/groups/groups.jsonl", None, "groups/groups.jsonl: has"),
        ("provenance.json", 30, "provenance.json: cannot be read"),
        ("recipe.yaml", 20, "recipe.yaml"),
    ],
)
def test_half_written_results_are_one_clear_error(
    name: str, cut: int | None, message: str, sampled: tuple[Path, tuple[str, ...]], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(sampled[0], output)
    path = output / name
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    path.write_bytes(content[:-cut] if cut is not None else b"".join(lines[:-1]))
    argv = (*sampled[1], "--output", str(output))
    status, _, err = consistency(fake_environment(tmp_path), *argv)
    assert status in (1, 2), err
    complaints = [line for line in err.splitlines() if line.startswith("optima: ")]
    assert len(complaints) == 1
    assert message in complaints[0]
    assert "Traceback" not in err


@pytest.fixture(scope="module")
def sampled(
    finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, tuple[str, ...]]:
    """Return the output of a small self-consistency, and its arguments but for --output."""
    directory = tmp_path_factory.mktemp("sampled")
    argv = ("--model", str(finished), "--n-samples", "1", "--limit", "3")
    status, _, err = consistency(
        fake_environment(directory), *argv, "--output", str(directory / "out")
    )
    assert status == 0, err
    return directory / "out", argv


def test_the_same_checkpoint_and_seed_give_the_same_table_twice(
    finished: Path, tmp_path: Path
) -> None:
    found = []
    for n in (1, 2):
        directory = tmp_path / str(n)
        argv = ("--model", str(finished), "--output", str(directory / "out"), "--limit", "20",
                "evaluation.temperature=0.7")  # fmt: skip
        status, _, err = infer(fake_environment(directory), *argv)
        assert status == 0, err
        results = json.loads((directory / "out/results.json").read_text())
        for model in results["models"]:
            del model["seconds"]
        del results["evaluation_costs"]["model"]["device_seconds"]
        lines = (directory / "out/table.csv").read_text().splitlines()
        found.append((results, [line.rpartition(",")[0] for line in lines]))
    assert found[0] == found[1]


def test_original_inference_command_can_be_pasted(finished: Path, tmp_path: Path) -> None:
    environment = fake_environment(tmp_path)
    port = free_port()
    argv = ("--model_root_path", str(finished), "--tokenizer_path", str(finished.parent / "model"),
            "--dataset_type", "two_hop", "--device", "cpu", "--port", str(port), "--num_thread",
            "128", "--output_root_path", str(tmp_path / "out"), "--limit", "2")  # fmt: skip
    status, table, err = command("infer", *argv, "--vllm_env", str(environment.prefix))
    assert status == 0, err
    assert [line.split()[0] for line in table.splitlines()[2:5]] == [
        "cold_start",
        "iter_0",
        "iter_1",
    ]
    for begun in (c for c in commands(environment) if "--model" in c):
        assert begun[begun.index("--port") + 1] == str(port)
        assert begun[begun.index("--tokenizer") + 1] == str(finished.parent / "model")


def test_original_self_consistency_command_can_be_pasted(finished: Path, tmp_path: Path) -> None:
    environment = fake_environment(tmp_path)
    argv = ("--model_path", str(finished / "iter_1/train/model"), "--tokenizer_path",
            str(finished.parent / "model"), "--device", "cpu", "--port", str(free_port()),
            "--dataset_type", "two_hop", "--num_thread", "128", "--output_path",
            str(tmp_path / "out"), "--temperature", "0.5", "--n-samples", "2", "--limit",
            "2")  # fmt: skip
    status, table, err = command("multi_sc", *argv, "--vllm_env", str(environment.prefix))
    assert status == 0, err
    assert [line.split()[1] for line in table.splitlines()[2:4]] == ["1", "2"]
    assert "tokens trained" in table


@pytest.mark.parametrize(
    ("option", "change"),
    [
        (("--device", "0"), "serving.gpus=[1]"),
        (("--device", "cpu"), "serving.device=cuda"),
        (("--port", "8000"), "serving.port=8001"),
        (("--tokenizer_path", "a"), "model.tokenizer=b"),
        (("--num_thread", "8"), "serving.concurrency=4"),
        (("--temperature", "0.5"), "evaluation.temperature=0.7"),
    ],
)
def test_original_option_beside_the_field_that_it_sets_is_refused(
    option: tuple[str, str], change: str, tmp_path: Path
) -> None:
    common = ("--model", "m", "--task", "two_hop", "--output", str(tmp_path / "out"))
    status, _, err = command("infer", *common, *option, change)
    assert status == 2
    told = f"optima: {option[0]}: says the same as {change.partition('=')[0]}; give one"
    assert err.splitlines()[-1] == told  # above it the log may say what --device means


def test_both_original_commands_can_be_pasted_with_one_output(
    finished: Path, tmp_path: Path
) -> None:
    environment = fake_environment(tmp_path)
    out = tmp_path / "results"
    common = ("--dataset_type", "two_hop", "--device", "cpu", "--num_thread", "128", "--limit", "2",
              "--vllm_env", str(environment.prefix))  # fmt: skip
    first = ("--model_root_path", str(finished), "--output_root_path", str(out), *common)
    second = ("--model_path", str(finished / "iter_1/train/model"), "--output_path", str(out),
              "--temperature", "0.5", "--n-samples", "2", *common)  # fmt: skip
    for _ in range(2):  # the second time both go on
        for name, argv in (("infer", first), ("multi_sc", second)):
            status, _, err = command(name, *argv)
            assert status == 0, err
    assert f"{out} holds the results of another command; writing to {out}-two_hop-multi_sc" in err
    assert (out / "results.json").is_file()
    assert (tmp_path / "results-two_hop-multi_sc/results.json").is_file()


def test_taken_results_are_refused_by_the_name_of_the_option(
    sampled: tuple[Path, tuple[str, ...]], tmp_path: Path
) -> None:
    output, argv = sampled
    status, _, err = infer(fake_environment(tmp_path), *argv[:2], "--output", str(output))
    assert status == 2
    assert f"optima: {output}: holds a run of another recipe" in err
    assert "give another directory, or the same recipe" in err
    assert "--run-dir" not in err


def test_a_model_is_not_tested_on_what_it_was_trained_on(finished: Path, tmp_path: Path) -> None:
    rows = _sums(tmp_path)
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    seen = load_problems(
        get_task("gsm8k"), DataSection(path=str(rows)), "test", n_agents=2, seed=0
    ).problems
    write_records(run / "problems/train.jsonl", seen)
    environment = fake_environment(tmp_path)
    argv = ("--model", str(run), "--task", "gsm8k", "--output", str(tmp_path / "out"))
    status, _, err = infer(environment, *argv, f"data.path={rows}")
    assert status == 2, err
    assert "optima: data.overlap: 1 of 1 test problems stand in " in err
    assert "which a model was trained on" in err
    # the remedy helps, in the same directory
    status, table, err = infer(environment, *argv, f"data.path={rows}", "data.overlap=keep")
    assert status == 0, err
    assert "gsm8k, 1 problems" in table
    assert "kept, scores tell little" in err


def test_a_model_is_not_tested_on_what_its_start_model_was_trained_on(
    finished: Path, tmp_path: Path
) -> None:
    rows = _sums(tmp_path)
    seen = load_problems(
        get_task("gsm8k"), DataSection(path=str(rows)), "test", n_agents=2, seed=0
    ).problems
    first, second = tmp_path / "first", tmp_path / "second"
    for place in (first, second):
        shutil.copytree(finished, place)
    write_records(first / "problems/train.jsonl", seen)
    start, recipe = first / "iter_1/train/model", second / "recipe.yaml"
    text = recipe.read_text()
    assert str(finished.parent / "model") in text
    recipe.write_text(text.replace(str(finished.parent / "model"), str(start)))
    environment = fake_environment(tmp_path)
    told = f"1 of 1 test problems stand in {first}/problems/train.jsonl too"
    argv = ("--model", str(second), "--task", "gsm8k", "--output", str(tmp_path / "out"))
    status, _, err = infer(environment, *argv, f"data.path={rows}")
    assert (status, told in err) == (2, True), err
    # neither is a run that starts from it, before anything is generated
    row = {"question": "What is 1 + 2?", "answer": "Count on.\n#### 3"}
    (rows / "train.jsonl").write_text(json.dumps(row) + "\n")
    fields = ("--config", str(write_recipe(tmp_path, "sft")), "task=gsm8k", "cold_start=null",
              f"model.path={start}", f"data.path={rows}", "--run-dir", str(tmp_path / "run"),
              "--train-env", str(environment.prefix))  # fmt: skip
    for options in (("--dry-run",), ()):
        status, _, err = _command("sft", environment, *fields, *options)
        assert (status, told in err) == (2, True), err
    assert not any(call[0] == "-m" for call in commands(environment))  # nothing was served
    status, _, err = _command("sft", environment, *fields, "--dry-run", "data.overlap=keep")
    assert status == 0, err


def test_each_model_is_asked_by_its_own_chat_template(finished: Path, tmp_path: Path) -> None:
    environment = fake_environment(tmp_path)
    other = tmp_path / "other"
    shutil.copytree(finished.parent / "model", other)
    (other / "chat_template.jinja").write_text(LLAMA3)
    (other / "tokenizer_config.json").write_text(
        '{"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}'
    )
    prompts = {}
    for name, base in (("beside", ("--base", str(other))), ("alone", ())):
        argv = ("--model", str(other) if name == "alone" else str(finished), *base, "--config",
                str(finished / "recipe.yaml"), "--limit", "3", "--output",
                str(tmp_path / name))  # fmt: skip
        status, _, err = infer(environment, *argv)
        assert status == 0, err
        label = "base" if name == "beside" else "model"
        held = (tmp_path / name / label / "talk/conversations.jsonl").read_text().splitlines()
        prompts[name] = [
            turn["n_prompt_tokens"] for line in held for turn in json.loads(line)["turns"][:1]
        ]
    assert prompts["beside"] == prompts["alone"]


def consistency(environment: Environment, *argv: str) -> tuple[int, str, str]:
    return _command("multi_sc", environment, *argv)


def test_votes_are_computed_for_every_k_from_one_sampling(finished: Path, tmp_path: Path) -> None:
    environment = fake_environment(tmp_path)
    output = tmp_path / "out"
    argv = ("--model", str(finished / "iter_1/train/model"), "--config",
            str(finished / "recipe.yaml"), "--n-samples", "5", "--temperature", "0.8",
            "--output", str(output))  # fmt: skip
    status, table, err = consistency(environment, *argv)
    assert status == 0, err
    assert [line.split()[1] for line in table.splitlines()[2:6]] == ["1", "2", "4", "5"]
    points = json.loads((output / "results.json").read_text())["models"][0]["points"]
    assert [point["k"] for point in points] == [1, 2, 3, 4, 5]
    coverage = [point["coverage"]["mean"] for point in points]
    assert coverage == sorted(coverage)
    assert all(p["score"]["mean"] <= p["coverage"]["mean"] + 1e-9 for p in points)
    held = [json.loads(line) for line in (output / "model/talk/conversations.jsonl").open()]
    n_problems = len({record["problem_id"] for record in held})
    assert len(held) == 5 * n_problems
    tokens = sum(turn["n_spoken"] for record in held for turn in record["turns"])
    assert points[-1]["n_tokens"] == pytest.approx(tokens / n_problems)
    assert points[0]["n_tokens"] == pytest.approx(tokens / n_problems / 5, rel=0.2)
    assert len((output / "table.csv").read_text().splitlines()) == 6
    assert consistency(environment, *argv)[:2] == (0, table)
    printed = consistency(environment, *argv, "--json")[1]
    assert json.loads(printed)["models"][0]["points"] == points
    assert len(_served(environment)) == 1


def test_equal_samples_are_refused(finished: Path, tmp_path: Path) -> None:
    status, _, err = consistency(
        fake_environment(tmp_path), "--model-root", str(finished), "--temperature", "0",
        "--output", str(tmp_path / "out"),
    )  # fmt: skip
    assert status == 2
    assert "--temperature 0: makes all samples equal" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("evaluation.temperature=0.7", "says the same as --temperature; give that alone"),
        ("evaluation.n_samples=4", "says the same as --n-samples; give that alone"),
        ("evaluation={n_samples: 4}", "takes back --n-samples; give fields of it one by one"),
    ],
)
def test_field_that_an_option_of_votes_sets_is_refused(
    change: str, said: str, tmp_path: Path
) -> None:
    common = ("--model", "m", "--task", "two_hop", "--output", str(tmp_path / "out"))
    status, _, err = command("multi-sc", *common, change)
    assert (status, err) == (2, f"optima: {change}: {said}\n")


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ("sampling.temperature=0.9", "set evaluation.temperature"),
        ("sampling.first_temperature=0.9", "set evaluation.temperature"),
        ("sampling.n_samples=3", "set evaluation.n_samples"),
        ("sampling.top_p=0.9", "remove it"),
        ("evaluation.base=false", "name a model by --base, or leave it out"),
        ("data.n_train=5", "remove it"),
        ("data.draw=in_turn", "remove it"),
        ("method=dpo", "remove it"),
        ("iterations=3", "remove it"),
        ("select.theta=0.9", "remove it"),
        ("train.lora.rank=8", "remove it"),
        ("search.n_rounds=2", "remove it"),
        ("dpo.beta=0.5", "remove it"),
        ("cold_start={}", "remove it"),
    ],
)
@pytest.mark.parametrize("program", ["infer", "multi_sc", "baselines", "transfer"])
def test_a_change_of_what_only_a_training_reads_is_refused(
    program: str, change: str, remedy: str, finished: Path, tmp_path: Path
) -> None:
    model = str(finished / "iter_0/train/model")
    words = {
        "infer": ("infer", "--model", model, "--task", "two_hop"),
        "multi_sc": ("multi_sc", "--model", model, "--task", "two_hop"),
        "baselines": ("optima", "baselines", "--model", model, "--task", "two_hop"),
        "transfer": ("optima", "transfer", "--models", model, "--tasks", "two_hop"),
    }[program]
    status, _, err = command(*words, "--output", str(tmp_path / "out"), change)
    assert status == 2
    assert err == f"optima: {change}: is for training, and nothing is trained here; {remedy}\n"
    assert not (tmp_path / "out").exists()

"""Whole iSFT runs over fakes at the process borders: results, resume, kills and failures."""

import json
import shutil
import signal
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from optima.records import read_records
from optima.reporting.results import results_json, training_results
from optima.types import Conversation, TrainingRow
from tests.commands import command
from tests.fake_runs import (
    attempt,
    debate_data,
    finish,
    processes_of,
    results,
    rewind,
    run,
    start,
    wait_until,
)
from tests.fakes import commands, fake_environment
from tests.tokenizers import codec, encoder, text_of

END = codec("chatml").end_token

STAGES = (
    "evaluate/base/talk",
    "cold_start/train",
    "iter_0/generate",
    "evaluate/cold_start/score",
    "iter_0/score",
    "iter_0/train",
    "iter_1/generate",
    "iter_1/train",
    "evaluate/iter_1/talk",
)


# Those that are over at once. The disk is made slow below them, to catch a run in their middle.
QUICK_STAGES = (
    "problems",
    "cold_start/script",
    "iter_0/rank",
    "iter_0/select",
)
SLOW_DISK = """
import os, time
_fsync = os.fsync
def fsync(fd):
    path = os.readlink(f"/proc/self/fd/{fd}")
    if f"/STAGE/" in path and "INPUTS" not in path:
        time.sleep(60)
    _fsync(fd)
os.fsync = fsync
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    directory = tmp_path_factory.mktemp("undisturbed")
    table = run(directory, fake_environment(directory))
    return results(directory / "run"), table, directory / "run"


def test_run_ends_with_a_table_of_all_models(undisturbed: tuple[dict[str, Any], str, Path]) -> None:
    _, table, root = undisturbed
    labels = [line.split()[0] for line in table.splitlines()[2:6]]
    assert labels == ["base", "cold_start", "iter_0", "iter_1"]
    assert str(root) in table
    stages = [json.loads(line)["stage"] for line in (root / "metrics.jsonl").open()]
    assert set(STAGES) <= set(stages)
    assert len(stages) == len(set(stages))
    assert json.loads((root / "provenance.json").read_text())["attempts"][0]["argv"]


def test_finished_run_prints_its_models_for_other_programs(
    undisturbed: tuple[dict[str, Any], str, Path],
) -> None:
    _, table, root = undisturbed
    found = training_results(root)
    results = json.loads(results_json(found))
    assert (results["task"], results["method"], results["seed"]) == ("two_hop", "sft", 0)
    rows = [line.split() for line in table.splitlines()[2:6]]
    for model, row in zip(results["models"], rows, strict=True):
        assert model["label"] == row[0]
        assert f"{100 * model['summary']['score']['mean']:.1f}" == row[2]
    assert [cost["label"] for cost in results["costs"]] == ["cold_start", "iter_0", "iter_1"]


def test_rows_of_a_run_are_shown_as_its_models_read_them(
    undisturbed: tuple[dict[str, Any], str, Path],
) -> None:
    *_, root = undisturbed
    status, text, err = command("optima", "rows", f"{root}:iter_0", "--n", "2")
    assert status == 0, err
    assert text.count("iter_0, row ") == 2
    assert "You are Alice." in text
    status, text, err = command("optima", "rows", str(root), "--first", "1", "--json")
    (row,) = json.loads(text)
    (stored,) = list(read_records(root / "iter_1/select/rows.jsonl", TrainingRow))[1:2]
    assert tuple(index for piece in row["pieces"] for index in piece["ids"]) == stored.input_ids
    n_trained = sum(len(piece["ids"]) for piece in row["pieces"] if piece["is_trained"])
    assert n_trained == sum(end - start for start, end in stored.trained)


def test_run_stops_at_a_model_whose_training_cost_it_its_speech(tmp_path: Path) -> None:
    environment = fake_environment(tmp_path, server=("--mute", "iter_0"))
    for _ in range(2):  # nor does a second attempt go on with it
        status, out, err = attempt(tmp_path, environment, "data.n_test=6")
        assert status == 1, out
        said = "stage evaluate/iter_0/talk: 100 % of its conversations hold an utterance that says"
        assert said in err
        assert "the training of iter_0 has ruined the model; lower the learning rate" in err
    assert not (tmp_path / "run" / "iter_1").exists()


def test_candidates_are_complete_ordered_and_pooled_in_iteration_0_only(
    undisturbed: tuple[dict[str, Any], str, Path],
) -> None:
    found, _, root = undisturbed
    for t in (0, 1):
        held = found[f"iter_{t}/generate/conversations.jsonl"]
        assert len(held) == 24
        assert [c["n"] for c in held] == [0, 1, 2] * 8
        assert all((c["format_id"] is not None) == (t == 0) for c in held)
    drawn = [
        {c["problem_id"] for c in found[f"iter_{t}/generate/conversations.jsonl"]} for t in (0, 1)
    ]
    assert drawn[0] != drawn[1]  # a sample of its own each time, of 2,000
    pool = Path(__file__).parents[2] / "optima" / "prompts" / "formats"
    rows = read_records(root / "iter_0/select/rows.jsonl", TrainingRow)
    text = "".join(text_of(row.input_ids) for row in rows)
    assert "You are Alice." in text
    for path in pool.glob("*.txt"):
        assert path.read_text().strip()[:40] not in text


@pytest.mark.parametrize("t", [0, 1])
def test_rows_hold_the_ids_that_the_server_gave_and_was_given(
    t: int, undisturbed: tuple[dict[str, Any], str, Path]
) -> None:
    root = undisturbed[2]
    held = {
        (talk.problem_id, talk.n): talk
        for talk in read_records(root / f"iter_{t}/generate/conversations.jsonl", Conversation)
    }
    rows = list(read_records(root / f"iter_{t}/select/rows.jsonl", TrainingRow))
    assert rows
    for row in rows:
        own = [turn for turn in held[row.problem_id, row.n].turns if turn.agent == row.agent]
        assert row.n_utterances == len(own)
        assert row.n_retokenised == 0
        for turn, (first, stop) in zip(own, row.trained, strict=True):
            assert row.input_ids[first:stop] == (*(turn.token_ids or ()), END)
            assert turn.token_ids == encoder().encode(turn.text)  # as the fake server has it
            assert turn.n_tokens == stop - first
            if t == 1:  # in iteration 0 the pool's format is left out
                assert turn.n_prompt_tokens == first


def test_utterances_without_sampled_ids_are_counted_in_the_metrics(
    undisturbed: tuple[dict[str, Any], str, Path],
) -> None:
    root = undisturbed[2]
    stages = {m["stage"]: m for m in map(json.loads, (root / "metrics.jsonl").open())}
    assert stages["iter_0/select"]["rows/retokenised"] == 0
    scripts = root / "cold_start/script"
    rows = [
        row
        for name in ("rows.jsonl", "eval_rows.jsonl")
        for row in read_records(scripts / name, TrainingRow)
    ]
    n_said = sum(row.n_utterances for row in rows)
    assert stages["cold_start/script"]["rows/retokenised"] == n_said > len(rows)


def test_run_over_servers_that_give_no_ids_trains_on_the_text_and_counts_it(
    tmp_path: Path,
) -> None:
    run(tmp_path, fake_environment(tmp_path, server=("--no-token-ids",)))
    root = tmp_path / "run"
    rows = [
        row
        for name in ("rows.jsonl", "eval_rows.jsonl")
        for row in read_records(root / "iter_0/select" / name, TrainingRow)
    ]
    stages = {m["stage"]: m for m in map(json.loads, (root / "metrics.jsonl").open())}
    n_said = sum(row.n_utterances for row in rows)
    assert stages["iter_0/select"]["rows/retokenised"] == n_said > 0


def test_same_seed_gives_the_same_run_and_another_seed_another(
    undisturbed: tuple[dict[str, Any], str, Path], tmp_path: Path
) -> None:
    environment = fake_environment(tmp_path)
    first = start(tmp_path, environment, run="first")
    other = start(tmp_path, environment, "seed=1", run="other")  # side by side
    assert finish(first)[0] == 0
    assert finish(other)[0] == 0
    # The recipe's model path differs from the undisturbed run's, so compare what is computed.
    assert results(tmp_path / "first").keys() == undisturbed[0].keys()
    for name in ("iter_1/generate/conversations.jsonl", "iter_1/select/rows.jsonl"):
        assert results(tmp_path / "first")[name] == undisturbed[0][name]
        assert results(tmp_path / "other")[name] != undisturbed[0][name]


def test_second_run_reuses_everything_and_starts_nothing(
    undisturbed: tuple[dict[str, Any], str, Path], tmp_path: Path
) -> None:
    environment, again = fake_environment(tmp_path), tmp_path / "run"
    _, table, root = undisturbed
    shutil.copytree(root, again)
    before = {p: p.read_bytes() for p in again.rglob("*.jsonl")}
    found = run(root.parent, environment, run=str(again))
    assert found.replace(str(again), str(root)) == table
    assert [c for c in commands(environment) if c[:1] == ["-m"]] == []
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*.jsonl")} == before


@pytest.mark.parametrize("stage", STAGES)
def test_kill_in_any_stage_leaves_no_process_and_the_rerun_equals_an_undisturbed_run(
    stage: str, undisturbed: tuple[dict[str, Any], str, Path], tmp_path: Path
) -> None:
    mark = uuid.uuid4().hex
    environment = fake_environment(
        tmp_path, server=("--latency-ms", "30"), train_seconds=1.0
    )  # slow enough to be caught in the act
    root, copy = undisturbed[2], tmp_path / "run"
    rewind(root, copy, stage)
    victim = start(root.parent, environment, run=str(copy), mark=mark)
    path = copy / stage
    wait_until(lambda: (path / "INPUTS").exists(), f"stage {stage}")
    if "generate" in stage:  # some conversations are there, others are not
        wait_until(lambda: (path / "conversations.jsonl").exists(), "a conversation")
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    wait_until(lambda: not processes_of(mark), f"the end of {processes_of(mark)}", 15.0)
    if not stage.endswith("/score"):  # a fake's losses may be there before the signal is
        assert not (path / "DONE.json").exists()
    shutil.rmtree(tmp_path / "fake_env")
    run(root.parent, fake_environment(tmp_path), run=str(tmp_path / "run"))
    assert results(tmp_path / "run") == undisturbed[0]


@pytest.mark.parametrize("stage", QUICK_STAGES)
def test_kill_while_a_stage_writes_its_results_leaves_a_run_that_goes_on(
    stage: str,
    undisturbed: tuple[dict[str, Any], str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mark = uuid.uuid4().hex
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "sitecustomize.py").write_text(SLOW_DISK.replace("STAGE", stage))
    root, copy = undisturbed[2], tmp_path / "run"
    rewind(root, copy, stage)
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(slow))
        victim = start(root.parent, fake_environment(tmp_path), run=str(copy), mark=mark)
    path = copy / stage
    # What is written under a temporary name is there, and nothing else.
    others = (".INPUTS", ".SPENT")
    wait_until(
        lambda: any(not part.name.startswith(others) for part in path.glob(".*.tmp")),
        f"stage {stage}",
    )
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    wait_until(lambda: not processes_of(mark), f"the end of {processes_of(mark)}", 15.0)
    assert not (path / "DONE.json").exists()
    run(root.parent, fake_environment(tmp_path), run=str(tmp_path / "run"))
    assert results(tmp_path / "run") == undisturbed[0]


def test_resumed_stage_accounts_for_the_seconds_and_tokens_of_every_attempt(
    undisturbed: tuple[dict[str, Any], str, Path], tmp_path: Path
) -> None:
    slow = fake_environment(tmp_path, server=("--latency-ms", "400"))
    root, copy = undisturbed[2], tmp_path / "run"
    rewind(root, copy, "iter_0/generate")
    victim = start(root.parent, slow, run=str(copy))
    path = copy / "iter_0/generate"
    wait_until((path / "conversations.jsonl").exists, "a conversation")
    spent = path / "SPENT.json"
    wait_until(lambda: spent.exists() and json.loads(spent.read_text())["seconds"] > 1, "a while")
    wait_until(lambda: json.loads(spent.read_text())["n_tokens"] > 0, "tokens under way")
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    before = json.loads(spent.read_text())
    shutil.rmtree(tmp_path / "fake_env")
    run(root.parent, fake_environment(tmp_path), run=str(tmp_path / "run"))
    done = json.loads((path / "DONE.json").read_text())
    assert done["seconds"] > before["seconds"]
    figures = done["metrics"]
    # What was on its way when the run was killed had to be said again, and was paid for.
    assert figures["tokens/discarded"] == before["n_tokens"] > 0
    undisturbed_figures = json.loads((undisturbed[2] / "iter_0/generate/DONE.json").read_text())
    assert undisturbed_figures["metrics"]["tokens/discarded"] == 0
    assert figures["tokens/generated"] == undisturbed_figures["metrics"]["tokens/generated"]


def unfinished_generation(root: Path, copy: Path) -> tuple[Path, list[bytes]]:
    """Return the conversations of a copy whose first generation is not done, and its lines."""
    shutil.copytree(root, copy)
    generate = copy / "iter_0" / "generate"
    (generate / "DONE.json").unlink()
    path = generate / "conversations.jsonl"
    return path, path.read_bytes().splitlines(keepends=True)


def test_torn_last_line_is_held_again_and_nothing_else(
    undisturbed: tuple[dict[str, Any], str, Path], tmp_path: Path
) -> None:
    root = undisturbed[2]
    path, lines = unfinished_generation(root, tmp_path / "run")
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:50])
    run(root.parent, fake_environment(tmp_path), run=str(tmp_path / "run"))
    assert results(tmp_path / "run") == undisturbed[0]


def test_lines_that_are_doubled_of_no_sample_or_out_of_order_are_put_right(
    undisturbed: tuple[dict[str, Any], str, Path], tmp_path: Path
) -> None:
    root = undisturbed[2]
    path, lines = unfinished_generation(root, tmp_path / "run")
    assert b'"n":0,' in lines[0]
    of_no_sample = [lines[0].replace(b'"n":0,', b'"n":%d,' % n, 1) for n in (99, -1, 10**9)]
    path.write_bytes(b"".join([*of_no_sample, *lines[:0:-1], lines[-1]]))
    run(root.parent, fake_environment(tmp_path), run=str(tmp_path / "run"))
    assert path.read_bytes().splitlines(keepends=True)[1:] == lines[1:]
    assert results(tmp_path / "run") == undisturbed[0]


def test_server_killed_in_mid_generation_loses_and_doubles_nothing(
    undisturbed: tuple[dict[str, Any], str, Path], tmp_path: Path
) -> None:
    # Each server process exits after 40 requests and is restarted in place.
    environment = fake_environment(tmp_path, server=("--die-after", "40"))
    run(tmp_path, environment, "serving.max_restarts=50", "serving.max_attempts=10")
    held = results(tmp_path / "run")["iter_0/generate/conversations.jsonl"]
    assert Counter((c["problem_id"], c["n"]) for c in held).most_common(1)[0][1] == 1
    assert results(tmp_path / "run") == undisturbed[0]


def test_training_that_fails_is_one_error_with_its_log_and_the_rerun_goes_on(
    tmp_path: Path,
) -> None:
    environment = fake_environment(tmp_path, train_fails=1)
    status, _, err = attempt(tmp_path, environment)
    assert status == 1
    assert "the fake trainer fails as it was told" in err
    assert "Traceback (most recent call last):\n  File" not in err.split("optima: ")[0]
    run(tmp_path, environment)


def test_server_that_never_gets_ready_is_one_error_and_the_rerun_goes_on(tmp_path: Path) -> None:
    environment = fake_environment(tmp_path, server=("--never-ready",))
    status, _, err = attempt(tmp_path, environment, "serving.start_timeout_s=3.0")
    assert status == 1
    assert "3 s" in err
    shutil.rmtree(tmp_path / "fake_env")
    run(tmp_path, fake_environment(tmp_path))  # serving.start_timeout_s may differ


def test_empty_selection_says_how_far_the_best_was(tmp_path: Path) -> None:
    status, _, err = attempt(tmp_path, fake_environment(tmp_path), "select.theta=99.0")
    assert status == 1
    assert "nothing to train on" in err
    assert "select.theta is 99.0" in err


def test_too_small_a_selection_says_what_goes_wrong_and_what_to_change(tmp_path: Path) -> None:
    status, _, err = attempt(tmp_path, fake_environment(tmp_path), "conversation.max_turn_tokens=3")
    assert status == 1
    *_, before = err.split("optima: stage ", 1)
    lines = before.splitlines()
    assert lines[0] == "iter_0/select: nothing to train on: no candidate was eligible"
    assert lines[1].startswith("optima:   - 100 % of the conversations mark no answer: ")
    assert "conversation.worked_example=true, or write prompts" in lines[1]  # it has a cold start
    assert lines[2].endswith("or lower sampling.first_temperature")
    assert lines[-1] == "optima:   - raise sampling.n_samples"


def test_run_that_selected_too_little_goes_on_with_a_lower_least_share(
    undisturbed: tuple[dict[str, Any], str, Path], tmp_path: Path
) -> None:
    environment = fake_environment(tmp_path)
    status, _, err = attempt(tmp_path, environment, "select.min_share=0.65")
    assert status == 1
    assert (
        "stage iter_0/select: 5 of 8 problems selected, select.min_share is 0.65: too few to learn "
        "from\n" in err
    )
    assert err.endswith("or, to train on so little, run again with a lower select.min_share\n")
    begun = len(commands(environment))
    run(tmp_path, environment, "select.min_share=0.6")  # 5 of 8 are 0.625
    again = commands(environment)[begun:]
    assert results(tmp_path / "run") == undisturbed[0]
    assert "select:\n  theta: -5.0\n" in (tmp_path / "run/recipe.yaml").read_text()
    assert "  min_share: 0.6\n" in (tmp_path / "run/recipe.yaml").read_text()
    # Of iteration 0 nothing was done twice: what trains first is what was missing.
    jobs = [argv[argv.index("--job") + 1] for argv in again if "--job" in argv]
    assert [Path(job).parts[-3:-1] for job in jobs] == [("iter_0", "train"), ("iter_1", "train")]


def test_least_share_that_no_selection_reaches_is_refused_at_once(tmp_path: Path) -> None:
    status, out, err = attempt(tmp_path, fake_environment(tmp_path), "select.min_share=0.8")
    assert (status, out) == (2, "")
    assert "select.min_share: 0.8 is more than is kept from keep_from=0.0 to keep_to=0.7" in err


def test_failed_conversations_above_the_limit_fail_the_stage_and_are_tried_again(
    undisturbed: tuple[dict[str, Any], str, Path], tmp_path: Path
) -> None:
    broken = fake_environment(tmp_path, server=("--fail-rate", "0.9"))
    status, _, err = attempt(tmp_path, broken, "serving.max_attempts=1", "evaluation.base=true")
    assert status == 1
    assert "conversation.max_error_rate" in err
    shutil.rmtree(tmp_path / "fake_env")
    run(tmp_path, fake_environment(tmp_path))
    assert results(tmp_path / "run") == undisturbed[0]


def test_full_disk_is_one_error_and_the_rerun_goes_on(
    undisturbed: tuple[dict[str, Any], str, Path], tmp_path: Path
) -> None:
    # A limit on the size of files stands for the disk: both fail a write in the middle of a record.
    environment = fake_environment(tmp_path)
    victim = start(tmp_path, environment)
    import resource

    resource.prlimit(victim.pid, resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))
    status, _, err = finish(victim)
    assert status == 1
    assert "file-size limit" in err
    assert "run again" in err
    run(tmp_path, environment)
    assert results(tmp_path / "run") == undisturbed[0]


def test_second_process_in_a_run_directory_is_refused(tmp_path: Path) -> None:
    environment = fake_environment(tmp_path, server=("--latency-ms", "200"))
    owner = start(tmp_path, environment)
    wait_until(lambda: (tmp_path / "run" / "evaluate").exists(), "the first stage")
    status, _, err = attempt(tmp_path, environment)
    assert status == 2
    assert str(owner.pid) in err
    owner.send_signal(signal.SIGTERM)
    assert finish(owner)[0] == 143


def test_other_recipe_in_a_run_directory_is_refused(
    undisturbed: tuple[dict[str, Any], str, Path], tmp_path: Path
) -> None:
    root, copy = undisturbed[2], tmp_path / "run"
    shutil.copytree(root, copy)
    status, _, err = attempt(
        root.parent, fake_environment(tmp_path), "reward.lambda_token=0.1", run=str(copy)
    )
    assert status == 2
    assert "reward.lambda_token" in err


def test_debate_starts_every_iteration_from_the_base_and_three_agents_work(tmp_path: Path) -> None:
    environment = fake_environment(tmp_path)
    overrides = [*debate_data(tmp_path), "agents.names=[Ann,Ben,Cleo]", "reward.lambda_loss=0"]
    run(tmp_path, environment, *overrides)
    for t in (0, 1):
        job = json.loads((tmp_path / f"run/iter_{t}/train/job.json").read_text())
        assert job["model"]["path"] == str(tmp_path / "model")
    log = (tmp_path / "run/logs/attempt_1/optima.log").read_text()
    for t, speaker in enumerate(("base", "iter_0")):  # whoever is trained, the last model speaks
        assert f"iter_{t}/generate: 6 problems x 3 conversations with {speaker}\n" in log
    assert not any("optima.training.score" in command for command in commands(environment))
    held = results(tmp_path / "run")["iter_0/generate/conversations.jsonl"]
    assert {turn["name"] for c in held for turn in c["turns"]} == {"Ann", "Ben", "Cleo"}

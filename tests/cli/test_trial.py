"""``optima try`` over stand-in servers: what it prints and stores, its advice and exit status."""

import json
from pathlib import Path

import pytest

from optima.processes.environment import Environment
from tests.commands import ROOT, command
from tests.fake_runs import write_recipe
from tests.fakes import commands, fake_environment

N = 5
CUT = "conversation.max_turn_tokens=3"  # the stand-in needs more to mark an answer


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    return fake_environment(tmp_path_factory.mktemp("environment"))


def optima(*argv: str, cwd: Path = ROOT) -> tuple[int, str, str]:
    return command("optima", *argv, cwd=cwd)


def trial(
    directory: Path, environment: Environment, *words: str, method: str = "sft"
) -> tuple[int, str, str]:
    """Try the runs' recipe in ``directory``; the outcome is stored below it."""
    recipe = write_recipe(directory, method)
    prefix = str(environment.prefix)
    argv = ["try", "--config", str(recipe), "--n", str(N), "--vllm-env", prefix]
    return optima(*argv, "--train-env", prefix, *words, cwd=directory)


def started(environment: Environment) -> list[list[str]]:
    """Return the commands of the servers, scorers and trainings so far."""
    return [argv for argv in commands(environment) if argv[0] == "-m"]


def stored(directory: Path) -> Path:
    (found,) = (directory / "runs" / "try").iterdir()
    return found


def test_model_that_converses_is_fit_to_train(tmp_path: Path, environment: Environment) -> None:
    n_before = len(started(environment))
    status, out, err = trial(tmp_path, environment, "--show", "2", "cold_start=null")
    assert (status, "Traceback" in err) == (0, False)
    assert out.count("\n    gold: ") == out.count("\n    answer: ") == 2
    assert "\nAlice:" in out
    assert "\nBob:" in out
    assert f"15 conversations about {N} problems: " in out
    assert "\n  marks an answer         100.0 %\n" in out
    assert "\n  speaks for a partner      0.0 %\n" in out
    assert f"\n3 of {N} problems would be selected\nFit to train.\n" in out  # int(0.7 * 5)
    assert "cold start" not in out
    run = stored(tmp_path)
    assert f"Stored in {run.relative_to(tmp_path)}; " in out
    modules = [argv[1] for argv in started(environment)[n_before:]]
    assert modules == ["vllm.entrypoints.openai.api_server", "optima.training.score"]
    assert "done, 4 of 4 stages" in optima("status", str(run))[1]
    assert optima("report", str(run))[0] == 0


def test_figures_are_printed_and_stored_as_json(tmp_path: Path, environment: Environment) -> None:
    status, out, _ = trial(tmp_path, environment, "--json")
    assert status == 0
    figures = json.loads(out)
    assert json.loads((stored(tmp_path) / "results.json").read_text()) == figures
    assert (figures["n_problems"], figures["n_selected"], figures["advice"]) == (N, 3, [])
    assert (figures["health"]["n"], figures["health"]["marked"]) == (15, 1.0)
    assert figures["health"]["collapsed"] is False
    assert figures["tokens"] > figures["generated"] > 0  # labels in, one word is an end of turn
    parts = figures["reward"]
    assert parts["total"] == pytest.approx(
        parts["task"] - 0.6 * parts["token"] + parts["loss_term"]
    )


@pytest.mark.parametrize("method", ["dpo", "sft_dpo"])
def test_trial_of_a_recipe_of_trees_holds_whole_conversations(
    method: str, tmp_path: Path, environment: Environment
) -> None:
    status, out, _ = trial(tmp_path, environment, method=method)
    assert (status, f"15 conversations about {N} problems" in out) == (0, True)


def test_what_goes_wrong_is_said_with_what_to_change(
    tmp_path: Path, environment: Environment
) -> None:
    status, out, _ = trial(tmp_path, environment, CUT)
    assert status == 1
    assert "\n  is cut                  100.0 %\n" in out
    assert "\n  commonest answer        none\n" in out
    assert "\nA run would begin with the cold start; this is the model without it.\n" in out
    own = "or write prompts of your own (conversation.prompts)"
    assert (
        "\n  - 100 % of the conversations mark no answer: show one with "
        f"conversation.worked_example=true, {own}\n" in out
    )
    assert "\n  - 100 % have a turn that is cut: raise conversation.max_turn_tokens " in out
    assert (
        f"\n  - 0 of {N} problems would be selected, and select.min_share is 0.05: a run would "
        "stop; once the above is mended, lower select.theta, or raise sampling.n_samples\n" in out
    )
    assert "Fit to train" not in out
    done = trial(tmp_path, environment, CUT, "cold_start=null", "conversation.worked_example=true")
    assert f"mark no answer: help with cold_start, {own}\n" in done[1]


def test_remedies_help_when_they_are_followed(tmp_path: Path, environment: Environment) -> None:
    status, out, _ = trial(tmp_path, environment, "select.theta=99.0")
    assert status == 1
    assert "a run would stop; lower select.theta, or raise sampling.n_samples\n" in out
    assert "\n  - 0 of" in out
    assert trial(tmp_path, environment, "select.theta=-5.0")[0] == 0
    assert trial(tmp_path, environment, CUT)[0] == 1
    assert trial(tmp_path, environment, "conversation.max_turn_tokens=300")[0] == 0


def test_less_than_the_least_share_is_not_fit(tmp_path: Path, environment: Environment) -> None:
    status, out, _ = trial(tmp_path, environment, "select.min_share=0.65", "--json")
    assert (status, json.loads(out)["n_selected"]) == (1, 3)
    assert "select.min_share is 0.65" in json.loads(out)["advice"][0]
    assert trial(tmp_path, environment, "select.min_share=0.6")[0] == 0


def test_same_trial_again_holds_no_conversation_anew(
    tmp_path: Path, environment: Environment
) -> None:
    place = ("--output", str(tmp_path / "here"))
    status, out, _ = trial(tmp_path, environment, *place)
    begun = started(environment)
    assert trial(tmp_path, environment, *place)[:2] == (status, out)
    assert started(environment) == begun
    status, _, err = trial(tmp_path, environment, *place, "--n", "3")
    assert status == 2
    assert err == (
        f"optima: {tmp_path}/here: holds a run of another recipe (differs in data.n_train); give "
        "another directory, or the same recipe\n"
    )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--n", "0"), "--n: 0: must be a whole number from 1 to 10000000"),
        (("--show", "-1"), "--show: -1: must be a whole number from 0 to"),
        (("select.tetha=1.0",), "select.tetha: unknown key (did you mean theta?)"),
        (("conversation.prompts=none",), "conversation.prompts: none: is not a directory"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(
    words: tuple[str, ...], reason: str, tmp_path: Path, environment: Environment
) -> None:
    status, out, err = trial(tmp_path, environment, *words)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert reason in err
    assert not (tmp_path / "runs").exists()


def test_servers_that_fail_end_the_trial_with_the_reason(tmp_path: Path) -> None:
    broken = fake_environment(tmp_path, server=("--fail-rate", "1.0"))
    status, out, err = trial(
        tmp_path, broken, "serving.max_attempts=1", "serving.start_timeout_s=5.0"
    )
    assert (status, out) == (1, "")
    assert err.splitlines()[-1].startswith("optima: ")
    assert "Traceback" not in err

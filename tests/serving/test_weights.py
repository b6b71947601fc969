"""Servers that run are given the weights of another model, or it takes a start."""

import json
import logging
import re
import shutil
from pathlib import Path

import pytest

from optima.errors import OptimaError
from optima.recipe.schema import ModelSection, Recipe, ServingSection
from optima.serving.fleet import Fleet
from optima.serving.probe import check_completion, check_served
from optima.serving.weights import obstacle, read_kept
from optima.training.jobs import LOGPROBS_FILE
from optima.types import ModelRef
from tests.fakes import commands, fake_environment
from tests.serving.test_fleet import ask_many, process_of, status_of, wait_until
from tests.serving.test_served import TWO, fleet_of, trained

CONFIG = {"model_type": "llama", "hidden_size": 8, "dtype": "bfloat16", "transformers_version": "5"}


def model(directory: Path, name: str, **config: object) -> ModelRef:
    """Return a trained model with a configuration and a tokenizer."""
    folder = trained(directory, name)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}')
    return ModelRef(path=str(folder))


@pytest.fixture
def first(tmp_path: Path) -> ModelRef:
    return model(tmp_path, "first")


@pytest.fixture
def second(tmp_path: Path) -> ModelRef:
    return model(tmp_path, "second")


def test_running_servers_take_the_weights_and_serve_them(
    tmp_path: Path, first: ModelRef, second: ModelRef, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with fleet_of(tmp_path, first) as fleet:
        processes = [process_of(server) for server in fleet.servers]
        assert fleet.take(second)
        assert fleet.model == second
        assert [process_of(server) for server in fleet.servers] == processes
        for server in fleet.servers:
            check_served(server, second, 10.0)
        assert len(ask_many(fleet, ServingSection(), 4)) == 4
        assert fleet.take(first)  # and back
    assert len(re.findall(r"weights loaded in \d+\.\d s: ", caplog.text)) == 2
    assert caplog.text.count("servers ready") == 1


def test_prefix_cache_that_is_held_a_little_is_waited_for(
    tmp_path: Path, first: ModelRef, second: ModelRef
) -> None:
    with fleet_of(tmp_path, first, "--reload", "late") as fleet:
        assert fleet.take(second)


FAILURES = {
    "fails": "/collective_rpc: HTTP 500: the fake server takes no weights",
    "stale": "its log-probabilities are those of before to the last bit",
    "dies": "ServerDisconnected|RemoteDisconnected|Connection|exited with status 1",
    "held": "does not drop its prefix cache",
}


@pytest.mark.parametrize("how", FAILURES)
def test_servers_that_do_not_take_the_weights_are_given_up_in_one_line(
    how: str, tmp_path: Path, first: ModelRef, second: ModelRef,
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("optima.serving.weights._RESET_S", 0.5)
    with fleet_of(tmp_path, first, "--reload", how) as fleet:
        assert not fleet.take(second)
    said = [r.message for r in caplog.records if "weights not loaded" in r.message]
    assert len(said) == 1
    assert re.match(
        rf"weights not loaded, so servers are started anew: .*({FAILURES[how]})", said[0]
    )
    assert "\n" not in said[0]


def test_weights_that_change_nothing_are_old_ones_however_small_the_training_was(
    tmp_path: Path, first: ModelRef
) -> None:
    path = Path(first.path).parent / LOGPROBS_FILE
    second = model(tmp_path, "second")
    (Path(second.path).parent / LOGPROBS_FILE).write_text(path.read_text())
    with fleet_of(tmp_path, first, "--reload", "stale") as fleet:
        check_served(fleet.servers[0], second, 10.0)  # it tells no difference
        assert not fleet.take(second)


def test_server_that_dies_after_the_change_comes_back_with_the_model_that_it_served(
    tmp_path: Path, first: ModelRef, second: ModelRef
) -> None:
    with fleet_of(tmp_path, first) as fleet:
        assert fleet.take(second)
        victim = fleet.servers[0]
        process = process_of(victim)
        process.kill()
        wait_until(lambda: not victim.is_alive)
        wait_until(lambda: victim.is_alive and process_of(victim).pid != process.pid)
        check_served(victim, second, 10.0)
        assert second.path in process_of(victim).cmdline()


def test_restarts_are_counted_from_the_change_on(
    tmp_path: Path, first: ModelRef, second: ModelRef
) -> None:
    with fleet_of(tmp_path, first, max_restarts=1) as fleet:
        victim = fleet.servers[0]
        for change in (None, second):
            assert change is None or fleet.take(change)
            process_of(victim).kill()
            wait_until(lambda: not victim.is_alive)
            wait_until(lambda: victim.is_alive)
        process_of(victim).kill()
        wait_until(lambda: victim.failure is not None)


def test_fleet_with_a_dead_server_is_started_anew(
    tmp_path: Path, first: ModelRef, second: ModelRef
) -> None:
    with fleet_of(tmp_path, first, max_restarts=0) as fleet:
        victim = fleet.servers[0]
        process_of(victim).kill()
        wait_until(lambda: victim.failure is not None)
        assert not fleet.take(second)


def test_models_that_differ_in_more_than_weights_or_cannot_be_compared_take_a_start(
    tmp_path: Path, first: ModelRef, second: ModelRef
) -> None:
    def why(old: ModelRef, new: ModelRef) -> str | None:
        section = ModelSection(path="org/model")
        return obstacle(old, read_kept(old, section), new, section)

    assert why(first, second) is None
    renamed = model(tmp_path, "renamed", transformers_version="6", use_cache=False)
    assert why(first, renamed) is None
    old = {key: value for key, value in CONFIG.items() if key != "dtype"}
    (Path(renamed.path) / "config.json").write_text(json.dumps({**old, "torch_dtype": "bfloat16"}))
    assert why(first, renamed) is None

    wider = model(tmp_path, "wider", hidden_size=16)
    assert "config.json of" in str(why(first, wider))
    in_float32 = model(tmp_path, "float32", dtype="float32")
    assert "config.json of" in str(why(first, in_float32))
    (Path(renamed.path) / "generation_config.json").write_text('{"eos_token_id": 3}')
    assert "generation_config.json of" in str(why(first, renamed))
    (Path(second.path) / "tokenizer.json").write_text("{}")
    assert "tokenizer.json of" in str(why(first, second))

    adapter = ModelRef(path=first.path, adapter=wider.path)
    for before, after in ((second, adapter), (adapter, second)):
        reason = f"not over the same base as {before.place}, and one has adapters"
        assert str(why(before, after)).endswith(reason)
    (Path(first.path).parent / LOGPROBS_FILE).unlink()
    assert "no log-probabilities" in str(why(second, first))
    assert "no log-probabilities" in str(why(second, ModelRef(path="org/model")))


def test_weights_are_taken_when_the_model_of_before_is_gone(
    tmp_path: Path, first: ModelRef, second: ModelRef
) -> None:
    with fleet_of(tmp_path, first) as fleet:
        shutil.rmtree(first.path)  # as a trial of influence goes
        assert fleet.take(second)
        shutil.rmtree(second.path)
        assert fleet.take(model(tmp_path, "third"))


def test_server_that_sleeps_takes_weights_when_it_wakes(
    tmp_path: Path, first: ModelRef, second: ModelRef
) -> None:
    with fleet_of(tmp_path, first, keep="sleep") as fleet:
        assert fleet.sleep()
        with pytest.raises(OptimaError, match="asleep"):
            check_all(fleet, first)
        assert fleet.take(second)
        assert not fleet.is_asleep
        check_all(fleet, second)
        assert fleet.sleep()
        assert fleet.take(second)  # the same: its weights went with its sleep
        check_all(fleet, second)


@pytest.fixture
def adapters(tmp_path: Path, first: ModelRef) -> list[ModelRef]:
    """Return two adapters over ``first``."""
    places = (trained(tmp_path, f"adapter_{n}") for n in range(2))
    return [ModelRef(path=first.path, adapter=str(place)) for place in places]


def test_servers_that_stay_take_adapters_and_go_back_to_their_base(
    tmp_path: Path, first: ModelRef, second: ModelRef, adapters: list[ModelRef]
) -> None:
    with fleet_of(tmp_path, first, keep="stay") as fleet:
        processes = [process_of(server) for server in fleet.servers]
        for ref in (*adapters, first, adapters[0]):
            assert fleet.take(ref)
            check_all(fleet, ref)
        assert [process_of(server) for server in fleet.servers] == processes
        victim = fleet.servers[0]
        processes[0].kill()
        wait_until(lambda: not victim.is_alive)
        wait_until(lambda: victim.is_alive)
        check_all(fleet, adapters[0])
        assert not fleet.take(second)  # another base


@pytest.mark.parametrize(
    ("how", "reason"),
    [("fails", "the fake server does not do that"), ("stale", "serves another model")],
)
def test_servers_that_do_not_take_an_adapter_are_given_up_in_one_line(
    how: str, reason: str, tmp_path: Path, first: ModelRef, adapters: list[ModelRef],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with fleet_of(tmp_path, adapters[0], "--reload", how, keep="stay") as fleet:
        assert not fleet.take(adapters[1])
    (said,) = [r.message for r in caplog.records if "weights not loaded" in r.message]
    assert reason in said


def test_adapters_that_servers_have_no_room_for_take_a_start(
    tmp_path: Path, first: ModelRef, adapters: list[ModelRef], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with fleet_of(tmp_path, first) as fleet:  # which does not stay while adapters are made
        assert not fleet.take(adapters[0])
    assert "they have no room for the adapters of" in caplog.text
    with fleet_of(tmp_path, adapters[0], keep="reload") as fleet:
        assert fleet.take(adapters[1])
        (Path(str(adapters[0].adapter)) / "adapter_config.json").write_text('{"r": 64}')
        assert not fleet.take(adapters[0])
    args = ("--api-server-count=2",)
    with fleet_of(tmp_path, adapters[1], keep="reload", extra_args=args) as fleet:
        (Path(str(adapters[0].adapter)) / "adapter_config.json").write_text('{"r": 16}')
        assert not fleet.take(adapters[0])
    assert "of several API processes (--api-server-count=2) only one would hear" in caplog.text


def check_all(fleet: Fleet, ref: ModelRef) -> None:
    for server in fleet.servers:
        check_completion(server, fleet.model_name, 10.0)
        check_served(server, ref, 10.0)


def test_server_that_dies_in_its_sleep_takes_no_memory_again(
    tmp_path: Path, first: ModelRef, second: ModelRef
) -> None:
    with fleet_of(tmp_path, first, keep="sleep") as fleet:
        assert fleet.sleep()
        victim = fleet.servers[1]
        process_of(victim).kill()
        wait_until(lambda: victim.trouble is not None)
        assert len(list((tmp_path / "logs").glob("server_1.*.log"))) == 1
        assert not fleet.take(second)


def test_servers_that_cannot_sleep_are_to_be_stopped(
    tmp_path: Path, first: ModelRef, caplog: pytest.LogCaptureFixture
) -> None:
    with fleet_of(tmp_path, first, "--no-sleep", keep="sleep") as fleet:
        assert not fleet.sleep()
    assert "servers are stopped, as one does not sleep: server" in caplog.text


def test_orders_want_the_key_and_are_there_only_where_servers_are_kept(
    tmp_path: Path, first: ModelRef, second: ModelRef
) -> None:
    with fleet_of(tmp_path, first) as fleet:
        server = fleet.servers[0]
        for key in (None, "wrong"):
            assert status_of(server, key, "POST", "/collective_rpc") == 401
    with fleet_of(tmp_path, first, keep="restart") as fleet:
        server = fleet.servers[0]
        assert status_of(server, server.api_key, "POST", "/collective_rpc") == 404
        assert not fleet.take(second)


def test_real_servers_are_told_to_sleep_only_where_the_recipe_says_so(tmp_path: Path) -> None:
    environment = fake_environment(tmp_path)
    for keep in ("auto", "sleep"):
        recipe = Recipe(
            method="sft", task="arc", model=ModelSection(path="m"),
            serving=ServingSection(keep=keep, start_timeout_s=30.0),
        )  # fmt: skip
        ref = ModelRef(path="org/model")
        with Fleet(ref, recipe=recipe, devices=TWO, env=environment, log_dir=tmp_path / "logs"):
            pass
    told = ["--enable-sleep-mode" in argv for argv in commands(environment)]
    assert told == [False, False, True, True]

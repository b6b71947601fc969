"""Who takes how much of the device, and which servers are still there for the next who talks."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from optima.errors import UsageError
from optima.processes.devices import Devices
from optima.processes.environment import Environment
from optima.recipe.schema import (
    DpoSection,
    ModelSection,
    PairSection,
    Recipe,
    RewardSection,
    SearchSection,
    ServingSection,
)
from optima.runs.directory import RunDir
from optima.serving.probe import check_served
from optima.stages import room
from optima.stages.context import Device, Environments, split_devices
from optima.stages.room import room_for_training, serving_recipe
from optima.types import ModelRef
from tests.fakes import commands, fake_environment
from tests.serving.test_fleet import process_of
from tests.serving.test_weights import model

ONE = Devices("cuda", (0,))
CPU = Devices("cpu")


def _recipe(lambda_loss: float, search: float | None, **section: int) -> Recipe:
    return Recipe(
        method="dpo", task="arc", model=ModelSection(path="m"), pairs=PairSection(),
        dpo=DpoSection(), reward=RewardSection(lambda_loss=lambda_loss),
        search=SearchSection(lambda_loss=search, **section),
    )  # fmt: skip


def test_servers_leave_memory_to_a_scorer_wherever_the_recipe_takes_losses() -> None:
    def share(recipe: Recipe) -> float:
        return serving_recipe(recipe).serving.gpu_memory_utilization

    assert share(_recipe(1.0, None)) == 0.7
    assert share(_recipe(0.0, 1.0)) == 0.7  # only trees need losses
    assert share(_recipe(1.0, 0.0)) == 0.7  # only the evaluations do
    assert share(_recipe(0.0, None)) == 0.9
    assert share(_recipe(1.0, None, scorer_gpus=1)) == 0.9


class Host:
    """Three models, servers and scorers that are fakes, and what was started of them."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.models = tuple(model(directory, name) for name in ("base", "first", "second"))
        (directory / "base/logprobs.json").unlink()
        self.environment: Environment = fake_environment(directory, server=options)
        self._directory = directory

    @contextmanager
    def device(self, devices: Devices = ONE, **serving: object) -> Iterator[Device]:
        section = ServingSection.model_validate({"start_timeout_s": 30.0, **serving})
        place = ModelSection(path=self.models[0].path)
        recipe = Recipe(method="sft", task="arc", model=place, serving=section)
        with (
            RunDir(self._directory / "run", recipe) as run,
            Device(recipe, devices, run, Environments(self.environment, self.environment)) as owner,
        ):
            yield owner

    def n_started(self) -> tuple[int, int]:
        """Return how many servers and scorers were started."""
        started = [argv[1].rpartition(".")[2] for argv in commands(self.environment)]
        return started.count("api_server"), started.count("score")


def serve(device: Device, ref: ModelRef) -> psutil.Process:
    """Return the process that serves ``ref`` now."""
    (server,) = device.fleets(ref).servers
    check_served(server, ref, 10.0)
    return process_of(server)


def test_servers_go_from_talk_to_talk_and_free_the_gpu_for_everything_else(tmp_path: Path) -> None:
    host = Host(tmp_path)
    base, first, second = host.models
    with host.device() as device:
        process = serve(device, base)
        for ref in (base, first, first, second):
            assert serve(device, ref) == process
        assert host.n_started() == (1, 0)
        device.scorer(base)
        assert not process.is_running()
        process = serve(device, second)
        assert not [child for child in running(host) if child.endswith("score")]
        device.vacate()
        assert not process.is_running()
        serve(device, first)
        serve(device, base)  # nothing tells whether it is served, so it is started
        assert host.n_started() == (4, 1)
    assert running(host) == []


def running(host: Host) -> list[str]:
    children = psutil.Process().children(recursive=True)
    lines = [child.cmdline() for child in children if child.status() != psutil.STATUS_ZOMBIE]
    fakes = [line for line in lines if str(host.environment.prefix) in line]
    return [line[line.index("-m") + 1] for line in fakes if "-m" in line]


def test_every_model_is_a_start_where_the_recipe_says_so(tmp_path: Path) -> None:
    host = Host(tmp_path)
    _, first, second = host.models
    with host.device(keep="restart") as device:
        process = serve(device, first)
        assert serve(device, first) == process
        assert serve(device, second) != process
    assert host.n_started() == (2, 0)


def test_servers_that_stay_are_there_beside_a_scorer_and_after_a_training(tmp_path: Path) -> None:
    host = Host(tmp_path)
    base, first, second = host.models
    with host.device(keep="stay") as device:
        process = serve(device, first)
        scorer = device.scorer(base)
        assert serve(device, second) == process
        assert device.scorer(base) is scorer
        assert host.n_started() == (1, 1)
        device.vacate()  # a training
        assert running(host) == ["vllm.entrypoints.openai.api_server"]
        assert serve(device, first) == process
    assert host.n_started() == (1, 1)
    assert running(host) == []


def test_servers_sleep_while_others_have_the_gpu(tmp_path: Path) -> None:
    host = Host(tmp_path)
    base, first, second = host.models
    with host.device(keep="sleep") as device:
        process = serve(device, first)
        device.scorer(base)
        assert device.fleets(first).servers  # wakes it
        assert running(host) == ["vllm.entrypoints.openai.api_server"]
        device.vacate()
        device.vacate()
        assert serve(device, second) == process
        assert host.n_started() == (1, 1)
        device.vacate()
        assert serve(device, base) != process  # nothing would tell whether it woke as it was
        assert not process.is_running()
    assert host.n_started() == (2, 1)


@pytest.mark.parametrize(("spare", "n_starts"), [(0, 1), (-1, 2), (None, 2)])
def test_servers_stay_on_a_cpu_that_has_room_for_a_training_beside_them(
    spare: int | None, n_starts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path)
    _, first, second = host.models
    with host.device(CPU) as device:
        monkeypatch.setattr(room, "count_parameters", lambda _: 10**9)
        recipe = device._recipe
        needed = room_for_training(recipe, 10**9)
        assert needed == 3 * 16 * 10**9 + 6 * 2**30
        free = None if spare is None else needed + spare
        monkeypatch.setattr(room, "free_memory", lambda: free)
        serve(device, first)
        device.vacate()
        serve(device, second)
    assert host.n_started() == (n_starts, 0)


@pytest.mark.parametrize(
    ("gib", "sleeps"), [(41.9, True), (41.7, False), (None, False)], ids=["room", "less", "unknown"]
)
def test_servers_sleep_on_gpus_that_have_room_for_a_training_beside_them(
    gib: float | None, sleeps: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path)
    _, first, second = host.models
    monkeypatch.setattr(room, "count_parameters", lambda _: 12 * 10**8)  # 17.9 GiB to train
    monkeypatch.setattr(room, "gpu_memory", lambda _: None if gib is None else int(gib * 2**30))
    with host.device() as device:
        process = serve(device, first)
        device.vacate()
        assert process.is_running() == sleeps
        serve(device, second)
    assert host.n_started() == (1 if sleeps else 2, 0)
    assert {"--enable-sleep-mode" in argv for argv in commands(host.environment)} == {sleeps}


def test_servers_of_adapters_do_not_sleep_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "count_parameters", lambda _: 10**6)
    monkeypatch.setattr(room, "gpu_memory", lambda _: 80 * 2**30)
    recipe = Recipe(method="sft", task="arc", model=ModelSection(path="m"))
    for lora, keep in ((None, "sleep"), ("merged", "sleep"), ("adapter", "reload")):
        section = None if lora is None else {"serve": lora}
        changed = Recipe.model_validate({**recipe.model_dump(), "train": {"lora": section}})
        assert room.keep_of(changed, ONE) == keep


def test_servers_that_do_not_take_the_weights_are_started_with_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    host = Host(tmp_path, "--reload", "fails")
    _, first, second = host.models
    with host.device() as device:
        process = serve(device, first)
        assert serve(device, second) != process
        assert not process.is_running()
    assert host.n_started() == (2, 0)
    assert caplog.text.count("weights not loaded, so servers are started anew: server 0: ") == 1


def test_cpu_is_told_that_it_has_no_sleep() -> None:
    recipe = _recipe(1.0, None).changed(serving={"keep": "sleep"})
    split_devices(recipe, ONE)
    with pytest.raises(UsageError, match=r"serving\.keep: sleep: .* take auto, reload or stay"):
        split_devices(recipe, CPU)

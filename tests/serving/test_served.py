"""Servers of a trained model are compared with what its training wrote beside it."""

import logging
import math
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from optima.errors import StageError
from optima.processes.devices import Devices
from optima.recipe.schema import LoraSection, ModelSection, Recipe, ServingSection, TrainSection
from optima.serving.client import Server
from optima.serving.fake import token_logprobs
from optima.serving.fleet import Fleet
from optima.serving.probe import check_served, difference
from optima.training.jobs import LOGPROBS_FILE, Logprobs
from optima.types import ModelRef
from tests.fakes import fake_environment
from tests.serving.test_fleet import ask_many, process_of, wait_until

TWO = Devices("cuda", (0, 1))
IDS = tuple(range(5, 69))


def trained(directory: Path, name: str = "train") -> Path:
    """Return the folder of a model whose training wrote log-probabilities, in a stage ``name``."""
    start, model = directory / "start", directory / name / "model"
    for folder, weights in ((start, b"start"), (model, name.encode())):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(weights)
    found = Logprobs(
        token_ids=IDS,
        trained=tuple(token_logprobs(model, IDS)),
        start=tuple(token_logprobs(start, IDS)),
    )
    (model.parent / LOGPROBS_FILE).write_text(found.model_dump_json())
    return model


def fleet_of(tmp_path: Path, ref: ModelRef, *options: str, **serving: object) -> Fleet:
    section = ServingSection.model_validate({"start_timeout_s": 30.0, **serving})
    lora = LoraSection(serve="adapter") if section.keep == "stay" else None
    recipe = Recipe(
        method="sft", task="arc", model=ModelSection(path="m"), serving=section,
        train=TrainSection(lora=lora),
    )  # fmt: skip
    environment = fake_environment(tmp_path, server=options)
    return Fleet(ref, recipe=recipe, devices=TWO, env=environment, log_dir=tmp_path / "logs")


def test_every_server_of_the_trained_model_passes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "optima.serving.probe")
    model = trained(tmp_path)
    with fleet_of(tmp_path, ModelRef(path=str(model))) as fleet:
        for server in fleet.servers:
            check_served(server, ModelRef(path=str(model)), 10.0)
    assert caplog.text.count(f"serves the model in {model}") == 4
    assert "not compared" not in caplog.text


def test_server_of_older_weights_is_refused_in_one_line_that_names_folder_figures_and_remedy(
    tmp_path: Path,
) -> None:
    model = trained(tmp_path)
    fleet = fleet_of(tmp_path, ModelRef(path=str(model)), "--weights", str(tmp_path / "start"))
    with pytest.raises(StageError) as got:
        fleet.__enter__()
    assert re.fullmatch(
        rf"{model}: server [01] serves another model: its log-probabilities are [2-4]\.\d+ nats a "
        r"token away from those of the folder and 0\.000 from those of the model that was trained "
        rf"from: old weights; run again to start it anew, .* or move {model.parent} away and .*",
        str(got.value),
    )
    assert fleet.servers == ()


def test_server_of_foreign_weights_is_refused(tmp_path: Path) -> None:
    model, other = trained(tmp_path), trained(tmp_path, "other")
    fleet = fleet_of(tmp_path, ModelRef(path=str(model)), "--weights", str(other))
    with pytest.raises(StageError, match=r"serves another model: .*account for 0\.4 at most"):
        fleet.__enter__()


def test_adapter_is_compared_by_what_stands_beside_it(tmp_path: Path) -> None:
    adapter = trained(tmp_path, "adapter")
    (adapter / "adapter_config.json").write_text('{"r": 8}')
    ref = ModelRef(path=str(tmp_path / "start"), adapter=str(adapter))
    with fleet_of(tmp_path, ref) as fleet:
        assert len(fleet.servers) == 2
    with pytest.raises(StageError, match=f"{adapter}: server .*old weights"):
        fleet_of(tmp_path, ref, "--weights", ref.path).__enter__()


def test_server_that_comes_back_with_other_weights_is_not_used(tmp_path: Path) -> None:
    model = trained(tmp_path)
    with fleet_of(tmp_path, ModelRef(path=str(model)), max_restarts=1) as fleet:
        victim = fleet.servers[0]
        (model / "model.safetensors").write_bytes(b"changed meanwhile")
        process_of(victim).kill()
        wait_until(lambda: victim.failure is not None)
        assert "serves another model" in str(victim.failure)
        assert not victim.is_alive


def test_weights_that_a_server_was_given_anew_are_compared(tmp_path: Path) -> None:
    first, second = trained(tmp_path, "first"), trained(tmp_path, "second")
    with fleet_of(tmp_path, ModelRef(path=str(first))) as fleet:
        for server in fleet.servers:
            with pytest.raises(StageError, match=f"{second}: server {server.index} serves another"):
                check_served(server, ModelRef(path=str(second)), 10.0)
        shutil.copyfile(second / "model.safetensors", first / "model.safetensors")
        check_served(fleet.servers[0], ModelRef(path=str(second)), 10.0)


@pytest.mark.parametrize("where", ["nothing", "foreign", "hub"])
def test_model_without_log_probabilities_is_not_compared(where: str, tmp_path: Path) -> None:
    model = trained(tmp_path)
    if where == "nothing":  # a run of an older release
        (model.parent / LOGPROBS_FILE).unlink()
    elif where == "foreign":  # a folder of models beside which such a file happens to stand
        model = model.rename(model.with_name("llama"))
    ref = ModelRef(path="org/model" if where == "hub" else str(model))
    fleet = fleet_of(tmp_path, ref, "--weights", str(tmp_path / "start"), max_attempts=1)
    with fleet:
        assert len(ask_many(fleet, ServingSection(), 2)) == 2


def test_server_without_prompt_logprobs_is_used_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = trained(tmp_path)
    with fleet_of(tmp_path, ModelRef(path=str(model)), "--no-logprobs") as fleet:
        assert len(ask_many(fleet, ServingSection(), 2)) == 2
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert sorted(line[:27] for line in said) == [f"server {k}: not compared with" for k in (0, 1)]
    assert all(": gives no prompt_logprobs" in line for line in said)


@pytest.mark.parametrize("text", ["", "{", '{"schema_version": 1}', '{"trained": [null]}'])
def test_log_probabilities_that_cannot_be_read_are_one_line(text: str, tmp_path: Path) -> None:
    model = trained(tmp_path)
    path = model.parent / LOGPROBS_FILE
    path.write_text(text)
    with pytest.raises(StageError) as got:
        check_served(Server(0, "http://127.0.0.1:1", ""), ModelRef(path=str(model)), 1.0)
    assert str(got.value).startswith(f"{path}: cannot be read (")
    assert str(got.value).endswith(f"move {model.parent} away and run again to make it anew")
    assert "\n" not in str(got.value)


@contextmanager
def answering(status: int, body: str) -> Iterator[Server]:
    """Serve one fixed answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Server(0, f"http://127.0.0.1:{server.server_port}", "")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def scored(value: str) -> str:
    places = ", ".join(f'{{"{i}": {{"logprob": {value}, "rank": 3}}}}' for i in IDS[1:])
    return f'{{"choices": [{{"index": 0, "text": "", "prompt_logprobs": [null, {places}]}}]}}'


# vLLM refuses to write NaN; servers of other libraries write it, or null.
NO_NUMBERS = (
    (400, '{"error": {"message": "Out of range float values are not JSON compliant: nan"}}'),
    (500, '{"error": {"message": "Out of range float values are not JSON compliant"}}'),
    (200, scored("NaN")),
    (200, scored("null")),
    (200, scored("-Infinity")),
)


@pytest.mark.parametrize(("status", "body"), NO_NUMBERS)
def test_log_probabilities_that_are_no_numbers_are_refused(
    status: int, body: str, tmp_path: Path
) -> None:
    ref = ModelRef(path=str(trained(tmp_path)))
    with (
        answering(status, body) as server,
        pytest.raises(StageError, match="not all of its log-probabilities are numbers; run again"),
    ):
        check_served(server, ref, 10.0)


OTHER_ANSWERS = (
    (200, "no JSON"), (200, '{"choices": []}'), (200, '{"choices": [{"text": ""}]}'),
    (200, '{"choices": [{"prompt_logprobs": null}]}'),
    (200, '{"choices": [{"prompt_logprobs": [null, {"6": {"logprob": -1.0}}]}]}'),
    (200, scored("-1.0").replace('"9"', '"8"')), (500, "{}"), (404, "{}"),
)  # fmt: skip


@pytest.mark.parametrize(("status", "body"), OTHER_ANSWERS)
def test_answer_without_the_log_probabilities_is_logged_and_refuses_nothing(
    status: int, body: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ref = ModelRef(path=str(trained(tmp_path)))
    with answering(status, body) as server:
        check_served(server, ref, 10.0)
    assert "server 0: not compared with the model in" in caplog.text


def made(moved: float) -> Logprobs:
    """Return log-probabilities of a training that moved every token's by so much."""
    start = tuple(-0.1 * k for k in range(63))
    return Logprobs(token_ids=IDS, trained=tuple(v + moved for v in start), start=start)


def test_small_training_is_told_from_its_start_where_noise_is_smaller_still() -> None:
    assert difference(made(0.09).start, made(0.09)) is not None
    assert difference(made(0.09).trained, made(0.09)) is None
    # A third of the way: 0.06 away from the trained model, 0.03 from the start; not less than half.
    third = [v + 0.03 for v in made(0.09).start]
    assert difference([v + 0.0001 for v in third], made(0.09)) is None
    assert difference([v - 0.0001 for v in third], made(0.09)) is not None


def test_training_that_moves_less_than_noise_is_not_told_from_its_start() -> None:
    assert difference(made(0.04).start, made(0.04)) is None


@pytest.mark.parametrize("sign", [-1, 1])
def test_noise_refuses_nothing_and_more_than_noise_does(sign: int) -> None:
    noisy = [v + sign * (-1) ** k * 0.39 for k, v in enumerate(made(0.2).trained)]
    assert difference(noisy, made(0.2)) is None
    more = [v + sign * (-1) ** k * 0.41 for k, v in enumerate(made(0.2).trained)]
    assert "0.410 nats a token away" in str(difference(more, made(0.2)))
    assert "are numbers" in str(difference([math.nan, *more[1:]], made(0.2)))

"""A real vLLM server is given other weights while it runs, and obeys nobody without the key."""

import shutil
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from optima.conversation.loading import load_codec
from optima.serving.client import Server
from optima.serving.fleet import Fleet
from optima.serving.probe import distance, prompt_logprobs, read_logprobs
from optima.training.jobs import LOGPROBS_FILE, Logprobs
from optima.types import ModelRef
from tests.e2e.conftest import HAS_ROOM, MODEL, SftRun
from tests.e2e.test_tokens import FACTS, ask_all, first_request
from tests.serving.test_fleet import process_of, wait_until

pytestmark = pytest.mark.e2e
IDS = tuple(range(1000, 1064))
TIMEOUT_S = 60.0
PATHS = (
    "/collective_rpc", "/pause", "/resume", "/reset_prefix_cache", "/sleep", "/abort_requests",
    "/v1/completions", "/v1/load_lora_adapter", "/tokenize", "/metrics", "/health/",
)  # fmt: skip


def logprobs_of(folder: Path) -> tuple[float, ...]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits[0, :-1].float()
    logs = logits.log_softmax(-1).gather(1, torch.tensor(IDS[1:])[:, None])
    return tuple(logs[:, 0].tolist())


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the model that lacks what two of its layers add, as a training leaves it."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("made") / "train" / "model"
    shutil.copytree(MODEL, folder)
    weights = load_file(folder / "model.safetensors")
    for layer in (3, 12):
        weights[f"model.layers.{layer}.mlp.down_proj.weight"].zero_()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    found = Logprobs(token_ids=IDS, trained=logprobs_of(folder), start=logprobs_of(MODEL))
    (folder.parent / LOGPROBS_FILE).write_text(found.model_dump_json())
    return folder


def status_of(server: Server, path: str, key: str | None, method: str = "POST") -> int:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    asked = urllib.request.Request(server.base_url + path, method=method, headers=headers)
    try:
        with urllib.request.urlopen(asked, timeout=TIMEOUT_S) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_server_obeys_nobody_without_its_key(fleet: Fleet) -> None:
    server = fleet.servers[0]
    for path in PATHS:
        for key in (None, "", "wrong", server.api_key[:-1]):
            assert status_of(server, path, key) == 401, path
    assert status_of(server, "/health", None, "GET") == 200
    assert status_of(server, "/is_paused", server.api_key, "GET") == 200
    assert status_of(server, "/is_paused", None, "GET") == 401
    process = process_of(server)
    for one in (process, *process.children(recursive=True)):
        assert server.api_key not in " ".join(one.cmdline())


def test_changed_model_is_served_by_the_same_process_and_by_the_one_after_its_death(
    fleet: Fleet, changed: Path
) -> None:
    (server,), expected = fleet.servers, read_logprobs(changed)
    assert expected is not None
    codec = load_codec(str(MODEL))
    request = replace(first_request(codec), prompt_ids=codec.encoder.encode(FACTS))

    def served() -> tuple[tuple[float, ...], str]:
        logprobs = prompt_logprobs(server, fleet.model_name, IDS, TIMEOUT_S)
        return logprobs, ask_all(fleet, [request])[0].text

    before = served()
    assert distance(before[0], expected.start) < 0.1
    process = process_of(server)
    assert fleet.take(ModelRef(path=str(changed)))
    assert process_of(server).pid == process.pid
    after = served()
    assert distance(after[0], expected.trained) < 0.1 < distance(after[0], expected.start)
    assert after[1] != before[1]  # of a prompt whose blocks of the old weights were cached
    process.kill()
    wait_until(lambda: not server.is_alive)
    wait_until(lambda: server.is_alive, 300)
    assert process_of(server).pid != process.pid
    assert served() == after


def test_weights_that_are_not_what_their_training_wrote_are_started_anew(
    fleet: Fleet, changed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "train" / "model"
    shutil.copytree(MODEL, other)
    shutil.copyfile(changed.parent / LOGPROBS_FILE, other.parent / LOGPROBS_FILE)
    assert not fleet.take(ModelRef(path=str(other)))
    assert "weights not loaded, so servers are started anew" in caplog.text
    assert "old weights" in caplog.text


@pytest.mark.skipif(not HAS_ROOM, reason="needs 18 GiB of free memory")
def test_run_starts_servers_once_and_serves_every_model_that_it_trains_with_them(
    sft_run: SftRun,
) -> None:
    log = (sft_run.root / "logs/attempt_2/optima.log").read_text()
    assert log.count("servers ready after") == 1
    loaded = [
        line.rpartition(" s: ")[2] for line in log.splitlines() if "weights loaded in" in line
    ]
    models = [sft_run.root / label / "train/model" for label in ("cold_start", "iter_0")]
    assert loaded == [str(path.resolve()) for path in models]

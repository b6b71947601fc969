"""The scorer's owner side against a stand-in worker that speaks the real protocol."""

import json
import sys
import textwrap
from pathlib import Path

import pytest

from optima.errors import ProcessError
from optima.processes.devices import Devices
from optima.processes.environment import Environment
from optima.recipe.schema import ModelSection, Recipe, ServingSection
from optima.serving.scorer import LossScorer, scorer_argv, split_requests
from optima.types import ModelRef

# The loss of a text is its length; the text "die" ends the worker as often as ``deaths`` says.
WORKER = """
    import json, os, pathlib, sys, time
    home = pathlib.Path(__file__).parent
    mode = json.loads((home / "mode.json").read_text())
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        with (home / "requests.jsonl").open("a") as log:
            log.write(line)
        texts = [item["text"] for item in request["items"]]
        deaths = len(list(home.glob("death*")))
        if "die" in texts and deaths < mode.get("deaths", 0):
            (home / f"death{deaths}").touch()
            print("out of memory", file=sys.stderr, flush=True)
            os._exit(3)
        if "hang" in texts:
            time.sleep(60)
        if "fail" in texts:
            print(json.dumps({"id": request["id"], "error": "too wide"}), flush=True)
            continue
        if texts[0].startswith("say "):
            print(texts[0][4:].replace("ID", str(request["id"])), flush=True)
            continue
        losses = [None if text == "nan" else float(len(text)) for text in texts]
        print(json.dumps({"id": request["id"], "losses": losses}), flush=True)
"""


def _scorer(
    tmp_path: Path, *, deaths: int = 0, devices: Devices | None = None, timeout_s: float = 20.0
) -> LossScorer:
    (tmp_path / "mode.json").write_text(json.dumps({"deaths": deaths}))
    (tmp_path / "worker.py").write_text(textwrap.dedent(WORKER))
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/worker.py"\n')
    python.chmod(0o755)
    return LossScorer(
        ModelRef(path="/models/m"),
        recipe=_recipe(timeout_s),
        devices=devices or Devices("cpu"),
        env=Environment(prefix=tmp_path, python=python),
        log_dir=tmp_path / "logs",
    )


def _recipe(timeout_s: float = 20.0) -> Recipe:
    serving = ServingSection(request_timeout_s=timeout_s, start_timeout_s=20.0)
    return Recipe(method="sft", task="arc", model=ModelSection(path="/models/m"), serving=serving)


def _requests(tmp_path: Path) -> list[dict[str, list[dict[str, str]]]]:
    lines = (tmp_path / "requests.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_losses_come_in_the_order_of_the_items(tmp_path: Path) -> None:
    items = [("h", "a" * n) for n in (3, 9, 1, 7)]
    with _scorer(tmp_path) as scorer:
        assert scorer.losses(items) == [3.0, 9.0, 1.0, 7.0]


def test_equal_items_are_computed_once(tmp_path: Path) -> None:
    with _scorer(tmp_path) as scorer:
        assert scorer.losses([("h", "abc")] * 5 + [("other", "abc")]) == [3.0] * 6
    sent = [item for request in _requests(tmp_path) for item in request["items"]]
    assert len(sent) == 2


def test_empty_texts_and_losses_that_are_not_finite_are_none(tmp_path: Path) -> None:
    with _scorer(tmp_path) as scorer:
        assert scorer.losses([("h", ""), ("h", "nan"), ("h", "ab")]) == [None, None, 2.0]


def test_no_items_need_no_request(tmp_path: Path) -> None:
    with _scorer(tmp_path) as scorer:
        assert scorer.losses([]) == []
    assert not (tmp_path / "requests.jsonl").exists()


def test_dead_worker_is_restarted_once_and_its_request_is_sent_again(tmp_path: Path) -> None:
    with _scorer(tmp_path, deaths=1) as scorer:
        assert scorer.losses([("h", "die"), ("h", "longer")]) == [3.0, 6.0]


def test_worker_that_dies_twice_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    with _scorer(tmp_path, deaths=2) as scorer, pytest.raises(ProcessError, match="out of memory"):
        scorer.losses([("h", "die")])


def test_request_without_an_answer_ends_at_its_deadline(tmp_path: Path) -> None:
    with _scorer(tmp_path, timeout_s=1.0) as scorer:
        with pytest.raises(ProcessError, match="no answer within 1 s"):
            scorer.losses([("h", "hang")])


def test_error_of_the_worker_is_raised_with_its_words(tmp_path: Path) -> None:
    with _scorer(tmp_path) as scorer, pytest.raises(ProcessError, match="too wide"):
        scorer.losses([("h", "fail")])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": ID, "losses": ["2.0"]}', r"losses.0.*'2.0'"),
        ('{"id": ID, "losses": [NaN]}', "losses.0.*nan"),
        ('{"id": ID, "losses": [-1.0]}', "losses.0.*-1.0"),
        ('{"id": ID, "losses": [1.0, 2.0]}', "with 2 losses, where request 0 of 1 was sent"),
        ('{"id": ID}', "with 0 losses, where request 0 of 1 was sent"),
        ('{"id": 7, "losses": [1.0]}', "answered request 7, where request 0 was sent"),
        ("[1.0]", "the line"),
        ("a warning of a library", "the line"),
    ],
)
def test_line_that_is_no_answer_is_refused_with_place_and_value(
    line: str, message: str, tmp_path: Path
) -> None:
    with _scorer(tmp_path) as scorer, pytest.raises(ProcessError, match=message):
        scorer.losses([("h", f"say {line}")])


def test_every_gpu_has_a_worker(tmp_path: Path) -> None:
    items = [("h", "x" * n) for n in range(1, 200)]
    with _scorer(tmp_path, devices=Devices("cuda", (0, 1))) as scorer:
        assert scorer.losses(items) == [float(n) for n in range(1, 200)]
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"scorer_0.log", "scorer_1.log"}


def test_requests_are_bounded_in_characters_and_items() -> None:
    items = [("ab", "x" * n) for n in range(1, 21)]
    parts = split_requests(items, max_chars=30, max_items=4)
    assert sorted(item for part in parts for item in part) == sorted(items)
    assert all(len(part) <= 4 for part in parts)
    assert all(len(part) == 1 or sum(len(h) + len(t) for h, t in part) <= 30 for part in parts)
    lengths = [len(text) for part in parts for _, text in part]
    assert lengths == sorted(lengths, reverse=True)


def test_command_names_the_model_and_the_batch() -> None:
    env = Environment(prefix=Path("/e"), python=Path("/e/bin/python"))
    argv = scorer_argv(
        ModelRef(path="/models/m"), recipe=_recipe(), env=env, devices=Devices("cuda", (0,))
    )
    assert argv == (
        *("/e/bin/python", "-m", "optima.training.score", "--model", "/models/m"),
        *("--device", "cuda", "--batch-tokens", "16384"),
    )

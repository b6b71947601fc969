"""What servers and scorers are asked in whole runs: temperatures, formats, texts to score.

The stand-in server notes every request; a request belongs to the stage whose seed it carries.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from optima.processes.environment import Environment
from optima.prompts.rendering import load_formats
from optima.seeding import derive_seed
from optima.serving.probe import PROMPT_IDS
from tests.fake_runs import run
from tests.fakes import fake_environment, scored
from tests.studies.test_infer_runs import infer
from tests.tokenizers import text_of

SETTINGS = (
    "sampling.first_temperature=0.25", "sampling.temperature=0.75", "cold_start=null",
    "data.n_train=6", "data.n_test=2",
)  # fmt: skip
GENERATING = {
    "sft": {"iter_0/generate": 0.25, "iter_1/generate": 0.75},
    "dpo": {"initial/generate": 0.25, "iter_0/probe": 0.75, "iter_0/search": 0.75},
    "sft_dpo": {
        "iter_0_sft/generate": 0.25, "iter_0_dpo/probe": 0.75, "iter_0_dpo/search": 0.75,
        "iter_1_sft/generate": 0.75, "iter_1_dpo/probe": 0.75, "iter_1_dpo/search": 0.75,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A finished run and the requests that its servers got."""

    root: Path
    environment: Environment
    requests: tuple[dict[str, Any], ...]


Runs = Callable[[str], Asked]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Return a function that gives the run of a method, one for all tests."""
    return cache(lambda method: _run(tmp_path_factory.mktemp(method), method))


def _run(directory: Path, method: str) -> Asked:
    notes = directory / "requests.jsonl"
    environment = fake_environment(directory, server=("--notes", str(notes)))
    iterations = ("iterations=2",) if method == "dpo" else ()
    run(directory, environment, *SETTINGS, *iterations, method=method)
    return Asked(directory / "run", environment, _requests(notes))


def _requests(notes: Path) -> tuple[dict[str, Any], ...]:
    """Return what was asked in conversations, without the probes of a start."""
    return tuple(
        request
        for request in _read(notes)
        if request["prompt"] != list(PROMPT_IDS) and "prompt_logprobs" not in request
    )


def _read(path: Path) -> tuple[dict[str, Any], ...]:
    return tuple(json.loads(line) for line in path.read_text().splitlines())


def _stages(root: Path) -> dict[str, set[int]]:
    """Return the seeds of the turns of every stage that generates."""
    seeds: dict[str, set[int]] = defaultdict(set)
    for path in root.rglob("conversations.jsonl"):
        name = str(path.parent.relative_to(root))
        for c in _read(path):
            for k in range(len(c["turns"])):
                seeds[name].add(derive_seed(derive_seed(0, name), c["problem_id"], c["n"], k))
    for path in root.rglob("trees.jsonl"):
        name = str(path.parent.relative_to(root))
        for tree in _read(path):
            rollouts = [rollout["n"] for r in tree["rounds"] for rollout in r["rollouts"]]
            for n in rollouts:
                for k in range(6):  # max_turns of the runs' recipe
                    seeds[name].add(derive_seed(derive_seed(0, name), tree["problem_id"], n, k))
    return seeds


def _temperatures(asked: Asked) -> dict[str, set[float]]:
    """Return the temperatures of every stage with a request that carries a seed."""
    stage_by_seed = {seed: name for name, seeds in _stages(asked.root).items() for seed in seeds}
    found: dict[str, set[float]] = defaultdict(set)
    for request in asked.requests:
        if "seed" in request:
            found[stage_by_seed[request["seed"]]].add(request["temperature"])
    return dict(found)


@pytest.mark.parametrize("method", GENERATING)
def test_every_stage_samples_at_its_own_temperature(method: str, asked: Runs) -> None:
    # Evaluations have no seed, as greedy decoding draws nothing, and so do not appear here.
    assert _temperatures(asked(method)) == {k: {v} for k, v in GENERATING[method].items()}


@pytest.mark.parametrize("method", GENERATING)
def test_evaluations_are_greedy(method: str, asked: Runs) -> None:
    root = asked(method).root
    greedy = [request for request in asked(method).requests if request["temperature"] == 0]
    talks = [c for p in root.glob("evaluate/*/talk/conversations.jsonl") for c in _read(p)]
    assert len(greedy) == sum(len(c["turns"]) for c in talks) > 0


def test_evaluation_has_the_temperature_of_the_recipe(tmp_path: Path) -> None:
    notes = tmp_path / "requests.jsonl"
    environment = fake_environment(tmp_path, server=("--notes", str(notes)))
    run(tmp_path, environment, *SETTINGS, "iterations=1", "evaluation.temperature=0.125")
    found = _temperatures(Asked(tmp_path / "run", environment, _requests(notes)))
    assert found == {
        "iter_0/generate": {0.25}, "evaluate/base/talk": {0.125}, "evaluate/iter_0/talk": {0.125},
    }  # fmt: skip


def test_inference_is_greedy_and_holds_one_conversation_a_problem(
    asked: Runs, tmp_path: Path
) -> None:
    notes = tmp_path / "requests.jsonl"
    environment = fake_environment(tmp_path, server=("--notes", str(notes)))
    status, _, err = infer(
        environment,
        "--model-root",
        str(asked("sft").root),
        "--output",
        str(tmp_path / "out"),
        *("--limit", "4"),
    )
    assert status == 0, err
    requests = _requests(notes)
    assert {request["temperature"] for request in requests} == {0.0}
    talks = [c for p in (tmp_path / "out").rglob("conversations.jsonl") for c in _read(p)]
    assert len(requests) == sum(len(c["turns"]) for c in talks) > 0
    assert {c["n"] for c in talks} == {0}


@pytest.mark.parametrize("method", GENERATING)
def test_first_iteration_asks_for_formats_that_no_training_row_shows(
    method: str, asked: Runs
) -> None:
    first = next(iter(GENERATING[method]))
    root, seeds = asked(method).root, _stages(asked(method).root)
    formats = [pooled.text for pooled in load_formats()]
    for stage in GENERATING[method]:
        prompts = [text_of(r["prompt"]) for r in asked(method).requests
                   if r.get("seed") in seeds[stage]]  # fmt: skip
        assert prompts
        for prompt in prompts:
            assert sum(text in prompt for text in formats) == (stage == first)
    rows = [row for path in root.rglob("rows.jsonl") for row in _read(path)]
    texts = [text_of(row.get("input_ids") or row["prompt_ids"]) for row in rows]
    assert texts
    assert not any(pooled in text for pooled in formats for text in texts)
    drawn = [c["format_id"] for c in _read(root / first / "conversations.jsonl")]
    assert len(set(drawn)) > len(drawn) / 3  # each conversation draws its own, of 28


@pytest.mark.parametrize("method", GENERATING)
def test_every_utterance_is_continued_from_its_label_after_a_cue(method: str, asked: Runs) -> None:
    prompts = [text_of(r["prompt"]) for r in asked(method).requests if "seed" in r]
    assert prompts
    for prompt in prompts:
        end = re.search(
            r"\((Alice|Bob), be brief .*</A>\.\)<\|im_end\|>\n<\|im_start\|>assistant\n(.*):$",
            prompt,
        )
        assert end is not None
        assert end[1] == end[2]


@pytest.mark.parametrize("method", GENERATING)
def test_losses_are_of_every_utterance_after_the_assistant_header_with_its_end_of_turn(
    method: str, asked: Runs
) -> None:
    items = scored(asked(method).environment)
    assert {header for header, _ in items} == {"<|im_start|>assistant\n"}
    said = {text.strip() for text in _said(asked(method).root)} - {""}
    assert {text for _, text in items} == {f"{text}<|im_end|>" for text in said}


def _said(root: Path) -> list[str]:
    """Return all utterances of a run that rewards are computed of."""
    talks = [c for path in root.rglob("conversations.jsonl") if path.parent.name != "probe"
             for c in _read(path)]  # fmt: skip
    trees = [tree for path in root.rglob("trees.jsonl") for tree in _read(path)]
    nodes = [node for tree in trees for r in tree["rounds"] for node in r["nodes"]]
    return [t["text"] for c in talks for t in c["turns"]] + [n["turn"]["text"] for n in nodes]


def test_tokens_are_measured_by_the_longest_conversation_of_the_problem(
    asked: Runs,
) -> None:
    rewards = _read(asked("sft").root / "iter_0/rank/rewards.jsonl")
    tokens_by_problem: dict[str, list[int]] = defaultdict(list)
    for parts in rewards:
        tokens_by_problem[parts["problem_id"]].append(parts["n_tokens"])
    assert any(len(set(tokens)) > 1 for tokens in tokens_by_problem.values())
    for parts in rewards:
        longest = max(tokens_by_problem[parts["problem_id"]])
        assert parts["token"] == pytest.approx(parts["n_tokens"] / longest)

"""Two turns of each setting by a real instruct model of 0.5B, with the prompts as they are."""

import asyncio
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from optima.conversation.codec import ChatCodec
from optima.conversation.dialogue import Completion, Dialogue, Request
from optima.conversation.loading import load_codec
from optima.processes.devices import Devices
from optima.processes.environment import resolve_environment
from optima.prompts.rendering import PromptStyle
from optima.recipe.loading import load_recipe
from optima.recipe.schema import Recipe
from optima.serving.client import CompletionClient
from optima.serving.fleet import Fleet
from optima.stages.context import speakers_of
from optima.stages.generate import TaskAgreement
from optima.tasks import get_task
from optima.tasks.answers import is_placeholder, marked_answers
from optima.tasks.judging import Judge
from optima.types import Conversation, ModelRef, Problem
from tests.fake_runs import ROOT

pytestmark = pytest.mark.e2e
NAME = "qwen2.5-coder-0.5b-instruct"
N_SAMPLES = 3
FETCH_TIMEOUT_S = 900
PROBLEMS = {
    "hotpot_qa": Problem(
        problem_id="exchange", task="hotpot_qa", golds=("Kestrel Peak",),
        question="Which mountain overlooks the village where Ottilie Brand was born?",
        contexts=(
            "Ottilie Brand: Ottilie Brand was a watchmaker. She was born in Hollin.",
            "Hollin: Hollin is a village. It lies below Kestrel Peak, which overlooks it.",
        ),
    ),
    "gsm8k": Problem(
        problem_id="sum", task="gsm8k", golds=("34",),
        question="A baker fills 7 trays with 12 rolls each and sells 50 rolls. How many are left?",
    ),
    "arc": Problem(
        problem_id="choice", task="arc", golds=("B",), choices=("iron", "ice cream", "granite"),
        question="Which of these melts first in the sun?\nA. iron\nB. ice cream\nC. granite",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Talks:
    """What the model said about each problem, and how it is prompted."""

    by_task: dict[str, list[Conversation]]
    codec: ChatCodec


@pytest.fixture(scope="module")
def model() -> Path:
    directory = ROOT / "models" / NAME
    if not (directory / "model.safetensors").is_file():
        argv = [str(ROOT / "scripts" / "fetch_model.sh"), NAME]
        try:
            subprocess.run(argv, check=True, timeout=FETCH_TIMEOUT_S, capture_output=True)
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"{NAME} could not be fetched: {error}")
    return directory


@pytest.fixture(scope="module")
def talks(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Talks:
    recipe = load_recipe(
        [ROOT / "recipes/sft/gsm8k.yaml", ROOT / "recipes/models/qwen2.5-0.5b.yaml"],
        [f"model.path={model}", "model.max_model_len=1024", "serving.device=cpu",
         "serving.max_num_seqs=16", "conversation.max_turns=2", "conversation.max_turn_tokens=64"],
    )  # fmt: skip
    codec = load_codec(str(model))
    fleet = Fleet(
        ModelRef(path=str(model)),
        recipe=recipe,
        devices=Devices(kind="cpu"),
        env=resolve_environment(None, "vllm"),
        log_dir=tmp_path_factory.mktemp("logs"),
    )
    with fleet, Judge() as judge:
        held = asyncio.run(_hold_all(fleet, recipe, codec, judge))
    return Talks(held, codec)


async def _hold_all(
    fleet: Fleet, recipe: Recipe, codec: ChatCodec, judge: Judge
) -> dict[str, list[Conversation]]:
    async with CompletionClient(fleet.servers, fleet.model_name, recipe.serving) as client:

        async def complete(request: Request) -> Completion:
            temperature = 0.7 if request.seed % 3 else 0.0
            return await client.complete(request, temperature=temperature, top_p=1.0)

        def dialogue(task_name: str, n: int) -> Dialogue:
            task, problem = get_task(task_name), PROBLEMS[task_name]
            style = PromptStyle.of(recipe, task)
            speakers = speakers_of(style, (codec, codec), problem)
            return Dialogue(
                problem_id=problem.problem_id, n=n, speakers=speakers,
                answer_style=task.answer_style, limits=recipe.conversation, seed=n,
                agreement=TaskAgreement(task.metric, problem.choices, judge),
                choices=problem.choices,
            )  # fmt: skip

        keys = [(name, n) for name in PROBLEMS for n in range(N_SAMPLES)]
        held = await asyncio.gather(*(dialogue(*key).converse(complete) for key in keys))
    return {
        name: [c for (of, _), c in zip(keys, held, strict=True) if of == name] for name in PROBLEMS
    }


@pytest.mark.parametrize("task_name", PROBLEMS)
def test_agents_speak_in_turn_for_themselves_and_mark_no_placeholder(
    talks: Talks, task_name: str
) -> None:
    task, problem = get_task(task_name), PROBLEMS[task_name]
    for held in talks.by_task[task_name]:
        assert held.error is None
        assert [turn.name for turn in held.turns] == ["Alice", "Bob"]
        assert "role_leakage" not in held.faults
        for turn in held.turns:
            assert not re.search(r"\b(Alice|Bob):", turn.text)
            marks = marked_answers(turn.text, task.answer_style, problem.choices)
            assert turn.answer == (marks[-1] if marks else None)
            assert not any(is_placeholder(m, task.answer_style, problem.choices) for m in marks)
            if turn.token_ids is not None:
                assert talks.codec.encoder.decode(turn.token_ids).rstrip() == turn.text

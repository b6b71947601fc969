"""The same seed gives the same problems, prompts, samples and splits on every machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from optima.prompts.rendering import PromptStyle, system_prompt
from optima.recipe.schema import DataSection
from optima.seeding import SEED_BITS, derive_seed, digest, rng
from optima.tasks import TASKS
from optima.tasks.loading import load_problems, sample_problems
from optima.trainset import is_held_out

ROOT = Path(__file__).resolve().parent.parent
ROWS = [
    json.dumps({"question": f"What is {k} and 1?", "answer": f"{k}+1={k + 1}\n#### {k + 1}"})
    for k in range(40)
]
PLAN = "75b59ce55f3aade7"


def plan_of_a_run(folder: Path, seed: int) -> str:
    """Return a digest of what a run draws before any model speaks."""
    (folder / "train.jsonl").write_text("\n".join(ROWS), encoding="utf-8")
    parts = []
    for name, data in (
        ("gsm8k", DataSection(path=str(folder))),
        ("two_hop", DataSection(n_train=40)),
    ):
        task = TASKS[name]
        problems = load_problems(task, data, "train", n_agents=2, seed=seed).problems
        chosen = sample_problems(problems, 9, seed=seed, stage="iter_0")
        for problem in chosen:
            parts += [problem.model_dump_json()]
            parts += [str(is_held_out(problem.problem_id, seed=seed, share=0.3))]
            parts += [
                system_prompt(
                    problem,
                    PromptStyle(task.setting, task.answer_style, ("Alice", "Bob"), True),
                    agent=agent,
                )
                for agent in (0, 1)
            ]
    return digest(*parts)


def test_seeds_depend_on_every_part_of_their_path_and_its_kind() -> None:
    assert derive_seed(0, "iter_0/generate", "p", 1) == 5031897596203902448
    paths: list[tuple[str | int, ...]] = [
        (0, "a"),
        (1, "a"),
        ("0", "a"),
        (0, "b"),
        ("a", 0),
        (0, "a", 0),
        (0,),
    ]
    assert len({derive_seed(*path) for path in paths}) == len(paths)
    assert all(0 <= derive_seed(*path) < 2**SEED_BITS for path in paths)
    assert [rng(3, "x").randrange(1000) for _ in range(3)] == [261] * 3
    assert digest("ab", "c") != digest("a", "bc")


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_nothing_drawn_depends_on_the_interpreters_hashes(hash_seed: str, tmp_path: Path) -> None:
    code = "import sys, pathlib; from tests.test_seeding import plan_of_a_run;"
    code += "print(plan_of_a_run(pathlib.Path(sys.argv[1]), 5))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "LC_ALL": "C"}, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == PLAN
    assert plan_of_a_run(tmp_path, 6) != PLAN

"""Run directories as the commands leave them, written without running anything."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from optima.evaluation.statistics import Sample, scaling_curve
from optima.recipe.layers import Layers
from optima.recipe.loading import build_recipe, dump_recipe
from optima.recipe.schema import Recipe
from optima.records import write_records, write_text
from optima.runs.layout import StageDone
from optima.types import AnswerGroups, Conversation, RewardParts, Turn

TREES: dict[str, dict[str, float]] = {"search": {}, "pairs": {}, "dpo": {}}


class Maker:
    """Writes the stages of one run, each a second after the one before."""

    def __init__(
        self,
        root: Path,
        *,
        task: str = "two_hop",
        method: str = "sft",
        n_samples: int = 1,
        begun: float = 1000.0,
    ) -> None:
        self.root = root
        self._clock = begun
        tree = {
            "method": method,
            "task": task,
            "model": {"path": "m"},
            "evaluation": {"n_samples": n_samples},
            **(TREES if method != "sft" else {}),
        }
        self.recipe: Recipe = build_recipe(Layers("made", tree))
        root.mkdir(parents=True)
        write_text(root / "recipe.yaml", dump_recipe(self.recipe))
        write_text(root / "LOCK", "")
        self.stage("problems")

    def stage(self, name: str, seconds: float = 10.0, **metrics: float) -> Path:
        """Finish a stage; ``__`` in the name of a metric stands for a slash."""
        self._clock += 1
        path = self.root / name
        path.mkdir(parents=True, exist_ok=True)
        done = StageDone(
            stage=name, inputs="", outputs={}, started_unix_s=self._clock, seconds=seconds,
            metrics={key.replace("__", "/"): value for key, value in metrics.items()},
        )  # fmt: skip
        write_text(path / "INPUTS", "")
        write_text(path / "DONE.json", done.model_dump_json())
        return path

    def model(
        self, folder: str, scores: Sequence[float], tokens: Sequence[int], *,
        n_samples: int = 1, reward: float = 0.0, max_turns: float = 0.25,
    ) -> None:  # fmt: skip
        """Evaluate a model: conversation i is about problem i // n_samples and has two turns."""
        n = len(scores)
        talk = self.stage(
            f"{folder}/talk", seconds=n / 10, conversations=n, tokens__generated=sum(tokens),
            stop__agreement=1 - max_turns, stop__max_turns=max_turns, fault__role_leakage=0.05,
        )  # fmt: skip
        rank = self.stage(f"{folder}/rank", reward__total=reward)
        write_records(
            talk / "conversations.jsonl",
            (conversation(i // n_samples, i % n_samples, count) for i, count in enumerate(tokens)),
        )
        write_records(
            rank / "rewards.jsonl",
            (
                reward_parts(i // n_samples, i % n_samples, score, tokens[i])
                for i, score in enumerate(scores)
            ),
        )

    def iteration(self, label: str, *, reward: float, n_generated: int, seconds: float) -> None:
        """Draw candidates, reward them and train on them."""
        self.stage(
            f"{label}/generate", seconds=seconds, conversations=100,
            tokens__generated=n_generated, tokens__conversation=n_generated / 100,
            stop__agreement=0.6, stop__max_turns=0.3, stop__error=0.1,
            fault__role_leakage=0.1, fault__overflow=0.02,
        )  # fmt: skip
        self.stage(f"{label}/score", seconds=seconds / 4)
        self.stage(
            f"{label}/rank", reward__total=reward, reward__task=reward / 2, reward__token=0.5,
            reward__loss_term=0.4,
        )  # fmt: skip
        self.stage(f"{label}/train", seconds=seconds / 2, tokens__trained=2 * n_generated)

    def groups(self, folder: str, groups_PN: Sequence[Sequence[int | None]]) -> None:
        """Say which samples of each problem have the same answer."""
        path = self.stage(f"{folder}/groups")
        write_records(
            path / "groups.jsonl",
            (
                AnswerGroups(problem_id=f"p{p}", groups=tuple(groups))
                for p, groups in enumerate(groups_PN)
            ),
        )

    def results(self, **figures: object) -> None:
        """Write results.json, as an evaluation does at its end."""
        write_text(self.root / "results.json", json.dumps({"schema_version": 1, **figures}))


def conversation(p: int, n: int, n_tokens: int, text: str = "x") -> Conversation:
    first = n_tokens // 2
    turns = tuple(
        Turn(
            agent=agent, name=name, text=text, answer="a", n_prompt_tokens=9, n_tokens=count,
            finish_reason="stop", seconds=0.1,
        )
        for agent, name, count in ((0, "Alice", first), (1, "Bob", n_tokens - first))
    )  # fmt: skip
    return Conversation(
        problem_id=f"p{p}", n=n, format_id=None, turns=turns, stop_reason="agreement", answer="a"
    )


def reward_parts(p: int, n: int, score: float, n_tokens: int) -> RewardParts:
    return RewardParts(
        problem_id=f"p{p}", n=n, task=score, token=1.0, loss=None, loss_term=0.0, total=score,
        n_tokens=n_tokens, is_eligible=True,
    )  # fmt: skip


def training(root: Path, *, n_iterations: int = 2) -> Path:
    """Write a run whose models answer better in fewer tokens."""
    run = Maker(root)
    run.model("evaluate/base", [0, 0, 1, 0], [100, 200, 300, 400], reward=0.1)
    for t in range(n_iterations):
        run.iteration(f"iter_{t}", reward=0.4 + 0.2 * t, n_generated=1000 - 100 * t, seconds=40)
        scores = [1, 0, 1, 1 if t else 0]
        tokens = [n // (2 + t) for n in (100, 200, 300, 400)]
        run.model(f"evaluate/iter_{t}", scores, tokens, reward=0.5 + t, max_turns=0.1)
    return root


def baselines(root: Path) -> Path:
    """Write the methods cot and sc; two of sc's three samples agree on each problem."""
    run = Maker(root)
    run.model("cot", [0, 1, 1, 0], [50, 60, 70, 80])
    run.model("sc", [1, 1, 0] * 4, [10, 20, 30] * 4, n_samples=3)
    run.groups("sc", [[0, 0, 1]] * 4)
    return root


def consistency(root: Path, *, is_finished: bool = True) -> Path:
    """Write four samples for each of two problems, and the curve if it is finished."""
    run = Maker(root, n_samples=4)
    scores, tokens = [1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0], [10] * 8
    groups = [[0, 1, 0, 1], [0, 0, 0, 1]]
    run.model("model", scores, tokens, n_samples=4)
    run.groups("model", groups)
    if is_finished:
        samples = {
            f"p{p}": [Sample(groups[p][n], scores[4 * p + n], tokens[4 * p + n]) for n in range(4)]
            for p in range(2)
        }
        points = scaling_curve(samples, seed=0)
        run.results(models=[{"label": "model", "points": [asdict(point) for point in points]}])
    return root


def transfer(root: Path) -> Path:
    """Write two models on two tasks."""
    for i, (task, scores) in enumerate({"hotpot_qa": [1, 1, 0, 0], "gsm8k": [0, 0, 0, 1]}.items()):
        run = Maker(root / task, task=task, begun=1000.0 * i)
        run.model("runs/iter_0", scores, [40, 40, 40, 40])
        run.model("runs/iter_1", [1, *scores[1:]], [20, 20, 20, 20])
    return root

"""A run, read from Python: ``optima.open_run(directory)``.

Reading changes nothing, takes no lock and sees finished stages only, so a run can be read while it
goes on. Records are read when they are asked for and checked as they come; what a stage wrote is
compared with the digests in its DONE.json the first time it is read.
"""

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from optima.errors import StageError, UsageError
from optima.files import CONVERSATIONS, PAIRS, REWARDS, SELECTED, TREES
from optima.recipe.schema import Recipe
from optima.records import R, check_path, read_records
from optima.stages import (
    StageDone,
    check_outputs,
    finished_stages,
    read_done,
    read_recipe,
)
from optima.training.jobs import MODEL_DIR
from optima.types import (
    Conversation,
    DialogueTree,
    ModelRef,
    PreferencePair,
    Problem,
    RewardParts,
)


@dataclass(frozen=True, slots=True)
class JudgedConversation:
    """A conversation with the problem it is about and the reward that it got."""

    problem: Problem
    conversation: Conversation
    reward: RewardParts


class Run:
    """What is finished of the run in ``root``: a training, or an inference or baselines.

    Labels are those of the run's tables: ``base``, ``iter_0``, ``iter_1_dpo``. Raises UsageError
    for what is not a run directory or not in it, StageError for what is damaged.
    """

    def __init__(self, root: str | Path) -> None:
        check_path(root, "run")
        self.root = Path(root)
        if not (self.root / "recipe.yaml").is_file():
            raise UsageError(
                f"{self.root}: is not a run directory (it has no recipe.yaml); give what --run-dir "
                "or --output named"
            )
        self._checked: set[str] = set()

    def __repr__(self) -> str:
        return f"Run({str(self.root)!r})"

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe, every default in it."""
        return read_recipe(self.root)

    @property
    def stages(self) -> tuple[StageDone, ...]:
        """The finished stages in the order in which they were begun, with seconds and metrics."""
        return tuple(finished_stages(self.root))

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The figures of the finished stages by their names, such as ``iter_0/train``."""
        return {stage.stage: dict(stage.metrics) for stage in self.stages}

    @property
    def models(self) -> dict[str, ModelRef]:
        """The trained models by label, in the order in which they were made."""
        made = {}
        for stage in self.stages:
            label, _, kind = stage.stage.rpartition("/")
            folder = self.root / stage.stage / MODEL_DIR
            if kind == "train" and "/" not in label and folder.is_dir():
                is_adapter = (folder / "adapter_config.json").is_file()
                base = self.recipe.model.path
                path = str(folder.resolve())
                made[label] = (
                    ModelRef(path=base, adapter=path) if is_adapter else ModelRef(path=path)
                )
        return made

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The labels of the models that were asked the held-out problems and judged."""
        folders = [
            stage.stage.rpartition("/")[0]
            for stage in self.stages
            if stage.stage.endswith("/rank") and "/influence/" not in stage.stage
        ]
        return tuple(
            folder.removeprefix("evaluate/") for folder in folders if self._done(f"{folder}/talk")
        )

    def problems(self, split: Literal["train", "test"] = "test") -> dict[str, Problem]:
        """Return the problems of a split by their ids; ``test`` are the held-out ones."""
        problems = self._records("problems", f"{split}.jsonl", Problem)
        return {problem.problem_id: problem for problem in problems}

    def evaluation(self, label: str) -> Iterator[JudgedConversation]:
        """Yield what a model said about the held-out problems."""
        if label not in self.evaluated:
            known = ", ".join(self.evaluated) or "none yet"
            raise UsageError(f"{self.root}: has evaluated no {label}; it has {known}")
        inside = f"evaluate/{label}"
        folder = inside if (self.root / inside).is_dir() else label
        yield from self._judged(f"{folder}/talk", f"{folder}/rank", self.problems("test"))

    def candidates(self, label: str) -> Iterator[JudgedConversation]:
        """Yield the conversations that were drawn for the SFT that made ``label``."""
        yield from self._judged(f"{label}/generate", f"{label}/rank", self.problems("train"))

    def selected(self, label: str) -> Iterator[JudgedConversation]:
        """Yield those of the candidates that ``label`` was trained on."""
        chosen = self._records(f"{label}/select", SELECTED, RewardParts)
        keys = {(parts.problem_id, parts.n) for parts in chosen}
        for judged in self.candidates(label):
            if (judged.conversation.problem_id, judged.conversation.n) in keys:
                yield judged

    def trees(self, label: str) -> Iterator[DialogueTree]:
        """Yield the dialogue trees that were grown for the DPO that made ``label``."""
        yield from self._records(f"{label}/search", TREES, DialogueTree)

    def pairs(self, label: str) -> Iterator[PreferencePair]:
        """Yield the preference pairs of those trees that passed the thresholds."""
        yield from self._records(f"{label}/pairs", PAIRS, PreferencePair)

    def to_frame(self, label: str | None = None) -> Any:
        """Return a pandas data frame: of an evaluation, a row a conversation; else a row a model.

        Raises UsageError where pandas is not installed; all else here needs none.
        """
        if label is None:
            return _to_frame([self._means(label) for label in self.evaluated])
        return _to_frame([_row(judged) for judged in self.evaluation(label)])

    frame = to_frame

    def _means(self, label: str) -> dict[str, Any]:
        metrics, inside = self.metrics, f"evaluate/{label}"
        folder = inside if f"{inside}/rank" in metrics else label
        said, judged = metrics[f"{folder}/talk"], metrics[f"{folder}/rank"]
        tokens = said["tokens/conversation"]
        return {
            "label": label,
            "score": judged["reward/task"],
            "reward": judged.get("reward/total"),
            "tokens": tokens,
            "generated": said.get("tokens/generated_conversation", tokens),
            "turns": said["turns/conversation"],
            "answered": said["conversations/answered"],
        }

    def _done(self, name: str) -> StageDone | None:
        return read_done(self.root / name)

    def _records(self, name: str, file: str, kind: type[R]) -> Iterator[R]:
        done = self._done(name)
        if done is None:
            finished = ", ".join(stage.stage for stage in self.stages) or "none yet"
            raise UsageError(f"{self.root}: has not finished {name}; finished are {finished}")
        if name not in self._checked:
            check_outputs(self.root / name, done)
            self._checked.add(name)
        yield from read_records(self.root / name / file, kind)

    def _judged(
        self, said: str, ranked: str, problem_by_id: Mapping[str, Problem]
    ) -> Iterator[JudgedConversation]:
        conversations = self._records(said, CONVERSATIONS, Conversation)
        rewards = self._records(ranked, REWARDS, RewardParts)
        try:
            for conversation, reward in zip(conversations, rewards, strict=True):
                yield JudgedConversation(
                    problem_by_id[conversation.problem_id], conversation, reward
                )
        except ValueError as error:
            raise StageError(
                f"{self.root / ranked}: holds another number of rewards than {said} of "
                f"conversations; move {self.root / ranked} away and run again"
            ) from error


def open_run(root: str | Path) -> Run:
    """Open a run directory for reading; UsageError for what is not one."""
    return Run(root)


def _to_frame(rows: list[dict[str, Any]]) -> Any:
    try:
        return importlib.import_module("pandas").DataFrame(rows)  # nothing else of ours needs it
    except ImportError as error:
        raise UsageError(
            "pandas: is not installed here; `pip install pandas`, or go through evaluation(label)"
        ) from error


def _row(judged: JudgedConversation) -> dict[str, Any]:
    conversation, reward = judged.conversation, judged.reward
    return {
        "problem_id": conversation.problem_id,
        "n": conversation.n,
        "question": judged.problem.question,
        "golds": list(judged.problem.golds),
        "answer": conversation.answer,
        "score": reward.task,
        "reward": reward.total,
        "tokens": conversation.n_tokens,
        "generated": conversation.n_generated,
        "turns": len(conversation.turns),
        "stop_reason": conversation.stop_reason,
        "text": "\n".join(f"{turn.name}:{turn.text}" for turn in conversation.turns),
    }

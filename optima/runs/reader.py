"""A run, read: ``optima.open_run(directory)``. Whatever tells about a run stands on this.

Reading changes nothing, takes no lock and sees finished stages only, so a run can be read while it
goes on. Records are read when they are asked for and checked as they come; what a stage wrote is
compared with the digests in its DONE.json the first time it is read.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from optima.errors import StageError, UsageError
from optima.evaluation.figures import (
    Figures,
    Judged,
    JudgedConversation,
    figures_of,
    mean_of_tasks,
    tally,
)
from optima.evaluation.statistics import Point, Sample, scaling_curve, vote_of_all
from optima.plan import BASE, COLD_START, MIX, iterations, placed, unplaced
from optima.recipe.schema import Recipe
from optima.records import R, check_path, read_records, rows_to_frame
from optima.runs import files
from optima.runs.costs import EvaluationCost, ModelCost, costs_of_stages, evaluation_cost
from optima.runs.directory import read_recipe
from optima.runs.layout import (
    StageDone,
    check_outputs,
    finished_stages,
    read_attempts,
    read_done,
    stage_folders,
)
from optima.types import (
    AnswerGroups,
    Conversation,
    DialogueTree,
    ModelRef,
    PreferencePair,
    PreferenceRow,
    Problem,
    RewardParts,
    TrainingRow,
    TurnLosses,
)

Kind = Literal["training", "inference", "baselines", "consistency", "transfer"]
Baseline = Literal["cot", "sc", "mad", "autoform", "trained"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
VOTES: Baseline = "sc"  # whose figures are those of its votes


class Run:
    """What is finished of the run in ``root``: a training, or an inference, baselines or such.

    Labels are those of the run's tables: ``base``, ``iter_0``, ``iter_1_dpo``. ``name`` tells it
    from other runs beside it; ``folder`` is the one it was found in when that was given instead.

    A mixture is read whole, or as one of its tasks (``task``, of ``tasks``): then everything is
    that of the task, called as in a run of it alone, and ``name`` ends with it. Of the whole,
    ``figures`` are means over the tasks.

    Raises UsageError for what is not a run directory or not in it, StageError for what is damaged.
    """

    def __init__(
        self, root: str | Path, *, name: str = "", folder: Path | None = None, task: str = ""
    ) -> None:
        check_path(root, "run")
        self.root = Path(root)
        self.name = name or self.root.resolve().name
        self.folder = folder
        self.task = task
        self.is_transfer = False
        if not (self.root / files.RECIPE).is_file():
            raise UsageError(
                f"{self.root}: is not a run directory (it has no {files.RECIPE}); give what "
                "--run-dir or --output named, or put back from a copy what was removed"
            )
        self._checked: set[str] = set()

    def __repr__(self) -> str:
        return f"Run({str(self.root)!r}{f', task={self.task!r}' if self.task else ''})"

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe, every default in it."""
        whole = read_recipe(self.root)
        return whole.members()[self.task] if self.task else whole

    @property
    def is_mixture(self) -> bool:
        """Whether it is of several tasks, and not read as one of them."""
        return bool(self.recipe.tasks)

    @cached_property
    def tasks(self) -> "tuple[Run, ...]":
        """The run as each of its tasks: of a mixture one each, of any other itself."""
        if not self.is_mixture:
            return (self,)
        names = self.recipe.members()
        return tuple(
            Run(self.root, name=f"{self.name} {task}", folder=self.folder, task=task)
            for task in names
        )

    @cached_property
    def whole(self) -> "Run":
        """The run with all of its tasks."""
        if not self.task:
            return self
        return Run(self.root, name=self.name.removesuffix(f" {self.task}"), folder=self.folder)

    @property
    def stages(self) -> tuple[StageDone, ...]:
        """The finished stages in the order in which they were begun, with seconds and metrics."""
        named = ((unplaced(done.stage, self.task), done) for done in finished_stages(self.root))
        return tuple(
            done if name == done.stage else done.model_copy(update={"stage": name})
            for name, done in named
            if name is not None
        )

    @property
    def begun(self) -> tuple[str, ...]:
        """The names of all stages that were begun, finished or not."""
        paths = (path.relative_to(self.root).as_posix() for path in stage_folders(self.root))
        return tuple(name for path in paths if (name := unplaced(path, self.task)) is not None)

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The figures of the finished stages by their names, such as ``iter_0/train``."""
        return {stage.stage: dict(stage.metrics) for stage in self.stages}

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """What provenance.json says of each attempt: versions, hardware, command line."""
        return read_attempts(self.root)

    @property
    def searches(self) -> tuple[files.Search, ...]:
        """The stages in which trees grew, finished or not, in the order they began."""
        return files.find_searches(self.root, self.task)

    @property
    def talks(self) -> tuple[files.Talk, ...]:
        """The stages in which agents conversed, finished or not, in the order they began."""
        return files.find_talks(self.root, self.task)

    @property
    def is_evaluation(self) -> bool:
        """Whether it was written by an inference, baselines or such, not by a training."""
        talks = (name for name in self.begun if name.endswith("/talk"))
        return any(not name.startswith("evaluate/") and not files.is_trial(name) for name in talks)

    @property
    def kind(self) -> Kind:
        """What it is; a transfer is one of several inferences called as their tasks."""
        if not self.is_evaluation:
            return "training"
        if self.recipe.evaluation.n_samples > 1 and any(one.points for one in self.figures):
            return "consistency"
        if self.evaluations and self.evaluations.keys() <= set(BASELINES):
            return "baselines"
        return "transfer" if self.is_transfer else "inference"

    @property
    def models(self) -> dict[str, ModelRef]:
        """The trained models by label, in the order in which they were made.

        Of several policies a model is a team (``TeamRef``), made once all of them are trained.
        """
        return files.trained_models(self.root, self.stages, self.recipe)

    @property
    def evaluations(self) -> dict[str, files.Evaluation]:
        """The models that were asked problems and judged, by label; a training's in its order."""
        found = files.find_evaluations(self.stages)
        if self.is_evaluation:
            return found
        order = [BASE, COLD_START, *(step.label for step in iterations(self.recipe))]
        known = [label for label in order if label in found]
        return {label: found[label] for label in dict.fromkeys((*known, *found))}

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The labels of the models that were asked the held-out problems and judged.

        Of a mixture those that were asked all of its tasks.
        """
        if not self.is_mixture:
            return tuple(self.evaluations)
        first, *others = (one.evaluated for one in self.tasks)
        return tuple(label for label in first if all(label in other for other in others))

    @property
    def drawn(self) -> dict[str, dict[str, float]]:
        """The metrics of the conversations that each iteration drew from the model before it.

        A metric is missing where its stage is not finished. Of a mixture see its ``tasks``.
        """
        return {} if self.is_evaluation else files.drawn_for(self.stages)

    @cached_property
    def remembered(self) -> dict[str, dict[str, float]]:
        """Per iteration: the share of its problems that an earlier one was trained on, and the mean
        R_task of the conversations about the others; what is remembered lifts that of all."""
        return files.remembered(self.drawn, self._path)

    @cached_property
    def figures(self) -> tuple[Figures, ...]:
        """The figures of the evaluated models; those of a baseline that votes are of its votes."""
        return self.measure(self.evaluated)

    @cached_property
    def costs(self) -> tuple[ModelCost, ...]:
        """What the models trained here cost to make, or what an inference noted of its models'."""
        if self.is_evaluation:
            return self._results.costs
        if self.task:  # a model of a mixture is made from all of its tasks
            return self.whole.costs
        return costs_of_stages(self.stages, self.attempts)

    def cost_of(self, label: str) -> ModelCost | None:
        """Return what a model cost to make, None where nothing was trained for it."""
        return next((cost for cost in self.costs if cost.label == label), None)

    @cached_property
    def _results(self) -> files.Results:
        return files.read_results(self.root)

    def problems(self, split: Literal["train", "test"] = "test") -> dict[str, Problem]:
        """Return the problems of a split by their ids; ``test`` are the held-out ones."""
        path = self._checked_file(files.PROBLEMS, f"{split}.jsonl")
        return files.ProblemsById(path, read_records(path, Problem))

    def evaluation(self, label: str) -> Iterator[JudgedConversation]:
        """Yield what a model said about the held-out problems."""
        name = self._evaluation(label).folder
        yield from self._judged(f"{name}/talk", f"{name}/rank", self.problems("test"))

    def evaluation_cost(self, label: str) -> EvaluationCost:
        """Return what evaluating a model took."""
        found = (task._evaluation(label) for task in self.tasks)
        stages = (done for one in found for done in (one.talked, one.ranked, *one.others))
        return evaluation_cost(stages, self.attempts)

    def measure(self, labels: Sequence[str], *, by_vote: bool | None = None) -> tuple[Figures, ...]:
        """Return the figures of some of the models; one without a conversation is left out.

        Those whose answers were grouped are measured by the vote among all samples of a problem
        where ``by_vote`` says so; None takes that of the baseline ``sc`` alone. Of a mixture they
        are means over its tasks (``mean_of_tasks``).
        """
        if self.is_mixture:
            found_T = [one.measure(labels) for one in self.tasks]
            both = zip(*found_T, strict=True)
            means = [mean_of_tasks(one_T, seed=self.recipe.seed) for one_T in both]
            return tuple(replace(one, made_in_s=self._made_in_s(one.label)) for one in means)
        tallies, found = {}, []
        for one in map(self._evaluation, labels):
            if not (judged := list(self._lightly(one.folder))):
                continue
            samples = self._samples(one.folder, judged) if one.is_grouped else {}
            is_vote = samples and (one.label == VOTES if by_vote is None else by_vote)
            votes = vote_of_all(samples, seed=self.recipe.seed) if is_vote else None
            tallies[one.label] = tally(judged, votes)
            found.append((one, self._points(one.label, samples)))
        is_training = not self.is_evaluation
        return tuple(
            replace(
                figures,
                model=self._place(one.label),
                reward=one.ranked.metrics.get("reward/total") if is_training else None,
                seconds=one.talked.seconds,
                made_in_s=self._made_in_s(one.label) if is_training else 0.0,
                metrics=dict(one.talked.metrics),
                points=points,
            )
            for figures, (one, points) in zip(
                figures_of(tallies, seed=self.recipe.seed), found, strict=True
            )
        )

    def candidates(self, label: str) -> Iterator[JudgedConversation]:
        """Yield the conversations that were drawn for the SFT that made ``label``."""
        yield from self._judged(f"{label}/generate", f"{label}/rank", self.problems("train"))

    def selected(self, label: str) -> Iterator[JudgedConversation]:
        """Yield those of the candidates that ``label`` was trained on."""
        chosen = self._records(f"{label}/select", files.SELECTED, RewardParts)
        keys = {(parts.problem_id, parts.n) for parts in chosen}
        for judged in self.candidates(label):
            if (judged.conversation.problem_id, judged.conversation.n) in keys:
                yield judged

    def losses(self, stage: str) -> Iterator[TurnLosses]:
        """Yield the losses of every conversation's turns that a stage such as iter_0/score took."""
        yield from self._records(stage, files.LOSSES, TurnLosses)

    def trees(self, label: str) -> Iterator[DialogueTree]:
        """Yield the dialogue trees that were grown for the DPO that made ``label``."""
        yield from self._records(f"{label}/search", files.TREES, DialogueTree)

    def pairs(self, label: str) -> Iterator[PreferencePair]:
        """Yield the preference pairs of those trees that passed the thresholds."""
        yield from self._records(f"{label}/pairs", files.PAIRS, PreferencePair)

    def rows(self, label: str) -> Iterator[TrainingRow | PreferenceRow]:
        """Yield the rows that ``label`` was trained on: of an SFT or cold start, or of pairs."""
        done = {stage.stage for stage in self.stages}
        kinds = (MIX, "influence/selected", "pairs", "script")
        kind = next((kind for kind in kinds if f"{label}/{kind}" in done), "select")
        is_dpo = any((o.label, o.training) == (label, "dpo") for o in iterations(self.recipe))
        row: type[PreferenceRow | TrainingRow] = PreferenceRow if is_dpo else TrainingRow
        yield from self._records(f"{label}/{kind}", files.ROWS, row)

    def to_frame(self, label: str | None = None) -> Any:
        """Return a pandas data frame: of an evaluation, a row a conversation; else a row a model.

        Raises UsageError where pandas is not installed; all else here needs none.
        """
        if label is None:
            return rows_to_frame([figures.row() for figures in self.figures])
        return rows_to_frame([judged.row() for judged in self.evaluation(label)])

    def _evaluation(self, label: str) -> files.Evaluation:
        found = self.evaluations
        if label not in found:
            known = ", ".join(found) or "none yet"
            raise UsageError(f"{self.root}: has evaluated no {label}; it has {known}")
        return found[label]

    def _result(self, label: str) -> files.Result:
        """Return what was written of a model; nothing where its evaluation is not finished."""
        written = (row for row in self._results.models if row.label == label)
        return next(written, files.Result(label=label))

    def _place(self, label: str) -> str:
        """Return where a model is; empty where an evaluation is not finished."""
        if self.is_evaluation:
            return self._result(label).model
        made = self.models.get(label)
        if made is not None:
            return made.place
        base = Path(self.recipe.model.path)
        return str(base.resolve()) if base.is_dir() else str(base)

    def _path(self, name: str) -> Path:
        """Return the directory of a stage."""
        return self.root / placed(name, self.task)

    def _made_in_s(self, label: str) -> float:
        """Return the seconds of the stages that made a model."""
        return sum(done.seconds for done in self.stages if done.stage.split("/")[0] == label)

    def _checked_file(self, name: str, file: str) -> Path:
        """Return a file of a finished stage whose outputs are as they were written."""
        done = read_done(self._path(name))
        if done is None and self.is_mixture:
            first, *others = (one.task for one in self.tasks)
            raise UsageError(
                f"{self.root}: is a mixture, each of whose tasks has its own {name}: read it as "
                f"one of them, open_run(..., task={first!r}), or {', '.join(others)}"
            )
        if done is None:
            finished = ", ".join(stage.stage for stage in self.stages) or "none yet"
            raise UsageError(f"{self.root}: has not finished {name}; finished are {finished}")
        if name not in self._checked:
            check_outputs(self._path(name), done)
            self._checked.add(name)
        if not (path := self._path(name) / file).is_file():  # an inference has no train split
            raise UsageError(f"{self.root}: has no {file} in {name}, as {self.kind} writes none")
        return path

    def _records(self, name: str, file: str, kind: type[R]) -> Iterator[R]:
        yield from read_records(self._checked_file(name, file), kind)

    def _judged(
        self, said: str, ranked: str, problem_by_id: Mapping[str, Problem]
    ) -> Iterator[JudgedConversation]:
        conversations = self._records(said, files.CONVERSATIONS, Conversation)
        rewards = self._records(ranked, files.REWARDS, RewardParts)
        with self._one_for_each(f"{ranked}/{files.REWARDS}"):
            for talk, reward in zip(conversations, rewards, strict=True):
                if (talk.problem_id, talk.n) != (reward.problem_id, reward.n):
                    raise ValueError(f"{reward.problem_id} stands beside {talk.problem_id}")
                yield JudgedConversation(problem_by_id[talk.problem_id], talk, reward)

    def _lightly(self, folder: str) -> Iterator[Judged]:
        """Yield what figures take of an evaluation's conversations."""
        said = self._checked_file(f"{folder}/talk", files.CONVERSATIONS)
        ranked = self._checked_file(f"{folder}/rank", files.REWARDS)
        with self._one_for_each(f"{folder}/rank/{files.REWARDS}"):
            yield from files.read_judged(said, ranked)

    def _samples(self, folder: str, judged: Sequence[Judged]) -> dict[str, list[Sample]]:
        """Return every problem's samples, by id, as votes see them."""
        name = f"{folder}/groups"
        records = self._records(name, files.GROUPS, AnswerGroups)
        numbers = [number for record in records for number in record.groups]
        samples: dict[str, list[Sample]] = defaultdict(list)
        with self._one_for_each(f"{name}/{files.GROUPS}"):
            for one, number in zip(judged, numbers, strict=True):
                samples[one.problem_id].append(Sample(number, one.score, one.n_tokens))
        return dict(samples)

    def _points(self, label: str, samples: Mapping[str, Sequence[Sample]]) -> tuple[Point, ...]:
        """Return the curve of self-consistency: as it was written, or else computed as it is."""
        if not samples or label == VOTES:
            return ()
        written = self._result(label).points
        if written is not None:
            return written
        return tuple(scaling_curve(samples, seed=self.recipe.seed))

    @contextlib.contextmanager
    def _one_for_each(self, name: str) -> Iterator[None]:
        """Turn the ValueError of files that do not go together into a StageError."""
        try:
            yield
        except ValueError as error:
            folder, _, last = name.rpartition("/")
            path = self._path(folder) / last
            raise StageError(
                f"{path}: has not one record for each conversation; move {path.parent} away and "
                "run again"
            ) from error


def open_run(root: str | Path, task: str = "") -> Run:
    """Open a run directory for reading, of a mixture as one of its tasks where ``task`` names it.

    Raises UsageError for what is not a run, or not of that task.
    """
    run = Run(root)
    if not task or (task == run.recipe.task and not run.is_mixture):
        return run
    found = next((one for one in run.tasks if one.recipe.task == task), None)
    if found is None:
        there = ", ".join(one.recipe.task for one in run.tasks)
        raise UsageError(f"{run.root}: is of {there}, not of {task}; name a task of the run")
    return found

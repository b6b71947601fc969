"""The files of a run by their names, and what stands in those that no stage writes.

problems/{train,test}.jsonl             Problem
<label>/generate/conversations.jsonl    Conversation    (evaluations: evaluate/<label>/talk)
<label>/score/losses.jsonl              TurnLosses
<label>/rank/rewards.jsonl              RewardParts
<label>/select/selected.jsonl           RewardParts of what is trained on
<label>/select/rows.jsonl               TrainingRow, or of <label>/pairs PreferenceRow
<label>/search/{rounds,trees}.jsonl     TreeRound as they end, DialogueTree when all have
<label>/pairs/pairs.jsonl               PreferencePair
<label>/mix/rows.jsonl                  of a mixture: the rows of all its tasks, whose own stages
                                        stand in folders such as <label>/arc/select (plan.placed)
<label>/train/model/                    weights, configuration, tokenizer
plan.json  results.json                 what an evaluation or a folder of runs will hold, and held
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
import psutil
from pydantic import BaseModel, Field, ValidationError

from optima.errors import StageError, UsageError
from optima.evaluation.figures import Judged
from optima.evaluation.statistics import Point
from optima.plan import PROBLEMS as PROBLEMS
from optima.plan import kind_of, trained_policies, unplaced
from optima.recipe.schema import Recipe
from optima.records import make_folder, naming, read_record, write_text
from optima.runs.costs import ModelCost
from optima.runs.layout import StageDone, own_starts, placed_model, read_done, ref_in, stage_folders
from optima.training.jobs import MODEL_DIR
from optima.types import ModelRef, Problem, Record, TeamRef, spoken_tokens

RECIPE, PROVENANCE, METRICS, LOCK = "recipe.yaml", "provenance.json", "metrics.jsonl", "LOCK"
PLAN, RESULTS = "plan.json", "results.json"
INPUTS, DONE = "INPUTS", "DONE.json"
TABLE_MD, TABLE_CSV, COSTS_CSV = "table.md", "table.csv", "costs.csv"
SPLITS = ("train.jsonl", "test.jsonl")
CONVERSATIONS = "conversations.jsonl"
LOSSES = "losses.jsonl"
REWARDS = "rewards.jsonl"
SELECTED = "selected.jsonl"
SCRIPTS = "scripts.jsonl"
ROWS = "rows.jsonl"
EVAL_ROWS = "eval_rows.jsonl"
TREES = "trees.jsonl"
ROUNDS = "rounds.jsonl"
PAIRS = "pairs.jsonl"
GROUPS = "groups.jsonl"
_OTHERS = ("score", "groups")  # stages of an evaluation, besides talk and rank


TALKS = {
    "talk": "evaluation", "generate": "candidates", "probe": "probe", "script": "script"
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Talk:
    """A stage in which agents conversed, and the files about it, which may not be there yet."""

    name: str
    label: str
    kind: str
    conversations: Path
    rewards: Path
    losses: Path
    selected: Path


@dataclass(frozen=True, slots=True)
class Search:
    """A stage in which trees grew: ``grown`` has a tree a line, or before its end a round."""

    label: str
    grown: Path
    is_finished: bool


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The finished stages, in ``folder``, in which a model was asked problems and judged."""

    label: str
    folder: str
    talked: StageDone
    ranked: StageDone
    others: tuple[StageDone, ...]

    @property
    def is_grouped(self) -> bool:
        """Whether its answers were put into groups, for votes."""
        return any(done.stage.endswith("/groups") for done in self.others)


class Outline(Record):
    """plan.json: the stages of an evaluation in their order, or the runs of a folder in theirs.

    No recipe says them, so they are written down at the beginning. ``n_samples`` are the
    conversations per problem of a stage, where it has any.
    """

    schema_version: Literal[1] = 1
    stages: tuple[str, ...] = ()
    n_samples: dict[str, int] = Field(default_factory=dict)
    runs: tuple[str, ...] = ()


def write_stages(
    root: Path, n_samples_by_label: Mapping[str, int], *, grouped: Sequence[str] = ()
) -> None:
    """Note that an evaluation in ``root`` has these models, each with its samples per problem.

    The answers of those in ``grouped`` are put into groups too.
    """
    stages = ["problems"]
    for label in n_samples_by_label:
        stages += [f"{label}/talk", f"{label}/rank"]
        stages += [f"{label}/groups"] if label in grouped else []
    n_samples = {f"{label}/talk": n for label, n in n_samples_by_label.items()}
    _write(root, Outline(stages=tuple(stages), n_samples=n_samples))


def write_trial(root: Path, recipe: Recipe) -> None:
    """Note that a trial in ``root`` has the first generation of a run and its rewards."""
    scored = ["score"] if recipe.reward.lambda_loss > 0 else []
    stages = ["problems", *(f"iter_0/{part}" for part in ("generate", *scored, "rank"))]
    _write(root, Outline(stages=tuple(stages)))


def write_members(root: Path, names: Sequence[str]) -> None:
    """Note that the folder ``root`` has these runs; UsageError where it is a run itself."""
    make_folder(root, "--run-dir")
    if (root / RECIPE).is_file():
        raise UsageError(f"{root}: is a run, or holds its recipe; give a folder of its own")
    _write(root, Outline(runs=tuple(names)))


def read_outline(root: Path) -> Outline | None:
    """Return what was noted in ``root``, None where nothing was.

    Raises StageError when it cannot be read.
    """
    remedy = "it was damaged from outside: remove it, or give the command that wrote it again"
    return read_record(root / PLAN, Outline, remedy)


def _write(root: Path, outline: Outline) -> None:
    write_text(root / PLAN, outline.model_dump_json(indent=1) + "\n")


class Result(BaseModel):
    """What is read of a model in results.json: where it is, and the curve of its votes."""

    label: str
    model: str = ""
    points: tuple[Point, ...] | None = None


class Results(BaseModel):
    """What is read of results.json, which may hold more."""

    models: tuple[Result, ...] = ()
    costs: tuple[ModelCost, ...] = ()


def read_results(root: Path) -> Results:
    """Return results.json as an evaluation wrote it; empty before.

    Raises StageError when it cannot be read.
    """
    path = root / RESULTS
    if not os.path.lexists(path):
        return Results()
    try:
        with naming(path):
            return Results.model_validate_json(path.read_bytes())
    except ValidationError as error:
        found = error.errors()[0]
        reason = " ".join((*map(str, found["loc"]), found["msg"]))
        raise StageError(
            f"{path}: is not the JSON of an evaluation ({reason}); it was damaged: give the "
            "command that wrote it again"
        ) from error


def find_talks(root: Path, member: str = "") -> tuple[Talk, ...]:
    """Return the stages of a run in which agents conversed, in the order of their beginning.

    Those of a mixture's task are called as in a run of that task alone.
    """
    found = []
    for stage in stage_folders(root):
        path = stage / (SCRIPTS if stage.name == "script" else CONVERSATIONS)
        name, beside = unplaced(stage.relative_to(root).as_posix(), member), stage.parent
        if stage.name in TALKS and name is not None and path.is_file():
            label = name.removeprefix("evaluate/").removesuffix("/talk")
            for part, word in (("generate", "candidates"), ("script",) * 2, ("probe",) * 2):
                label = label.replace(f"/{part}", f" {word}")
            others = (beside / "rank" / REWARDS, beside / "score" / LOSSES)
            talk = Talk(name, label, TALKS[stage.name], path, *others, beside / "select" / SELECTED)
            found.append((_began(stage, path), name, talk))
    return tuple(talk for *_, talk in sorted(found, key=lambda one: one[:2]))


def find_searches(root: Path, member: str = "") -> tuple[Search, ...]:
    """Return the stages of a run in which trees grew, as ``find_talks`` does its own."""
    found = []
    for stage in (folder for folder in stage_folders(root) if folder.name == "search"):
        path = stage / TREES if (stage / TREES).is_file() else stage / ROUNDS
        name = unplaced(stage.relative_to(root).as_posix(), member)
        if name is not None and path.is_file():
            label = name.rpartition("/")[0]
            search = Search(label, path, is_finished=read_done(stage) is not None)
            found.append((_began(stage, path), label, search))
    return tuple(search for *_, search in sorted(found, key=lambda one: one[:2]))


def trained_models(root: Path, stages: Iterable[StageDone], recipe: Recipe) -> dict[str, ModelRef]:
    """Return the models that finished stages of a run trained, by label, in order.

    What is trained for each policy comes together as a team once all of them are.
    """
    made: dict[str, ModelRef] = {}
    teams: dict[str, dict[str, ModelRef]] = {}
    base, wanted = placed_model(recipe.model.path), set(trained_policies(recipe))
    starts = own_starts(recipe)
    frozen = {name: one for name, one in starts.items() if name not in wanted}
    for stage in stages:
        label, _, part = stage.stage.rpartition("/")
        folder = root / stage.stage / MODEL_DIR
        if kind_of(stage.stage) != "train" or "/" in label or not folder.is_dir():
            continue
        policy = part.partition("_")[2]
        one = ref_in(folder, starts[policy].path if policy in starts else base)
        if policy:
            team = teams.setdefault(label, {})
            team[policy] = one
            if wanted <= team.keys():
                own = str((root / label).resolve())
                made[label] = TeamRef(path=base, member_by_policy={**team, **frozen}, folder=own)
        else:
            made[label] = one
    return made


def is_trial(stage: str) -> bool:
    """Tell whether a stage is ``<iteration>/influence/<trial>/<part>``: no evaluation."""
    parts = stage.split("/")
    return len(parts) == 4 and parts[1] == "influence"


def find_evaluations(stages: Iterable[StageDone]) -> dict[str, Evaluation]:
    """Return the models that were asked problems and judged in finished stages, by label."""
    done = {stage.stage: stage for stage in stages}
    found = {}
    for name, talked in done.items():
        folder, _, part = name.rpartition("/")
        ranked = done.get(f"{folder}/rank")
        if part == "talk" and ranked is not None and not is_trial(name):
            others = filter(None, (done.get(f"{folder}/{other}") for other in _OTHERS))
            label = folder.removeprefix("evaluate/")
            found[label] = Evaluation(label, folder, talked, ranked, tuple(others))
    return found


def drawn_for(stages: Iterable[StageDone]) -> dict[str, dict[str, float]]:
    """Return the metrics of the conversations that each iteration of a training drew, by label."""
    found: dict[str, dict[str, float]] = {}
    for stage in stages:
        label, _, part = stage.stage.partition("/")
        if part in ("generate", "search"):
            found[label] = dict(stage.metrics)
        elif part in ("rank", "select", "pairs") and label in found:
            found[label] |= stage.metrics
    return found


def remembered(
    labels: Iterable[str], path_of: Callable[[str], Path]
) -> dict[str, dict[str, float]]:
    """Return what ``Run.remembered`` is, of iterations whose stages are where ``path_of`` says."""
    found, trained = dict[str, dict[str, float]](), set[str]()
    for label in labels:
        rewards = path_of(f"{label}/rank") / REWARDS
        if drawn := by_problem(rewards, "task"):
            share_seen = len(drawn.keys() & trained) / len(drawn)
            found[label] = {"problems/trained_before": share_seen}
        if others := [r or 0.0 for key in drawn.keys() - trained for r in drawn[key]]:
            found[label]["reward/task_others"] = sum(others) / len(others)
        for part, chosen in (("select", SELECTED), ("pairs", PAIRS)):
            trained |= by_problem(path_of(f"{label}/{part}") / chosen).keys()
    return found


class ProblemsById(dict[str, Problem]):
    """The problems of a file by their ids; one that a record is about and is missing is damage."""

    def __init__(self, path: Path, problems: Iterable[Problem]) -> None:
        super().__init__((problem.problem_id, problem) for problem in problems)
        self._path = path

    def __missing__(self, key: str) -> Problem:
        raise StageError(
            f"{self._path}: has no problem {key!r}, which records of this run are about; put the "
            f"file back from a copy, or move {self._path.parent} away and run again"
        )


def run_of(model: str) -> Path | None:
    """Return the run in which the model in a directory was trained, None for any other model."""
    path = Path(model).resolve()
    if any(path.glob(f"train_*/{MODEL_DIR}")):  # a team
        path = path / "train" / MODEL_DIR
    run = path.parents[2] if len(path.parts) > 3 else path
    is_trained = (
        kind_of(path.parent.name) == "train" and path.name == MODEL_DIR and (run / RECIPE).is_file()
    )
    return run if is_trained else None


def read_judged(said: Path, ranked: Path) -> Iterator[Judged]:
    """Yield what figures take of conversations and the rewards beside them, only parsed.

    Raises ValueError where they do not go together.
    """
    lines = zip(raw_lines(said), raw_lines(ranked), strict=True)
    for n, ((_, line), (_, beside)) in enumerate(lines, start=1):
        talk, parts = parsed(line, f"{said}:{n}"), parsed(beside, f"{ranked}:{n}")
        if talk["problem_id"] != parts["problem_id"]:
            raise ValueError(f"{parts['problem_id']} stands beside {talk['problem_id']}")
        yield Judged(
            problem_id=talk["problem_id"],
            score=parts["task"],
            n_tokens=n_spoken(talk),
            n_generated=sum(turn["n_tokens"] for turn in talk["turns"]),
            n_turns=len(talk["turns"]),
            is_answered=talk["answer"] is not None,
            has_failed=talk["error"] is not None or parts["error"] is not None,
        )


def is_owned(root: Path) -> bool:
    """Tell whether the process named in LOCK still holds a run; asking takes no lock."""
    lock = root / LOCK
    try:
        held = psutil.Process(int(lock.read_text("utf-8"))).open_files()
    except (OSError, ValueError, psutil.Error):
        return False
    return any(Path(file.path) == lock.resolve() for file in held)


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, line) of a record file; a torn last line, being written, is left out.

    A file that is not there has none.
    """
    if not path.is_file():
        return
    offset = 0
    with naming(path), path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield offset, line
            offset += len(line)


def by_problem(path: Path, field: str = "problem_id") -> dict[str, list[Any]]:
    """Return a field of every record about a problem, by the problem; of no file nothing."""
    found: dict[str, list[Any]] = {}
    for n, (_, line) in enumerate(raw_lines(path), start=1):
        record = parsed(line, f"{path}:{n}")
        found.setdefault(record["problem_id"], []).append(record.get(field))
    return found


def parsed(line: bytes, place: object) -> dict[str, Any]:
    """Return a line of a record file, only parsed; StageError names its place when it is not one.

    A run holds some 100,000 conversations; checking every field of every turn takes most of the
    time of reading them. What a stage writes is checked when it is written.
    """
    try:
        record = orjson.loads(line)
        if isinstance(record, dict) and "problem_id" in record:
            return record
        reason = "it names no problem"
    except orjson.JSONDecodeError as error:
        reason = str(error)
    raise StageError(
        f"{place}: is not a JSON record ({reason}); put the file back from a copy, or move its "
        "directory away and run again"
    )


def n_spoken(talk: Mapping[str, Any]) -> int:
    """Return the tokens of a parsed conversation by the paper's count."""
    return sum(spoken_tokens(turn["n_tokens"], turn.get("n_spoken")) for turn in talk["turns"])


def _began(stage: Path, path: Path) -> float:
    done = read_done(stage)
    return done.started_unix_s if done else path.stat().st_mtime

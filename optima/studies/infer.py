"""Inference (paper section 4): every model on the test problems; transfer: on those of other tasks.

Models are named one by one or found below a directory, in the order in which they were made. They
are served in turn and may be of any origin; what they are asked is said by the recipe, of which
everything about training is ignored. Conversations, task scores and figures of each model are
stages of the output directory, so an interrupted inference goes on where it stopped.

Self-consistency is an inference of several samples a problem, whose equal answers are put into
groups; every k from 1 to that number is then computed from them. Which answers mean the same is a
stage of its own, as comparing mathematical expressions takes time.
"""

import concurrent.futures
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from optima.errors import ModelError, StageError, UsageError
from optima.evaluation.figures import Figures
from optima.evaluation.statistics import group_answers
from optima.plan import BASE, PROBLEMS, Step, trained_policies
from optima.processes.environment import Environment
from optima.progress import Meter
from optima.prompts.rendering import Format
from optima.recipe.layers import Layers
from optima.recipe.loading import change_recipe, foreign_fields
from optima.recipe.schema import Recipe
from optima.records import read_records, write_records
from optima.runs.comparison import split_name
from optima.runs.directory import Stage
from optima.runs.files import (
    CONVERSATIONS,
    GROUPS,
    INPUTS,
    RECIPE,
    RESULTS,
    run_of,
    write_members,
    write_stages,
)
from optima.runs.layout import WEIGHTS, check_model, find_below, is_stage, read_done, weight_files
from optima.runs.reader import Run
from optima.seeding import digest
from optima.stages.context import Made, Model, RunContext
from optima.stages.generate import ask
from optima.stages.opening import base_model, check_start, codecs_of, open_run
from optima.stages.problems import load_test_problems, read_test_problems
from optima.stages.rank import mark
from optima.tasks import get_task
from optima.tasks.judging import Judge
from optima.training.jobs import MODEL_DIR
from optima.types import AnswerGroups, Conversation, ModelRef, Problem

logger = logging.getLogger(__name__)
_MANY_BYTES = 2**30  # take seconds to read
_N_READERS = 4
_CONFIGURATIONS = ("config.json", "adapter_config.json")
_NUMBER = re.compile(r"(\d+)")
_TRIAL = re.compile(r"/influence/group_\d+/train/model/")
_TRAINING = (
    *("method", "iterations", "initialise", "select", "train", "search", "pairs", "dpo"),
    *("cold_start", "policies"),
)
# Fields of other sections that only a training reads, with what an inference has for them.
_OF_TRAINING = {
    **dict.fromkeys(("sampling.temperature", "sampling.first_temperature"),
                    "set evaluation.temperature"),
    "sampling.n_samples": "set evaluation.n_samples",
    "evaluation.base": "name a model by --base, or leave it out",
    **dict.fromkeys(("sampling.top_p", "data.n_train", "data.draw"), "remove it"),
}  # fmt: skip


def find_models(root: Path) -> tuple[Model, ...]:
    """Return the models in ``root`` and below it: whole models and LoRA adapters.

    In a run directory they are called as in its table and come in the order of training, the
    policies of a team together; elsewhere they are called by their paths and sorted by them,
    numbers as numbers. What a training left behind for itself (hidden directories, checkpoints) is
    none, nor is a trial of a selection by influence that was interrupted, nor a team some of whose
    policies are not trained yet.

    Raises UsageError when there is no such directory or no model in it, ModelError for one without
    its weights.
    """
    teams = _find_teams(root)
    folders = (folder for team in teams for folder in team)
    n_bytes = sum(file.stat().st_size for folder in folders for file in weight_files(folder))
    if n_bytes > _MANY_BYTES:
        logger.info("reading %.1f GiB of weights to see whether they are whole", n_bytes / 2**30)
    with concurrent.futures.ThreadPoolExecutor(_N_READERS) as pool:
        return tuple(pool.map(lambda team: _read(root, team), teams))


def last_model(root: Path) -> Model:
    """Return the last of the models that ``find_models`` finds, without reading the others."""
    return _read(root, _find_teams(root)[-1])


def model_of_run(root: Path, label: str) -> Model:
    """Return the model that the run in ``root`` calls ``label``, its base too.

    Raises UsageError when it has none of that name.
    """
    if label == BASE:
        return base_model(Run(root).recipe)
    found = {_label_of(root, team): team for team in _find_teams(root)}
    if label not in found:
        known = ", ".join([BASE, *found])
        raise UsageError(f"{root}:{label}: is no model of this run; it has {known}")
    return _read(root, found[label])


def _teams(folders: Iterable[Path]) -> list[tuple[Path, ...]]:
    """Return the folders of models, those of one team's policies together."""
    teams: dict[Path, tuple[Path, ...]] = {}
    for folder in folders:
        key = folder.parents[1] if _policy(folder) else folder
        teams[key] = (*teams.get(key, ()), folder)
    return [team for team in teams.values() if _is_whole(team)]


def _is_whole(team: tuple[Path, ...]) -> bool:
    """Tell whether no policy is missing that the run of a team trains."""
    run = run_of(str(team[0])) if _policy(team[0]) else None
    if run is None:
        return True
    missing = set(trained_policies(Run(run).recipe)).difference(map(_policy, team))
    if missing:
        place, names = team[0].parents[1], ", ".join(sorted(missing))
        logger.warning("%s: left out, as %s of it is not trained yet", place, names)
    return not missing


def _read(root: Path, folders: tuple[Path, ...]) -> Model:
    """Return the model in a folder, or the team whose policies are in these."""
    label = _label_of(root, folders)
    if not _policy(folders[0]):
        return read_model(folders[0], label)
    return read_team(label, {_policy(folder): folder for folder in folders})


def _label_of(root: Path, folders: tuple[Path, ...]) -> str:
    """Return what the model in a folder, or the team in these, is called."""
    if not _policy(folders[0]):
        return _label(root, folders[0])
    team = folders[0].parents[1]
    return team.resolve().name if team == root else "/".join(team.relative_to(root).parts)


def read_team(label: str, folders: Mapping[str, Path]) -> Model:
    """Return the team of these policies and of those that its run kept frozen.

    Raises ModelError where it is not known what base they have, and what ``read_model`` raises.
    """
    first = next(iter(folders.values())).resolve()
    run = run_of(str(first))
    start = base_model(Run(run).recipe) if run else Model(label, ModelRef(path=str(first)), "")
    members = {policy: read_model(folder, policy) for policy, folder in folders.items()}
    bases = {
        one.ref.path
        for policy, one in members.items()
        if one.ref.adapter and start.member(policy).ref.path == start.ref.path
    }
    if len(bases) > 1:
        shown = " and ".join(sorted(bases))
        raise ModelError(f"{label}: adapters over {shown}: no team has two bases")
    frozen = {
        policy: member
        for policy, member in start.members.items()
        if policy not in members and member.ref != ModelRef(path=start.ref.path)
    }
    base = next(iter(bases), start.ref.path)
    return Model.of_members(label, members | frozen, base, str(first.parents[1]))


def _policy(folder: Path) -> str:
    """Return the policy that a run trained in ``train_<policy>/model``, nothing for any other."""
    kind, _, policy = folder.parent.name.partition("_")
    return policy if (kind, folder.name) == ("train", MODEL_DIR) else ""


def _find_teams(root: Path) -> list[tuple[Path, ...]]:
    """Return the folders of the models in ``root`` and below it, in their order; see ``_teams``."""
    if not root.is_dir():
        raise UsageError(
            f"--model-root {root}: is not a directory; give a run or a folder of models"
        )
    found = [
        path.parent
        for name in _CONFIGURATIONS
        for path in find_below(root, name)
        if not _is_private(path.relative_to(root)) and not _is_copy(path.parent)
    ]
    if not found:
        raise UsageError(
            f"--model-root {root}: holds no model (no {' or '.join(_CONFIGURATIONS)} below it); "
            "give a run that has trained one, or a folder of models"
        )
    teams = _teams(sorted(set(found), key=lambda path: _order(root, path)))
    if not teams:
        raise UsageError(
            f"--model-root {root}: holds a team only some of whose policies are trained; let its "
            "run go on, or name the adapter of one policy by --model"
        )
    return teams


def name_model(spec: str, label: str) -> Model:
    """Return a model given by directory or hub id, a run's last one, or that of ``RUN:MODEL``.

    Raises ModelError for a directory without a model, and for what cannot be a hub id, UsageError
    for what a run has no model of.
    """
    place, own = split_name(spec, "--model")
    if own is not None and (Path(place) / RECIPE).is_file():
        return replace(model_of_run(Path(place), own), label=label)
    path = Path(spec)
    if path.is_dir():
        if not any((path / name).is_file() for name in _CONFIGURATIONS):
            if (path / RECIPE).is_file() or any(path.glob(f"train_*/{MODEL_DIR}")):
                return replace(last_model(path), label=label)
            raise ModelError(
                f"{spec}: holds no model (no {' or '.join(_CONFIGURATIONS)}); name the directory "
                "with its files, or a run"
            )
        return read_model(path, label)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", spec):
        raise ModelError(
            f"{spec}: is neither a directory, nor a run's model such as RUN:iter_0, nor a hub id "
            "such as org/name; give one"
        )
    return Model(label, ModelRef(path=spec), digest(spec))


def read_model(path: Path, label: str) -> Model:
    """Return the model in a directory; ModelError when its weights or its base are missing."""
    weights = weight_files(path)
    if not weights:
        raise ModelError(
            f"{path}: has a configuration and no weights ({' or '.join(WEIGHTS)}); it was not "
            "written to its end: remove it, or resume the run that was writing it"
        )
    try:
        check_model(ModelRef(path=str(path.absolute())))
    except StageError as error:
        raise ModelError(str(error)) from error
    sizes = [f"{file.name}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in weights]
    made = digest(str(path.resolve()), *sizes)
    adapter = path / "adapter_config.json"
    if not adapter.is_file():
        return Model(label, ModelRef(path=str(path.resolve())), made)
    try:
        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        if not base or not isinstance(base, str):
            raise TypeError(f"base_model_name_or_path is {base!r}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{adapter}: names no base model, so it is not a LoRA adapter; put it back from a "
            "copy, or remove it where the weights are merged"
        ) from error
    return Model(label, ModelRef(path=base, adapter=str(path.resolve())), made)


def _is_private(path: Path) -> bool:
    return any(
        part.startswith((".", "checkpoint-")) or part == "checkpoints" or ".superseded-" in part
        for part in path.parts[:-1]
    ) or bool(_TRIAL.search(path.as_posix()))


def _is_copy(path: Path) -> bool:
    """Tell whether a trained model lies in a run under another name than its stage's own."""
    stage = path.resolve().parent
    run = next((place for place in stage.parents if (place / RECIPE).is_file()), None)
    return run is not None and (stage / INPUTS).exists() and not is_stage(stage, run)


def _label(root: Path, path: Path) -> str:
    """Return ``iter_0`` for ``iter_0/train/model``, else the path below the root."""
    parts = path.relative_to(root).parts
    if parts[1:] == ("train", "model"):
        return parts[0]
    return "/".join(parts) or path.resolve().name


def _order(root: Path, path: Path) -> tuple[float, list[int | str]]:
    done = read_done(path.parent) if path != root else None
    words = _NUMBER.split(str(path.relative_to(root)))
    return (
        done.started_unix_s if done else 0.0,
        [int(word) if word.isdigit() else word for word in words],
    )


def run_inference(
    recipe: Recipe, models: Sequence[Model], output: Path, *, vllm_env: Environment,
    is_grouped: bool = False,
) -> tuple[Figures, ...]:  # fmt: skip
    """Evaluate ``models`` by ``recipe`` into ``output``; return their figures in the same order.

    With ``is_grouped`` equal answers are put into groups, which gives votes for every k.
    """
    check_labels(models)
    check_policies(recipe, models)
    # No stage needs the training environment: nothing is trained and no loss is computed.
    with open_run(recipe, output, vllm_env=vllm_env, train_env=vllm_env) as context:
        n_samples = {model.label: recipe.evaluation.n_samples for model in models}
        write_stages(output, n_samples, grouped=tuple(n_samples) if is_grouped else ())
        problems = read_test_problems(context, models)
        for model in models:
            hold(context, model, problems, is_grouped=is_grouped)
    return measured(output, models)


def run_transfer(
    recipe_by_task: Mapping[str, Recipe],
    models: Sequence[Model],
    output: Path,
    *,
    vllm_env: Environment,
) -> dict[str, tuple[Figures, ...]]:
    """Evaluate every model on every task, an inference each in ``output / task``.

    Raises what would stop the last of them before the first begins.
    """
    for task, recipe in recipe_by_task.items():
        check_start(recipe, output / task)
        if read_done(output / task / PROBLEMS) is None:
            load_test_problems(recipe, models)
    write_members(output, tuple(recipe_by_task))
    return {
        task: run_inference(recipe, models, output / task, vllm_env=vllm_env)
        for task, recipe in recipe_by_task.items()
    }


def hold(
    context: RunContext, model: Model, problems: Sequence[Problem],
    formats: tuple[Format, ...] = (), *, is_grouped: bool = False,
) -> None:  # fmt: skip
    """Evaluate ``model`` in a folder of its label, with ``formats`` each conversation in one.

    Prompts are rendered by the model's own chat template: models side by side may be of several
    families. ``is_grouped`` tells which samples of a problem have the same answer too.
    """
    context = replace(context, codecs=codecs_of(context.recipe, model))
    talked = ask(context, model.label, model, problems, formats)
    mark(context, model.label, problems, talked)
    if is_grouped:
        context.do(Step(f"{model.label}/groups", model.label), group, problems, talked)


def group(context: RunContext, out: Stage, problems: Sequence[Problem], talked: Stage) -> Made:
    """Write which samples of a problem have the same answer."""
    metric = context.task.metric
    choices_by_id = {problem.problem_id: problem.choices for problem in problems}
    conversations = read_records(talked.path / CONVERSATIONS, Conversation)

    def found(judge: Judge) -> Iterator[AnswerGroups]:
        groups = groupby(conversations, key=lambda conversation: conversation.problem_id)
        for problem_id, samples in groups:
            is_same = partial(judge.are_same, metric, choices=choices_by_id[problem_id])
            numbers = group_answers([sample.answer for sample in samples], is_same)
            yield AnswerGroups(problem_id=problem_id, groups=tuple(numbers))
            meter.count(1)

    with Judge() as judge, Meter(out.name, out.path, "problems", len(problems)) as meter:
        n = write_records(out.path / GROUPS, found(judge))
    return Made((GROUPS,), {"groups/problems": float(n)}, f"answers of {n} problems")


def measured(output: Path, models: Sequence[Model]) -> tuple[Figures, ...]:
    """Return the figures of models that were evaluated in ``output``, with their places."""
    (output / RESULTS).unlink(missing_ok=True)  # an earlier attempt's: its stages may be others now
    figures = Run(output).measure([model.label for model in models])
    return tuple(
        replace(one, model=model.ref.place) for one, model in zip(figures, models, strict=True)
    )


def check_labels(models: Sequence[Model]) -> None:
    """Raise UsageError when a model is named twice, or two have the same name."""
    for index, model in enumerate(models):
        if same := next((one for one in models[:index] if one.ref == model.ref), None):
            raise UsageError(
                f"{model.ref.place}: is named twice, as {same.label} and as {model.label}; name it "
                "once"
            )
    labels = [model.label for model in models]
    if len(set(labels)) < len(labels):
        raise UsageError(f"models have the same name: {', '.join(sorted(labels))}; rename a folder")


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise UsageError for an override that an inference would not read; layers may have any."""
    for change in overrides:
        key = change.partition("=")[0]
        remedy = "remove it" if key.partition(".")[0] in _TRAINING else _OF_TRAINING.get(key)
        if remedy is not None:
            raise UsageError(f"{change}: is for training, and nothing is trained here; {remedy}")


def check_policies(recipe: Recipe, models: Sequence[Model]) -> None:
    """Raise UsageError when a team has policies that play none of the recipe's agents."""
    played = recipe.agents.policies
    for model in models:
        if unplayed := [name for name in model.members if name not in played]:
            names = ", ".join(f"{{name: {n}, policy: ...}}" for n in recipe.agents.names)
            raise UsageError(
                f"{model.label}: is a team, and {unplayed[0]} of it plays none of the agents "
                f"{', '.join(recipe.agents.names)}; say who does by agents=[{names}], or name the "
                "adapter of one policy alone by --model"
            )


def inference_recipe(layers: Layers, *, task: str | None, overrides: Sequence[str]) -> Recipe:
    """Return the recipe in layers without its training, for another task if one is given.

    Another task leaves the data of the recipe's own behind, and what it does not read itself.
    Raises RecipeError.
    """
    kept = {key: value for key, value in layers.tree.items() if key not in _TRAINING}
    kept["method"] = "sft"
    if isinstance(kept.setdefault("reward", {}) or {}, dict):  # else validation says what is wrong
        kept["reward"] = {**(kept["reward"] or {}), "lambda_loss": 0.0}
    if task is not None:
        name = get_task(task).name
        if "task" in kept and name != kept["task"]:
            kept.pop("data", None)
            _forget_foreign(kept, name)
        kept["task"] = name
    return change_recipe(replace(layers, tree=kept), overrides)


def _forget_foreign(tree: dict[str, Any], task: str) -> None:
    """Take the fields out of ``tree`` that a task does not read; its sections stay as they are."""
    for key, _ in foreign_fields(get_task(task)):
        name, _, field = key.partition(".")
        if isinstance(section := tree.get(name), dict):
            tree[name] = {other: value for other, value in section.items() if other != field}

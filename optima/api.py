"""The Python API: what the commands do, as functions (docs/python.md).

``run``, ``dry_run`` and ``evaluate`` take a recipe, or the words that stand for one on a command
line: files in layers and ``key=value``. What is wrong raises an error of ``optima.errors`` whose
text says what to do. They log to the logger ``optima`` and print nothing. What only some of them
need is imported in them: reading a recipe takes a command half a second, the servers' client more.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from optima.errors import OptimaError, UsageError
from optima.processes.environment import Environment, require_environment, resolve_environment
from optima.recipe.layers import Layers, merge_layers
from optima.recipe.loading import load_recipe as load_layers
from optima.recipe.schema import Recipe
from optima.recipe.text import check_said_once, is_override
from optima.tasks.task import Task

if TYPE_CHECKING:
    from optima.runs.reader import Run
    from optima.stages.context import Model

Place: TypeAlias = str | Path
Words: TypeAlias = Place | Sequence[Place]


def load_recipe(*words: Place) -> Recipe:
    """Read a recipe as a command does: files from left to right, and ``key=value`` among them.

    ``load_recipe("recipes/sft/arc.yaml", "recipes/models/qwen2.5-1.5b.yaml", "seed=1")``. Raises
    RecipeError that lists everything wrong, a line each.
    """
    files, overrides = split_words(words)
    if not files:
        raise UsageError("recipe: no file is named; give one, such as recipes/sft/quickstart.yaml")
    return load_layers(files, overrides)


def run(
    recipe: Recipe | Words, run_dir: Place | None = None, *, vllm_env: Place | None = None,
    train_env: Place | None = None,
) -> "Run":  # fmt: skip
    """Run a recipe's method, or go on with it, and return the finished run to read.

    ``run_dir`` is below ``runs`` by default, named after the files and the seed, or after the
    recipe's method, task and seed. The environments are found as the commands find them: a prefix
    path, a python, a conda name, or by default ``.envs``. Raises UsageError before anything is
    written, StageError and others when a stage cannot finish; the same call then goes on.
    """
    made, place = _resolved(recipe, run_dir)
    train(made, place, vllm_env=vllm_env, train_env=train_env)
    from optima.runs.reader import open_run

    return open_run(place)


def train(
    recipe: Recipe, run_dir: Path, *, vllm_env: Place | None, train_env: Place | None
) -> None:
    """Run a recipe's method in ``run_dir``, or go on with it."""
    from optima.methods import run_method
    from optima.training.launch import check_trackers

    environments = find_both(vllm_env, train_env)
    check_trackers(recipe.train.report_to, environments["train_env"])
    run_method(recipe, run_dir, **environments)


def dry_run(
    recipe: Recipe | Words, run_dir: Place | None = None, *, vllm_env: Place | None = None,
    train_env: Place | None = None,
) -> str:  # fmt: skip
    """Check all that can be checked without a GPU, and return the plan of the run as a text.

    Starts no process but to ask the environments what they hold, and writes nothing. Raises
    UsageError for the first thing that would stop the run.
    """
    from optima.studies.dry_run import dry_run as check

    made, place = _resolved(recipe, run_dir)
    return check(made, place, **find_both(vllm_env, train_env))


def evaluate(
    model: Place | Sequence[Place], task: str | Task | None = None, *, output: Place,
    recipe: Recipe | Words = (), limit: int | None = None, vllm_env: Place | None = None,
) -> "Run":  # fmt: skip
    """Let a model, or several in turn, converse about test problems; return that to read.

    A model is a directory, a hub id, or a run for its last model. One alone is labelled ``model``,
    several by the ends of their names. What is asked says ``recipe``, else the run that trained
    them, else the defaults; ``recipe`` may be ``key=value`` alone, which changes that. All test
    problems of the task are asked, or a seeded sample of ``limit``. Writes to ``output`` what
    ``optima-infer`` does, and goes on where it was interrupted.
    """
    from optima.reporting.results import write_inference
    from optima.runs.reader import open_run
    from optima.studies.infer import name_model, run_inference

    if isinstance(model, str | Path):
        models: tuple[Model, ...] = (name_model(str(model), "model"),)
    else:
        models = name_models(model)
    name = task.name if isinstance(task, Task) else task
    if isinstance(recipe, Recipe):
        made = evaluation_recipe(models, recipe, task=name, limit=limit)
    else:
        made = evaluation_recipe(models, *split_words(_words(recipe)), task=name, limit=limit)
    place, environment = Path(output), find_vllm(_spec(vllm_env), made)
    with output_named():
        rows = run_inference(made, models, place, vllm_env=environment)
    write_inference(made, rows, place)
    return open_run(place)


def split_words(words: Sequence[Place]) -> tuple[list[Path], list[str]]:
    """Return the files and the overrides among the words of a command line; a Path is a file.

    Raises RecipeError where an override takes back another.
    """
    overrides = [word for word in words if isinstance(word, str) and is_override(word)]
    check_said_once(overrides)
    files = [Path(word) for word in words if not isinstance(word, str) or not is_override(word)]
    return files, overrides


def default_run_dir(configs: Sequence[Path], recipe: Recipe) -> Path:
    """Return ``runs/<name of each layer, joined by +>-seed<seed>``.

    A name is that of the file with its folders below ``recipes``, the folder of models left out.
    """
    return Path("runs") / f"{'+'.join(map(_name_of, configs))}-seed{recipe.seed}"


def name_models(specs: Sequence[Place]) -> "tuple[Model, ...]":
    """Return models given by directories or hub ids, called by the ends of their names.

    ``iter_0/train/model`` is called by its run and iteration, one policy of a team by itself.
    """
    from optima.studies.infer import check_labels, name_model

    found = []
    for spec in specs:
        text = str(spec).strip()
        path = Path(text)
        parts = path.resolve().parts if ".." in path.parts else path.parts
        parts = parts[1:] if parts[:1] == ("/",) else parts  # a label stays below the output
        if parts[-2:] == ("train", "model"):
            parts = parts[:-2]
        elif parts[-1:] == ("model",) and parts[-2].startswith("train_"):
            parts = parts[:-1]
        found.append(name_model(text, "/".join(parts[-2:])))
    check_labels(found)
    return tuple(found)


def read_models(
    model: str | None, root: Path | None, base: str | None = None
) -> "tuple[Model, ...]":
    """Return one model, or all in and below ``root``, the base first."""
    from optima.studies.infer import check_labels, find_models, name_model

    if root is None and model is None:
        raise UsageError("--model-root or --model: is missing; name a run, a folder, or a model")
    found = find_models(root) if root is not None else (name_model(str(model), "model"),)
    models = found if base is None else (name_model(base, "base"), *found)
    check_labels(models)
    return models


def evaluation_recipe(
    models: "Sequence[Model]", recipe: Recipe | Sequence[Path] = (), overrides: Sequence[str] = (),
    *, task: str | None = None, limit: int | None = None, root: Path | None = None,
) -> Recipe:  # fmt: skip
    """Return what ``recipe``, the models' run, or the defaults say, with ``overrides``.

    All test problems are asked unless ``limit``, an override of ``data.n_test`` or
    ``data.first_test`` says otherwise: a recipe's own ``data.n_test`` does not count.
    """
    from optima.studies.infer import check_overrides, inference_recipe

    check_overrides(overrides)
    layers = _layers(recipe or _stored_recipe(root, models), overrides, task)
    if layers.members:
        raise UsageError(
            f"tasks: the recipe is a mixture of {', '.join(layers.members)}; take one of its tasks "
            "by --task NAME"
        )
    changes = [f"model.path={models[-1].ref.path}", *overrides]
    stored = layers.tree.get("model")
    if not isinstance(stored, dict) or stored.get("path") != models[-1].ref.path:
        changes.insert(0, "model.revision=null")  # it is another model's
    if limit is not None:
        changes.append(f"data.n_test={limit}")
    elif not any(change.startswith("data.n_test=") for change in changes):
        changes.append("data.n_test=null")
    return inference_recipe(layers, task=task, overrides=changes)


def tasks_asked(
    models: "Sequence[Model]", recipe: Sequence[Path] = (), overrides: Sequence[str] = (),
    *, root: Path | None = None,
) -> tuple[str, ...]:  # fmt: skip
    """Return the tasks of the mixture that ``evaluation_recipe`` would read; nothing of another."""
    files = recipe or _stored_recipe(root, models)
    return tuple(merge_layers(list(files), overrides).members) if files else ()


def find_both(vllm_env: Place | None, train_env: Place | None) -> dict[str, Environment]:
    """Return the environments of servers and trainings, by the words that functions take."""
    return {
        "vllm_env": require_environment(_spec(vllm_env), "vllm"),
        "train_env": require_environment(_spec(train_env), "train"),
    }


def find_vllm(spec: str | None, recipe: Recipe) -> Environment:
    """Return the environment of the servers; it need not hold vLLM where endpoints serve."""
    find = resolve_environment if recipe.serving.endpoints else require_environment
    return find(spec, "vllm")


@contextlib.contextmanager
def output_named() -> Iterator[None]:
    """Let errors about the directory of results name ``--output``, not trainings' ``--run-dir``."""
    try:
        yield
    except OptimaError as error:
        if "--run-dir" not in str(error):
            raise
        raise type(error)(str(error).replace("--run-dir", "--output")) from error


def _layers(recipe: Recipe | Sequence[Path], overrides: Sequence[str], task: str | None) -> Layers:
    if isinstance(recipe, Recipe):
        one = recipe.members().get(task or "", recipe)
        members = {name: Layers("recipe") for name in one.members() if name}
        return Layers("recipe", json.loads(one.model_dump_json()), members=members)
    if recipe:
        return merge_layers(list(recipe), overrides, task=task)
    if task is None:
        raise UsageError("--task: is missing; name a benchmark, or a recipe by --config")
    return Layers("defaults")


def _stored_recipe(root: Path | None, models: "Sequence[Model]") -> list[Path]:
    """Return the recipe of the run that ``root`` is, or that trained all the trained models.

    Raises UsageError when that cannot be read.
    """
    from optima.runs.directory import read_recipe
    from optima.runs.files import RECIPE, run_of

    runs = {run_of(model.ref.place) for model in models} - {None}
    if root is not None and (root / RECIPE).is_file():
        runs = {root}
    for found in runs if len(runs) == 1 else ():
        if found is not None:
            read_recipe(found)
            return [found / RECIPE]
    return []


def _words(words: Words) -> Sequence[Place]:
    return [words] if isinstance(words, str | Path) else words


def _spec(environment: Place | None) -> str | None:
    return None if environment is None else str(environment)


def _resolved(given: Recipe | Words, run_dir: Place | None) -> tuple[Recipe, Path]:
    """Return the recipe, read if it is given by words, and the directory of its run."""
    if isinstance(given, Recipe):
        recipe, default = given, Path("runs") / f"{given.method}-{given.task}-seed{given.seed}"
    else:
        recipe = load_recipe(*_words(given))
        default = default_run_dir(split_words(_words(given))[0], recipe)
    return recipe, default if run_dir is None else Path(run_dir)


def _name_of(config: Path) -> str:
    is_yaml = config.suffix in (".yaml", ".yml")  # other dots belong to a model's name
    parts = (config.with_suffix("") if is_yaml else config).parts
    below = parts[parts.index("recipes") + 1 :] if "recipes" in parts else parts[-1:]
    return "-".join(below[1:] if below[:1] == ("models",) else below)

"""``optima``: recipes, tasks, prompts, this host, and what runs have come to."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optima.cli import inference, reports, studies
from optima.cli.options import (
    CONFIG_HELP,
    CONFIG_NAMES,
    MANY,
    AsJson,
    Config,
    MaybeConfig,
    OfMixture,
    Overrides,
    Program,
    TrainEnv,
    VllmEnv,
    path,
    paths,
    whole,
)
from optima.errors import UsageError

if TYPE_CHECKING:
    from optima.conversation.codec import Roles
    from optima.recipe.schema import ModelSection

ABOUT = """\
Look at recipes, tasks and prompts, evaluate and compare models, read runs, and check this host.

Training: optima-sft, optima-dpo, optima-sft-dpo. Inference: optima-infer, optima-multi-sc. Models:
optima-fetch-model."""
EXAMPLES = """\
examples:
  optima recipes                                   list the recipes and layers
  optima recipes show recipes/sft/arc.yaml seed=1  print a recipe with every default
  optima recipes show recipes/sft/arc.yaml recipes/models/qwen2.5-1.5b.yaml
  optima tasks                                     list the benchmarks
  optima doctor --config recipes/sft/arc.yaml      check environments, GPUs, model, disk
  optima try --config recipes/sft/quickstart.yaml  does this model converse? shares and advice
  optima chat runs/sft-quickstart-seed0            talk with its last model as one of the agents
  optima prompts show --recipe recipes/sft/quickstart.yaml
  optima pairs --run runs/dpo-arc-seed0 pairs.theta_diff=0.1 --out pairs.jsonl
  optima rescore runs/sft-arc-seed0 reward.lambda_token=0.3   what it would have selected
  optima sweep --config recipes/dpo/quickstart.yaml --over pairs.strategy=value,random \\
    --run-dir runs/strategies
  optima report runs/sft-quickstart-seed0          a page with figures, tables, conversations
  optima ablate --config recipes/sft/arc.yaml --run-dir runs/ablations
  optima prompts diversify --out formats --n 10 --model NAME --base-url URL"""
TRY = """\
examples:
  optima try --config recipes/sft/hotpot_qa.yaml recipes/models/qwen2.5-1.5b.yaml \\
    data.path=DIR --n 40
  optima try --config recipes/sft/quickstart.yaml conversation.worked_example=true

exit status: 0 fit to train, 1 something to change (or it failed), 2 wrong input."""
RESCORE = """\
examples:
  optima rescore runs/sft-gsm8k-seed0 reward.lambda_token=0.3
  optima rescore runs/sft-gsm8k-seed0 reward.lambda_loss=0.1 select.theta=0.5 --json
  optima rescore runs/dpo-hotpot_qa-seed0 --metric exact_match pairs.theta_diff=0.1"""
KEY_VARIABLE = "OPENAI_API_KEY"
_MAX_SEED = 2**63 - 1  # as in recipes


def recipes(
    *,
    dir: Annotated[  # noqa: A002  the option's name
        Path | None,
        path(help="folder to list (default: recipes here, else those that come with optima)"),
    ] = None,
) -> int:
    """List recipes and layers, or show one.

    List recipes, and layers to go over them, each with its first line; `optima recipes show` prints
    one.
    """
    from optima.recipe.layers import is_layer
    from optima.recipe.text import FOLDER, packaged_recipes, read_file

    folder = dir or Path(FOLDER)
    is_packaged = dir is None and not folder.is_dir()
    source = packaged_recipes() if is_packaged else folder
    if source.is_dir():
        os.scandir(source).close()  # a search leaves out what it may not look into
    paths = {found: folder / found.relative_to(source) for found in sorted(source.rglob("*.yaml"))}
    if not paths:
        raise UsageError(
            f"--dir {folder}: holds no recipe; leave it out in a folder without recipes/ to list "
            "those that come with optima"
        )
    layers = {found: name for found, name in paths.items() if is_layer(read_file(found).tree)}
    _print_files({found: name for found, name in paths.items() if found not in layers})
    if layers:
        print("\nLayers, to go over a recipe (--config RECIPE LAYER):")
        _print_files(layers)
    if is_packaged:
        print(f"\nThey come with optima and are taken by these names: {source}")
    return 0


def show_recipe(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE", show_default=False,
            help="recipe file, and layers that go over it, from left to right; key=value changes "
            "a field",
        ),
    ],
) -> int:  # fmt: skip
    """Print a recipe with every default.

    Print what a recipe, its layers and changed fields come to, every default included, as YAML.
    """
    from optima.api import split_words
    from optima.recipe.loading import dump_recipe, load_recipe

    files, overrides = split_words(words)
    if not files:
        raise UsageError(f"recipes show {words[0]}: names no file; put a recipe before it")
    print(dump_recipe(load_recipe(files, overrides)), end="")
    return 0


def tasks(*, as_json: AsJson = False) -> int:
    """List the benchmarks.

    List them with their setting, their metric, whether their rows carry gold evidence, as
    cold_start needs, and the package that each comes from.
    """
    from optima import plugins
    from optima.tasks import get_task, task_names

    tasks, failed = [], []
    for name in task_names():
        try:
            tasks.append(get_task(name))
        except UsageError as error:  # of one plug-in; the others are listed first
            failed.append(str(error))
    rows = [("task", "setting", "metric", "evidence", "from", "title")]
    for task in tasks:
        evidence = "yes" if task.has_evidence else "no"
        source = task.source or "built in"
        rows.append((task.name, task.setting, task.metric.name, evidence, source, task.title))
    if as_json:
        print(json.dumps([dict(zip(rows[0], row, strict=True)) for row in rows[1:]]))
        return _failed(failed)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(" ".join(cells).rstrip())
    for group, what in ((plugins.PROMPTS, "role set"), (plugins.FORMATS, "pool of formats")):
        for plugin in plugins.installed(group):
            print(f"{what} {plugin}: {plugin.reference}")
    return _failed(failed)


def _failed(messages: list[str]) -> int:
    if messages:
        raise UsageError("\n".join(dict.fromkeys(messages)))
    return 0


def show_prompts(
    overrides: Overrides = None,
    *,
    config: Annotated[
        list[Path], typer.Option(*CONFIG_NAMES, metavar="RECIPE ...", help=CONFIG_HELP)
    ],
    agent: Annotated[
        str | None, typer.Option(metavar="NAME", help="only this agent's prompt (default: all)")
    ] = None,
    index: Annotated[int, whole(0, MANY, "problem of the test split")] = 0,
) -> int:
    """Print every agent's prompt for one problem.

    Print what each agent is told about a problem of the test split, and what follows each message
    it hears. No model is needed; a format of the pool is not drawn.
    """
    from optima.prompts.rendering import PromptStyle, cue, system_prompt
    from optima.recipe.loading import load_recipe, of_one_task
    from optima.tasks import get_task
    from optima.tasks.loading import load_problems

    recipe = of_one_task(load_recipe(config, overrides or ()))
    task = get_task(recipe.task)
    names = recipe.agents.names
    loaded = load_problems(task, recipe.data, "test", n_agents=len(names), seed=recipe.seed)
    if index >= len(loaded.problems):
        last = len(loaded.problems) - 1
        raise UsageError(f"--index {index}: must be from 0 to {last}, a problem of the test split")
    if agent not in (None, *names):
        raise UsageError(f"--agent {agent}: must be one of {', '.join(names)}")
    problem = loaded.problems[index]
    roles = _roles(recipe.model)
    heard = "" if roles == "alternate" else ", where the chat template alternates roles"
    for number, name in enumerate(names):
        if agent not in (None, name):
            continue
        print(f"--- {name} ({problem.problem_id})")
        style = PromptStyle.of(recipe, task)
        print(system_prompt(problem, style, agent=number))
        if roles != "assistant" and (said := cue(problem, style, agent=number)):
            print(f"--- after what {name} hears{heard}\n{said}")
    return 0


def diversify(
    *,
    out: Annotated[Path, path(help="folder for the new format files")],
    n: Annotated[int, whole(1, 1000, "formats to make")] = 10,
    model: Annotated[str, typer.Option(metavar="NAME", help="model name at the server")],
    base_url: Annotated[str, typer.Option(metavar="URL", help="server, such as https://host/v1")],
    seed: Annotated[int, whole(0, _MAX_SEED, "seed of the requests")] = 0,
) -> int:
    """Let a hosted model propose formats for the pool.

    Ask any server of the OpenAI chat API for formats, one file each, which
    sampling.format_pool_path=DIR adds to the pool. OPENAI_API_KEY holds the key.
    """
    from optima.prompts import diversify as formats

    key = os.environ.get(KEY_VARIABLE)
    if not key:
        raise UsageError(f"{KEY_VARIABLE}: is not set; export the server's key (any text if none)")
    if not base_url.startswith(("http://", "https://")):
        raise UsageError(f"--base-url {base_url}: must be a URL, such as https://host/v1")
    made = formats.diversify(out, n=n, model=model, base_url=base_url, api_key=key, seed=seed)
    for new in made:
        print(out / f"{new.format_id}.txt")
    return 0


def pairs(
    overrides: Overrides = None,
    *,
    run: Annotated[Path, path(metavar="RUN", help="directory of a run that grew trees")],
    iteration: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="one iteration only, such as iter_0 (default: all)"),
    ] = None,
    out: Annotated[
        Path | None,
        path(metavar="FILE", help="file to export them to (default: they are counted only)"),
    ] = None,
    task: OfMixture = None,
    as_json: AsJson = False,
) -> int:
    """Rebuild preference pairs from a run's trees, or export them.

    Count the preference pairs that other thresholds would take from the trees of a run, without
    generating anything, and export them as JSON Lines in the common conversational format (prompt,
    chosen, rejected). Only fields of pairs can be changed, such as pairs.theta_diff=0.1 (or
    select.theta_diff=0.1).
    """
    from optima.recipe.text import check_said_once
    from optima.studies.rescore import rebuild_pairs

    changes = [
        change.replace("select.", "pairs.", 1) if change.startswith("select.") else change
        for change in overrides or ()
    ]
    wrong = [change for change in changes if not change.startswith("pairs.")]
    if wrong:
        raise UsageError(
            f"{wrong[0]}: only fields of pairs can be changed here, such as pairs.theta_diff=0.1"
        )
    check_said_once(changes)
    table = rebuild_pairs(run, iteration, changes, out, task=task)
    print(json.dumps(table.records()) if as_json else table.text())
    return 0


def rescore(
    run: Annotated[Path, paths("directory of a training")],
    overrides: Overrides = None,
    *,
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="score answers by it: f1, exact_match, math or package.module:NAME (default: the "
            "task's own)",
        ),
    ] = None,
    task: OfMixture = None,
    as_json: AsJson = False,
) -> int:
    """Reward and select again what a run stored, under other fields.

    Reward the stored conversations and trees of a training by changed fields of reward, select and
    pairs (and search.lambda_token, search.lambda_loss) or by another metric, without generating
    anything, and show what each iteration would have been trained on beside what it was.
    """
    from optima.studies.rescore import rescore as rescored
    from optima.tasks import get_metric

    scored_by = get_metric(metric) if metric else None
    found = rescored(run, overrides or (), scored_by, task=task)
    print(json.dumps(found.row()) if as_json else found.text())
    return 0


def try_model(
    overrides: Overrides = None,
    *,
    config: Config,
    n: Annotated[int, whole(1, MANY, "problems")] = 20,
    show: Annotated[int, whole(0, MANY, "conversations printed")] = 3,
    output: Annotated[
        Path | None,
        path(help="where it is stored, as a run (default: below runs/try, by the recipe)"),
    ] = None,
    as_json: AsJson = False,
    vllm_env: VllmEnv = None,
    train_env: TrainEnv = None,
) -> int:
    """Try a model on a recipe: does it converse, and what to change?

    Hold the first conversations of a run on a few problems of the train split, print some, and say
    what share marks an answer, agrees, speaks for a partner, is cut, repeats itself or gives the
    same answer everywhere, how the reward is made up, how many problems would be selected, and
    which fields to change if that is bad. Trains nothing.
    """
    from optima import api
    from optima.cli.doctor import figures, text
    from optima.recipe.loading import dump_recipe, load_recipe, of_one_task
    from optima.records import write_text
    from optima.seeding import digest
    from optima.studies.trial import try_recipe

    recipe = of_one_task(load_recipe(config, overrides or ()))
    directory = output or Path("runs", "try", digest(dump_recipe(recipe), str(n)))
    environments = api.find_both(vllm_env, train_env)
    trial = try_recipe(recipe, directory, n=n, n_shown=show, **environments)
    results = json.dumps(figures(trial))
    write_text(directory / "results.json", f"{results}\n")
    print(results if as_json else text(trial, directory))
    return 1 if trial.advice() else 0


def doctor(
    overrides: Overrides = None,
    *,
    config: MaybeConfig = None,
    vllm_env: VllmEnv = None,
    train_env: TrainEnv = None,
    as_json: AsJson = False,
) -> int:
    """Check environments, GPUs, model, ports and disk.

    The model is that of a recipe. Exit status 1 if something that a run needs is wrong.
    """
    from optima.cli.doctor import examine
    from optima.recipe.loading import load_recipe

    recipe = load_recipe(config, overrides or ()) if config else None
    findings = examine(recipe, vllm_env, train_env)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            print(f"{'ok  ' if finding.is_ok else 'FAIL'} {finding.name}: {finding.text}")
    return 0 if all(finding.is_ok for finding in findings) else 1


def _print_files(name_by_path: Mapping[Path, Path]) -> None:
    width = max((len(str(name)) for name in name_by_path.values()), default=0)
    for file, name in name_by_path.items():
        first = file.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()
        print(f"{name!s:<{width}}  {first}")


def _roles(model: "ModelSection") -> "Roles | None":
    """Return the roles that utterances have; None where a model that is not here decides."""
    from optima.conversation.loading import ModelFiles, load_template

    source = model.tokenizer or model.path
    if model.roles != "auto":
        return model.roles
    return load_template(ModelFiles(source)).roles if Path(source).is_dir() else None


def _program() -> Program:
    program = Program("optima", ABOUT, epilog=EXAMPLES)
    listed = program.group("recipes", recipes)
    program.add(show_recipe, name="show", below=listed)
    program.add(tasks, name="tasks")
    prompts = program.group("prompts", text="Show or extend prompts.")
    program.add(show_prompts, name="show", below=prompts)
    program.add(diversify, name="diversify", below=prompts)
    program.add(pairs, name="pairs")
    program.add(rescore, name="rescore", epilog=RESCORE)
    program.add(try_model, name="try", epilog=TRY)
    program.add(inference.chat, name="chat", epilog=inference.CHAT)
    program.add(studies.sweep, name="sweep", epilog=studies.SWEEP)
    program.add(studies.ablate, name="ablate", epilog=studies.ABLATE)
    program.add(studies.baselines, name="baselines", epilog=studies.BASELINES)
    program.add(studies.transfer, name="transfer", epilog=studies.TRANSFER)
    program.add(studies.compare, name="compare", epilog=studies.COMPARE)
    program.add(reports.status, name="status", epilog=reports.STATUS)
    program.add(reports.report, name="report", epilog=reports.REPORT)
    program.add(reports.view, name="view", epilog=reports.VIEW)
    program.add(reports.rows, name="rows", epilog=reports.ROWS)
    program.add(reports.export, name="export", epilog=reports.EXPORT)
    program.add(studies.serve_node, name="serve-node", epilog=studies.SERVE_NODE)
    return program.add(doctor, name="doctor")


main = _program()

if __name__ == "__main__":
    sys.exit(main())

"""``optima``: recipes, tasks, prompts, this host, and what runs have come to."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from optima import plugins
from optima.cli import evaluations, reports, studies, trial
from optima.cli.configs import HELP, NAMES, RecipeParser, add_config, add_environments, split_words
from optima.cli.console import run_command, set_up_logging
from optima.cli.numbers import MANY, whole
from optima.cli.paths import path_of
from optima.conversation.loading import load_template
from optima.conversation.template import Roles
from optima.errors import UsageError
from optima.prompts.rendering import PromptStyle, cue, system_prompt
from optima.recipe.layers import FOLDER, is_layer, packaged_recipes
from optima.recipe.loading import dump_recipe, load_recipe
from optima.recipe.schema import MAX_SEED, ModelSection
from optima.recipe.text import read_file
from optima.tasks import get_task, task_names
from optima.tasks.loading import load_problems

DESCRIPTION = """\
Look at recipes, tasks and prompts, evaluate and compare models, read runs, and check this host.
Training: optima-sft, optima-dpo, optima-sft-dpo. Inference: optima-infer, optima-multi-sc. Models:
optima-fetch-model."""
EPILOG = """\
examples:
  optima recipes                                   list the recipes and layers
  optima recipes show recipes/sft/arc.yaml seed=1  print a recipe with every default
  optima recipes show recipes/sft/arc.yaml recipes/models/qwen2.5-1.5b.yaml
  optima tasks                                     list the benchmarks
  optima doctor --config recipes/sft/arc.yaml      check environments, GPUs, model, disk
  optima try --config recipes/sft/quickstart.yaml  does this model converse? shares and advice
  optima prompts show --recipe recipes/sft/quickstart.yaml
  optima pairs --run runs/dpo-arc-seed0 pairs.theta_diff=0.1 --out pairs.jsonl
  optima sweep --config recipes/dpo/quickstart.yaml --over pairs.strategy=value,random \\
    --run-dir runs/strategies
  optima report runs/sft-quickstart-seed0          a page with figures, tables, conversations
  optima ablate --config recipes/sft/arc.yaml --run-dir runs/ablations
  optima prompts diversify --out formats --n 10 --model NAME --base-url URL"""
KEY_VARIABLE = "OPENAI_API_KEY"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of ``optima``."""
    parser = _parser(RecipeParser, "optima", DESCRIPTION, EPILOG)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_recipes(commands)
    tasks = commands.add_parser(
        "tasks", help="list the benchmarks", allow_abbrev=False,
        description="List the benchmarks with their setting, their metric, whether their rows "
        "carry gold evidence, as cold_start needs, and the package that each comes from.",
    )  # fmt: skip
    tasks.set_defaults(run=_tasks)
    _add_prompts(commands)
    _add_pairs(commands)
    trial.add_try(commands)
    studies.add_sweep(commands)
    studies.add_ablate(commands)
    evaluations.add_baselines(commands)
    evaluations.add_transfer(commands)
    evaluations.add_compare(commands)
    evaluations.add_status(commands)
    reports.add_report(commands)
    reports.add_view(commands)
    doctor = commands.add_parser(
        "doctor", help="check environments, GPUs, model, ports and disk", allow_abbrev=False,
        description="Check what a run needs; exit status 1 if something is wrong.",
    )  # fmt: skip
    add_config(doctor, text=f"check for this too: {HELP}")
    add_environments(doctor)
    doctor.add_argument("overrides", nargs="*", metavar="key=value", help="fields to change")
    doctor.set_defaults(run=_doctor)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = parse(argv)
    set_up_logging()
    run: Callable[[argparse.Namespace], int] = options.run
    return run_command(lambda: run(options))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; ``key=value`` may stand before, between and behind the others."""
    parser = build_parser()
    options, rest = parser.parse_known_args(argv)
    if (
        rest
        and hasattr(options, "overrides")
        and not any(text.startswith("-") or "=" not in text for text in rest)
    ):
        options.overrides = [*options.overrides, *rest]
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def _parser(
    make: Callable[..., argparse.ArgumentParser], name: str, description: str, epilog: str
) -> argparse.ArgumentParser:
    return make(
        prog=name,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _add_recipes(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    recipes = commands.add_parser(
        "recipes", help="list recipes and layers, or show one", allow_abbrev=False,
        usage="optima recipes [-h] [--version] [--dir DIR]\n"
        "       optima recipes show RECIPE [RECIPE ...] [key=value ...]",
        description="List recipes, and layers to go over them, each with its first line; `show` "
        "prints one.",
    )  # fmt: skip
    recipes.set_defaults(run=_list_recipes)
    recipes.add_argument(
        "--dir",
        metavar="DIR",
        type=path_of("--dir"),
        help="folder to list (default: recipes here, else those that come with optima)",
    )
    below = recipes.add_subparsers(dest="recipes_command", metavar="show", prog="optima recipes")
    show = below.add_parser(
        "show", help="print a recipe with every default", allow_abbrev=False,
        description="Print what a recipe, its layers and changed fields come to, every default "
        "included, as YAML.",
    )  # fmt: skip
    show.add_argument(
        "words", nargs="+", metavar="RECIPE",
        help="recipe file, and layers that go over it, from left to right",
    )  # fmt: skip
    show.add_argument("overrides", nargs="*", metavar="key=value", help="fields to change")
    show.set_defaults(run=_show_recipe)


def _add_prompts(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    prompts = commands.add_parser("prompts", help="show or extend prompts", allow_abbrev=False)
    below = prompts.add_subparsers(dest="prompts_command", required=True, metavar="COMMAND")
    show = below.add_parser(
        "show", help="print every agent's prompt for one problem", allow_abbrev=False,
        description="Print what each agent is told about a problem of the test split, and what "
        "follows each message it hears. No model is needed; a format of the pool is not drawn.",
    )  # fmt: skip
    add_config(show, *reversed(NAMES), is_required=True)
    show.add_argument("--agent", metavar="NAME", help="only this agent's prompt (default: all)")
    show.add_argument(
        "--index",
        metavar="N",
        type=whole(0, MANY),
        default=0,
        help="problem of the test split (default: 0)",
    )
    show.add_argument("overrides", nargs="*", metavar="key=value", help="fields to change")
    show.set_defaults(run=_show_prompts)
    more = below.add_parser(
        "diversify", help="let a hosted model propose formats for the pool", allow_abbrev=False,
        description="Ask any server of the OpenAI chat API for formats, one file each, "
        f"which sampling.format_pool_path=DIR adds to the pool. {KEY_VARIABLE} holds the key.",
    )  # fmt: skip
    more.add_argument(
        "--out",
        metavar="DIR",
        type=path_of("--out"),
        required=True,
        help="folder for the new format files",
    )
    more.add_argument(
        "--n", metavar="N", type=whole(1, 1000), default=10, help="formats to make (default: 10)"
    )
    more.add_argument("--model", metavar="NAME", required=True, help="model name at the server")
    more.add_argument(
        "--base-url", metavar="URL", required=True, help="server, such as https://host/v1"
    )
    more.add_argument(
        "--seed",
        metavar="N",
        type=whole(0, MAX_SEED),
        default=0,
        help="seed of the requests (default: 0)",
    )
    more.set_defaults(run=_diversify)


def _add_pairs(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    pairs = commands.add_parser(
        "pairs", help="rebuild preference pairs from a run's trees, or export them",
        allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Count the preference pairs that other thresholds would take from the trees\n"
        "of a run, without generating anything, and export them as JSON Lines in the common\n"
        "conversational format (prompt, chosen, rejected).",
    )  # fmt: skip
    pairs.add_argument(
        "--run",
        dest="run_dir",
        metavar="RUN",
        type=path_of("--run"),
        required=True,
        help="directory of a run that grew trees",
    )
    pairs.add_argument(
        "--iteration", metavar="NAME", help="one iteration only, such as iter_0 (default: all)"
    )
    pairs.add_argument(
        "--out",
        type=path_of("--out"),
        metavar="FILE",
        help="file to export them to (default: they are counted only)",
    )
    pairs.add_argument(
        "overrides", nargs="*", metavar="key=value",
        help="fields of pairs to change, such as pairs.theta_diff=0.1 (or select.theta_diff=0.1)",
    )  # fmt: skip
    pairs.set_defaults(run=_pairs)


def _pairs(options: argparse.Namespace) -> int:
    from optima.pipelines.pairing import rebuild_pairs

    overrides = [
        override.replace("select.", "pairs.", 1) if override.startswith("select.") else override
        for override in options.overrides
    ]
    wrong = [override for override in overrides if not override.startswith("pairs.")]
    if wrong:
        raise UsageError(
            f"{wrong[0]}: only fields of pairs can be changed here, such as pairs.theta_diff=0.1"
        )
    print(rebuild_pairs(options.run_dir, options.iteration, overrides, options.out))
    return 0


def _list_recipes(options: argparse.Namespace) -> int:
    folder = options.dir or Path(FOLDER)
    is_packaged = options.dir is None and not folder.is_dir()
    source = packaged_recipes() if is_packaged else folder
    paths = {path: folder / path.relative_to(source) for path in sorted(source.rglob("*.yaml"))}
    if not paths:
        raise UsageError(
            f"--dir {folder}: holds no recipe; leave it out in a folder without recipes/ to list "
            "those that come with optima"
        )
    layers = {path: name for path, name in paths.items() if is_layer(read_file(path).tree)}
    _print_files({path: name for path, name in paths.items() if path not in layers})
    if layers:
        print("\nLayers, to go over a recipe (--config RECIPE LAYER):")
        _print_files(layers)
    if is_packaged:
        print(f"\nThey come with optima and are taken by these names: {source}")
    return 0


def _print_files(name_by_path: Mapping[Path, Path]) -> None:
    width = max((len(str(name)) for name in name_by_path.values()), default=0)
    for path, name in name_by_path.items():
        first = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()
        print(f"{name!s:<{width}}  {first}")


def _show_recipe(options: argparse.Namespace) -> int:
    files, overrides = split_words([*options.words, *options.overrides])
    if not files:
        raise UsageError(f"recipes show {options.words[0]}: names no file; put a recipe before it")
    print(dump_recipe(load_recipe(files, overrides)), end="")
    return 0


def _tasks(options: argparse.Namespace) -> int:
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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(" ".join(cells).rstrip())
    for group, what in ((plugins.PROMPTS, "role set"), (plugins.FORMATS, "pool of formats")):
        for plugin in plugins.installed(group):
            print(f"{what} {plugin}: {plugin.reference}")
    if failed:
        raise UsageError("\n".join(dict.fromkeys(failed)))
    return 0


def _show_prompts(options: argparse.Namespace) -> int:
    recipe = load_recipe(options.recipe, options.overrides)
    task = get_task(recipe.task)
    names = recipe.agents.names
    loaded = load_problems(task, recipe.data, "test", n_agents=len(names), seed=recipe.seed)
    if not 0 <= options.index < len(loaded.problems):
        last = len(loaded.problems) - 1
        raise UsageError(
            f"--index {options.index}: must be from 0 to {last}, a problem of the test split"
        )
    if options.agent not in (None, *names):
        raise UsageError(f"--agent {options.agent}: must be one of {', '.join(names)}")
    problem = loaded.problems[options.index]
    roles = _roles(recipe.model)
    heard = "" if roles == "alternate" else ", where the chat template alternates roles"
    for agent, name in enumerate(names):
        if options.agent not in (None, name):
            continue
        print(f"--- {name} ({problem.problem_id})")
        style = PromptStyle.of(recipe, task)
        print(system_prompt(problem, style, agent=agent))
        if roles != "assistant" and (said := cue(problem, style, agent=agent)):
            print(f"--- after what {name} hears{heard}\n{said}")
    return 0


def _roles(model: ModelSection) -> Roles | None:
    """Return the roles that utterances have; None where a model that is not here decides."""
    source = model.tokenizer or model.path
    if model.roles != "auto":
        return model.roles
    return load_template(source).roles if Path(source).is_dir() else None


def _diversify(options: argparse.Namespace) -> int:
    from optima.prompts.diversify import diversify

    key = os.environ.get(KEY_VARIABLE)
    if not key:
        raise UsageError(f"{KEY_VARIABLE}: is not set; export the server's key (any text if none)")
    if not options.base_url.startswith(("http://", "https://")):
        raise UsageError(f"--base-url {options.base_url}: must be a URL, such as https://host/v1")
    made = diversify(
        options.out,
        n=options.n,
        model=options.model,
        base_url=options.base_url,
        api_key=key,
        seed=options.seed,
    )
    for new in made:
        print(options.out / f"{new.format_id}.txt")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from optima.cli.doctor import examine

    recipe = load_recipe(options.config, options.overrides) if options.config else None
    findings = examine(recipe, options.vllm_env, options.train_env)
    for finding in findings:
        print(f"{'ok  ' if finding.is_ok else 'FAIL'} {finding.name}: {finding.text}")
    return 0 if all(finding.is_ok for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())

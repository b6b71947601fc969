"""``optima try``: whether a model converses on a recipe, before a run is spent on it."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from optima.cli.configs import add_config, add_environments
from optima.cli.numbers import MANY, whole
from optima.cli.paths import path_of
from optima.pipelines.trial import Trial
from optima.reader import JudgedConversation

if TYPE_CHECKING:
    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]

QUESTION_CHARS = 300


def add_try(commands: "Commands") -> None:
    """Add ``optima try``."""
    parser = commands.add_parser(
        "try", help="does this model converse? a few conversations, shares, and what to change",
        allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Hold the first conversations of a run on a few problems of the train split,\n"
        "print some, and say what share marks an answer, agrees, speaks for a partner, is cut,\n"
        "repeats itself or gives the same answer everywhere, how the reward is made up, how many\n"
        "problems would be selected, and which fields to change if that is bad. Trains nothing.",
        epilog="examples:\n"
        "  optima try --config recipes/sft/hotpot_qa.yaml recipes/models/qwen2.5-1.5b.yaml \\\n"
        "    data.path=DIR --n 40\n"
        "  optima try --config recipes/sft/quickstart.yaml conversation.worked_example=true\n\n"
        "exit status: 0 fit to train, 1 something to change (or it failed), 2 wrong input.",
    )  # fmt: skip
    add_config(parser, is_required=True)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="fields to change")
    parser.add_argument(
        "--n", metavar="N", type=whole(1, MANY), default=20, help="problems (default: 20)"
    )
    parser.add_argument(
        "--show",
        metavar="N",
        type=whole(0, MANY),
        default=3,
        help="conversations printed (default: 3)",
    )
    parser.add_argument(
        "--output", metavar="DIR", type=path_of("--output"),
        help="where it is stored, as a run (default: below runs/try, by the recipe's content)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print figures as one JSON object")
    add_environments(parser)
    parser.set_defaults(run=_try)


def _try(options: argparse.Namespace) -> int:
    from optima.pipelines.trial import try_recipe
    from optima.processes.environment import require_environment
    from optima.recipe.loading import dump_recipe, load_recipe
    from optima.records import write_text
    from optima.seeding import digest

    recipe = load_recipe(options.config, options.overrides)
    directory = options.output or Path("runs", "try", digest(dump_recipe(recipe), str(options.n)))
    trial = try_recipe(
        recipe,
        directory,
        n=options.n,
        n_shown=options.show,
        vllm_env=require_environment(options.vllm_env, "vllm"),
        train_env=require_environment(options.train_env, "train"),
    )
    results = json.dumps(figures(trial))
    write_text(directory / "results.json", f"{results}\n")
    print(results if options.json else text(trial, directory))
    return 1 if trial.advice() else 0


def figures(trial: Trial) -> dict[str, object]:
    """Return the figures of a trial for other programs, as in results.json; shares in [0, 1]."""
    names = ("n_problems", "n_selected", "tokens", "generated", "turns")
    return {
        **{name: getattr(trial, name) for name in names},
        "reward": trial.parts,
        "health": {**dataclasses.asdict(trial.health), "collapsed": trial.health.has_collapsed},
        "advice": list(trial.advice()),
    }


def text(trial: Trial, directory: Path) -> str:
    """Return conversations, shares and advice for a reader."""
    health, parts = trial.health, trial.parts
    blocks = [_conversation(shown) for shown in trial.shown]
    shares = (
        ("marks an answer", health.marked),
        ("agrees on it", health.agreed),
        ("speaks for a partner", health.leaked),
        ("is cut", health.cut),
        ("repeats an utterance", health.repeated),
        ("has an empty utterance", health.empty),
    )
    width = max(len(name) for name, _ in shares)
    commonest = (
        f"{health.top_answer!r} to {100 * health.top_share:.0f} % of the problems, right for "
        f"{100 * health.top_gold_share:.0f} %"
    )
    lines = [
        f"{health.n} conversations about {trial.n_problems} problems: {trial.tokens:.1f} tokens "
        f"({trial.generated:.1f} generated), {trial.turns:.1f} turns on average",
        *(f"  {name:<{width}}  {100 * share:5.1f} %" for name, share in shares),
        f"  {'commonest answer':<{width}}  {commonest if health.top_share else 'none'}",
        f"reward {parts['total']:.3f}: task {parts['task']:.3f}, tokens {parts['token']:.3f} "
        f"(before their weight), readability +{parts['loss_term']:.3f}",
        f"{trial.n_selected} of {trial.n_problems} problems would be selected",
        "A run would begin with the cold start; this is the model without it."
        if trial.has_cold_start
        else "",
        *(f"  - {line}" for line in trial.advice()),
        "" if trial.advice() else "Fit to train.",
        f"Stored in {directory}; `optima report {directory}` shows all of it.",
    ]
    return "\n".join([*blocks, *filter(None, lines)])


def _conversation(shown: JudgedConversation) -> str:
    problem, held, parts = shown.problem, shown.conversation, shown.reward
    question = " ".join(problem.question.split())
    asked = question if len(question) <= QUESTION_CHARS else f"{question[:QUESTION_CHARS]} ..."
    reward = f"R {parts.total:.2f}" if parts.total is not None else f"no reward: {parts.error}"
    return "\n".join(
        [
            f"--- {asked}",
            f"    gold: {' | '.join(problem.golds[:3])}",
            *(f"{turn.name}:{turn.text}" for turn in held.turns),
            f"    answer: {held.answer}, score {parts.task:.2f}, {reward}, {held.stop_reason}, "
            f"{held.n_tokens} tokens\n",
        ]
    )

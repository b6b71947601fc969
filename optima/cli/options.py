"""How a command is made: a typed function, whose signature and docstring are its options and help.

typer reads them (docs/decisions/0006-commands.md). Here stands what it does not know of: files
after one ``--config``, ``--version`` everywhere, one line for wrong words, bounds that are said.
``--config A.yaml B.yaml seed=1`` and ``--config A.yaml --config B.yaml seed=1`` are the same: a
word ``key=value`` is an override and never a file (one of such a name is written ``./key=value``).
"""

import difflib
import functools
import gc
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer
import typer.main

import optima
from optima.cli.console import run_command, set_up_logging
from optima.errors import UsageError

if TYPE_CHECKING:
    from optima.recipe.schema import Recipe

MANY = 10_000_000  # problems or conversations, as in recipes
MAX_TEMPERATURE = 2.0
CONFIG_NAMES = ("--config", "--recipe")
_ONCE = (  # what is looked at, and where it goes; of others the last counts, as in a shell
    *("--over", "--run-dir", "--output", "--out", "--model", "--models", "--model-root", "--base"),
    *("--task", "--tasks", "--method", "--methods", "--metric", "--losses", "--problem", "--as"),
)
CONFIG_HELP = "recipe file (YAML), and layers that go over it, from left to right"
# Objects between two collections of garbage: with Python's 700, all that is being imported is
# looked through dozens of times, a tenth of the time of a dry run (2026-11-27).
GC_THRESHOLD = 20_000
_WIDTH = 100
_HOME = re.compile(r"(--[\w-]+=|[a-z_][\w.]*=|)~(?=/)")  # in a field a lone ~ is null to YAML
_OPTIONS = r"No such option: (\S+) (?:\(Possible options: |Did you mean )(.+)[)?]"
_COMPLETION = re.compile(r"_OPTIMA\w*_COMPLETE")  # set by the shell that asks what could follow
# What typer says of wrong words -> the same as place, rule
_TEXTS = (
    (r"Invalid value for '?([^']+)'?: (.*)", r"\1: \2"),
    (r"Invalid value: (.*)", r"\1"),
    (r"Option '(.+)' requires an argument\.", r"\1: expected one argument"),
    (r"Option '(.+)' does not take a value\.", r"\1: takes no value"),
    (r"Missing \w+ '(.+)'\.", r"\1: is missing"),
    (r"Missing command\.", "COMMAND: is missing"),
    (_OPTIONS, r"\1: no such option (did you mean \2?)"),
    (r"No such option: (\S+)", r"\1: no such option"),
    (r"No such command '(.*?)'\. Did you mean '(.+)'\?", r"\1: no such command (did you mean \2?)"),
    (r"No such command '(.*?)'\..*", r"\1: no such command"),
    (r"Got unexpected extra argument\S* \((.+)\)", r"\1: is not expected here"),
)

Command = Callable[..., int]


class Program:
    """A console script: its words become a call of a typed function, which is then made.

    ``translate`` rewrites the words first. Called with the words, or with none to take those of the
    process, it returns the exit status.
    """

    def __init__(
        self, name: str, summary: str = "", *, epilog: str | None = None,
        translate: Callable[[list[str]], list[str]] = list,
    ) -> None:  # fmt: skip
        self.name = name
        self._translate = translate
        self.app = make_app(name)
        if summary:  # a program of several commands
            self.app.callback(help=_shown(summary), epilog=_shown(epilog))(_deferred(_nothing, {}))

    def add(
        self, function: Command, *, name: str | None = None, epilog: str | None = None,
        below: typer.Typer | None = None, text: str | None = None, **bound: object,
    ) -> Self:  # fmt: skip
        """Make a typed function a command; what ``bound`` gives it cannot be given by words."""
        register = (below or self.app).command(
            name or self.name, help=_shown(text or inspect.getdoc(function)), epilog=_shown(epilog)
        )
        register(_deferred(function, bound))
        return self

    def group(self, name: str, function: Command | None = None, text: str = "") -> typer.Typer:
        """Return what subcommands are added to; without one of them ``function`` is called."""
        below = make_app()
        below.callback(
            invoke_without_command=function is not None,
            help=_shown(text or inspect.getdoc(function)),
        )(_deferred(function or _nothing, {}))
        self.app.add_typer(below, name=name)
        return below

    def parse(self, words: Sequence[str] | None = None) -> Callable[[], int]:
        """Return the call that the words stand for; UsageError where they stand for none."""
        words = sys.argv[1:] if words is None else words
        command = typer.main.get_command(self.app)
        settings: dict[str, Any] = {"prog_name": self.name}
        if any(_COMPLETION.fullmatch(name) for name in os.environ):
            command.main(**settings)
        try:
            words = [_at_home(word) for word in words]
            _check_words(words)
            given = list(_one_by_one(self._translate(words)))
            call = command.main(given, standalone_mode=False, **settings)
        except typer.TyperException as error:
            named = [self.name]
            for word in words:  # the subcommand that is meant
                if below := getattr(command, "commands", {}).get(word):
                    command, named = below, [*named, word]
            raise UsageError(
                f"{_explain(error.format_message())}; `{' '.join(named)} --help` says what can be "
                "given"
            ) from error
        # --help and --version have done what they do
        return call if callable(call) else lambda: 0

    def __call__(self, words: Sequence[str] | None = None) -> int:
        """Run the command; return its exit status."""
        set_up_logging()
        gc.set_threshold(GC_THRESHOLD)
        return run_command(lambda: self.parse(words)())


def make_app(name: str | None = None) -> typer.Typer:
    """Return what commands are added to."""
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": _WIDTH}
    return typer.Typer(
        name=name, context_settings=settings, rich_markup_mode=None, add_completion=name is not None
    )


def whole(low: int, high: int, help: str, metavar: str = "N") -> Any:  # noqa: A002  typer's word
    """Return an option that takes a whole number from ``low`` to ``high``."""

    def read(text: str) -> int:
        is_number = text.isascii() and text.removeprefix("-").isdigit() and len(text) < 40
        if not is_number or not low <= int(text) <= high:
            raise typer.BadParameter(f"{text[:40]}: must be a whole number from {low} to {high}")
        return int(text)

    return typer.Option(metavar=metavar, parser=_lenient(read), help=help)


def temperature(help: str) -> Any:  # noqa: A002
    """Return an option that takes a sampling temperature."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value <= MAX_TEMPERATURE:  # nan is neither
            raise typer.BadParameter(f"{text[:40]}: must be a number from 0 to {MAX_TEMPERATURE:g}")
        return value

    return typer.Option(metavar="T", parser=_lenient(read), help=help)


def _path(text: str | Path) -> Path:
    from optima.records import check_path

    try:
        check_path(text, "")
    except UsageError as error:
        raise typer.BadParameter(str(error).strip()) from error
    return Path(text)


def _new_file(text: str | Path) -> Path:
    from optima.records import is_stream

    found = _path(text)
    if found.is_dir():
        raise typer.BadParameter(f"{text}: is a directory; name a file in it")
    if not found.absolute().parent.is_dir():
        raise typer.BadParameter(f"{text}: its folder does not exist; make it first")
    if not (is_stream(found) or os.access(found.absolute().parent, os.W_OK | os.X_OK)):
        raise typer.BadParameter(f"{text}: its folder cannot be written to; give another")
    return found


def path(*names: str, help: str, metavar: str = "DIR", hidden: bool = False) -> Any:  # noqa: A002
    """Return an option that takes a path; what can be the name of nothing is refused.

    With the metavar FILE it is that of a file to write.
    """
    read = _new_file if metavar == "FILE" else _path
    return typer.Option(*names, metavar=metavar, parser=read, help=help, hidden=hidden)


def paths(help: str, metavar: str = "RUN") -> Any:  # noqa: A002
    """Return positional paths."""
    return typer.Argument(metavar=metavar, parser=_path, help=help, show_default=False)


def _environment(library: str, role: str) -> Any:
    return typer.Option(
        metavar="ENV",
        help=f"environment with {library}: prefix path, python, or conda name (default: "
        f"OPTIMA_{role.upper()}_ENV, else .envs/{role}, else conda's optima-{role})",
    )


Config = Annotated[list[Path], typer.Option("--config", metavar="RECIPE ...", help=CONFIG_HELP)]
MaybeConfig = Annotated[
    list[Path] | None, typer.Option("--config", metavar="RECIPE ...", help=CONFIG_HELP)
]


def _said_once(overrides: list[str] | None) -> list[str] | None:
    """Return the overrides; RecipeError where one takes back another."""
    if overrides and len(overrides) > 1:
        from optima.recipe.text import check_said_once, is_override

        check_said_once([word for word in overrides if is_override(word)])
    return overrides


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="key=value", show_default=False, callback=_said_once,
        help="fields of the recipe to change, such as train.learning_rate=1.0e-5",
    ),
]  # fmt: skip
OfMixture = Annotated[
    str | None, typer.Option("--task", metavar="NAME", help="of a mixture, the task that is meant")
]
AsJson = Annotated[bool, typer.Option("--json", help="print it as JSON, in one line")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="check all that can be checked without a GPU, print the plan, stop"
    ),
]
VllmEnv = Annotated[str | None, _environment("vLLM", "vllm")]
TrainEnv = Annotated[str | None, _environment("TRL", "train")]


def check_output(output: Path | None, original: Path | None = None) -> Path:
    """Return where results are written; UsageError when it is not said, or said twice."""
    if output is not None and original is not None:
        raise UsageError("--output_path: says the same as --output; give one")
    if found := output or original:
        return found
    raise UsageError("--output: is missing; name a directory for the results")


def check_metric(metric: str | None, recipe: "Recipe") -> None:
    """Raise UsageError when the recipe's task is not scored by ``metric``."""
    from optima.tasks import get_task

    own = get_task(recipe.task).metric.name
    if metric not in (None, own):
        raise UsageError(
            f"--metric {metric}: does not fit {recipe.task}, which is scored by {own}; "
            "leave it out, or name another --task (`optima tasks`)"
        )


def exclude(**given: object) -> None:
    """Raise UsageError when two of these options are given."""
    named = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if len(named) > 1:
        raise UsageError(f"{named[1]}: cannot stand beside {named[0]}; give one of them")


def _lenient(read: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Return a parser that leaves a default as it is."""
    return lambda value: read(value) if isinstance(value, str) else value


def _nothing() -> int:
    return 0


def _deferred(function: Command, bound: dict[str, object]) -> Callable[..., Callable[[], int]]:
    """Return the function with its signature and ``--version``, which returns the call to make."""

    @functools.wraps(function)
    def call(**given: Any) -> Callable[[], int]:
        del given["version"]
        return functools.partial(function, **bound, **given)

    signature = inspect.signature(function)
    kept = [p for p in signature.parameters.values() if p.name not in bound]
    version = inspect.Parameter(
        "version", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_VERSION
    )
    call.__signature__ = signature.replace(parameters=[*kept, version])  # type: ignore[attr-defined]
    return call


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"optima {optima.__version__}")
        raise typer.Exit


_VERSION = Annotated[
    bool,
    typer.Option(
        "--version", is_eager=True, callback=_print_version, help="print the version and stop"
    ),
]


def _shown(text: str | None) -> str:
    """Return a help text whose examples and other lists keep their lines."""
    blocks = (text or "").split("\n\n")
    return "\n\n".join(f"\b\n{b}" if re.match(r"examples|exit status", b) else b for b in blocks)


def _explain(message: str) -> str:
    """Return what is wrong with the words of a command line, its place first."""
    line = " ".join(message.split())
    if named := re.fullmatch(_OPTIONS, line):  # of all that are near the nearest, by its letters
        word, near = named[1], named[2].replace("'", "").replace(" or ", ", ").split(", ")
        (nearest,) = difflib.get_close_matches(word, near, n=1, cutoff=0.0)
        line = f"No such option: {word} Did you mean {nearest}?"
    for pattern, text in _TEXTS:
        if re.fullmatch(pattern, line):
            return re.sub(pattern, text, line).strip()
    return line


def _one_by_one(words: Sequence[str]) -> Iterator[str]:
    """Yield the words with each file of ``--config`` behind an option of its own."""
    option = ""
    for index, word in enumerate(words):
        if word == "--":
            yield from words[index:]
            return
        name, has_value, _ = word.partition("=")
        if name in CONFIG_NAMES and has_value:
            option = name
            yield word
        elif word in CONFIG_NAMES:
            if len(words) <= index + 1 or _is_end(words[index + 1]):
                raise typer.BadParameter(f"{word}: expected one argument")
            option = word
        elif option and not _is_end(word):
            yield f"{option}={word}"
        else:
            option = ""
            yield word


def _at_home(word: str) -> str:
    """Return a word with ``~`` written out after ``=`` too, where shells leave it."""
    named = _HOME.match(word)
    return word if named is None else f"{named[1]}{Path.home()}{word[named.end() :]}"


def _check_words(words: Sequence[str]) -> None:
    """Raise typer's error for a word that says nothing, or that no line of a message can hold, and
    for a second place, field, model or task, as the first would be left out."""
    before, seen = "", set[str]()
    for word in words[: words.index("--")] if "--" in words else words:
        name, has_value, value = word.partition("=")
        is_option = name.startswith("--") and bool(has_value)
        place, text = (name, value) if is_option else (before or "argument", word)
        if not text.strip():
            raise typer.BadParameter(f"{place}: {text!r}: is empty; give a value, or leave it out")
        is_field = not is_option and "=" in word  # read as YAML
        if not is_field and any(ord(c) < 32 or ord(c) == 127 for c in text):
            raise typer.BadParameter(
                f"{place}: {text!r:.80}: has a line break or control character; remove it"
            )
        before = word if word.startswith("--") and not has_value else ""
        if name in _ONCE and name in seen:
            raise typer.BadParameter(f"{name}: is given twice; give it once")
        seen.add(name)


def _is_end(word: str) -> bool:
    from optima.recipe.text import is_override  # slow, and --help asks for none of it

    return word.startswith("-") or is_override(word)


# Options of all that evaluate models.
ModelRoot = Annotated[
    Path | None, path(help="every model in and below this directory, such as a run's")
]
OneModel = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="one model: a directory, a hub id, a run's directory for its last model, or RUN:MODEL",
    ),
]


def _task_names() -> list[str]:
    from optima.tasks import task_names

    return list(task_names())


TaskName = Annotated[
    str | None,
    typer.Option(
        metavar="TASK", help="benchmark (`optima tasks`); default: the recipe's",
        autocompletion=_task_names,
    ),
]  # fmt: skip
MetricName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="f1, exact_match, math or a plug-in's: stop if the task is scored by another "
        "(default: its own)",
    ),
]
Output = Annotated[Path | None, path(help="where results are written; must be given")]
Limit = Annotated[int | None, whole(1, MANY, "ask a seeded sample of N problems only")]

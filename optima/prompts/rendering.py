"""System prompts, rendered from the files in ``templates/`` or a recipe's own, and the formats.

The same arguments give the same bytes at generation and at training: nothing here depends on the
iteration, the time, or the order of a dict. Templates get ``open_mark`` and ``close_mark``, never a
mark with a placeholder in it: small models copy what stands there (docs/decisions/0005-prompts.md).

A communication format is an instruction that a template takes in (paper section 3.1: iteration 0
draws from a pool): a text file in ``formats/``, whose name without the ending is its id.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2

from optima import plugins
from optima.errors import UsageError
from optima.recipe.schema import ChoiceAnswer, Recipe
from optima.sandbox import ExcessError, Sandbox, bounded
from optima.tasks.answers import last_marked_answer
from optima.tasks.task import ROLES, RoleSet, Task
from optima.types import AnswerStyle, Problem, Setting

TEMPLATE_DIR = Path(__file__).parent / "templates"
MARKS: dict[AnswerStyle, tuple[str, str]] = {"tag": ("<A>", "</A>"), "boxed": (r"\boxed{", "}")}
POOL_DIR = Path(__file__).parent / "formats"


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """What the prompts of a run have in common.

    ``choice_answer`` says what multiple choice marks; ``roles`` which template each agent gets, by
    default as the setting has it; ``directory`` holds templates that replace those of the same
    names in the role set's directory, as those do the built-in ones.
    """

    setting: Setting
    answer_style: AnswerStyle
    names: tuple[str, ...]
    worked_example: bool = False
    choice_answer: ChoiceAnswer = "text"
    directory: Path | None = None
    roles: RoleSet | None = None

    @classmethod
    def of(cls, recipe: Recipe, task: Task) -> "PromptStyle":
        """Return the style of a run; UsageError when its own templates cannot be used.

        All that its agents could be told is rendered once, for a made-up problem.
        """
        section = recipe.conversation
        directory, roles = _named(section.prompts, task.role_set)
        style = cls(
            setting=task.setting,
            answer_style=task.answer_style,
            names=recipe.agents.names,
            worked_example=section.worked_example,
            choice_answer=section.choice_answer,
            directory=directory,
            roles=roles,
        )
        if style.folders:
            _check(style)
            _prove(style)
        return style

    @property
    def role_set(self) -> RoleSet:
        """Which template each agent gets."""
        return self.roles or ROLES[self.setting]

    @property
    def folders(self) -> tuple[Path, ...]:
        """The directories of templates that are not built in, the first to be looked in first."""
        return tuple(filter(None, (self.directory, self.role_set.directory)))

    def told(self, problems: Iterable[Problem]) -> tuple[str, ...]:
        """Return all that agents could be told about problems such as these, of a made-up one.

        It identifies what is made with these prompts: no other template counts.
        """
        kinds = sorted({bool(problem.choices) for problem in problems})
        return tuple(text for is_choice in kinds for text in _told(self, is_choice))

    def texts(self, templates: Iterable[str]) -> tuple[str, ...]:
        """Return the sources of templates."""
        return tuple(_path(name, self.folders).read_text("utf-8") for name in templates)


def system_prompt(
    problem: Problem, style: PromptStyle, *, agent: int, format_text: str | None = None
) -> str:
    """Return the system prompt of ``style.names[agent]``.

    ``format_text`` comes from the pool; in debate it changes only the first agent's prompt
    (paper section 3.1). With two agents the first of a debate solves and the second criticises,
    with more they are peers. One agent alone is asked to think step by step.
    """
    return _rendered(
        _kind(style, agent),
        style,
        **_words(problem, style, agent),
        context=problem.contexts[agent] if problem.contexts else "",
        question=problem.question,
        format_text=format_text if style.role_set.formats == "all" or agent == 0 else None,
        example=_example(style, problem) if style.worked_example else None,
    )


def cue(problem: Problem, style: PromptStyle, *, agent: int) -> str:
    """Return what ends each user message to ``style.names[agent]``; nothing in some settings."""
    return _rendered(
        "cue",
        style,
        **_words(problem, style, agent),
        setting=style.setting,
        is_critic=_kind(style, agent) == "critic",
    ).strip()


def example_answer(problem: Problem, style: PromptStyle) -> str | None:
    """Return the answer that the worked example marks, None where none is shown."""
    if not style.worked_example:
        return None
    return last_marked_answer(_example(style, problem), style.answer_style)


def _words(problem: Problem, style: PromptStyle, agent: int) -> dict[str, str | None]:
    names = style.names
    open_mark, close_mark = MARKS[style.answer_style]
    return {
        "name": names[agent],
        "partners": _listed([name for name in names if name != names[agent]]),
        "open_mark": open_mark,
        "close_mark": close_mark,
        "choice_kind": style.choice_answer if problem.choices else None,
    }


def _kind(style: PromptStyle, agent: int) -> str:
    if len(style.names) == 1:
        return "alone"
    return style.role_set.template(agent, len(style.names))


def _example(style: PromptStyle, problem: Problem) -> str:
    kind = "exchange" if problem.contexts else "choice" if problem.choices else "sum"
    names = style.names
    open_mark, close_mark = MARKS[style.answer_style]
    return _rendered(
        f"example_{kind}" if len(names) > 1 else "example_alone",
        style,
        kind=kind,
        first=names[0],
        second=names[1 % len(names)],
        third=names[2 % len(names)],
        mark=lambda answer: f"{open_mark}{answer}{close_mark}",
        choice_kind=style.choice_answer,
    ).strip()


def _rendered(name: str, style: PromptStyle, /, **words: object) -> str:
    """Render a template; UsageError when one of a recipe's own fails."""
    template = _template(name, style.folders)
    if not style.folders:
        return str(template.render(**words))
    try:
        return str(template.render(**words))
    except Exception as error:  # a template raises whatever its author calls
        raise UsageError(
            f"conversation.prompts: {_path(name, style.folders)}: cannot be rendered: {error}; "
            f"there are {', '.join(sorted(words))}"
        ) from error


@bounded()
def _prove(style: PromptStyle) -> None:
    """Render all that the agents could be told; UsageError where a template fails."""
    for is_choice in (False,) if style.setting == "information_exchange" else (False, True):
        list(_told(style, is_choice))


def _told(style: PromptStyle, is_choice: bool) -> Iterator[str]:
    """Yield all that the agents could be told about a problem; UsageError if a template fails."""
    is_exchange = style.setting == "information_exchange"
    probe = Problem(
        problem_id="probe", task="probe", question="Which?", golds=("A",),
        choices=("one", "two") if is_choice else (),
        contexts=("notes",) * len(style.names) if is_exchange else (),
    )  # fmt: skip
    for agent, _ in enumerate(style.names):
        yield cue(probe, style, agent=agent)
        for format_text in (None, "lists"):
            yield system_prompt(probe, style, agent=agent, format_text=format_text)


def _named(prompts: str | None, roles: RoleSet) -> tuple[Path | None, RoleSet]:
    """Return the directory and the role set that ``conversation.prompts`` means.

    A directory replaces templates of the task's roles, the role set of a package the roles.
    """
    if prompts is None:
        return None, roles
    try:
        plugin = plugins.find(plugins.PROMPTS, prompts)
        directory = Path(os.path.expanduser(prompts))  # noqa: PTH111  raises nothing
        if plugin is None:
            if not directory.is_dir():
                raise UsageError(
                    f"{directory}: is not a directory; name one with templates of prompts"
                )
            return directory, roles
        if directory.is_dir():
            raise UsageError(
                f"{plugin}: is a directory here too; write ./{prompts} for the directory, or "
                f"{plugin.reference} for the role set"
            )
        return None, plugins.load(plugin, RoleSet)
    except UsageError as error:
        raise UsageError(f"conversation.prompts: {error}") from error


@bounded()
def _check(style: PromptStyle) -> None:
    """Raise UsageError for templates that are not there, not known, or do not parse."""
    known = [f"{name}.txt" for name in _known(style.role_set)]
    for directory in style.folders:
        place = f"conversation.prompts: {directory}"
        if not directory.is_dir():
            raise UsageError(f"{place}: is not a directory; mend the role set that names it")
        found = {path.name for path in directory.glob("*.txt")}
        if unknown := found.difference(known):
            raise UsageError(
                f"{place}/{min(unknown)}: is not a template; there are {', '.join(known)}"
            )
        if not found:
            raise UsageError(
                f"{place}: holds none of {', '.join(known)}; add the one to be replaced"
            )
    for name in _known(style.role_set):
        path = _path(name, style.folders)
        try:
            _template(name, style.folders)
        except FileNotFoundError as error:
            raise UsageError(
                f"conversation.prompts: {path}: does not exist, which an agent's role needs; add it"
            ) from error
        except (
            jinja2.TemplateError,
            ValueError,
            SyntaxError,
            RecursionError,
            ExcessError,
        ) as error:
            raise UsageError(f"conversation.prompts: {path}: does not parse: {error}") from error


@cache
def _known(roles: RoleSet) -> tuple[str, ...]:
    """Return the names of the built-in templates and of those that only these roles have."""
    built_in = sorted(path.stem for path in TEMPLATE_DIR.glob("*.txt"))
    return (*built_in, *sorted(set(roles.names()).difference(built_in)))


def _path(name: str, folders: tuple[Path, ...]) -> Path:
    """Return the file of a template in the first folder that has it, or where it should be."""
    paths = [folder / f"{name}.txt" for folder in (*folders, TEMPLATE_DIR)]
    return next((path for path in paths if path.is_file()), paths[max(0, len(paths) - 2)])


@cache
def _template(name: str, folders: tuple[Path, ...]) -> jinja2.Template:
    environment = Sandbox(
        undefined=jinja2.StrictUndefined,
        autoescape=False,
    )
    return environment.from_string(_path(name, folders).read_text("utf-8"))


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


@dataclass(frozen=True, slots=True)
class Format:
    """An instruction how to write messages."""

    format_id: str
    text: str


def load_formats(more: str | Path | None = None) -> tuple[Format, ...]:
    """Return the built-in pool and the formats of ``more``, in the order of their names.

    ``more`` is a directory, or a plug-in (``plugins.FORMATS``) that is one. Raises UsageError when
    it has no ``*.txt`` file, a file is empty, or an id is taken.
    """
    paths = sorted(POOL_DIR.glob("*.txt"))
    if more is not None:
        folder = _folder(str(more))
        extra = sorted(folder.glob("*.txt"))
        if not extra:
            raise UsageError(
                f"sampling.format_pool_path={more}: holds no *.txt file; write one file a "
                "format, or make some with `optima prompts diversify`"
            )
        paths += extra
    formats: dict[str, Format] = {}
    for path in paths:
        text = path.read_text(encoding="utf-8").strip()
        if not text:
            raise UsageError(f"{path}: is empty; write the instruction or remove the file")
        if path.stem in formats:
            raise UsageError(f"{path}: the name {path.stem} is taken by another format; rename it")
        formats[path.stem] = Format(path.stem, text)
    return tuple(formats.values())


def _folder(name: str) -> Path:
    """Return the directory that a recipe names; one that is there comes before a plug-in."""
    try:
        plugin = None if Path(name).is_dir() else plugins.find(plugins.FORMATS, name)
        return Path(name) if plugin is None else plugins.load(plugin, Path)
    except UsageError as error:
        raise UsageError(f"sampling.format_pool_path: {error}") from error

"""System prompts, rendered from the text files in ``templates/``.

The same arguments give the same bytes at generation and at training: nothing here depends on the
iteration, the time, or the order of a dict.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import jinja2

from optima.types import AnswerStyle, Problem, Setting

TEMPLATE_DIR = Path(__file__).parent / "templates"
MARKS: dict[AnswerStyle, str] = {"tag": "<A>answer</A>", "boxed": r"\boxed{answer}"}
# Multiple choice marks the letter.
CHOICE_TASKS = frozenset({"arc", "mmlu"})
CHOICE_MARKS: dict[AnswerStyle, str] = {"tag": "<A>letter</A>", "boxed": r"\boxed{letter}"}


def system_prompt(  # noqa: PLR0913  what a prompt says is exactly this
    problem: Problem,
    *,
    setting: Setting,
    answer_style: AnswerStyle,
    names: Sequence[str],
    agent: int,
    format_text: str | None = None,
    worked_example: bool = False,
) -> str:
    """Return the system prompt of ``names[agent]``.

    ``format_text`` comes from the pool; in debate it changes only the first agent's prompt
    (paper section 3.1). With two agents the first of a debate solves and the second criticises,
    with more they are peers. One agent alone is asked to think step by step.
    """
    if len(names) == 1:
        template = "alone"
    elif setting == "information_exchange":
        template = "information_exchange"
    elif len(names) > 2:
        template = "debater"
    else:
        template = "critic" if agent else "solver"
    is_choice = problem.task in CHOICE_TASKS
    partners = [name for name in names if name != names[agent]]
    text: str = _template(template).render(
        name=names[agent],
        partners=_listed(partners),
        context=problem.contexts[agent] if problem.contexts else "",
        question=problem.question,
        mark=(CHOICE_MARKS if is_choice else MARKS)[answer_style],
        format_text=format_text if setting == "information_exchange" or agent == 0 else None,
        example=_example(setting, is_choice, answer_style, names) if worked_example else None,
    )
    return text


def _example(
    setting: Setting, is_choice: bool, answer_style: AnswerStyle, names: Sequence[str]
) -> str:
    kind = "exchange" if setting == "information_exchange" else "choice" if is_choice else "sum"
    text: str = _template(f"example_{kind}" if len(names) > 1 else "example_alone").render(
        kind=kind,
        first=names[0],
        second=names[1 % len(names)],
        third=names[2 % len(names)],
        mark=_marker(answer_style),
    )
    return text.strip()


def _marker(answer_style: AnswerStyle) -> Callable[[str], str]:
    """Return the function that marks an answer."""
    return lambda answer: MARKS[answer_style].replace("answer", answer)


@cache
def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE_DIR),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701  prompts are no HTML
    )
    return environment.get_template(f"{name}.txt")


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)

"""Golden files of system prompts (UPDATE_GOLDEN=1 rewrites them) and what must hold for all."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import jinja2
import pytest

from optima.errors import UsageError
from optima.prompts import rendering
from optima.prompts.rendering import TEMPLATE_DIR, PromptStyle, cue, example_answer, system_prompt
from optima.recipe.loading import load_recipe
from optima.tasks import get_task
from optima.tasks.answers import marked_answers
from optima.tasks.loading import told_to_one
from optima.types import AnswerStyle, Problem, Setting

GOLDEN_DIR = Path(__file__).resolve().parent.parent / "golden" / "prompts"
ALONE = ("Solver",)
PAIR = ("Alice", "Bob")
TRIO = ("Alice", "Bob", "Carol")
FORMAT = "Write one line of key=value pairs."
N_WORDS_MAX = 130
QUICKSTART = Path(__file__).resolve().parents[2] / "recipes" / "sft" / "quickstart.yaml"

EXCHANGE = Problem(
    problem_id="exchange-1",
    task="hotpot_qa",
    question="Which mountain overlooks the village where Ottilie Brand was born?",
    golds=("Kestrel Peak",),
    contexts=(
        "Ottilie Brand was a watchmaker. She was born in Hollin.",
        "Hollin lies below Kestrel Peak.",
        "Marrow Peak overlooks Tarnby.",
    ),
)
SUM = Problem(
    problem_id="sum-1",
    task="gsm8k",
    question="A baker fills 7 trays with 12 rolls each and sells 50 rolls. How many are left?",
    golds=("34",),
)
CHOICE = Problem(
    problem_id="choice-1",
    task="arc",
    question="Which of these melts first in the sun?\nA. iron\nB. ice cream\nC. granite\nD. glass",
    golds=("B",),
    choices=("iron", "ice cream", "granite", "glass"),
)
CASES: dict[str, tuple[Problem, Setting, AnswerStyle, tuple[str, ...]]] = {
    "exchange": (EXCHANGE, "information_exchange", "tag", PAIR),
    "exchange_alone": (told_to_one(EXCHANGE), "information_exchange", "tag", ALONE),
    "exchange_three": (EXCHANGE, "information_exchange", "tag", TRIO),
    "sum": (SUM, "debate", "boxed", PAIR),
    "sum_alone": (SUM, "debate", "boxed", ALONE),
    "sum_three": (SUM, "debate", "boxed", TRIO),
    "choice": (CHOICE, "debate", "tag", PAIR),
    "choice_alone": (CHOICE, "debate", "tag", ALONE),
    "choice_three": (CHOICE, "debate", "tag", TRIO),
}
EXTRAS = {"plain": (None, False), "format": (FORMAT, False), "example": (None, True)}


def render(
    case: str, agent: int, format_text: str | None = None, worked_example: bool = False
) -> str:
    problem, setting, answer_style, names = CASES[case]
    style = PromptStyle(setting, answer_style, names, worked_example)
    return system_prompt(problem, style, agent=agent, format_text=format_text)


SPEAKERS = [(case, agent) for case, parts in CASES.items() for agent in range(len(parts[3]))]


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("case", CASES)
def test_prompts_are_those_of_the_golden_files(case: str, extra: str) -> None:
    names = CASES[case][3]
    prompts = [render(case, agent, *EXTRAS[extra]) for agent in range(len(names))]
    text = "".join(f"=== {name}\n{prompt}\n" for name, prompt in zip(names, prompts, strict=True))
    path = GOLDEN_DIR / f"{case}_{extra}.txt"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_every_golden_file_belongs_to_a_case() -> None:
    names = {f"{case}_{extra}.txt" for case in CASES for extra in EXTRAS}
    assert {path.name for path in GOLDEN_DIR.iterdir()} == names


@pytest.mark.parametrize(("case", "agent"), SPEAKERS)
def test_prompt_says_who_speaks_what_is_asked_and_how_to_mark(case: str, agent: int) -> None:
    problem, _, answer_style, names = CASES[case]
    prompt = render(case, agent)
    assert prompt.startswith(f"You are {names[agent]}.")
    assert problem.question in prompt
    assert all(name in prompt for name in names)
    # Small models copy what stands between the marks: an example of an answer, no placeholder.
    assert ("<A>" if answer_style == "tag" else "\\boxed{") in prompt
    shown = set(marked_answers(prompt, answer_style, problem.choices))
    assert shown <= {"and", "Marie Curie", "1912", "yes", "green plants", "42"}
    is_critic = CASES[case][1] == "debate" and len(names) == 2 and agent == 1
    assert ("the right choice" in prompt) == (bool(problem.choices) and not is_critic)
    assert prompt == prompt.strip()


def test_what_partners_say_is_followed_by_a_cue_where_that_was_measured_to_help() -> None:
    exchange = PromptStyle("information_exchange", "tag", PAIR)
    assert cue(EXCHANGE, exchange, agent=1).startswith("(Bob, be brief")
    choice = PromptStyle("debate", "tag", PAIR)
    assert "Right: its choice between <A> and </A>." in cue(CHOICE, choice, agent=1)
    letter = PromptStyle("debate", "tag", PAIR, choice_answer="letter")
    assert "Right: its letter between" in cue(CHOICE, letter, agent=1)
    assert cue(SUM, PromptStyle("debate", "boxed", PAIR), agent=1) == ""


def test_one_agent_alone_is_asked_for_steps_and_for_the_mark_where_it_is_about_to_speak() -> None:
    asked = "(Solver, think step by step, be brief. Your answer goes between {} and {}.)"
    alone = PromptStyle("information_exchange", "tag", ALONE)
    assert cue(EXCHANGE, alone, agent=0) == asked.format("<A>", "</A>")
    assert cue(CHOICE, PromptStyle("debate", "tag", ALONE), agent=0) == asked.format("<A>", "</A>")
    assert cue(SUM, PromptStyle("debate", "boxed", ALONE), agent=0) == asked.format("\\boxed{", "}")


def test_choices_may_be_marked_by_their_letters() -> None:
    style = PromptStyle("debate", "tag", PAIR, choice_answer="letter")
    assert "the letter of the right choice" in system_prompt(CHOICE, style, agent=0)
    by_text = system_prompt(CHOICE, PromptStyle("debate", "tag", PAIR), agent=0)
    assert "the right choice in its own words" in by_text
    assert "the letter" not in by_text
    sums = PromptStyle("debate", "boxed", PAIR, choice_answer="letter")
    assert "the letter" not in system_prompt(SUM, sums, agent=0)


def test_own_templates_replace_the_built_in_ones_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "solver.txt").write_text("{{ name }}, solve: {{ question }}")
    (tmp_path / "cue.txt").write_text("\n{% if is_critic %}Check, {{ name }}.{% endif %}\n")
    own = PromptStyle("debate", "boxed", PAIR, directory=tmp_path)
    built_in = PromptStyle("debate", "boxed", PAIR)
    assert system_prompt(SUM, own, agent=0) == f"Alice, solve: {SUM.question}"
    assert system_prompt(SUM, own, agent=1) == system_prompt(SUM, built_in, agent=1)
    assert [cue(SUM, own, agent=agent) for agent in (0, 1)] == ["", "Check, Bob."]
    assert own.told([SUM]) != built_in.told([SUM])


@pytest.mark.parametrize(
    ("case", "worked_example", "used"),
    [
        ("exchange", False, {"cue", "information_exchange"}),
        ("exchange", True, {"cue", "information_exchange", "example_exchange"}),
        ("exchange_alone", True, {"cue", "alone", "example_alone"}),
        ("sum", False, {"cue", "critic", "solver"}),
        ("sum", True, {"cue", "critic", "solver", "example_sum"}),
        ("sum_three", False, {"cue", "debater"}),
        ("choice", False, {"cue", "critic", "solver"}),
        ("choice", True, {"cue", "critic", "solver", "example_choice"}),
    ],
)
def test_what_is_told_changes_with_the_templates_that_are_used_and_no_other(
    case: str,
    worked_example: bool,
    used: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem, setting, answer_style, names = CASES[case]
    style = PromptStyle(setting, answer_style, names, worked_example=worked_example)

    def told() -> tuple[str, ...]:
        rendering._template.cache_clear()
        return style.told([problem])

    before = told()
    monkeypatch.setattr(rendering, "TEMPLATE_DIR", tmp_path)
    changing = set()
    templates = [Path(shutil.copy(path, tmp_path)) for path in TEMPLATE_DIR.glob("*.txt")]
    for path in templates:
        text = path.read_text()
        path.write_text(f"{text}More.")
        if told() != before:
            changing.add(path.stem)
        path.write_text(text)
    assert changing == used
    assert told() == before
    rendering._template.cache_clear()


@pytest.mark.parametrize(("case", "agent"), SPEAKERS)
def test_cue_reminds_of_the_marks_but_for_several_agents_with_a_number(
    case: str, agent: int
) -> None:
    problem, setting, answer_style, names = CASES[case]
    text = cue(problem, PromptStyle(setting, answer_style, names), agent=agent)
    if names != ALONE and problem is SUM:
        assert text == ""
    else:
        assert text.startswith(f"({names[agent]}, ")
        assert ("between <A> and </A>" if answer_style == "tag" else "\\boxed{ and }") in text


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        (None, "", "holds none of .*solver.txt"),
        ("solvr.txt", "x", "solvr.txt: is not a template; there are .*solver.txt"),
        ("solver.txt", "{% if %}", "solver.txt: does not parse"),
        (
            "information_exchange.txt",
            "{{ nme }}",
            "information_exchange.txt: cannot be rendered: 'nme' is undefined; there are .*, name,",
        ),
        ("information_exchange.txt", "{% include 'x' %}", "cannot be rendered: no loader"),
        ("information_exchange.txt", "{% if format_text %}{{ how }}{% endif %}", "'how' is undef"),
        ("cue.txt", "{{ 1 / 0 }}", "cue.txt: cannot be rendered: division by zero"),
        ("example_exchange.txt", "{{ fourth }}", "example_exchange.txt: .*, second, third"),
    ],
)
def test_own_templates_that_cannot_be_used_are_refused(
    name: str | None, text: str, reason: str, tmp_path: Path
) -> None:
    if name is not None:
        (tmp_path / name).write_text(text)
    own = f"conversation.prompts={tmp_path}"
    recipe = load_recipe(QUICKSTART, [own, "conversation.worked_example=true"])
    with pytest.raises(UsageError, match=f"conversation.prompts: .*{reason}"):
        PromptStyle.of(recipe, get_task(recipe.task))
    missing = load_recipe(QUICKSTART, [f"conversation.prompts={tmp_path}/none"])
    with pytest.raises(UsageError, match="is not a directory"):
        PromptStyle.of(missing, get_task(recipe.task))


@pytest.mark.parametrize(
    ("names", "name"),
    [(ALONE, "alone"), (PAIR, "solver"), (PAIR, "critic"), (TRIO, "debater")],
)
def test_own_template_that_some_speaker_of_a_debate_fails_with_is_refused(
    names: tuple[str, ...], name: str, tmp_path: Path
) -> None:
    listed = ", ".join(names)
    words = ["task=arc", "cold_start=null", f"agents.names=[{listed}]"]
    texts = {"wrong": "{% if choice_kind %}{{ chioces }}{% endif %}", "right": "{{ question }}"}
    recipes = {}
    for place, text in texts.items():
        (tmp_path / place).mkdir()
        (tmp_path / place / f"{name}.txt").write_text(text)
        own = f"conversation.prompts={tmp_path / place}"
        recipes[place] = load_recipe(QUICKSTART, [*words, own])
    with pytest.raises(UsageError, match=f"{name}.txt: cannot be rendered: 'chioces' is undefined"):
        PromptStyle.of(recipes["wrong"], get_task("arc"))
    style = PromptStyle.of(recipes["right"], get_task("arc"))
    agent = names.index("Bob") if name == "critic" else 0
    assert system_prompt(CHOICE, style, agent=agent) == CHOICE.question


@pytest.mark.parametrize("agent", range(3))
def test_three_agents_are_told_of_both_partners_and_no_one_of_them_solves_or_checks(
    agent: int,
) -> None:
    others = " and ".join(name for name in TRIO if name != TRIO[agent])
    for case in ("choice_three", "sum_three", "exchange_three"):
        prompt = render(case, agent)
        assert f"You are {TRIO[agent]}. You and {others} " in prompt
        peers = [render(case, other) for other in range(3)]
        if case != "exchange_three":  # but for the names all are told the same
            plain = [_nameless(text) for text in peers]
            assert len(set(plain)) == 1


def _nameless(prompt: str) -> str:
    for name in TRIO:
        prompt = prompt.replace(name, "X")
    return prompt


@pytest.mark.parametrize(("case", "agent"), SPEAKERS)
def test_prompt_is_short_apart_from_the_problem(case: str, agent: int) -> None:
    problem = CASES[case][0]
    prompt = render(case, agent).replace(problem.question, "")
    if problem.contexts:
        prompt = prompt.replace(problem.contexts[agent], "")
    assert len(prompt.split()) <= N_WORDS_MAX


@pytest.mark.parametrize("agent", range(3))
def test_an_agent_sees_only_its_own_notes(agent: int) -> None:
    prompt = render("exchange_three", agent)
    seen = [context in prompt for context in EXCHANGE.contexts]
    assert seen == [index == agent for index in range(3)]


@pytest.mark.parametrize(("case", "agent"), SPEAKERS)
def test_format_changes_every_prompt_of_an_exchange_and_the_first_of_a_debate(
    case: str, agent: int
) -> None:
    is_changed = render(case, agent, FORMAT) != render(case, agent)
    assert is_changed == (CASES[case][1] == "information_exchange" or agent == 0)


def test_braces_in_problems_and_formats_are_not_read_as_template() -> None:
    text = "Find {{ name }} in $\\frac{1}{2}$ {% if x %} & <b>"
    prompt = system_prompt(
        SUM.model_copy(update={"question": text}),
        PromptStyle("debate", "boxed", PAIR),
        agent=0,
        format_text='{"k": {{ v }}}',
    )
    assert text in prompt
    assert '{"k": {{ v }}}' in prompt


def test_a_template_that_lacks_a_value_fails() -> None:
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=True)
    for path in sorted(TEMPLATE_DIR.glob("*.txt")):
        with pytest.raises(jinja2.UndefinedError):
            environment.from_string(path.read_text(encoding="utf-8")).render()


@pytest.mark.parametrize(
    ("case", "shown"), [("exchange", "Tarn"), ("sum", "19"), ("choice", "iron")]
)
def test_answer_of_the_worked_example_is_the_one_it_marks(case: str, shown: str) -> None:
    problem, setting, answer_style, names = CASES[case]
    style = PromptStyle(setting, answer_style, names)
    assert example_answer(problem, style) is None
    assert example_answer(problem, replace(style, worked_example=True)) == shown

"""Templates that would take all time or memory are refused at the start, in one line."""

import time
from pathlib import Path

import pytest
from jinja2 import StrictUndefined
from jinja2.exceptions import SecurityError

from optima.conversation.codec import ChatTemplate
from optima.errors import ModelError, UsageError
from optima.prompts.rendering import PromptStyle
from optima.recipe.loading import load_recipe
from optima.sandbox import ExcessError, Sandbox, bounded
from optima.tasks import get_task
from tests.templates import CHATML

QUICKSTART = Path(__file__).resolve().parents[1] / "recipes" / "sft" / "quickstart.yaml"
_DOUBLED = (
    "{% set n = namespace(x=X) %}{% for _ in range(60) %}{% set n.x = Y %}{% endfor %}{{ n.x }}"
)
EXCESSIVE = [
    "{{ 'x' * 10**10 }}",
    "{{ 10**10 * 'x' }}",
    "{{ [1] * 10**10 }}",
    "{{ 10**10**10 }}",
    "{{ 2**4097 }}",
    "{{ range(10**9) | list }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ 'x' | center(10**10) }}",
    "{{ 'x'.ljust(10000000000) }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '%*d' % (10000000000, 1) }}",
    "{{ '%(a)*d' % {'a': 10000000000} }}",
    "{{ ('x' * 100 ~ '%10000000000d') % 1 }}",
    "{{ ('x' * 100 ~ '%10000000000d') | format(1) }}",
    "{{ '%10000000000d' | format(1) }}",
    "{{ '{:10000000000}'.format(1) }}",
    _DOUBLED.replace("X", "'ab'").replace("Y", "n.x ~ n.x"),
    _DOUBLED.replace("X", "'ab'").replace("Y", "n.x + n.x"),
    _DOUBLED.replace("X", "[1]").replace("Y", "n.x + n.x"),
    _DOUBLED.replace("X", "3").replace("Y", "n.x * n.x"),
    "{{ " + 3000 * "(" + "1" + 3000 * ")" + " }}",
    3000 * "{% if 1 %}" + 3000 * "{% endif %}",
    25 * "{% for a in 'x' %}" + 25 * "{% endfor %}",  # more than Python takes
]
SENSIBLE = [
    "{{ '-' * 40 }}",
    "{{ 1.5 * 2 }}",
    "{{ 2**20 % 7 }}",
    "{{ '%5.1f%%' % 99.5 }}",
    "{{ 'asked: %s' % question }}",
    "{{ 'asked: %s, %s' % (question, [1]) }}",
    "{{ '{:>10}'.format('20261128') }}",
    "{{ 20261128 }}",
    "{% for a in range(300) %}{{ a }}{% endfor %}",
    "{{ [{'a': 1}] | tojson(indent=4) }}",
]


@pytest.mark.parametrize("template", EXCESSIVE, ids=range(len(EXCESSIVE)))
def test_chat_template_that_takes_too_much_is_refused_soon_and_in_one_line(template: str) -> None:
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"^org/model: the chat template ") as said:
        ChatTemplate(template + CHATML, {}, origin="org/model")
    assert "\n" not in str(said.value)
    assert len(str(said.value)) < 300
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("template", EXCESSIVE, ids=range(len(EXCESSIVE)))
def test_template_of_a_prompt_that_takes_too_much_is_refused_in_one_line(
    template: str, tmp_path: Path
) -> None:
    (tmp_path / "cue.txt").write_text(template)
    recipe = load_recipe(QUICKSTART, [f"conversation.prompts={tmp_path}"])
    with pytest.raises(UsageError, match=r"^conversation\.prompts: .*cue\.txt: ") as said:
        PromptStyle.of(recipe, get_task(recipe.task))
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("template", SENSIBLE)
def test_sensible_templates_are_not_hindered(template: str) -> None:
    with bounded():
        made = Sandbox().from_string(template)
    made.render(question="By how much do 5% 100000000 and 5% 200000000 differ?")
    ChatTemplate(template + CHATML, {})


@pytest.mark.parametrize(
    "asked", ["loop.__class__", "loop._iterable.append(1)", "loop['__init__']", "items.append(1)"]
)
def test_loop_gives_a_template_nothing_but_what_it_offers(asked: str) -> None:
    source = "{% for item in items %}{{ loop.index }}{{ loop.first }}{{ ASKED }}{% endfor %}"
    sandbox = Sandbox(undefined=StrictUndefined)
    plain = sandbox.from_string(source.replace("ASKED", "loop.last"))
    assert plain.render(items=["x"]) == "1TrueTrue"
    with pytest.raises(SecurityError):
        sandbox.from_string(source.replace("ASKED", asked)).render(items=["x"])


def test_operators_keep_their_bounds_after_the_proof() -> None:
    late = "{% if messages | length > 3 %}{{ 'x' * 10**10 }}{% endif %}" + CHATML
    template = ChatTemplate(late, {}, origin="org/model")
    with pytest.raises(ExcessError, match="makes something larger than 100,000,000"):
        Sandbox().from_string("{{ a * b }}").render(a="x", b=10**10)
    from optima.types import Message

    with pytest.raises(ModelError, match="org/model: the chat template"):
        template.render([Message(role="user", content="x")] * 4)


@pytest.mark.parametrize("text", ["{{ [1, 2] | random }}", "{{ lipsum() }}"])
def test_nothing_in_a_template_draws_at_random(text: str) -> None:
    # else a prompt at training would not be the one at generation
    with pytest.raises(ModelError, match=r"No filter named 'random'|'lipsum' is undefined"):
        ChatTemplate(CHATML + text, {}, origin="m")

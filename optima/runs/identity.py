"""What identifies a stage: what it is given, field by field, whatever the release.

A stage is made again when an input is another one. Inputs are the parameters of the stage's
function by their names, sections of a recipe by those of their fields; what has its default counts
nothing, so a release that adds a field or a parameter with a default has nothing made again.
Whoever renames a parameter does: ``tests/runs/test_identity.py`` holds the names.

Releases before named inputs put texts in a fixed order (``_OLDER``). What they finished is found by
that, once: from then on its INPUTS names it as every other.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from pydantic import BaseModel

from optima.prompts.rendering import PromptStyle
from optima.types import Problem

# Stages that run code of the task: another version of a plug-in makes them anew.
_RUN_BY_TASK = frozenset(("split", "generate", "grow", "rank", "group"))
# Inputs that decide whether a stage stops, not what it makes; they counted once.
_ONLY_STOPS = ("section.min_share",)
# Stages whose files once had another form, which are made anew where they have it.
_FORMS = {"select": "token ids", "script": "token ids", "pair": "token ids"}


@runtime_checkable
class Digested(Protocol):
    """What knows itself how it was made: a model, a finished stage."""

    @property
    def digest(self) -> str:
        """Identify it by content."""


@dataclass(frozen=True, slots=True)
class Identity:
    """``inputs`` are ``name=value`` texts by name, ``older`` the texts of releases before them."""

    inputs: tuple[str, ...]
    older: tuple[tuple[str, ...], ...]


def identify(
    stage: Callable[..., object],
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    versions: tuple[str, ...] = (),
) -> Identity:
    """Return what identifies the call of a stage's function with these inputs.

    Its first two parameters, the run and the directory, are left out. ``versions`` are those of
    the packages that the task is from; they count where the task's own code is run.
    """
    signature = inspect.signature(stage)
    parameters = list(signature.parameters.values())[2:]
    given = signature.replace(parameters=parameters).bind(*args, **kwargs).arguments
    kind = stage.__name__
    fields = (
        (name, value) for name, value in given.items()
        if value != signature.parameters[name].default
    )  # fmt: skip
    named = [pair for name, value in fields for pair in _named(name, value)]
    if kind in _RUN_BY_TASK:
        named.extend(_named("task_from", versions))
    if kind in _FORMS:
        named.append(("form", _FORMS[kind]))
    named.sort()
    counted, all_named = (
        tuple(f"{name}={text}" for name, text in named if name not in left_out)
        for left_out in (_ONLY_STOPS, ())
    )
    texts = _OLDER[kind](**given) if kind in _OLDER else ()
    prompts = _older_prompts(given["team"].style) if _PROMPTS in texts else ("",)
    older = [tuple(p if text == _PROMPTS else text for text in texts) for p in prompts if texts]
    return Identity(counted, (*older, *([all_named] if all_named != counted else [])))


def _named(name: str, value: object) -> Iterator[tuple[str, str]]:
    """Yield the fields of an input that count, with what they hold."""
    if isinstance(value, Digested):
        yield name, value.digest
    elif isinstance(value, Problem):
        yield name, value.problem_id
    elif isinstance(value, BaseModel) or dataclasses.is_dataclass(value):
        for field, default in _defaults(value):
            if (held := getattr(value, field)) != default:
                yield from _named(f"{name}.{field}", held)
    elif isinstance(value, Mapping):
        for key, held in value.items():
            yield from _named(f"{name}.{key}", held)
    elif isinstance(value, (tuple, list)):
        for i, held in enumerate(value):
            yield from _named(f"{name}.{i}", held)
    else:
        yield name, value if isinstance(value, str) else repr(value)


def _defaults(value: Any) -> Iterator[tuple[str, object]]:
    """Yield the fields that count with their defaults; those that do not compare do not count."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        yield from ((name, f.get_default(call_default_factory=True)) for name, f in fields.items())
        return
    for part in dataclasses.fields(value):
        if part.compare:
            made = part.default_factory
            yield part.name, part.default if made is dataclasses.MISSING else made()


# The fields that always counted, by class, and the templates that did.
_FIELDS: dict[str, tuple[str, ...]] = {
    "DataSection": (
        *("path", "train_file", "test_file", "hub_id", "hub_revision", "n_train", "n_test"),
        *("max_malformed", "paragraphs", "max_context_words"),
    ),
    "LoraSection": ("rank", "alpha", "dropout", "target_modules", "serve"),
    "TrainSection": (
        *("learning_rate", "epochs", "batch_size", "micro_batch_size", "warmup_ratio", "scheduler"),
        *("weight_decay", "max_grad_norm", "max_length", "dtype", "optimizer_state_dtype"),
        *("gradient_checkpointing", "batching", "start", "eval_share", "lora", "parallelism"),
        *("save_steps", "save_total_limit", "logging_steps", "report_to", "timeout_s"),
    ),
    "InfluenceSection": ("n_groups", "n_problems"),
    "PairSection": (
        *("theta_filter", "theta_diff", "keep_share", "strategy", "min_share", "path"),
        "influence",
    ),
    "DpoSection": (
        *("beta", "nll_weight", "reference", "learning_rate", "epochs", "batch_size"),
        *("micro_batch_size", "max_length"),
    ),
    "ColdStartSection": ("n_problems", "terse_share", "learning_rate", "epochs", "batch_size"),
    "Sampling": ("n_samples", "temperature", "top_p", "formats"),
    "Format": ("format_id", "text"),
}
_CLASSES = {"Sampling": "TalkPlan"}  # what it was called
_TEMPLATES = (
    *("alone", "critic", "cue", "debater", "example_alone", "example_choice", "example_exchange"),
    *("example_sum", "information_exchange", "solver"),
)
_PROMPTS = "\0prompts"  # stands for their sources
_OLDER_CUE = """\
{%- if setting == "information_exchange" or choice_kind -%}
({{ name }}, be brief and do not repeat.{% if is_critic %} Right: its \
{% if choice_kind == "letter" %}letter{% else %}choice{% endif %} between {{ open_mark }} and \
{{ close_mark }}. Wrong: which step?{% else %} Your answer goes between {{ open_mark }} and \
{{ close_mark }}.{% endif %})
{%- endif -%}
"""


def older_text(value: object) -> str:
    """Return the text of settings as releases before named inputs wrote it.

    It names all fields of before, and of all later ones those that differ from their defaults.
    """
    if isinstance(value, tuple):
        inner = ", ".join(map(older_text, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    name = type(value).__name__
    if name not in _FIELDS:
        return repr(value)
    held = [(field, getattr(value, field)) for field in _FIELDS[name] if hasattr(value, field)]
    for field, default in sorted(_defaults(value)):
        if field not in _FIELDS[name] and getattr(value, field) != default:
            held.append((field, getattr(value, field)))
    shown = (f"{field}={older_text(said)}" for field, said in held)
    return f"{_CLASSES.get(name, name)}({', '.join(shown)})"


def _ids(problems: Iterable[Problem]) -> str:
    return "\n".join(problem.problem_id for problem in problems)


def _older_prompts(style: PromptStyle) -> Iterator[str]:
    """Yield the sources of all templates: those of now, and of before the cue spoke to one agent,
    which changed nothing for several."""
    texts = dict(zip(_TEMPLATES, style.texts(_TEMPLATES), strict=True))
    yield "\n".join(texts.values())
    is_built_in = (texts["cue"],) == replace(style, directory=None).texts(("cue",))
    if is_built_in and len(style.names) > 1:
        yield "\n".join((texts | {"cue": _OLDER_CUE}).values())


# The inputs of each stage in their order of before, from those that it is given now.
_OLDER: dict[str, Callable[..., tuple[str, ...]]] = {
    "split": lambda task, data, seed: (task, older_text(data), repr(seed)),
    "generate": lambda team, problems, sampling: (
        *(team.model.digest, _ids(problems), older_text(sampling), _PROMPTS),
    ),
    "score": lambda talked, loss: (talked.digest, loss.model.digest, loss.end),
    "rank": lambda problems, talked, losses, normalisers=None: (
        *(talked.digest, losses.digest if losses else "", repr(normalisers)),
    ),
    "group": lambda problems, talked: (talked.digest,),
    "select": lambda problems, talked, ranked, t: (talked.digest, ranked.digest, _FORMS["select"]),
    "script": lambda team, problems, section: (
        *(_ids(p for p in problems if p.evidence), older_text(section), team.model.digest),
        *(_FORMS["script"], _PROMPTS),
    ),
    "train": lambda start, rows, section, agents=(): (
        start.digest,
        rows.digest,
        older_text(section),
    ),
    "grow": lambda team, problems, normaliser, loss: (
        *(team.model.digest, loss.model.digest, _ids(problems), repr(normaliser), _PROMPTS),
        loss.end,
    ),
    "pair": lambda problems, trees, section, imported: (
        *(trees.digest, older_text(section), older_text(imported), _FORMS["pair"]),
    ),
    "pick_rows": lambda pairs, problem_ids: (pairs.digest, *problem_ids),
}

"""What identifies the settings that a stage was made with, whatever the release.

A stage is made again when its inputs differ. A new field of a recipe, left at its default, is no
other input, so the text of a section names the fields that runs are identified by since they are,
and of all later ones those that differ from their defaults. (The text is that of ``repr`` before
there were later ones: runs of then go on.)
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

# The fields that always count, by class. New ones are not added here; one that is renamed or
# removed makes stages of older releases be done again.
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
    "TalkPlan": ("n_samples", "temperature", "top_p", "formats"),
    "Format": ("format_id", "text"),
}


def identity(value: object) -> str:
    """Return text that is equal in every release for equal settings."""
    if isinstance(value, tuple):
        inner = ", ".join(map(identity, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    name = type(value).__name__
    if name not in _FIELDS:
        return repr(value)
    shown = (f"{field}={identity(held)}" for field, held in _identifying(value, _FIELDS[name]))
    return f"{name}({', '.join(shown)})"


def _identifying(value: Any, always: tuple[str, ...]) -> Iterator[tuple[str, object]]:
    """Yield the fields that count and what they hold."""
    for field in always:
        if hasattr(value, field):
            yield field, getattr(value, field)
    for field, default in sorted(_defaults(value)):
        if field not in always and getattr(value, field) != default:
            yield field, getattr(value, field)


def _defaults(value: Any) -> Iterator[tuple[str, object]]:
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        yield from ((name, f.get_default(call_default_factory=True)) for name, f in fields.items())
        return
    for part in dataclasses.fields(value):
        made = part.default_factory
        yield part.name, part.default if made is dataclasses.MISSING else made()

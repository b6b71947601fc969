"""Which problems a recipe takes, from where, and what of them the agents are told."""

from typing import Literal, Self

from pydantic import Field, model_validator

from optima.types import Section


class DataSection(Section):
    """Which problems, from where."""

    path: str | None = None
    """Directory with the benchmark's native train and test files; None reads the dataset hub."""
    train_file: str | None = None
    """File below ``path`` for the train split; None takes the task's usual names."""
    test_file: str | None = None
    """File below ``path`` for the test split; None takes the task's usual names."""
    hub_id: str | None = None
    """Dataset id on the hub; None takes the task's own."""
    hub_revision: str | None = None
    """Commit of the hub dataset; None takes the task's own."""
    hub_configs: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Configurations of the hub dataset that make up a split together; None takes the task's."""
    train_split: str | None = None
    """Name of the train split on the hub; None takes the task's own."""
    test_split: str | None = None
    """Name of the test split on the hub; None takes the task's own."""
    n_train: int | None = Field(default=None, ge=1, le=10_000_000)
    """Problems per iteration, a seeded sample of the train split; None takes all."""
    n_test: int | None = Field(default=None, ge=1, le=10_000_000)
    """Held-out problems evaluated after each iteration, a seeded sample; None takes all."""
    first_test: int | None = Field(default=None, ge=1, le=10_000_000)
    """Only so many problems of the test split, the first in its order, of which ``n_test`` are
    drawn; the reference takes the first 1,000 of the tasks of information exchange. None: all."""
    overlap: Literal["refuse", "drop", "keep"] = "refuse"
    """What is done about test problems that stand in the train split too (equal in question,
    choices and gold answers): stop, leave them out of the training, or train on them."""
    max_malformed: float = Field(default=0.02, ge=0, le=1)
    """Share of malformed rows, those without a gold answer in, above which loading fails; below it
    they are counted and skipped."""
    paragraphs: Literal["whole", "lead_sentence"] = "whole"
    """What of each paragraph of hotpot_qa and mwh_qa an agent is given; ``lead_sentence`` restores
    the reference."""
    passages: Literal["description", "document"] = "description"
    """What of each search result of trivia_qa is dealt: its short description (reference), or the
    whole document, mostly longer than ``train.max_length``. Rows without search results give their
    Wikipedia pages up to the first empty line, or the whole of them."""
    max_context_words: int | None = Field(default=None, ge=20, le=1_000_000)
    """Words of context per agent, evidence kept; for models with short contexts. None: no limit."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("train_file", "test_file"):
            if getattr(self, name) is not None and self.path is None:
                raise ValueError(f"{name}: is looked for below path, which is not set; set path")
        for name in ("hub_id", "hub_revision", "hub_configs", "train_split", "test_split"):
            if getattr(self, name) is not None and self.path is not None:
                raise ValueError(f"{name}: contradicts path={self.path}; remove one of them")
        return self

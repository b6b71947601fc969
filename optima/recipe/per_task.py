"""Sections that a task of a mixture may have of its own: talks, and what is made of them.

They stand in a recipe of one task as well, where they are the run's. Of trees: ``sections``.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from optima.types import PathText, Section

ChoiceAnswer = Literal["text", "letter"]


class ConversationSection(Section):
    """Limits of one conversation (paper section 3) and what is prompted."""

    max_turns: int = Field(default=10, ge=2, le=1_000)
    """Turns after which a conversation ends unanswered."""
    max_turn_tokens: int = Field(default=2000, ge=1, le=1_000_000)
    """New tokens per turn."""
    order: Literal["round_robin", "hub", "random"] = "round_robin"
    """Who speaks next among three agents or more: each in turn (paper); the first after each of the
    others; or, after the first, one drawn from those who did not just speak, the same in all
    conversations about a problem. Scripts of a cold start are always in turn."""
    assent_ends: bool = True
    """Whether a partner agrees by saying, right after a marked answer, nothing but that it is right
    or that answer without the mark; false asks for the mark twice, as the paper does."""
    worked_example: bool = False
    """Put one worked example in every prompt; a help for small models, not in the paper."""
    choice_answer: ChoiceAnswer = "text"
    """What multiple choice (arc, mmlu) marks: the choice's text (paper, Table 5) or its letter,
    which costs fewer tokens. Either is scored right, whatever was asked for."""
    prompts: str | None = None
    """Directory of prompt templates in place of the built-in ones of the same file names
    (optima/prompts/templates), or the role set of a package (docs/tasks.md); None takes the
    task's."""
    max_error_rate: float = Field(default=0.02, ge=0, le=1)
    """Share of conversations that may end in an error before the stage fails."""


class SamplingSection(Section):
    """How candidates are drawn (paper App. H)."""

    n_samples: int = Field(default=10, ge=1, le=10_000)
    """Conversations per problem, N."""
    temperature: float = Field(default=0.7, ge=0, le=2)
    """Temperature of iterations 1, 2, ..."""
    first_temperature: float = Field(default=0.3, ge=0, le=2)
    """Temperature of iteration 0; the paper takes 0.7 for gsm8k and math."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus mass."""
    format_pool: bool = True
    """Draw a communication format for each conversation of iteration 0; off for gsm8k and math."""
    format_pool_path: PathText | None = None
    """Directory of further format files, one text file each, or a package's (docs/tasks.md)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.format_pool_path is not None and not self.format_pool:
            raise ValueError(
                "format_pool_path: is not read while format_pool=False; remove one of them"
            )
        return self


class RewardSection(Section):
    """R = R_task - lambda_token * R_token + lambda_loss / R_loss (paper Eq. 1)."""

    lambda_token: float = Field(default=0.6, ge=0, le=1_000)
    """Weight of the normalised token count."""
    lambda_loss: float = Field(default=1.0, ge=0, le=1_000)
    """Weight of 1 / R_loss; 0 also skips the base model's forward."""
    min_tokens: int = Field(default=0, ge=0, le=1_000_000)
    """The token part of the total is -1 for conversations of at most this many tokens, whatever
    lambda_token; 0 is off (reference: 40)."""
    penalise_overflow: bool = False
    """The token part is -1 for conversations with overflow (reference: true)."""
    repeat_zeroes_loss: bool = True
    """A repeated utterance sets the loss part to 0 (reference)."""
    max_loss_tokens: int | None = Field(default=None, ge=1, le=10_000_000)
    """The loss part of the total is -1 for conversations over this many tokens, whatever
    lambda_loss; None is off (reference: 2000)."""
    penalise_empty: bool = False
    """The loss part is -1 where nothing was said (reference: true); false gives no reward."""
    exclude_faults: bool = True
    """Never select conversations with role leakage or overflow."""
    fault_total: float | None = Field(default=None, ge=-1000, le=1000)
    """Total reward of a conversation with role leakage; None leaves it (reference: -10)."""


class SelectSection(Section):
    """Best of N, threshold, top share (paper Alg. 2)."""

    theta: float = Field(default=0.5, ge=-1000, le=1000)
    """A problem is kept when its best conversation's R exceeds this (theta_sft)."""
    threshold_on: Literal["total", "task"] = "total"
    """What theta is compared with: total reward (reference, Alg. 1) or R_task (Eq. 3)."""
    min_share: float = Field(default=0.05, ge=0, le=1)
    """Least share of an iteration's problems that must be selected: below it the run stops and
    says why, as a model trained on a handful of conversations learns their accidents."""
    keep_from: float = Field(default=0.0, ge=0, lt=1)
    """Rank share at which the kept range starts (reference: 0.1 for math)."""
    keep_to: float = Field(default=0.7, gt=0, le=1)
    """Rank share at which the kept range ends: the paper's top 70 %."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.keep_from >= self.keep_to:
            raise ValueError(
                f"keep_from: {self.keep_from} must be less than keep_to={self.keep_to}; lower it"
            )
        if self.min_share > self.keep_to - self.keep_from:
            raise ValueError(
                f"min_share: {self.min_share} is more than is kept from keep_from={self.keep_from} "
                f"to keep_to={self.keep_to}, so every run would stop; lower it"
            )
        return self


class EvaluationSection(Section):
    """Held-out evaluation after each iteration (temperature 0 in the paper)."""

    temperature: float = Field(default=0.0, ge=0, le=2)
    """Sampling temperature."""
    n_samples: int = Field(default=1, ge=1, le=10_000)
    """Conversations per held-out problem."""
    base: bool = True
    """Evaluate the base model too."""


class ColdStartSection(Section):
    """A short SFT on conversations scripted from gold evidence; not in the paper."""

    n_problems: int = Field(default=64, ge=1, le=10_000_000)
    """Problems whose scripted conversation is trained on, a seeded sample of the train split."""
    terse_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the scripts in the terse register, the others are wordy."""
    learning_rate: float = Field(default=1e-4, gt=0, le=1)
    """Peak learning rate."""
    epochs: float = Field(default=1.0, gt=0, le=1_000)
    """Passes over the rows."""
    batch_size: int = Field(default=16, ge=1, le=65_536)
    """Rows per optimiser step."""

"""The nouns of the method: what is written to disk and passed between modules; a recipe's base.

Imports nothing of ours. Everything here is frozen; a record on disk is one JSON line.
"""

import os
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

Setting = Literal["information_exchange", "debate"]
AnswerStyle = Literal["tag", "boxed"]  # <A>answer</A> or \boxed{answer}
StopReason = Literal["agreement", "alone", "max_turns", "context_overflow", "error"]
Fault = Literal["role_leakage", "overflow"]


class Record(BaseModel):
    """A frozen row of an artifact; unknown keys and wrong types are refused on reading.

    Its validator is built when it is first used: most commands use few of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class Fact(Record):
    """One piece of gold evidence and the agent (index from 0) whose context holds it."""

    agent: int
    text: str


class Problem(Record):
    """A question with its accepted answers and what each agent is told.

    ``contexts`` has one text per agent for information exchange and is empty for debate.
    ``golds`` is never empty; a score is the maximum over it. ``evidence`` is in the order in
    which a reader needs it, empty where the benchmark has none. ``choices`` has the texts of a
    multiple-choice question in the order of their letters, and is empty for all others.
    """

    schema_version: Literal[1] = 1
    problem_id: str
    task: str
    question: str
    golds: tuple[str, ...]
    contexts: tuple[str, ...] = ()
    evidence: tuple[Fact, ...] = ()
    choices: tuple[str, ...] = ()


def spoken_tokens(n_tokens: int, n_spoken: int | None) -> int:
    """Return the tokens of an utterance by the paper's count: label in, end of turn out (#Tok).

    Where a run of before it was kept has none, those generated stand for them.
    """
    return n_tokens if n_spoken is None else n_spoken


class Turn(Record):
    """One utterance. ``f"{name}:{text}"`` is what every agent sees of it.

    ``n_tokens`` are the tokens generated, end of turn included, by the server's usage;
    ``n_spoken`` those of ``Name:text`` by the tokenizer, the paper's count (None in runs of before
    it was kept). ``token_ids`` are the sampled ids without the end of turn, None where nothing was
    sampled or the text is not exactly what was. ``finish_reason`` is ``length`` where the token
    limit cut the turn, ``label`` where it was ended because a speaker's label began.
    """

    agent: int
    name: str
    text: str
    answer: str | None
    n_prompt_tokens: int
    n_tokens: int
    n_spoken: int | None = None
    finish_reason: Literal["stop", "length", "label"]
    seconds: float
    token_ids: tuple[int, ...] | None = None

    @property
    def n_counted(self) -> int:
        """Its tokens as they are counted (``spoken_tokens``)."""
        return spoken_tokens(self.n_tokens, self.n_spoken)


class Conversation(Record):
    """Sample ``n`` of the conversations about one problem; ``answer`` is the last one marked."""

    schema_version: Literal[1] = 1
    problem_id: str
    n: int
    format_id: str | None
    turns: tuple[Turn, ...]
    stop_reason: StopReason
    answer: str | None
    faults: tuple[Fault, ...] = ()
    error: str | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens of the utterances by the paper's count: label in, end of turn out (#Tok)."""
        return sum(turn.n_counted for turn in self.turns)

    @property
    def n_generated(self) -> int:
        """Tokens the agents generated, ends of turn in, labels out, from the server's usage."""
        return sum(turn.n_tokens for turn in self.turns)


class RewardParts(Record):
    """The reward of one conversation (paper Eq. 1) with its parts.

    ``task`` in [0, 1], higher is better; ``token`` is R_token in [0, 1], lower is better; ``loss``
    is R_loss in nats per token (None when it was not needed). What the two add to the total, their
    weights and the reference's rules included, are ``token_term`` (None in runs of before it was
    kept) and ``loss_term``: -lambda_token * R_token and lambda_loss / R_loss in the plain case.
    ``total`` is None exactly when ``error`` says why no reward could be computed.
    """

    schema_version: Literal[1] = 1
    problem_id: str
    n: int
    task: float
    token: float
    token_term: float | None = None
    loss: float | None
    loss_term: float
    total: float | None
    n_tokens: int
    is_eligible: bool
    error: str | None = None


class Message(Record):
    """One chat message as a template takes it."""

    role: Literal["system", "user", "assistant"]
    content: str


class TrainingRow(Record):
    """One agent's view of one conversation as token ids, for supervised training.

    ``input_ids`` is what that agent was given and what it sampled; ``trained`` are the spans
    [start, end) of what it sampled, ends of turn included, which carry loss. ``n_retokenised`` of
    its ``n_utterances`` were no sampled ids and had to be tokenised from text.
    """

    schema_version: Literal[2] = 2
    problem_id: str
    n: int
    agent: int
    input_ids: tuple[int, ...]
    trained: tuple[tuple[int, int], ...]
    n_utterances: int
    n_retokenised: int


class TreeNode(Record):
    """One utterance in a dialogue tree; ``parent`` 0 is the root, which has no record.

    Ids count up from 1 in the order in which nodes were added. ``faults`` are those of this
    utterance alone: such a child is never the chosen one of a pair.
    """

    node_id: int
    parent: int
    turn: Turn
    faults: tuple[Fault, ...] = ()


class Rollout(Record):
    """A conversation from the root to node ``node_id``, where it ended, and what it is worth.

    ``n`` numbers the rollouts of a tree from 0. ``reward.total`` is None where the rollout failed
    or no reward could be computed; it then counts in no value.
    """

    n: int
    node_id: int
    stop_reason: StopReason
    reward: RewardParts


class TreeRound(Record):
    """One round of expansion (paper Alg. 4): the node chosen, what was added, what it was worth.

    ``n_tokens`` counts every token generated in the round, those of merged utterances included.
    """

    schema_version: Literal[1] = 1
    problem_id: str
    number: int
    expanded: int
    nodes: tuple[TreeNode, ...]
    rollouts: tuple[Rollout, ...]
    n_merged: int
    n_tokens: int


class DialogueTree(Record):
    """All rounds of one problem's tree; values follow from the rollouts and are not stored."""

    schema_version: Literal[1] = 1
    problem_id: str
    rounds: tuple[TreeRound, ...]


class PreferencePair(Record):
    """Two utterances after the same history, siblings in a tree, and their values (paper Alg. 5).

    ``parent`` is the node whose children they are; ``history`` the turns from the root to it.
    """

    schema_version: Literal[1] = 1
    problem_id: str
    parent: int
    history: tuple[Turn, ...]
    chosen: Turn
    rejected: Turn
    chosen_value: float
    rejected_value: float


class PreferenceRow(Record):
    """A pair as the acting agent sees it, for preference training.

    ``prompt`` is that agent's own view of the history; ``chosen`` and ``rejected`` are one
    assistant message each. The three fields are the common conversational preference format;
    what is trained is their ``_ids``: the prompt's, and the sampled ones of both utterances with
    their ends of turn. ``n_retokenised`` of the two were tokenised from text.
    """

    schema_version: Literal[2] = 2
    problem_id: str
    agent: int
    prompt: tuple[Message, ...]
    chosen: tuple[Message]
    rejected: tuple[Message]
    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    n_retokenised: int


class ModelRef(Record):
    """A servable model: a directory or hub id, and the LoRA adapter directory over it, if any."""

    path: str
    adapter: str | None = None

    @property
    def place(self) -> str:
        """Where what was trained is: the adapter, or the whole model."""
        return self.adapter or self.path

    @property
    def places(self) -> tuple[str, ...]:
        """The directories or hub ids of what is loaded to serve it."""
        return (self.path, *self.adapters)

    @property
    def adapters(self) -> tuple[str, ...]:
        """The directories of the adapters that are served over ``path``."""
        return () if self.adapter is None else (self.adapter,)


class EndpointRef(ModelRef):
    """A policy that somebody else serves at ``url`` under ``name``, by default its only model.

    ``path`` has its tokenizer and chat template.
    """

    policy: str
    url: str
    name: str | None = None

    @property
    def place(self) -> str:
        """Who serves it."""
        return f"{self.name} at {self.url}" if self.name else self.url

    @property
    def places(self) -> tuple[str, ...]:
        """Nothing: its weights are nowhere here."""
        return ()


class TeamRef(ModelRef):
    """The models of several policies, by their names; a policy without one is ``path``, the base.

    ``folder`` is that of the model in its run, such as ``iter_0`` of ``iter_0/train_solver/model``;
    empty where none of them was trained in one.
    """

    member_by_policy: dict[str, ModelRef]
    folder: str = ""

    @property
    def place(self) -> str:
        """Where what was trained is, or the base."""
        return self.folder or self.path

    @property
    def places(self) -> tuple[str, ...]:
        """The directories or hub ids of its base and of all that is served in its place."""
        found = (place for member in self.member_by_policy.values() for place in member.places)
        return tuple(dict.fromkeys((self.path, *found)))

    @property
    def adapters(self) -> tuple[str, ...]:
        """The directories of the adapters, in the order of the policies."""
        return tuple(a for member in self.member_by_policy.values() for a in member.adapters)

    def member(self, policy: str) -> ModelRef:
        """Return the model that is a policy."""
        return self.member_by_policy.get(policy, ModelRef(path=self.path))

    def parts(self, policies: Iterable[str]) -> tuple[ModelRef, ...]:
        """Return what is served for these policies, a fleet each: adapters over one base together.

        Policies that are the same model are one part.
        """
        members = {policy: self.member(policy) for policy in policies}
        bases = dict.fromkeys(
            member if isinstance(member, EndpointRef) else ModelRef(path=member.path)
            for member in members.values()
        )
        parts: list[ModelRef] = []
        for base in bases:
            over = {
                policy: member
                for policy, member in members.items()
                if member.adapter and member.path == base.path
            }
            is_alone = isinstance(base, EndpointRef) or not over
            parts.append(
                base
                if is_alone
                else TeamRef(path=base.path, member_by_policy=over, folder=self.folder)
            )
        return tuple(parts)


class TurnLosses(Record):
    """Mean negative log-likelihood of each turn under the base model, in nats per token.

    None where a turn is empty or its loss is not finite.
    """

    schema_version: Literal[1] = 1
    problem_id: str
    n: int
    losses: tuple[float | None, ...]


class AnswerGroups(Record):
    """The group of each sample's answer in the order of samples; None where there is none."""

    schema_version: Literal[1] = 1
    problem_id: str
    groups: tuple[int | None, ...]


PathText = Annotated[str, AfterValidator(os.path.expanduser)]  # ~ is the home directory
# Words of a command line; agents, who have their own rule; the policy of each, which may be one.
_FREE_LISTS = ("extra_args", "names", "policies")


class Section(BaseModel):
    """Base of every part of a recipe."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
    )

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        """Refuse an empty text, which says nothing, one of lines, and a thing named twice."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            items = value if isinstance(value, tuple) and name not in _FREE_LISTS else ()
            if twice := [item for k, item in enumerate(items) if item in items[:k]]:
                raise ValueError(f"{name}: {twice[0]!r} is named twice; remove one")
            if isinstance(value, str) and not value.strip():
                raise ValueError(
                    f'{name}: is the empty text "{value}"; give it a value or remove it'
                )
            if isinstance(value, str) and "\n" in value:
                raise ValueError(f"{name}: {value!r} has a line break; remove it")
        return self


def named_section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section below each name, or each place of a list, of a field; else None."""
    kinds = {dict: 1, tuple: 0}
    origin = typing.get_origin(annotation)
    return section_of(typing.get_args(annotation)[kinds[origin]]) if origin in kinds else None


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a field holds, None for a plain value."""
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    for option in typing.get_args(annotation) if is_union else (annotation,):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None

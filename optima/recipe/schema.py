"""The recipe: every number that changes a result, typed, strict and frozen.

Defaults are the paper's (arXiv 2410.08115, Table 8 and App. A) where it gives one; a recipe file
holds only what differs. Paths of artifacts are not fields: they derive from the run directory. An
upper bound is beyond what anyone wants and within what a machine can take. A check over several
fields begins its message with the key of one of them, relative to the section that is checked:
``key: what is wrong; remedy``. Sections of serving and training stand in ``sections``, those that
may differ by task in ``per_task``.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator

from optima.recipe.per_task import ChoiceAnswer as ChoiceAnswer
from optima.recipe.per_task import ColdStartSection as ColdStartSection
from optima.recipe.per_task import ConversationSection as ConversationSection
from optima.recipe.per_task import EvaluationSection as EvaluationSection
from optima.recipe.per_task import RewardSection as RewardSection
from optima.recipe.per_task import SamplingSection as SamplingSection
from optima.recipe.per_task import SelectSection as SelectSection
from optima.recipe.sections import DpoSection as DpoSection
from optima.recipe.sections import InfluenceSection as InfluenceSection
from optima.recipe.sections import LoraSection as LoraSection
from optima.recipe.sections import PairSection as PairSection
from optima.recipe.sections import SearchSection as SearchSection
from optima.recipe.sections import ServingSection as ServingSection
from optima.recipe.sections import TrainSection as TrainSection
from optima.recipe.sections import check_endpoint
from optima.tasks.task import DataSection as DataSection
from optima.types import PathText, Section, named_section_of, section_of


class ModelSection(Section):
    """The policy that plays every agent."""

    path: PathText = Field(min_length=1)
    """Directory or hub id of the base model."""
    revision: str | None = None
    """Commit of the hub model; None takes the newest. A directory has none."""
    tokenizer: PathText | None = None
    """Directory or hub id of tokenizer and chat template, for evaluating models saved without
    theirs; None takes the model's own. A model to train must hold its own."""
    roles: Literal["auto", "assistant", "alternate"] = "auto"
    """How utterances map to chat roles: all ``assistant`` (paper), or own assistant and partner
    user; ``auto`` asks the chat template."""
    max_model_len: int | None = Field(default=None, ge=256, le=10_000_000)
    """Context window in tokens, for serving; None takes the model's own."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format for serving."""
    loss_path: PathText | None = None
    """Directory or hub id of the model whose losses give R_loss; None takes ``path``. For runs
    that start from a model already trained."""
    trust_remote_code: bool = False
    """Run code that the model repository ships."""


class AgentsSection(Section):
    """Who talks, in order of speaking."""

    names: tuple[str, ...] = ("Alice", "Bob")
    """Names of the agents; their number is the number of agents. One alone is told everything and
    speaks once, step by step: the control for what talking adds."""
    policies: tuple[str, ...] = ()
    """The policy that plays each agent, in the same order; empty where one plays all (the paper).
    In a recipe: ``agents: [{name: Alice, policy: solver}, {name: Bob, policy: critic}]``."""

    @model_validator(mode="before")
    @classmethod
    def _read_list(cls, given: object) -> object:
        """Take the form with an item for each agent; one policy for all is none of its own."""
        if isinstance(given, list):
            given = _names_and_policies(given)
        if not isinstance(given, dict):
            return given
        # What comes from here is no JSON any more, in which a list stands for a tuple.
        read = {key: tuple(v) if isinstance(v, list) else v for key, v in given.items()}
        names, named = read.get("names", ()), read.get("policies")
        if isinstance(named, tuple) and isinstance(names, tuple) and len(named) == len(names):
            read["policies"] = named if len(set(map(str, named))) > 1 else ()
        return read

    @model_validator(mode="after")
    def _check_policies(self) -> Self:
        if self.policies and len(self.policies) != len(self.names):
            raise ValueError(
                f"policies: {len(self.policies)} of {len(self.names)} agents have one; name one "
                "for each, or none"
            )
        for name in self.policies:
            if not name.isidentifier():
                raise ValueError(
                    f"policies: {name!r} must be one word that begins with a letter; rename it"
                )
        return self

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.names:
            raise ValueError("names: [] is empty, so nobody speaks; name one agent or more")
        shown = ", ".join(self.names)
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"names: [{shown}] must differ from each other; rename one")
        if len({unicodedata.normalize("NFKC", n).casefold() for n in self.names}) < len(self.names):
            raise ValueError(
                f"names: [{shown}] must differ in more than case, or who speaks cannot be told; "
                "rename one"
            )
        for name in self.names:
            if not name.isidentifier():
                raise ValueError(
                    f"names: {name!r} must be one word that begins with a letter; rename it"
                )
        return self


SHARED = "shared"  # the policy of an agent that names none, where others do


def _names_and_policies(given: list[object]) -> dict[str, object]:
    """Return names and policies of agents that are given one by one."""
    agents: list[dict[str, str]] = []
    for place, agent in enumerate(given, start=1):
        words = dict(agent) if isinstance(agent, dict) else {}
        is_text = all(isinstance(word, str) for word in words.values())
        if "name" not in words or not is_text or not set(words) <= {"name", "policy"}:
            raise ValueError(
                f"names: item {place} of the list is no agent; write each as "
                "{name: Alice, policy: solver}, or the whole as {names: [Alice, Bob]}"
            )
        agents.append(words)
    policies = [agent.get("policy", SHARED) for agent in agents]
    return {"names": [agent["name"] for agent in agents], "policies": policies}


class PolicySection(Section):
    """One of several policies, by its name in ``agents``."""

    path: PathText | None = None
    """What it begins as: directory of a LoRA adapter over ``model.path``, or directory or hub id of
    another model; None: ``model.path`` itself. Of an ``endpoint``: directory or hub id of the
    tokenizer and chat template of what is served there, None: those of ``model.path``."""
    frozen: bool = False
    """Whether it stays as it is: it speaks and is not trained."""
    endpoint: str | None = None
    """Base URL of a server of somebody else that is this policy, which must be frozen."""
    model: str | None = None
    """Name under which ``endpoint`` serves it; None takes the only one there. The API key is read
    from OPTIMA_API_KEY_NAME, of the policy's name in capitals, and from nothing else."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.endpoint is not None:
            check_endpoint(self.endpoint, "endpoint")
            if not self.frozen:
                raise ValueError(
                    f"frozen: false: what {self.endpoint} serves is somebody else's and cannot be "
                    "trained; write frozen: true"
                )
        elif self.model is not None:
            raise ValueError(
                f"model: {self.model} is the name of what an endpoint serves, and there is none; "
                "name one by endpoint, or a model on this host by path"
            )
        return self


class TaskEntry(Section):
    """One task of a mixture, with the sections that hold for it; in a file, what differs in them.

    ``optima.recipe.layers`` lays what an entry says over the rest of its file.
    """

    task: str
    """Benchmark, as ``task`` of a recipe of one task."""
    weight: float | None = Field(default=None, gt=0, le=1_000_000)
    """Its share of what an iteration is trained on, relative to those of the other tasks, which are
    1 where one has a weight and they have none. None everywhere trains on all that is selected."""
    data: DataSection = DataSection()
    conversation: ConversationSection = ConversationSection()
    sampling: SamplingSection = SamplingSection()
    reward: RewardSection = RewardSection()
    select: SelectSection = SelectSection()
    search: SearchSection | None = None
    pairs: PairSection | None = None
    evaluation: EvaluationSection = EvaluationSection()
    cold_start: ColdStartSection | None = None


# Fields of these sections that are the run's all the same: there is one training, one device.
OWN_OF_RUN = (
    *("search.scorer_gpus", "search.gpu_memory_utilization", "evaluation.base"),
    *("cold_start.learning_rate", "cold_start.epochs", "cold_start.batch_size"),
)
OF_TASKS = tuple(name for name in TaskEntry.model_fields if name not in ("task", "weight"))


MIXED = "+"  # between the names of a mixture's tasks
MAX_SEED = 2**63 - 1  # a signed 64-bit number, as servers take it
Method = Literal["sft", "dpo", "sft_dpo"]
# Sections that a method has beyond those of all, with what it has other than their defaults.
METHOD_SECTIONS: dict[str, dict[str, dict[str, float]]] = {
    "sft": {},
    "dpo": {"search": {}, "pairs": {}, "dpo": {}},
    "sft_dpo": {"search": {"probe_percentile": 80.0}, "pairs": {}, "dpo": {"nll_weight": 0.0}},
}


class Recipe(Section):
    """One run."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    method: Method
    """Training method."""
    task: str
    """Benchmark: one of ``optima tasks``, or package.module:NAME (docs/tasks.md). Of a mixture the
    names of its tasks, joined by +."""
    tasks: tuple[TaskEntry, ...] = ()
    """In place of ``task``: a mixture, whose model is trained on all of these tasks. An entry names
    a task and what differs for it in sections of the recipe
    (docs/operations.md#several-tasks-in-one-run)."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Root of all randomness."""
    iterations: int = Field(default=6, ge=1, le=1_000)
    """Iterations, each of a training; of sft_dpo each of SFT and DPO. Those of a dpo run count the
    SFT that initialises it."""
    model: ModelSection
    data: DataSection = DataSection()
    agents: AgentsSection = AgentsSection()
    policies: dict[str, PolicySection] = Field(default_factory=dict)
    """Settings of policies that play some of the agents, by their names in ``agents``."""
    conversation: ConversationSection = ConversationSection()
    sampling: SamplingSection = SamplingSection()
    reward: RewardSection = RewardSection()
    select: SelectSection = SelectSection()
    train: TrainSection = TrainSection()
    initialise: bool | None = None
    """Whether the first iteration of a dpo run is one of SFT (the default); false when
    ``model.path`` is an initialised model, such as iteration 0 of a run of ``optima-sft``: then
    ``select`` and, of ``sampling``, all but temperature and top_p are of no use."""
    search: SearchSection | None = None
    pairs: PairSection | None = None
    dpo: DpoSection | None = None
    serving: ServingSection = ServingSection()
    evaluation: EvaluationSection = EvaluationSection()
    cold_start: ColdStartSection | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        needed = METHOD_SECTIONS[self.method]
        for name in ("search", "pairs", "dpo"):
            if getattr(self, name) is not None and name not in needed:
                raise ValueError(f"{name}: contradicts method={self.method}; remove the section")
            if getattr(self, name) is None and name in needed:
                raise ValueError(f"{name}: is missing, method={self.method} needs it; add it")
        if self.initialise is not None and self.method != "dpo":
            raise ValueError(f"initialise: contradicts method={self.method}; remove it")
        if self.method == "dpo" and self.initialise is not False and self.iterations == 1:
            raise ValueError(
                "iterations: 1 is the SFT that initialises a dpo run, and no training on "
                "preferences follows; write 2 or more, or initialise: false"
            )
        if self.method == "dpo":
            self._check_unread()
        if len(self.agents.names) == 1 and self.method != "sft":
            raise ValueError(
                "agents.names: has one agent, but a dialogue needs two; name two, or use method=sft"
            )
        self._check_policies()
        self._check_tasks()
        order = self.conversation.order
        if order != "round_robin" and len(self.agents.names) < 3:
            raise ValueError(
                f"conversation.order: {order} is round_robin for {len(self.agents.names)} agents; "
                "remove it, or name three or more in agents"
            )
        most, window = self.conversation.max_turn_tokens, self.model.max_model_len
        if window is not None and most >= window:
            raise ValueError(
                f"conversation.max_turn_tokens: {most} leaves no room for a prompt in "
                f"model.max_model_len={window}; lower it"
            )
        return self

    def _check_policies(self) -> None:
        """Refuse settings of policies that play nobody, and teams of which none learns."""
        named = self.agents.policies
        for name in self.policies:
            if not named:
                raise ValueError(
                    f"policies: {name} is not read while one policy plays all agents; remove it, "
                    "or write agents: [{name: Alice, policy: solver}, {name: Bob, policy: critic}]"
                )
            if name not in named:
                there = ", ".join(dict.fromkeys(named))
                raise ValueError(
                    f"policies: {name} plays no agent; remove it, or name one of {there}"
                )
        if named and all(n in self.policies and self.policies[n].frozen for n in named):
            raise ValueError("policies: all are frozen, so nothing is trained; thaw one")
        if named and self.serving.nodes is not None:
            raise ValueError(
                "serving.nodes: other nodes serve one model, not a policy per agent; remove it, or "
                "give all agents one policy"
            )

    def _check_tasks(self) -> None:
        """Refuse a mixture of one task, or of one twice, and what does not say for which it is."""
        names = [entry.task for entry in self.tasks]
        if len(names) == 1:
            raise ValueError(f"tasks: {names[0]} alone is no mixture; write task: {names[0]}")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"tasks: {name} is there twice; remove one of its entries")
        if names and self.task != MIXED.join(names):
            raise ValueError(f"task: {self.task} stands beside tasks; remove one of the two")
        held = [self.pairs, *(entry.pairs for entry in self.tasks)] if names else []
        for pairs in filter(None, held):
            if pairs.strategy == "influence":
                raise ValueError(
                    "pairs.strategy: influence tries trainings on one task and there are several; "
                    "take value or random"
                )
            if pairs.path is not None:
                raise ValueError(
                    f"pairs.path: {pairs.path} does not say which of several tasks its "
                    "preferences are for; remove it"
                )

    def members(self) -> dict[str, "Recipe"]:
        """Return the recipes of single tasks that a mixture has, by task; of any other itself, by
        the empty text."""
        return {
            entry.task: self.model_copy(
                update={
                    "task": entry.task,
                    "tasks": (),
                    **{name: getattr(entry, name) for name in OF_TASKS},
                }
            )
            for entry in self.tasks
        } or {"": self}

    def changed(self, **sections: Mapping[str, object]) -> Self:
        """Return the recipe with other fields in some of its sections; they are not validated."""
        others = {
            name: getattr(self, name).model_copy(update=fields) for name, fields in sections.items()
        }
        return self.model_copy(update=others)

    def _check_unread(self) -> None:
        """Refuse what an iDPO run has no use for."""
        train = self.train
        if train.start != "auto":
            raise ValueError(
                f"train.start: {train.start} is not read with method=dpo, whose iterations each "
                "go on from the last; remove it"
            )
        has_sft = self.initialise is not False or self.cold_start is not None
        if train.batching != "length_grouped" and not has_sft:
            raise ValueError(
                f"train.batching: {train.batching} applies to SFT, and there is none with "
                "initialise=false and no cold_start; remove it: pairs are trained on as they come"
            )


def section_above(keys: Sequence[str]) -> type[BaseModel] | None:
    """Return the section in which the last of ``keys`` stands, None where there is none."""
    section: type[BaseModel] | None = Recipe
    is_name = False  # whether a key is a name that the user gave, such as a policy's, or a place
    for key in keys[:-1]:
        if not is_name:
            section, is_name = _below(section, key)
        else:
            is_name = False
    return None if is_name else section


def keys_of(location: Iterable[str]) -> list[str]:
    """Return the keys of an error's location, without pydantic's tags of unions."""
    section: type[BaseModel] | None = Recipe
    is_name = False
    keys: list[str] = []
    for part in location:
        if section is None:  # below a plain field only list positions are the user's own words
            if part.isdigit():
                keys.append(part)
            continue
        keys.append(part)
        if not is_name:
            section, is_name = _below(section, part)
        else:
            is_name = False
    return keys


def _below(section: type[BaseModel] | None, key: str) -> tuple[type[BaseModel] | None, bool]:
    """Return the section that a field holds, and whether there is one below each name of it."""
    field = section.model_fields.get(key) if section else None
    named = named_section_of(field.annotation) if field else None
    if named is not None:
        return named, True
    return (section_of(field.annotation) if field else None), False

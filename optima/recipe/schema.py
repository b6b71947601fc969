"""The recipe: every number that changes a result, typed, strict and frozen.

Defaults are the paper's (arXiv 2410.08115, Table 8 and App. A) where it gives one; a recipe file
holds only what differs. Paths of artifacts are not fields: they derive from the run directory. An
upper bound is beyond what anyone wants and within what a machine can take.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator

from optima.recipe.sections import AgentsSection as AgentsSection
from optima.recipe.sections import ChoiceAnswer as ChoiceAnswer
from optima.recipe.sections import ColdStartSection as ColdStartSection
from optima.recipe.sections import ConversationSection as ConversationSection
from optima.recipe.sections import EvaluationSection as EvaluationSection
from optima.recipe.sections import ModelSection as ModelSection
from optima.recipe.sections import RewardSection as RewardSection
from optima.recipe.sections import SamplingSection as SamplingSection
from optima.recipe.sections import SelectSection as SelectSection
from optima.recipe.serving import ServingSection as ServingSection
from optima.recipe.training import DpoSection as DpoSection
from optima.recipe.training import InfluenceSection as InfluenceSection
from optima.recipe.training import LoraSection as LoraSection
from optima.recipe.training import PairSection as PairSection
from optima.recipe.training import SearchSection as SearchSection
from optima.recipe.training import TrainSection as TrainSection
from optima.tasks.data import DataSection as DataSection
from optima.types import Section, section_of

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
    """Benchmark: one of ``optima tasks``, or package.module:NAME (docs/tasks.md)."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Root of all randomness."""
    iterations: int = Field(default=6, ge=1, le=1_000)
    """Iterations, each of a training; of sft_dpo each of SFT and DPO. Those of a dpo run count the
    SFT that initialises it."""
    model: ModelSection
    data: DataSection = DataSection()
    agents: AgentsSection = AgentsSection()
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
        most, window = self.conversation.max_turn_tokens, self.model.max_model_len
        if window is not None and most >= window:
            raise ValueError(
                f"conversation.max_turn_tokens: {most} leaves no room for a prompt in "
                f"model.max_model_len={window}; lower it"
            )
        return self

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
    for key in keys[:-1]:
        field = section.model_fields.get(key) if section else None
        section = section_of(field.annotation) if field else None
    return section


def keys_of(location: Iterable[str]) -> list[str]:
    """Return the keys of an error's location, without pydantic's tags of unions."""
    section: type[BaseModel] | None = Recipe
    keys: list[str] = []
    for part in location:
        if section is None:  # below a plain field only list positions are the user's own words
            if part.isdigit():
                keys.append(part)
            continue
        keys.append(part)
        field = section.model_fields.get(part)
        section = section_of(field.annotation) if field else None
    return keys

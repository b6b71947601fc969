"""The parts of a recipe that learn from preferences: dialogue trees, their pairs, DPO (Table 8)."""

from typing import Literal

from pydantic import Field, field_validator

from optima.recipe.section import Section


class SearchSection(Section):
    """Dialogue trees (paper Alg. 4, 5, App. H.1); used by dpo and sft_dpo."""

    n_rounds: int = Field(default=8, ge=1, le=1_000)
    """Expansion rounds per problem."""
    n_rollouts: int = Field(default=3, ge=2, le=1_000)
    """Conversations rolled out from the chosen node per round."""
    n_candidates: int = Field(default=10, ge=1, le=100_000)
    """Eligible nodes of highest value among which the softmax draws."""
    min_distance: float = Field(default=0.25, ge=0, le=1)
    """Least normalised edit distance to every expanded node for a node to be eligible."""
    merge_distance: float = Field(default=0.1, ge=0, le=1)
    """A new child nearer than this to a sibling is merged into it."""
    n_probe: int = Field(default=100, ge=1, le=10_000_000)
    """Problems of the token probe."""
    probe_percentile: float = Field(default=85.0, gt=0, le=100)
    """Percentile of the probe's token counts, plus 1, that normalises R_token (80 for sft_dpo)."""
    n_problems: int | None = Field(default=None, ge=1, le=10_000_000)
    """Problems with a tree per iteration; None takes ``data.n_train``."""
    lambda_token: float | None = Field(default=None, ge=0, le=1_000)
    """Weight of the normalised token count while trees grow; None takes the reward's."""
    lambda_loss: float | None = Field(default=None, ge=0, le=1_000)
    """Weight of 1 / R_loss while trees grow; None takes the reward's."""
    concurrency: int = Field(default=256, ge=1, le=65_536)
    """Trees that grow at once per server, each with ``n_rollouts`` conversations in flight."""
    scorer_gpus: int = Field(default=0, ge=0, le=1_024)
    """GPUs that score losses and serve nothing while trees grow; 0 shares the servers' GPUs."""
    gpu_memory_utilization: float = Field(default=0.7, gt=0, le=1)
    """Share of GPU memory that vLLM takes while a scorer shares its GPUs."""


class InfluenceSection(Section):
    """Influence of pairs on a validation reward, in the spirit of DITS (arXiv 2502.00955)."""

    n_groups: int = Field(default=4, ge=2, le=1_000)
    """Groups of problems whose pairs are tried by one short training each."""
    n_problems: int = Field(default=64, ge=1, le=10_000_000)
    """Problems of the train split, none of them with a tree in this iteration, that measure a
    trial; fewer where there are not so many."""


class PairSection(Section):
    """Preference pairs from trees (paper Alg. 5)."""

    theta_filter: float = Field(default=0.4, ge=-1000, le=1000)
    """The best child's value must exceed this."""
    theta_diff: float = Field(default=0.2, ge=0, le=1_000)
    """Best minus worst must exceed this."""
    keep_share: float = Field(default=0.5, gt=0, le=1)
    """Share of a problem's pairs kept, by the best child's value, at least one."""
    strategy: Literal["value", "random", "influence"] = "value"
    """Which of the pairs above both thresholds are kept: those with the best chosen child (paper),
    as many drawn at random, or those whose training helps most on held-out problems (DITS)."""
    min_share: float = Field(default=0.05, ge=0, le=1)
    """Least share of an iteration's problems that must give a pair, as in ``select``."""
    path: str | None = None
    """JSON Lines file of further preferences (prompt, chosen, rejected as lists of messages) that
    every iteration trains on beside its own pairs."""
    influence: InfluenceSection = InfluenceSection()
    """How the influence is measured; other strategies do not look at it. Null is the default."""

    @field_validator("influence", mode="before")
    @classmethod
    def _fill(cls, given: object) -> object:
        return {} if given is None else given


class DpoSection(Section):
    """Direct preference optimisation; with nll_weight > 0 it is RPO (paper Eq. 4, Table 8).

    What is not named here is as in ``train``.
    """

    beta: float = Field(default=0.1, gt=0, le=1_000)
    """KL strength."""
    nll_weight: float = Field(default=1.0, ge=0, le=1_000)
    """Alpha: weight of the negative log-likelihood of the chosen utterance; 0 for sft_dpo."""
    reference: Literal["precomputed", "live"] = "precomputed"
    """Reference log-probabilities ahead of training, or a second model in memory."""
    learning_rate: float = Field(default=5e-7, gt=0, le=1)
    """Peak learning rate."""
    epochs: float = Field(default=1.0, gt=0, le=1_000)
    """Passes over the pairs."""
    batch_size: int = Field(default=64, ge=1, le=65_536)
    """Pairs per optimiser step, over all devices and accumulation steps."""
    micro_batch_size: int = Field(default=2, ge=1, le=65_536)
    """Pairs per forward on one device; each is two rows."""
    max_length: int = Field(default=4096, ge=16, le=1_000_000)
    """Tokens of a prompt with one of its utterances; longer pairs are counted and dropped."""

"""The recipe: every number that changes a result, typed, strict and frozen.

Defaults are the paper's (arXiv 2410.08115, Table 8 and App. A) where it gives one; a recipe file
holds only what differs. Paths of artifacts are no fields: they derive from the run directory.
"""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from optima.recipe.checks import check_agents, check_recipe, check_sampling, check_serving
from optima.recipe.data import DataSection as DataSection
from optima.recipe.section import Section

Method = Literal["sft", "dpo", "sft_dpo"]
ChoiceAnswer = Literal["text", "letter"]
# Sections that a method has beyond those of all, with what it has other than their defaults.
METHOD_SECTIONS: dict[str, dict[str, dict[str, float]]] = {
    "sft": {},
    "dpo": {"search": {}, "pairs": {}, "dpo": {}},
    "sft_dpo": {"search": {"probe_percentile": 80.0}, "pairs": {}, "dpo": {"nll_weight": 0.0}},
}


class ModelSection(Section):
    """The policy that plays every agent."""

    path: str = Field(min_length=1)
    """Directory or hub id of the base model."""
    revision: str | None = None
    """Commit of the hub model; None takes the newest."""
    tokenizer: str | None = None
    """Directory or hub id of tokenizer and chat template, for evaluating models saved without
    theirs; None takes the model's own. A model to train must hold its own."""
    roles: Literal["auto", "assistant", "alternate"] = "auto"
    """How utterances map to chat roles: all ``assistant`` (paper), or own assistant and partner
    user; ``auto`` asks the chat template."""
    max_model_len: int | None = Field(default=None, ge=256)
    """Context window in tokens, for serving; None takes the model's own."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format for serving."""
    loss_path: str | None = None
    """Directory or hub id of the model whose losses give R_loss; None takes ``path``. For runs
    that start from a model already trained."""
    trust_remote_code: bool = False
    """Run code that the model repository ships."""


class AgentsSection(Section):
    """Who talks, in order of speaking."""

    names: tuple[str, ...] = ("Alice", "Bob")
    """Names of the agents; their number is the number of agents. One alone is told everything and
    speaks once, step by step: the control for what talking adds."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_agents(self)
        return self


class ConversationSection(Section):
    """Limits of one conversation (paper section 3) and what is prompted."""

    max_turns: int = Field(default=10, ge=2)
    """Turns after which a conversation ends unanswered."""
    max_turn_tokens: int = Field(default=2000, ge=1)
    """New tokens per turn."""
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
    (optima/prompts/templates); None takes those."""
    max_error_rate: float = Field(default=0.02, ge=0, le=1)
    """Share of conversations that may end in an error before the stage fails."""


class SamplingSection(Section):
    """How candidates are drawn (paper App. H)."""

    n_samples: int = Field(default=10, ge=1)
    """Conversations per problem, N."""
    temperature: float = Field(default=0.7, ge=0)
    """Temperature of iterations 1, 2, ..."""
    first_temperature: float = Field(default=0.3, ge=0)
    """Temperature of iteration 0; the paper takes 0.7 for gsm8k and math."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus mass."""
    format_pool: bool = True
    """Draw a communication format for each conversation of iteration 0; off for gsm8k and math."""
    format_pool_path: str | None = None
    """Directory of further format files, one text file each."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_sampling(self)
        return self


class RewardSection(Section):
    """R = R_task - lambda_token * R_token + lambda_loss / R_loss (paper Eq. 1)."""

    lambda_token: float = Field(default=0.6, ge=0)
    """Weight of the normalised token count."""
    lambda_loss: float = Field(default=1.0, ge=0)
    """Weight of 1 / R_loss; 0 also skips the base model's forward."""
    min_tokens: int = Field(default=0, ge=0)
    """Conversations of at most this many tokens get token score -1; 0 is off (reference: 40)."""
    repeat_zeroes_loss: bool = True
    """A repeated utterance sets the loss term to 0 (reference)."""
    max_loss_tokens: int | None = Field(default=None, ge=1)
    """Conversations over this many tokens get loss term -1; None is off (reference: 2000)."""
    exclude_faults: bool = True
    """Never select conversations with role leakage or overflow."""
    fault_total: float | None = None
    """Total reward of a conversation with role leakage; None leaves it (reference: -10)."""


class SelectSection(Section):
    """Best of N, threshold, top share (paper Alg. 2)."""

    theta: float = 0.5
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
        return self


class LoraSection(Section):
    """Low-rank adapters instead of full fine-tuning."""

    rank: int = Field(default=16, ge=1)
    """Rank r."""
    alpha: int = Field(default=32, ge=1)
    """Scale alpha."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter input."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Modules that get an adapter."""
    serve: Literal["merged", "adapter"] = "merged"
    """Serve merged weights, or the adapter over the base model."""


class TrainSection(Section):
    """How a model is trained, shared by SFT and DPO (paper Table 8)."""

    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak learning rate."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the rows."""
    batch_size: int = Field(default=32, ge=1)
    """Rows per optimiser step, over all devices and accumulation steps."""
    micro_batch_size: int = Field(default=4, ge=1)
    """Rows per forward on one device; lowered to batch_size / devices where it is larger."""
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    """Share of steps over which the learning rate rises."""
    scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """Learning-rate schedule."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradient clipping."""
    max_loss_growth: float | None = Field(default=10.0, gt=1)
    """Times the start's loss (at least 1 nat) above which a training fails; None never does."""
    max_length: int = Field(default=2048, ge=16)
    """Tokens per row; longer rows are counted and dropped, never cut silently."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of forward and backward."""
    optimizer_state_dtype: Literal["float32", "model"] = "float32"
    """Master weights in float32 with bf16 autocast, or everything in ``dtype``."""
    gradient_checkpointing: bool = True
    """Trade compute for memory."""
    batching: Literal["length_grouped", "packing", "plain"] = "length_grouped"
    """How rows are put together: similar lengths, packed to max_length, or as they come."""
    start: Literal["auto", "previous", "base"] = "auto"
    """Model each iteration starts from; ``auto``: previous for information exchange, base for
    debate (paper)."""
    eval_share: float = Field(default=0.02, ge=0, lt=1)
    """Share of the problems whose rows measure evaluation loss and are not trained on."""
    lora: LoraSection | None = None
    """LoRA; None is full fine-tuning."""
    parallelism: Literal["auto", "none", "ddp", "zero3", "fsdp"] = "auto"
    """How several GPUs share the training; ``auto``: none on one device, zero3 on several. With
    fsdp and preferences each process holds the whole weights in host memory while it loads them."""
    save_steps: int | None = Field(default=None, ge=1)
    """Optimiser steps between checkpoints; None saves at each epoch."""
    save_total_limit: int = Field(default=1, ge=1)
    """Checkpoints kept on disk while training."""
    logging_steps: int = Field(default=1, ge=1)
    """Optimiser steps between log lines."""
    report_to: tuple[str, ...] = ()
    """transformers trackers, such as wandb or tensorboard."""
    timeout_s: float = Field(default=86400.0, gt=0)
    """Deadline of one training process."""


class SearchSection(Section):
    """Dialogue trees (paper Alg. 4, 5, App. H.1); used by dpo and sft_dpo."""

    n_rounds: int = Field(default=8, ge=1)
    """Expansion rounds per problem."""
    n_rollouts: int = Field(default=3, ge=2)
    """Conversations rolled out from the chosen node per round."""
    n_candidates: int = Field(default=10, ge=1)
    """Eligible nodes of highest value among which the softmax draws."""
    min_distance: float = Field(default=0.25, ge=0, le=1)
    """Least normalised edit distance to every expanded node for a node to be eligible."""
    merge_distance: float = Field(default=0.1, ge=0, le=1)
    """A new child nearer than this to a sibling is merged into it."""
    n_probe: int = Field(default=100, ge=1)
    """Problems of the token probe."""
    probe_percentile: float = Field(default=85.0, gt=0, le=100)
    """Percentile of the probe's token counts, plus 1, that normalises R_token (80 for sft_dpo)."""
    n_problems: int | None = Field(default=None, ge=1)
    """Problems with a tree per iteration; None takes ``data.n_train``."""
    lambda_token: float | None = Field(default=None, ge=0)
    """Weight of the normalised token count while trees grow; None takes the reward's."""
    lambda_loss: float | None = Field(default=None, ge=0)
    """Weight of 1 / R_loss while trees grow; None takes the reward's."""
    concurrency: int = Field(default=256, ge=1)
    """Trees that grow at once per server, each with ``n_rollouts`` conversations in flight."""
    scorer_gpus: int = Field(default=0, ge=0)
    """GPUs that score losses and serve nothing while trees grow; 0 shares the servers' GPUs."""
    gpu_memory_utilization: float = Field(default=0.7, gt=0, le=1)
    """Share of GPU memory that vLLM takes while a scorer shares its GPUs."""


class InfluenceSection(Section):
    """Influence of pairs on a validation reward, in the spirit of DITS (arXiv 2502.00955)."""

    n_groups: int = Field(default=4, ge=2)
    """Groups of problems whose pairs are tried by one short training each."""
    n_problems: int = Field(default=64, ge=1)
    """Problems of the train split, none of them with a tree in this iteration, that measure a
    trial; fewer where there are not so many."""


class PairSection(Section):
    """Preference pairs from trees (paper Alg. 5)."""

    theta_filter: float = 0.4
    """The best child's value must exceed this."""
    theta_diff: float = Field(default=0.2, ge=0)
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

    beta: float = Field(default=0.1, gt=0)
    """KL strength."""
    nll_weight: float = Field(default=1.0, ge=0)
    """Alpha: weight of the negative log-likelihood of the chosen utterance; 0 for sft_dpo."""
    reference: Literal["precomputed", "live"] = "precomputed"
    """Reference log-probabilities ahead of training, or a second model in memory."""
    learning_rate: float = Field(default=5e-7, gt=0)
    """Peak learning rate."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the pairs."""
    batch_size: int = Field(default=64, ge=1)
    """Pairs per optimiser step, over all devices and accumulation steps."""
    micro_batch_size: int = Field(default=2, ge=1)
    """Pairs per forward on one device; each is two rows."""
    max_length: int = Field(default=4096, ge=16)
    """Tokens of a prompt with one of its utterances; longer pairs are counted and dropped."""


class ServingSection(Section):
    """The vLLM servers."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where servers and training run; ``auto`` looks for GPUs."""
    gpus: tuple[int, ...] | None = None
    """GPU indices to use; None takes all visible ones."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs per server; the number of servers is GPUs / tensor_parallel."""
    endpoints: tuple[str, ...] = ()
    """Base URLs of servers already running elsewhere that serve the start model; the key is read
    from OPTIMA_API_KEY. Such servers are never started or stopped."""
    port: int | None = Field(default=None, ge=1, le=65535)
    """Port of the first server, the others follow it; None takes what the kernel gives, so that
    runs share a host."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of GPU memory that vLLM takes."""
    max_num_seqs: int = Field(default=1024, ge=1)
    """Sequences a server decodes at once."""
    concurrency: int = Field(default=512, ge=1)
    """Conversations in flight per server."""
    cpu_kv_cache_gb: int = Field(default=2, ge=1)
    """GiB of key-value cache of a CPU server."""
    enforce_eager: bool = False
    """Skip compilation: a faster start and slower tokens."""
    extra_args: tuple[str, ...] = ()
    """Further arguments of the vLLM server, one element each."""
    start_timeout_s: float = Field(default=900.0, gt=0)
    """Deadline for a server to answer its health probe."""
    request_timeout_s: float = Field(default=600.0, gt=0)
    """Deadline for one completion, retries on other servers not included."""
    max_attempts: int = Field(default=5, ge=1)
    """Tries per completion, each on another server where there is one."""
    max_restarts: int = Field(default=3, ge=0)
    """Restarts of one dead server before the stage fails."""
    scorer_batch_tokens: int = Field(default=16384, ge=256)
    """Padded tokens per forward of the base-model scorer."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_serving(self)
        return self


class EvaluationSection(Section):
    """Held-out evaluation after each iteration (temperature 0 in the paper)."""

    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature."""
    n_samples: int = Field(default=1, ge=1)
    """Conversations per held-out problem."""
    base: bool = True
    """Evaluate the base model too."""


class ColdStartSection(Section):
    """A short SFT on conversations scripted from gold evidence; not in the paper."""

    n_problems: int = Field(default=64, ge=1)
    """Problems whose scripted conversation is trained on, a seeded sample of the train split."""
    terse_share: float = Field(default=0.0, ge=0, le=1)
    """Share of the scripts in the terse register, the others are wordy."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the rows."""
    batch_size: int = Field(default=16, ge=1)
    """Rows per optimiser step."""


class Recipe(Section):
    """One run."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    method: Method
    """Training method."""
    task: str
    """Benchmark, one of ``optima tasks``."""
    seed: int = Field(default=0, ge=0)
    """Root of all randomness."""
    iterations: int = Field(default=6, ge=1)
    """Iterations of generate, rank, select, train."""
    model: ModelSection
    data: DataSection = DataSection()
    agents: AgentsSection = AgentsSection()
    conversation: ConversationSection = ConversationSection()
    sampling: SamplingSection = SamplingSection()
    reward: RewardSection = RewardSection()
    select: SelectSection = SelectSection()
    train: TrainSection = TrainSection()
    initialise: bool | None = None
    """Whether a dpo run begins with one iteration of SFT (the default); false when ``model.path``
    is an initialised model, such as iteration 0 of a run of ``optima-sft``."""
    search: SearchSection | None = None
    pairs: PairSection | None = None
    dpo: DpoSection | None = None
    serving: ServingSection = ServingSection()
    evaluation: EvaluationSection = EvaluationSection()
    cold_start: ColdStartSection | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_recipe(self, frozenset(METHOD_SECTIONS[self.method]))
        return self

"""The recipe: every number that changes a result, typed, strict and frozen.

Defaults are the paper's (arXiv 2410.08115, Table 8 and App. A) where it gives one; a recipe file
holds only what differs. Paths of artifacts are no fields: they derive from the run directory. An
upper bound is beyond what anyone wants and within what a machine can take.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from optima.recipe.checks import (
    check_agents,
    check_lora,
    check_recipe,
    check_sampling,
    check_select,
    check_serving,
)
from optima.recipe.data import DataSection as DataSection
from optima.recipe.preferences import DpoSection as DpoSection
from optima.recipe.preferences import InfluenceSection as InfluenceSection
from optima.recipe.preferences import PairSection as PairSection
from optima.recipe.preferences import SearchSection as SearchSection
from optima.recipe.section import Section

MAX_SEED = 2**63 - 1  # a signed 64-bit number, as servers take it
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
    max_model_len: int | None = Field(default=None, ge=256, le=10_000_000)
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

    max_turns: int = Field(default=10, ge=2, le=1_000)
    """Turns after which a conversation ends unanswered."""
    max_turn_tokens: int = Field(default=2000, ge=1, le=1_000_000)
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
    format_pool_path: str | None = None
    """Directory of further format files, one text file each."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_sampling(self)
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
        check_select(self)
        return self


class LoraSection(Section):
    """Low-rank adapters instead of full fine-tuning."""

    rank: int = Field(default=16, ge=1, le=1_024)
    """Rank r."""
    alpha: int = Field(default=32, ge=1, le=65_536)
    """Scale alpha."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter input."""
    target_modules: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Modules that get an adapter."""
    serve: Literal["merged", "adapter"] = "merged"
    """Serve merged weights, or the adapter over the base model."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_lora(self)
        return self


class TrainSection(Section):
    """How a model is trained, shared by SFT and DPO (paper Table 8)."""

    learning_rate: float = Field(default=2e-5, gt=0, le=1)
    """Peak learning rate."""
    epochs: float = Field(default=1.0, gt=0, le=1_000)
    """Passes over the rows."""
    batch_size: int = Field(default=32, ge=1, le=65_536)
    """Rows per optimiser step, over all devices and accumulation steps."""
    micro_batch_size: int = Field(default=4, ge=1, le=65_536)
    """Rows per forward on one device; lowered to batch_size / devices where it is larger."""
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    """Share of steps over which the learning rate rises."""
    scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """Learning-rate schedule."""
    weight_decay: float = Field(default=0.0, ge=0, le=10)
    """AdamW weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0, le=1_000_000)
    """Gradient clipping."""
    max_loss_growth: float = Field(default=10.0, gt=1, le=1_000_000)
    """Times the start's loss (at least 1 nat) above which a training fails."""
    max_length: int = Field(default=2048, ge=16, le=1_000_000)
    """Tokens per row; longer rows are counted and dropped, never cut silently."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Number format of forward and backward."""
    optimizer_state_dtype: Literal["float32", "model"] = "float32"
    """Master weights in float32 with bf16 autocast, or everything in ``dtype``."""
    gradient_checkpointing: bool = True
    """Trade compute for memory."""
    batching: Literal["length_grouped", "packing", "plain"] = "length_grouped"
    """How rows of SFT are put together: similar lengths, packed to max_length, or as they come.
    Pairs of DPO are taken as they come."""
    start: Literal["auto", "previous", "base"] = "auto"
    """Model each SFT starts from; ``auto``: previous for information exchange, base for debate
    (paper). DPO always goes on from the last model, so a dpo run has no use for it."""
    eval_share: float = Field(default=0.02, ge=0, lt=1)
    """Share of the problems whose rows measure evaluation loss and are not trained on."""
    lora: LoraSection | None = None
    """LoRA; None is full fine-tuning."""
    parallelism: Literal["auto", "none", "ddp", "zero3", "fsdp"] = "auto"
    """How several GPUs share the training; ``auto``: none on one device, zero3 on several. With
    fsdp and preferences each process holds the whole weights in host memory while it loads them."""
    save_steps: int | None = Field(default=None, ge=1, le=1_000_000_000)
    """Optimiser steps between checkpoints; None saves at each epoch."""
    save_total_limit: int = Field(default=1, ge=1, le=1_000)
    """Checkpoints kept on disk while training."""
    logging_steps: int = Field(default=1, ge=1, le=1_000_000_000)
    """Optimiser steps between log lines."""
    report_to: tuple[str, ...] = ()
    """transformers trackers, such as wandb or tensorboard."""
    timeout_s: float = Field(default=86400.0, gt=0, le=31_536_000)
    """Deadline of one training process."""


class ServingSection(Section):
    """The vLLM servers."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where servers and training run; ``auto`` looks for GPUs."""
    gpus: tuple[Annotated[int, Field(ge=0, le=1023)], ...] | None = None
    """GPU indices to use; None takes all visible ones."""
    tensor_parallel: int = Field(default=1, ge=1, le=1_024)
    """GPUs per server; the number of servers is GPUs / tensor_parallel."""
    endpoints: tuple[str, ...] = ()
    """Base URLs of servers already running elsewhere that serve the start model; the key is read
    from OPTIMA_API_KEY. Such servers are never started or stopped."""
    port: int | None = Field(default=None, ge=1, le=65535)
    """Port of the first server, the others follow it; None takes what the kernel gives, so that
    runs share a host."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of GPU memory that vLLM takes."""
    max_num_seqs: int = Field(default=1024, ge=1, le=65_536)
    """Sequences a server decodes at once."""
    concurrency: int = Field(default=512, ge=1, le=65_536)
    """Conversations in flight per server."""
    cpu_kv_cache_gb: int = Field(default=2, ge=1, le=65_536)
    """GiB of key-value cache of a CPU server."""
    enforce_eager: bool = False
    """Skip compilation: a faster start and slower tokens."""
    extra_args: tuple[str, ...] = ()
    """Further arguments of the vLLM server, one element each."""
    start_timeout_s: float = Field(default=900.0, gt=0, le=604_800)
    """Deadline for a server to answer its health probe."""
    request_timeout_s: float = Field(default=600.0, gt=0, le=604_800)
    """Deadline for one completion, retries on other servers not included."""
    max_attempts: int = Field(default=5, ge=1, le=1_000)
    """Tries per completion, each on another server where there is one."""
    max_restarts: int = Field(default=3, ge=0, le=1_000)
    """Restarts of one dead server before the stage fails."""
    scorer_batch_tokens: int = Field(default=16384, ge=256, le=100_000_000)
    """Padded tokens per forward of the base-model scorer."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_serving(self)
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


class Recipe(Section):
    """One run."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    method: Method
    """Training method."""
    task: str
    """Benchmark, one of ``optima tasks``."""
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
        check_recipe(self, frozenset(METHOD_SECTIONS[self.method]))
        return self

"""The trained model: how it is loaded for training, and how it is written for serving."""

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from huggingface_hub import snapshot_download
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.integrations import unset_hf_deepspeed_config

from optima.errors import StageError
from optima.recipe.sections import TrainSection
from optima.records import write_text
from optima.training.jobs import LOGPROBS_FILE, MODEL_DIR, Logprobs, TrainJob
from optima.types import ModelRef

logger = logging.getLogger(__name__)

TEMPORARY_MODEL_DIR = f".{MODEL_DIR}.tmp"
_N_PROBED = 64  # tokens: enough for a mean, and few for a CPU
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

# What a served model has beside weights and config, copied unchanged, so that every iteration
# tokenises, renders and stops exactly as the first.
COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "generation_config.json",
)
_ID_NAMES = ("bos_token_id", "eos_token_id", "pad_token_id")


class DivergenceError(StageError):
    """The training has lost the model, and with it what its checkpoints hold."""


def load_tokenizer(job: TrainJob) -> Any:
    """Load the start model's tokenizer."""
    return AutoTokenizer.from_pretrained(
        job.model.path, revision=job.revision, trust_remote_code=job.trust_remote_code
    )


def pad_of(tokenizer: Any) -> int:
    """Return the id that fills rows: the stop token where the tokenizer has none for it."""
    pad = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if pad is None else pad)


def load_start(job: TrainJob, dtype: torch.dtype, *, with_adapter: bool = True) -> Any:
    """Load the start model, its adapter, if any, merged into its weights or left out."""
    model = AutoModelForCausalLM.from_pretrained(
        job.model.path, revision=job.revision, dtype=dtype, trust_remote_code=job.trust_remote_code
    )
    if job.model.adapter is None or not with_adapter:
        return model
    return PeftModel.from_pretrained(model, job.model.adapter).merge_and_unload()


def prepare_model(job: TrainJob, dtype: torch.dtype) -> Any:
    """Load the start model in its training format, with trainable adapters if asked for."""
    lora = job.train.lora
    if lora is None:
        return load_start(job, dtype)
    if lora.serve == "adapter" and job.model.adapter is not None:
        # An adapter that is served over its base goes on being trained, so there is only one.
        base = load_start(job, dtype, with_adapter=False)
        return PeftModel.from_pretrained(base, job.model.adapter, is_trainable=True)
    model = load_start(job, dtype)
    is_named = isinstance(lora.target_modules, tuple)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules) if is_named else lora.target_modules,
        task_type="CAUSAL_LM",
    )
    # Adapters are float32 over bf16 weights unless everything is to be in one format.
    is_float32 = job.train.optimizer_state_dtype == "float32"
    return get_peft_model(model, config, autocast_adapter_dtype=is_float32)


def training_dtype(train: TrainSection) -> torch.dtype:
    """Return the format of the loaded weights: masters in float32 where they are trained."""
    is_master = train.optimizer_state_dtype == "float32" and train.lora is None
    is_zero = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true"  # keeps its own
    return torch.float32 if is_master and not is_zero else _DTYPES[train.dtype]


def read_format(job: TrainJob) -> tuple[torch.dtype, dict[str, Any]]:
    """Return the number format and the special token ids that the trained model is to keep."""
    config = AutoConfig.from_pretrained(
        job.model.path, revision=job.revision, trust_remote_code=job.trust_remote_code
    )
    return getattr(config, "dtype", None) or torch.bfloat16, token_ids(config)


def save(
    trainer: Any, job: TrainJob, kept: tuple[torch.dtype, dict[str, Any]], row: Sequence[int]
) -> ModelRef:
    """Write the trained model under a temporary name, then rename it; on all processes.

    ``kept`` is what ``read_format`` said before the trainer saw the model; of ``row``, the ids of
    one that was trained on, log-probabilities are written beside the model. Raises DivergenceError
    for weights that are not finite.
    """
    dtype, ids = kept
    output = Path(job.output_dir) / MODEL_DIR
    temporary = output.with_name(TEMPORARY_MODEL_DIR)
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    start = local_companions(job)
    if PartialState().is_main_process:
        if job.device == "cuda":  # the rest is the CPU, of which launchers leave one core
            torch.set_num_threads(len(os.sched_getaffinity(0)))
        shutil.rmtree(temporary, ignore_errors=True)
        if job.train.lora is None:
            cast = cast_weights(weights, dtype)
            check_weights(cast)  # float16, for one, holds less than training does
            model.config.dtype = dtype
            for name, value in ids.items():
                setattr(model.config, name, value)
            save_model_dir(model, cast, start, temporary)
            set_dtype(temporary, dtype)
            del cast
        else:
            check_weights(weights)
            # The adapter is saved by itself and, if wanted, merged into fresh, whole weights.
            # Without a name the library would also write the copy that DPO refers to.
            model.save_pretrained(temporary, state_dict=weights, selected_adapters=["default"])
            if job.makes_adapter:
                copy_companions(start, temporary)
            else:
                merge_saved(job, temporary, dtype)
        del weights  # the memory is wanted for the models that are compared
        write_logprobs(job, row, temporary, dtype)
        shutil.rmtree(output, ignore_errors=True)
        temporary.rename(output)
    PartialState().wait_for_everyone()
    return made_in(output, job)


def made_in(directory: Path, job: TrainJob) -> ModelRef:
    """Return what a job wrote into a directory: a whole model, or an adapter over its base."""
    if job.makes_adapter:
        return ModelRef(path=job.model.path, adapter=str(directory))
    return ModelRef(path=str(directory))


def merge_saved(job: TrainJob, directory: Path, dtype: torch.dtype) -> None:
    """Replace an adapter directory by the merged model; on one process, when training is over."""
    unset_hf_deepspeed_config()  # or ZeRO-3 would wait for all processes to split what is loaded
    base = load_start(job, dtype)
    merged = PeftModel.from_pretrained(base, str(directory)).merge_and_unload()
    check_weights(merged.state_dict())
    shutil.rmtree(directory)
    save_model_dir(merged, None, local_companions(job), directory)


def write_logprobs(job: TrainJob, row: Sequence[int], directory: Path, dtype: torch.dtype) -> None:
    """Write what the model in ``directory`` thinks of a row; on one process, after the training.

    Both models are loaded anew, one after the other, on the CPU, where no training takes memory.
    Raises DivergenceError when a log-probability is not finite. A model that does not run on a CPU
    gets no file, so it is not compared when it is served.
    """
    path = Path(job.output_dir) / LOGPROBS_FILE
    path.unlink(missing_ok=True)
    unset_hf_deepspeed_config()  # as before a merge
    ids = [*row[:1], *row[1:][-(_N_PROBED - 1) :]]  # the words of a row stand at its end
    revision = job.revision if job.makes_adapter else None
    saved = job.model_copy(update={"model": made_in(directory, job), "revision": revision})
    try:
        trained, start = (token_logprobs(load_start(j, dtype), ids) for j in (saved, job))
    except Exception as error:  # noqa: BLE001  what was trained is not lost for want of a check
        logger.warning("no log-probabilities of the model on a CPU (%r): no server of it is "
                       "compared with it", error)  # fmt: skip
        return
    if not (torch.isfinite(trained).all() and torch.isfinite(start).all()):
        raise DivergenceError("training: a log-probability of a row is not finite at the end")
    found = Logprobs(
        token_ids=tuple(ids),
        trained=tuple(round(value, 4) for value in trained.tolist()),
        start=tuple(round(value, 4) for value in start.tolist()),
    )
    write_text(path, found.model_dump_json() + "\n")


def token_logprobs(model: Any, ids: Sequence[int]) -> torch.Tensor:
    """Return the log-probability of every token after the first [T - 1], in float32."""
    tokens = torch.tensor(ids)
    with torch.no_grad():
        logits = model.eval()(tokens[None], use_cache=False).logits[0, :-1]
    logs: torch.Tensor = logits.float().log_softmax(-1)
    return logs.gather(1, tokens[1:, None])[:, 0]


def check_weights(weights: Mapping[str, torch.Tensor]) -> None:
    """Raise DivergenceError when a weight that is about to be written is not finite."""
    for name, weight in weights.items():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise DivergenceError(f"training: weight {name} is not finite at the end")


def local_companions(job: TrainJob) -> Path:
    """Return a directory with the start model's companions; a hub id's are downloaded."""
    model = job.model.path
    if Path(model).is_dir():
        return Path(model)
    patterns = ["config.json", *COMPANIONS]
    return Path(snapshot_download(model, revision=job.revision, allow_patterns=patterns))


def token_ids(config: Any) -> dict[str, Any]:
    """Return the special token ids of a model config, which trainers overwrite."""
    return {name: getattr(config, name, None) for name in _ID_NAMES}


def cast_weights(
    weights: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Return the weights in a number format; tied ones stay one tensor, so are written once."""
    cast_by_place: dict[tuple[int, torch.Size], torch.Tensor] = {}
    result = {}
    for name, weight in weights.items():
        place = (weight.data_ptr(), weight.shape)
        if place not in cast_by_place:
            cast_by_place[place] = weight.to(dtype) if weight.is_floating_point() else weight
        result[name] = cast_by_place[place]
    return result


def save_model_dir(
    model: Any, state_dict: Mapping[str, torch.Tensor] | None, start: Path, output: Path
) -> None:
    """Write weights, config and the start model's companions into ``output`` (which is new)."""
    # Some models ship generation settings that save_pretrained refuses; the file is copied below.
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.save_pretrained(output, state_dict=state_dict)
    copy_companions(start, output)


def set_dtype(output: Path, dtype: torch.dtype) -> None:
    """Say in config.json what the weights are kept in; saving wrote what they were trained in."""
    path = output / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def copy_companions(start: Path, output: Path) -> None:
    """Copy the tokenizer, chat template and generation config from the directory ``start``."""
    for pattern in COMPANIONS:
        for path in sorted(start.glob(pattern)):
            if path.is_file() and path.suffix != ".safetensors":
                shutil.copy2(path, output / path.name)

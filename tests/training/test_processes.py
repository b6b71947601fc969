"""A training shared by several processes, on the CPU with a tiny model of random weights (e2e)."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from optima.conversation.loading import load_codec
from optima.processes.environment import resolve_environment
from optima.recipe.schema import DpoSection, TrainSection
from optima.training.jobs import TrainJob, TrainResult
from optima.types import ModelRef
from tests.training.rows import pair_row, write_rows

pytestmark = pytest.mark.e2e

MAKE_TINY = """\
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
config = LlamaConfig(vocab_size=49152, num_key_value_heads=2, tie_word_embeddings=True, **sizes)
LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(sys.argv[1])
"""


def _tiny_model(smollm2: Path, directory: Path) -> ModelRef:
    env = resolve_environment(None, "train")
    argv = [str(env.python), "-c", MAKE_TINY, str(directory)]
    subprocess.run(argv, check=True, env=env.environ(), timeout=300)
    for path in [*smollm2.glob("tokenizer*"), *smollm2.glob("chat_template*")]:
        shutil.copyfile(path, directory / path.name)
    return ModelRef(path=str(directory))


def _job(model: ModelRef, rows: Path, output: Path) -> TrainJob:
    train = TrainSection(
        learning_rate=1e-3, epochs=1.0, batch_size=4, micro_batch_size=2, max_length=128,
        gradient_checkpointing=False, batching="plain",
    )  # fmt: skip
    return TrainJob(
        model=model, rows_path=str(rows), eval_rows_path=str(rows), output_dir=str(output),
        train=train, dpo=DpoSection(reference="precomputed"), seed=3, device="cpu",
    )  # fmt: skip


def _train(job: TrainJob, n_processes: int) -> TrainResult:
    output = Path(job.output_dir)
    output.mkdir()
    (output / "job.json").write_text(job.model_dump_json())
    env = resolve_environment(None, "train")
    # As accelerate starts several processes of one machine; it itself starts one on a CPU.
    argv = [
        str(env.python), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
        str(n_processes), "-m", "optima.training.dpo", "--job", str(output / "job.json"),
    ]  # fmt: skip
    done = subprocess.run(
        argv, env=env.environ({"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}),
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return TrainResult.model_validate_json(job.result_path.read_bytes())


def test_preferences_are_trained_by_two_processes_that_share_precomputed_references(
    smollm2: Path, tmp_path: Path
) -> None:
    model = _tiny_model(smollm2, tmp_path / "model")
    codec = load_codec(model.path)
    rows = write_rows(tmp_path / "rows.jsonl", [pair_row(codec, k) for k in range(8)])
    result = _train(_job(model, rows, tmp_path / "two"), 2)
    assert result.n_steps == 2  # 8 pairs in steps of 4: 2 processes with 2 pairs each
    assert (result.n_rows, result.n_eval_rows) == (8, 8)
    # Before training the policy is its own reference: -log(sigmoid(0)) + the NLL of the chosen.
    assert result.eval_loss_before is not None
    assert result.eval_loss is not None
    assert result.eval_loss < result.eval_loss_before
    assert json.loads((tmp_path / "two" / "model" / "config.json").read_text())["hidden_size"] == 32
    assert not (tmp_path / "two" / "checkpoints").exists()

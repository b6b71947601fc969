"""Every field of a recipe is asked for by a run of each method, or there is a reason why not."""

from pathlib import Path

import pytest

from optima.methods import run_method
from optima.recipe.loading import load_recipe
from tests.fake_runs import write_recipe
from tests.fakes import fake_environment
from tests.fields import unread_fields

ELSEWHERE = {
    "schema_version",  # of files
    *("data.train_file", "data.test_file", "data.hub_revision", "data.max_malformed"),  # of rows
    *("data.hub_configs", "data.train_split", "data.test_split", "data.overlap"),
    "conversation.assent_ends",  # where an agent says no mark after one that did
    *("serving.gpus", "serving.tensor_parallel", "train.parallelism"),  # of GPUs
    "serving.gpu_memory_utilization",
    "serving.max_restarts",  # of servers that die
    *("serving.node_timeout_s", "serving.training_address", "serving.ray"),  # of serving.nodes
    *("pairs.influence.n_groups", "pairs.influence.n_problems"),  # pairs.strategy=influence
}
# Asked for by the training processes: tests/training/test_losses.py.
TRAINING = {
    *(f"train.{name}" for name in (
        "learning_rate", "epochs", "batch_size", "micro_batch_size", "warmup_ratio", "scheduler",
        "weight_decay", "max_grad_norm", "max_loss_growth", "max_length", "optimizer_state_dtype",
        "gradient_checkpointing", "batching", "save_steps", "save_total_limit", "logging_steps",
        "report_to", "lora.rank", "lora.alpha", "lora.dropout", "lora.target_modules",
        "lora.serve",
    )),
    *("dpo.beta", "dpo.nll_weight", "dpo.reference"),
}  # fmt: skip
# Refused where a recipe sets them, and so asked for by nothing.
REFUSED = {"sft": {"initialise"}, "sft_dpo": {"initialise"}, "dpo": {"train.start"}}


@pytest.mark.parametrize("method", REFUSED)
def test_run_asks_for_every_field_of_its_recipe(method: str, tmp_path: Path) -> None:
    environment = fake_environment(tmp_path)
    recipe = load_recipe(write_recipe(tmp_path, method), ["iterations=2", "train.lora={}"])
    with unread_fields() as unread:
        run_method(recipe, tmp_path / "run", vllm_env=environment, train_env=environment)
    missing = unread - ELSEWHERE - TRAINING - REFUSED[method]
    if method == "sft":
        missing = {key for key in missing if key.split(".")[0] not in ("search", "pairs", "dpo")}
    assert missing == set()
    assert unread >= REFUSED[method]  # whatever such a field said would be without effect

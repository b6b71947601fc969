"""Stages keep their identity from release to release."""

from dataclasses import dataclass

import pytest
from pydantic import BaseModel

from optima.pipelines import identity as module
from optima.pipelines.identity import identity
from optima.pipelines.talk import TalkPlan
from optima.prompts.formats import Format
from optima.recipe.schema import (
    ColdStartSection,
    DataSection,
    DpoSection,
    LoraSection,
    PairSection,
    TrainSection,
)

# As runs that exist were identified by; another text would have all of them done again.
TRAIN = (
    "TrainSection(learning_rate=2e-05, epochs=1.0, batch_size=32, micro_batch_size=4, "
    "warmup_ratio=0.1, scheduler='cosine', weight_decay=0.0, max_grad_norm=1.0, max_length=2048, "
    "dtype='bfloat16', optimizer_state_dtype='float32', gradient_checkpointing=True, "
    "batching='length_grouped', start='auto', eval_share=0.02, lora=LORA, parallelism='auto', "
    "save_steps=None, save_total_limit=1, logging_steps=1, report_to=(), timeout_s=86400.0)"
)
LORA = "LoraSection(rank=16, alpha=32, dropout=0.0, target_modules=('q', 'k'), serve='merged')"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            DataSection(path="/d", n_train=8),
            "DataSection(path='/d', train_file=None, test_file=None, hub_id=None, "
            "hub_revision=None, n_train=8, n_test=None, max_malformed=0.02, paragraphs='whole', "
            "max_context_words=None)",
        ),
        (TrainSection(), TRAIN.replace("LORA", "None")),
        (
            TrainSection(lora=LoraSection(target_modules=("q", "k"))),
            TRAIN.replace("LORA", LORA),
        ),
        (
            PairSection(),
            "PairSection(theta_filter=0.4, theta_diff=0.2, keep_share=0.5, strategy='value', "
            "min_share=0.05, path=None, influence=InfluenceSection(n_groups=4, n_problems=64))",
        ),
        (
            DpoSection(),
            "DpoSection(beta=0.1, nll_weight=1.0, reference='precomputed', learning_rate=5e-07, "
            "epochs=1.0, batch_size=64, micro_batch_size=2, max_length=4096)",
        ),
        (
            ColdStartSection(),
            "ColdStartSection(n_problems=64, terse_share=0.0, learning_rate=0.0001, epochs=1.0, "
            "batch_size=16)",
        ),
        (TalkPlan(2, 0.0), "TalkPlan(n_samples=2, temperature=0.0, top_p=1.0, formats=())"),
        (
            TalkPlan(2, 0.0, formats=(Format("f", "be short"),)),
            "TalkPlan(n_samples=2, temperature=0.0, top_p=1.0, "
            "formats=(Format(format_id='f', text='be short'),))",
        ),
    ],
)
def test_stages_of_runs_that_exist_keep_their_identity(settings: object, text: str) -> None:
    assert identity(settings) == text


def test_a_new_field_counts_only_where_it_differs_from_its_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Train(BaseModel):
        added: tuple[int, ...] = (1,)
        rate: float = 0.1

    @dataclass(frozen=True)
    class Plan:
        n: int
        added: float | None = None

    monkeypatch.setitem(module._FIELDS, "Train", ("rate",))
    monkeypatch.setitem(module._FIELDS, "Plan", ("n",))
    assert identity(Train()) == "Train(rate=0.1)"
    assert identity(Train(added=(2,))) == "Train(rate=0.1, added=(2,))"
    assert identity(Plan(3)) == "Plan(n=3)"
    assert identity(Plan(3, added=0.5)) == "Plan(n=3, added=0.5)"

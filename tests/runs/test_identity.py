"""What a stage is identified by, from release to release."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from optima.prompts.rendering import Format, PromptStyle
from optima.recipe.schema import (
    ColdStartSection,
    DataSection,
    DpoSection,
    LoraSection,
    PairSection,
    TrainSection,
)
from optima.runs import identity as module
from optima.runs.directory import Stage
from optima.runs.identity import identify, older_text
from optima.runs.layout import StageDone
from optima.stages.context import LossModel, Made, Model, RunContext, Sampling, Team
from optima.stages.generate import generate
from optima.stages.influence import pick_rows
from optima.stages.pair import pair
from optima.stages.problems import split
from optima.stages.rank import rank, score
from optima.stages.script import script
from optima.stages.search import grow
from optima.stages.select import select
from optima.stages.train import train
from optima.studies.infer import group
from optima.types import ModelRef, Problem
from tests.tokenizers import codec

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
        (  # a field that came later counts where it differs from its default
            DataSection(path="/d", overlap="keep"),
            "DataSection(path='/d', train_file=None, test_file=None, hub_id=None, "
            "hub_revision=None, n_train=None, n_test=None, max_malformed=0.02, paragraphs='whole', "
            "max_context_words=None, overlap='keep')",
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
        (Sampling(2, 0.0), "TalkPlan(n_samples=2, temperature=0.0, top_p=1.0, formats=())"),
        (
            Sampling(2, 0.0, formats=(Format("f", "be short"),)),
            "TalkPlan(n_samples=2, temperature=0.0, top_p=1.0, "
            "formats=(Format(format_id='f', text='be short'),))",
        ),
    ],
)
def test_settings_of_older_releases_keep_their_text(settings: object, text: str) -> None:
    assert older_text(settings) == text


def problem(key: str) -> Problem:
    return Problem(problem_id=key, task="arc", question="Which?", golds=("A",))


def model(digest: str) -> Model:
    return Model("iter_0", ModelRef(path="/m"), digest)


def stage(name: str) -> Stage:
    done = StageDone(stage=name, inputs="", outputs={}, started_unix_s=0.0, seconds=0.0, metrics={})
    return Stage(name=name, path=Path(name), inputs="", done=done)


PROBLEMS = (problem("p1"), problem("p2"))
STYLE = PromptStyle("debate", "tag", ("A", "B"))
TEAM = Team(model("m"), ("you solve", "be brief"), STYLE, (codec("chatml"),) * 2)
LOSS = LossModel(Model("base", ModelRef(path="/b"), "b"), "assistant:", "<end>")
MADE = stage("s").digest
DATA = DataSection(path="/d", n_train=8)
PROMPTED = ["problems.0=p1", "problems.1=p2", "team.model=m"]
TOLD = ["team.told.0=you solve", "team.told.1=be brief"]


@pytest.mark.parametrize(
    ("function", "given", "inputs"),
    [
        (split, ("arc", DATA, 3), ["data.n_train=8", "data.path=/d", "seed=3", "task=arc"]),
        (
            generate,
            (TEAM, PROBLEMS, Sampling(2, 0.5, formats=(Format("f", "be short"),))),
            [
                *PROMPTED[:2],
                *("sampling.formats.0.format_id=f", "sampling.formats.0.text=be short"),
                *("sampling.n_samples=2", "sampling.temperature=0.5", *PROMPTED[2:], *TOLD),
            ],
        ),
        (
            score,
            (stage("s"), LOSS),
            ["loss.end=<end>", "loss.header=assistant:", "loss.model=b", f"talked={MADE}"],
        ),
        (
            rank,
            (PROBLEMS, stage("s"), None, {"p1": 4, "p2": 5}),
            [
                *("losses=None", "normalisers.p1=4", "normalisers.p2=5"),
                *(*PROMPTED[:2], f"talked={MADE}"),
            ],
        ),
        (
            rank,
            (PROBLEMS, stage("s"), stage("s")),
            [f"losses={MADE}", *PROMPTED[:2], f"talked={MADE}"],
        ),
        (group, (PROBLEMS, stage("s")), [*PROMPTED[:2], f"talked={MADE}"]),
        (
            select,
            (PROBLEMS, stage("s"), stage("s"), 1),
            ["form=token ids", *PROMPTED[:2], f"ranked={MADE}", "t=1", f"talked={MADE}"],
        ),
        (
            script,
            (TEAM, PROBLEMS, ColdStartSection(n_problems=5)),
            ["form=token ids", *PROMPTED[:2], "section.n_problems=5", *PROMPTED[2:], *TOLD],
        ),
        (
            train,
            (model("m"), stage("s"), TrainSection(lora=LoraSection(rank=8))),
            [f"rows={MADE}", "section.lora.rank=8", "start=m"],
        ),
        (
            grow,
            (TEAM, PROBLEMS, 71, LOSS),
            [
                *("loss.end=<end>", "loss.header=assistant:", "loss.model=b", "normaliser=71"),
                *(*PROMPTED, *TOLD),
            ],
        ),
        (
            pair,
            (PROBLEMS, stage("s"), PairSection(theta_diff=0.1), ()),
            ["form=token ids", *PROMPTED[:2], "section.theta_diff=0.1", f"trees={MADE}"],
        ),
        (
            pick_rows,
            (stage("s"), ("p1", "p2")),
            [f"pairs={MADE}", "problem_ids.0=p1", "problem_ids.1=p2"],
        ),
    ],
)  # fmt: skip
def test_stage_is_identified_by_what_it_is_given_under_these_names(
    function: Callable[..., Made], given: tuple[object, ...], inputs: list[str]
) -> None:
    assert list(identify(function, given, {}).inputs) == inputs


def test_share_below_which_a_run_stops_makes_no_pairs_anew() -> None:
    plain = identify(pair, (PROBLEMS, stage("s"), PairSection(), ()), {})
    lowered = identify(pair, (PROBLEMS, stage("s"), PairSection(min_share=0.01), ()), {})
    assert lowered.inputs == plain.inputs
    counted = [*plain.inputs[:3], "section.min_share=0.01", *plain.inputs[3:]]
    assert lowered.older[1:] == (tuple(counted),)  # as runs that exist were identified by


def made(context: RunContext, out: Stage, rate: float, settings: object, added: int = 3) -> Made:
    return Made((), {}, "")


@dataclass(frozen=True)
class Settings:
    n: int


@dataclass(frozen=True)
class LaterSettings:
    n: int
    added: float | None = None
    label: str = field(default="", compare=False)


def test_input_or_field_added_with_its_default_counts_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(module._OLDER, "made", lambda **_: ("",))
    before = ("rate=0.5", "settings.n=2")
    assert identify(made, (0.5, Settings(2)), {}).inputs == before
    assert identify(made, (0.5, LaterSettings(2)), {}).inputs == before
    assert identify(made, (0.5, LaterSettings(2, label="x")), {}).inputs == before
    assert identify(made, (0.5, Settings(2)), {"added": 3}).inputs == before
    changed = identify(made, (0.5, LaterSettings(2, added=0.1)), {"added": 4}).inputs
    assert changed == ("added=4", "rate=0.5", "settings.added=0.1", "settings.n=2")

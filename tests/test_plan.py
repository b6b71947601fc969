"""The plan of a run as data: iterations, starts, stages and counts, from the recipe alone."""

from pathlib import Path

import pytest

from optima.errors import UsageError
from optima.plan import Counts, Iteration, iterations, kind_of, placed, plan, unplaced
from optima.recipe.loading import load_recipe
from optima.recipe.schema import Recipe

RECIPES = Path(__file__).parents[1] / "recipes"


def recipe(path: str, *overrides: str) -> Recipe:
    return load_recipe(RECIPES / path, overrides)


def test_sft_builds_on_the_last_model_in_information_exchange_and_on_the_base_in_debate() -> None:
    exchange = iterations(recipe("sft/hotpot_qa.yaml", "iterations=3"))
    assert exchange == (
        Iteration("iter_0", "base", "base", "sft", 0),
        Iteration("iter_1", "iter_0", "iter_0", "sft", 1),
        Iteration("iter_2", "iter_1", "iter_1", "sft", 2),
    )
    debate = iterations(recipe("sft/arc.yaml", "iterations=3"))
    assert [iteration.speaker for iteration in debate] == ["base", "iter_0", "iter_1"]
    assert [iteration.start for iteration in debate] == ["base"] * 3


@pytest.mark.parametrize(
    ("path", "rule", "starts"),
    [
        ("sft/hotpot_qa.yaml", "base", ["base", "base"]),
        ("sft/arc.yaml", "previous", ["base", "iter_0"]),
        ("sft_dpo/arc.yaml", "auto", ["base", "iter_0_sft", "base", "iter_1_sft"]),
        ("sft_dpo/arc.yaml", "previous", ["base", "iter_0_sft", "iter_0_dpo", "iter_1_sft"]),
    ],
)
def test_start_is_the_recipes_and_dpo_always_trains_who_grew_the_trees(
    path: str, rule: str, starts: list[str]
) -> None:
    made = iterations(recipe(path, "iterations=2", f"train.start={rule}"))
    assert [iteration.start for iteration in made] == starts
    assert all(i.start == i.speaker for i in made if i.training == "dpo")


def test_idpo_counts_its_initialising_sft_among_its_iterations() -> None:
    made = iterations(recipe("dpo/arc.yaml", "iterations=3"))
    assert [(i.label, i.speaker, i.start, i.training, i.t) for i in made] == [
        ("initial", "base", "base", "sft", 0),
        ("iter_0", "initial", "initial", "dpo", 0),
        ("iter_1", "iter_0", "iter_0", "dpo", 1),
    ]
    given = iterations(recipe("dpo/arc.yaml", "iterations=2", "initialise=false"))
    assert [(i.label, i.start) for i in given] == [("iter_0", "base"), ("iter_1", "iter_0")]


def test_cold_start_is_where_the_first_iteration_begins() -> None:
    cold = "cold_start={n_problems: 9}"
    steps = plan(recipe("sft/hotpot_qa.yaml", cold, "iterations=1"), Counts(50, 7))
    scripted, trained = (step for step in steps if step.name.startswith("cold_start/"))
    assert (scripted.kind, scripted.n_lines, scripted.n_conversations) == ("script", 9, 0)
    assert (trained.model, trained.start) == ("cold_start", "base")
    assert next(step.model for step in steps if step.kind == "generate") == "cold_start"
    assert steps[-4].start == "cold_start"


def test_stages_stand_in_the_order_of_the_loop_and_are_counted() -> None:
    sizes = ("data.n_train=20", "data.n_test=5", "sampling.n_samples=4", "evaluation.n_samples=2")
    steps = plan(recipe("sft/hotpot_qa.yaml", *sizes, "iterations=1"), Counts(30, 50))
    assert [(step.name, step.model, step.n_conversations) for step in steps] == [
        ("problems", "", 0),
        ("evaluate/base/talk", "base", 10),
        ("evaluate/base/score", "base", 0),
        ("evaluate/base/rank", "base", 0),
        ("iter_0/generate", "base", 80),
        ("iter_0/score", "base", 0),
        ("iter_0/rank", "base", 0),
        ("iter_0/select", "base", 0),
        ("iter_0/train", "iter_0", 0),
        ("evaluate/iter_0/talk", "iter_0", 10),
        ("evaluate/iter_0/score", "iter_0", 0),
        ("evaluate/iter_0/rank", "iter_0", 0),
    ]


def test_what_is_turned_off_is_no_stage() -> None:
    off = ("reward.lambda_loss=0", "evaluation.base=false", "iterations=1")
    kinds = [step.kind for step in plan(recipe("sft/arc.yaml", *off))]
    assert kinds == ["problems", "generate", "rank", "select", "train", "talk", "rank"]


def test_trees_count_every_rollout_and_a_line_for_every_round() -> None:
    sizes = ("search.n_problems=5", "search.n_rounds=8", "search.n_probe=100", "iterations=2")
    steps = plan(recipe("dpo/arc.yaml", *sizes), Counts(30, 50))
    search = next(step for step in steps if step.kind == "search")
    assert (search.n_conversations, search.n_lines) == (5 * 8 * 3, 5 * 8)
    assert next(step.n_conversations for step in steps if step.kind == "probe") == 30


def test_trials_of_influence_are_planned_and_need_problems_without_a_tree() -> None:
    some = ("pairs={strategy: influence, influence: {n_groups: 2, n_problems: 8}}", "iterations=2")
    steps = plan(recipe("dpo/arc.yaml", "search.n_problems=5", *some), Counts(30, 50))
    trials = [step for step in steps if step.is_trial]
    assert sum(step.kind == "train" for step in trials) == 2
    assert [step.n_conversations for step in trials if step.kind == "talk"] == [8, 8, 8]
    with pytest.raises(UsageError, match="none is left to measure influence on"):
        plan(recipe("dpo/arc.yaml", "search.n_problems=30", *some), Counts(30, 50))


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("problems", "problems/arc"),
        ("iter_0/rank", "iter_0/arc/rank"),
        ("evaluate/base/talk", "evaluate/base/arc/talk"),
        ("cold_start/script", "cold_start/arc/script"),
        ("iter_0/train", "iter_0/train"),
        ("iter_0/train_solver", "iter_0/train_solver"),
        ("iter_0/mix", "iter_0/mix"),
    ],
)
def test_stage_of_a_task_of_a_mixture_lies_in_a_folder_of_its_name(stage: str, name: str) -> None:
    assert placed(stage, "arc") == name
    assert unplaced(name, "arc") == stage
    assert kind_of(name) == kind_of(stage)
    assert placed(stage, "") == unplaced(stage, "") == stage
    is_of_all = name == stage
    assert unplaced(name, "math") == (stage if is_of_all else None)


def mixture(*overrides: str, tasks: str = "arc, gsm8k") -> Recipe:
    entries = ", ".join(f"{{task: {task.strip()}}}" for task in tasks.split(","))
    return recipe("sft/arc.yaml", f"tasks=[{entries}]", *overrides)


def test_mixture_builds_on_the_last_model_as_soon_as_a_task_exchanges_information() -> None:
    debates = iterations(mixture("iterations=2"))
    assert [iteration.start for iteration in debates] == ["base", "base"]
    mixed = iterations(mixture("iterations=2", tasks="arc, hotpot_qa"))
    assert [iteration.start for iteration in mixed] == ["base", "iter_0"]
    told = mixture("iterations=2", "train.start=base", tasks="arc, hotpot_qa")
    assert [iteration.start for iteration in iterations(told)] == ["base", "base"]


def test_plan_of_a_mixture_counts_each_task_by_its_problems() -> None:
    made = mixture("iterations=1", "tasks.gsm8k.sampling.n_samples=2", "evaluation.base=false")
    steps = {step.name: step for step in plan(made, Counts(30, 5), Counts(50, 7))}
    assert steps["iter_0/arc/generate"].n_conversations == 30 * 10
    assert steps["iter_0/gsm8k/generate"].n_conversations == 50 * 2
    assert steps["evaluate/iter_0/gsm8k/talk"].n_conversations == 7
    names = list(steps)
    assert names.index("iter_0/gsm8k/select") < names.index("iter_0/mix")
    assert names.index("iter_0/mix") + 1 == names.index("iter_0/train")
    assert [name for name in names if name.endswith("train")] == ["iter_0/train"]

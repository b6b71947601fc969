"""Recipes of several tasks: what holds for which of them, and what is refused."""

from pathlib import Path

import pytest

from optima.errors import RecipeError
from optima.recipe.layers import is_layer
from optima.recipe.loading import dump_recipe, load_recipe
from optima.recipe.text import is_override, read_file

MIXTURE = """\
method: sft
model: {path: m}
data: {n_test: 50}
tasks:
  - {task: hotpot_qa, weight: 2, data: {n_train: 400}}
  - task: arc
    data: {path: DIR}
    reward: {lambda_token: 0.7}
for:
  arc: {reward: {lambda_token: 0.1, lambda_loss: 0.2}}
  information_exchange: {conversation: {max_turns: 4}}
  evidence: {cold_start: {n_problems: 9}}
"""
MODEL = """\
model: {path: small}
select: {theta: 0.1}
for:
  arc: {select: {theta: 0.2}}
"""


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    path = tmp_path / "mixture.yaml"
    path.write_text(MIXTURE)
    return path


def refusal(path: Path | list[Path], *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


def test_member_has_the_runs_settings_those_for_it_and_its_own(mixture: Path) -> None:
    recipe = load_recipe(mixture)
    hotpot, arc = recipe.members().values()
    assert (recipe.task, hotpot.task, arc.task) == ("hotpot_qa+arc", "hotpot_qa", "arc")
    assert [entry.weight for entry in recipe.tasks] == [2.0, None]
    assert (hotpot.data.n_train, hotpot.data.n_test, hotpot.data.path) == (400, 50, None)
    assert (arc.data.n_train, arc.data.n_test, arc.data.path) == (None, 50, "DIR")
    assert (hotpot.conversation.max_turns, arc.conversation.max_turns) == (4, 10)
    # What stands in the entry lies over what holds for its task in the same file.
    assert (arc.reward.lambda_token, arc.reward.lambda_loss) == (0.7, 0.2)
    assert (hotpot.reward.lambda_token, hotpot.reward.lambda_loss) == (0.6, 1.0)
    assert hotpot.cold_start is not None
    assert (hotpot.cold_start.n_problems, arc.cold_start) == (9, None)
    assert recipe.cold_start is not None
    assert not arc.tasks
    assert not is_layer(read_file(mixture).tree)


def test_later_layers_and_overrides_lie_over_entries(mixture: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.yaml"
    model.write_text(MODEL)
    recipe = load_recipe(
        [mixture, model], ["reward.lambda_token=0.3", "tasks.hotpot_qa.reward.lambda_loss=0.4",
                           "tasks.arc.weight=3.0"],
    )  # fmt: skip
    hotpot, arc = recipe.members().values()
    assert recipe.model.path == arc.model.path == "small"
    assert (hotpot.select.theta, arc.select.theta) == (0.1, 0.2)
    assert (hotpot.reward.lambda_token, arc.reward.lambda_token) == (0.3, 0.3)
    assert (hotpot.reward.lambda_loss, arc.reward.lambda_loss) == (0.4, 0.2)
    assert recipe.tasks[1].weight == 3.0


def test_resolved_recipe_reads_back_equal(mixture: Path, tmp_path: Path) -> None:
    recipe = load_recipe(mixture, ["seed=3"])
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe
    assert load_recipe(path, ["task=arc"]) == recipe.members()["arc"]


def test_of_task_and_tasks_the_last_counts(mixture: Path, tmp_path: Path) -> None:
    single = tmp_path / "single.yaml"
    single.write_text("method: sft\ntask: gsm8k\nmodel: {path: s}\n")
    assert load_recipe([single, mixture]).task == "hotpot_qa+arc"
    last = load_recipe([mixture, single])
    assert (last.task, last.tasks) == ("gsm8k", ())
    for taken_back in ("[]", "null"):  # a mixture is no more, so a task is to be named
        single.write_text(f"tasks: {taken_back}\n")
        assert "task: is missing" in refusal([mixture, single])
        assert load_recipe([mixture, single], ["task=cbt"]).task == "cbt"
        assert "task: is missing" in refusal(mixture, f"tasks={taken_back}")
    assert load_recipe(mixture, ["task=arc"]).data.path == "DIR"
    assert load_recipe(mixture, ["task=gsm8k"]).data.path is None


def test_condition_for_all_tasks_may_set_what_is_the_runs(mixture: Path) -> None:
    text = mixture.read_text()
    mixture.write_text(text + "  sft: {iterations: 2}\n  arc, hotpot_qa: {train: {epochs: 5.0}}\n")
    recipe = load_recipe(mixture)
    assert (recipe.iterations, recipe.train.epochs) == (2, 5.0)
    mixture.write_text(text.replace("  arc: {reward", "  arc: {train: {epochs: 4.0}, reward"))
    message = refusal(mixture)
    assert "mixture.yaml:10: for arc: train.epochs: is one for the whole run, and 4.0" in message
    assert "4.0 for arc where others have 1.0" in message
    assert "set it for all by train.epochs=..." in message
    assert load_recipe(mixture, ["train.epochs=4.0"]).train.epochs == 4.0


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("tasks=[{task: arc}]", "tasks: arc alone is no mixture; write task: arc"),
        ("tasks=[{task: arc}, {task: arc}]", "tasks.1: arc is there twice; remove one"),
        ("tasks=[{task: arc}, {task: ark}]", "'ark' is not a task (did you mean arc?)"),
        ("tasks=[arc, gsm8k]", "tasks.0: must name a task, as {task: arc, weight: 2.0}"),
        ("tasks=3", "tasks: must be a list, such as [{task: arc}, ...]"),
        ("tasks=[{task: arc, train: {}}, {task: math}]",
         "train: is one for the whole run; move it out of tasks"),
        ("tasks=[{task: arc, wieght: 2}, {task: math}]",
         "wieght: unknown key (did you mean weight?)"),
        ("tasks.arc.weight=0.0",
         "override tasks.arc.weight=0.0: tasks.1.weight: 0.0 is refused: input should be greater"),
        ("tasks.arc.weight=x", "override tasks.arc.weight=x: tasks.1.weight: "),
        ("tasks.arc.task=gsm8k", "a NAME of hotpot_qa, arc, and a key other than task"),
        ("tasks.arc.weight=1.0e+9", "weight: 1000000000.0 is refused: input should be less than"),
        ("tasks.ark.weight=1.0", "must be tasks.NAME.key=value with a NAME of hotpot_qa, arc"),
        ("tasks.arc.rewrd.theta=1.0", "rewrd: unknown key (did you mean reward?)"),
        ("tasks.arc.nope=1", "nope: unknown key (known keys: task, weight, data, conversation,"),
        ("tasks={arc: {}}", "tasks: must be a list, such as [{task: arc}, ...]"),
        ("tasks=[{task: arc}, {task: optima.tasks.arc_mmlu:ARC}]",
         "tasks.1: optima.tasks.arc_mmlu:ARC is arc; remove one of their entries"),
        ("tasks.arc.seed=3", "seed: is one for the whole run, and 3 for arc where others have 0"),
        ("tasks.hotpot_qa.cold_start.epochs=3.0",
         "cold_start.epochs: is one for the whole run, and 1.0 for gsm8k where others have 3.0"),
        ("cold_start={}", "arc has no gold evidence to script conversations from"),
        ("conversation.choice_answer=letter", "hotpot_qa does not read it, only arc, mmlu do"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(mixture: Path, word: str, message: str) -> None:
    text = mixture.read_text()
    if word == "tasks.hotpot_qa.cold_start.epochs=3.0":
        mixture.write_text(text.replace("  - task: arc", "  - {task: gsm8k}\n  - task: arc"))
    found = refusal(mixture, word)
    assert message in found
    assert "\n" not in found


def test_keys_of_an_entry_are_named_by_their_line(mixture: Path) -> None:
    mixture.write_text(MIXTURE.replace("lambda_token: 0.7", "lambda_tokn: 0.7"))
    assert "mixture.yaml:8: tasks.1: reward.lambda_tokn: unknown key" in refusal(mixture)


@pytest.mark.parametrize("name", ["pkg.tasks:RIDDLES", "my-riddles"])
def test_override_may_name_a_task_of_another_package(name: str, mixture: Path) -> None:
    word = f"tasks.{name}.weight=2.0"
    assert is_override(word)
    assert f"override {word}: must be tasks.NAME.key=value with a NAME of" in refusal(mixture, word)


def test_task_beside_tasks_in_one_file_is_refused(mixture: Path) -> None:
    mixture.write_text(f"task: gsm8k\n{MIXTURE}")
    assert "task: gsm8k stands beside tasks; remove one of the two" in refusal(mixture)


def test_override_of_one_task_needs_a_mixture(tmp_path: Path) -> None:
    path = tmp_path / "single.yaml"
    path.write_text("method: sft\ntask: gsm8k\nmodel: {path: s}\n")
    assert "the recipe has no tasks; remove it" in refusal(path, "tasks.arc.weight=1.0")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("pairs.strategy=influence", "influence tries trainings on one task and there are several"),
        ("pairs.path=x.jsonl", "x.jsonl does not say which of several tasks"),
        ("tasks.arc.pairs.path=x.jsonl", "x.jsonl does not say which of several tasks"),
    ],
)
def test_what_only_one_task_can_have_is_refused(mixture: Path, word: str, message: str) -> None:
    assert message in refusal(mixture, "method=dpo", word)

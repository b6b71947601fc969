"""Which problems an iteration takes."""

from pathlib import Path

import pytest

from optima.errors import DataError
from optima.recipe.loading import load_recipe
from optima.stages.problems import Problems, Splits, keep_apart
from optima.types import Problem


def _problems(n_train: int, n_trees: int, *, is_in_turn: bool) -> Problems:
    train = tuple(
        Problem(problem_id=f"p{k}", task="gsm8k", question="?", golds=("1",)) for k in range(12)
    )
    return Problems(train, (), n_train, n_trees, seed=0, is_in_turn=is_in_turn)


def _ids(problems: tuple[Problem, ...]) -> set[str]:
    return {problem.problem_id for problem in problems}


def test_iterations_share_no_problem_in_turn_and_trees_come_from_the_other_end() -> None:
    drawn = _problems(4, 2, is_in_turn=True)
    first, second = _ids(drawn.for_iteration(0)), _ids(drawn.for_iteration(1))
    trees = _ids(drawn.for_trees(0)) | _ids(drawn.for_trees(1))
    assert len(first) == len(second) == len(trees) == 4
    assert len(first | second | trees) == 12


def test_iterations_draw_anew_by_default() -> None:
    drawn = _problems(8, 8, is_in_turn=False)
    first, second = _ids(drawn.for_iteration(0)), _ids(drawn.for_iteration(1))
    assert first != second
    assert len(first & second) >= 4
    assert first != _ids(drawn.for_trees(0))


def _splits(task: str, train: list[str], test: list[str], overlap: str = "refuse") -> Splits:
    recipe = Path(__file__).parents[2] / "recipes" / "sft" / "gsm8k.yaml"
    made = load_recipe(recipe, [f"task={task}", f"data.overlap={overlap}"])
    splits = [
        tuple(
            Problem(problem_id=f"{task}-{q}", task=task, question=q, golds=("1",))
            for q in questions
        )
        for questions in (train, test)
    ]
    return Splits(made, *splits)


def test_no_task_of_a_mixture_is_trained_on_test_problems_of_another() -> None:
    math = _splits("math", ["a", "b"], ["c"])
    apart = _splits("gsm8k", ["d"], ["e"])
    assert keep_apart([math, apart]) == [math.train, apart.train]
    assert keep_apart([math]) == [math.train]
    with pytest.raises(DataError, match=r"gsm8k: 1 of 2 test problems stand in the train split of"):
        keep_apart([math, _splits("gsm8k", ["d"], ["B ", "e"])])
    dropped = keep_apart([math, _splits("gsm8k", ["d"], ["B ", "e"], "drop")])
    assert [[problem.question for problem in train] for train in dropped] == [["a"], ["d"]]
    kept = keep_apart([math, _splits("gsm8k", ["d"], ["B ", "e"], "keep")])
    assert kept[0] == math.train

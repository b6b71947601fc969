"""Which problems an iteration takes."""

from optima.stages.problems import Problems
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

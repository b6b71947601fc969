import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from optima.errors import UsageError
from optima.recipe.schema import DataSection
from optima.tasks import TASKS
from optima.tasks.judging import Judge, JudgeError
from optima.tasks.loading import load_problems
from optima.tasks.metrics import EXACT_MATCH, F1, MATH
from optima.tasks.task import Metric

REPOSITORY = Path(__file__).resolve().parents[2]
HANGS = "9^{9^{9^{9^9}}}"


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge(cpu_limit_s=2.0) as judge:
        yield judge


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        (r"\frac{2}{4}", r"\frac12", 1.0),
        ("0.5", r"\frac{1}{2}", 1.0),
        ("1+x", "x+1", 1.0),
        (r"2\sqrt{2}", r"\sqrt{8}", 1.0),
        ("-2, 1", "1,-2", 1.0),
        ("1,234", "1234", 1.0),
        ("(2,1)", "(1,2)", 0.0),
        ("[1,2)", "(1,2)", 0.0),
        ("x+2", "x+1", 0.0),
        ("7", "8", 0.0),
        ("hello world", "8", 0.0),
        ("{{{", "8", 0.0),
    ],
)
def test_math_scores_by_meaning(judge: Judge, answer: str, gold: str, score: float) -> None:
    assert judge.score(MATH, answer, [gold]) == score


@pytest.mark.parametrize("expression", [r"(1,2]", r"\begin{pmatrix}1\\2\end{pmatrix}", r"50\%",
                                        r"\text{(C)}", "05:00", r"x \le 3", "a,b,c"])  # fmt: skip
def test_an_expression_equals_itself(judge: Judge, expression: str) -> None:
    assert judge.score(MATH, expression, [expression]) == 1.0


def test_every_math_gold_equals_itself_and_not_a_wrong_answer(
    judge: Judge, shared_data: Path
) -> None:
    data = DataSection(path=str(shared_data / "math"))
    golds = [
        problem.golds
        for split in ("train", "test")
        for problem in load_problems(TASKS["math"], data, split, n_agents=2, seed=0).problems
    ]
    assert judge.score_many(MATH, [(gold[0], gold) for gold in golds]) == [1.0] * 3000
    wrong = judge.score_many(MATH, [("x^{17}+91234", gold) for gold in golds[:150]])
    assert wrong == [0.0] * 150


def test_no_answer_scores_zero(judge: Judge) -> None:
    for metric in (F1, EXACT_MATCH, MATH):
        assert judge.score(metric, None, ["1"]) == 0.0
        assert judge.score(metric, "  ", ["1"]) == 0.0


def test_the_score_is_the_maximum_over_the_golds(judge: Judge) -> None:
    assert judge.score(F1, "York", ["London", "New York", "York"]) == 1.0
    assert judge.score(EXACT_MATCH, "wet palms", ["B", "wet palms"]) == 1.0
    assert judge.score(MATH, "x+1", ["7", "1+x"]) == 1.0


def test_an_answer_that_hangs_is_an_error_that_names_it_within_seconds(judge: Judge) -> None:
    start = time.monotonic()
    with pytest.raises(JudgeError, match=r"9\^\{9\^\{9.* against gold '7y'.*2 s"):
        judge.score(MATH, HANGS, ["7y"])
    assert time.monotonic() - start < 20
    assert judge.score(MATH, "1+x", ["x+1"]) == 1.0  # a fresh process took over


def test_an_answer_is_blamed_for_a_failed_comparison_only_if_it_fails_beside_its_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_points.py").write_text(
        "def points(answer, gold, choices):\n"
        "    if not {answer.lower(), gold.lower()} <= set(choices):\n"
        "        raise ValueError('is no choice')\n"
        "    return float(answer.lower() == gold.lower())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    metric, choices = Metric("own", "own_points:points"), ("ice", "iron")
    with Judge(n_workers=1) as judge:
        assert not judge.are_same(metric, "Ice", "slush", choices)
        assert judge.are_same(metric, "Ice", "ice", choices)  # was not to blame
        assert not judge.are_same(metric, "SLUSH", "slush", choices)
        assert judge.are_same(metric, "SLUSH", "slush", ("slush",))  # beside others it can be


def test_many_answers_off_the_main_thread_with_a_hanging_one_among_them(judge: Judge) -> None:
    results: list[float | JudgeError] = []
    judgements = [("1+x", ["x+1"]), (HANGS, ["7y"]), (None, ["3"]), ("x", ["y"]), ("1+x", ["x+1"])]
    thread = threading.Thread(target=lambda: results.extend(judge.score_many(MATH, judgements)))
    thread.start()
    thread.join(timeout=60)
    assert [results[k] for k in (0, 2, 3, 4)] == [1.0, 0.0, 0.0, 1.0]
    assert isinstance(results[1], JudgeError)


def test_a_comparing_process_killed_from_outside_is_replaced() -> None:
    with Judge(n_workers=1) as judge:
        judge.score(MATH, "x+1", ["y"])
        process = judge._workers[0]._process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        assert judge.score_many(MATH, [("1+x", ["x+1"]), ("y", ["x"])]) == [1.0, 0.0]


def test_no_process_is_left_behind() -> None:
    with Judge(n_workers=1) as judge:
        judge.score(MATH, "x+1", ["y"])
        process = judge._workers[0]._process
        assert process is not None
    assert process.returncode is not None
    with pytest.raises(RuntimeError, match="with block"):
        judge.score(MATH, "x+1", ["y"])


def test_missing_math_verify_is_an_error_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install math-verify"), Judge():
        pass


def test_a_hanging_comparison_ends_when_its_owner_is_killed() -> None:
    program = (
        "import threading, time\n"
        "from optima.tasks.judging import Judge\n"
        "from optima.tasks.metrics import MATH\n"
        "with Judge(n_workers=1, cpu_limit_s=2.0) as judge:\n"
        "    judge.score(MATH, 'x+1', ['y'])\n"
        "    print(judge._workers[0]._process.pid, flush=True)\n"
        f"    judge.score(MATH, '{HANGS}', ['7y'])\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    time.sleep(0.5)
    owner.kill()
    owner.communicate()
    deadline = time.monotonic() + 15
    while _is_running(pid):
        assert time.monotonic() < deadline, "the comparing process outlives its owner"
        time.sleep(0.1)


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"

"""What scripts/mutate.py is told, without the hours that mutants take."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def mutate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutate", REPOSITORY / "scripts" / "mutate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_mutated_and_what_tests_it_exist(mutate: ModuleType) -> None:
    for sources, tests in mutate.PACKAGES.values():
        assert all(list((REPOSITORY / "optima").glob(source)) for source in sources)
        assert all((REPOSITORY / "tests" / test).exists() for test in tests)


def test_tests_of_benchmark_rows_are_left_out(mutate: ModuleType) -> None:
    options = mutate.left_out()
    name = "test_choices_score_by_letter_and_by_text"
    assert f"--deselect=tests/tasks/test_tasks.py::{name}" in options
    assert not any("test_placeholders_of_numbers" in option for option in options)


def test_slow_tests_that_are_left_out_exist(mutate: ModuleType) -> None:
    for option in (f"--deselect={name}" for name in mutate.SLOW):
        assert option in mutate.left_out()
        path, _, name = option.removeprefix("--deselect=").partition("::")
        assert f"def {name}(" in (REPOSITORY / path).read_text(encoding="utf-8")


def test_a_mutant_that_only_timed_out_is_decided_by_the_cpu_time_of_its_tests(
    mutate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutate, "TREE", tmp_path)
    monkeypatch.setattr(mutate, "PYTHON", sys.executable)
    monkeypatch.setattr(mutate, "CPU_S", 3)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    names = [f"optima.x_f__mutmut_{k}" for k in range(5)]
    (tmp_path / "mutants").mkdir()
    (tmp_path / "mutants/test_f.py").write_text(
        "import os\n"
        "def test_f():\n"
        "    n = int(os.environ['MUTANT_UNDER_TEST'][-1])\n"
        "    while n == 2:\n"
        "        pass\n"
        "    assert n == 0\n"
    )
    (tmp_path / "mutants/mutmut-stats.json").write_text(
        json.dumps({"tests_by_mangled_function_name": {"optima.x_f": ["test_f.py::test_f"]},
                    "duration_by_test": {"test_f.py::test_f": 0.01}})
    )  # fmt: skip
    timed_out = dict.fromkeys(names, -24)
    (tmp_path / "mutants/f.meta").write_text(json.dumps({"exit_code_by_key": timed_out}))
    mutate.decide_by_cpu_time(set(names[:3]))
    # the machine was slow, a test fails, a test never ends, and two that were not asked for
    assert list(mutate.results().values()) == [0, 1, mutate.ENDLESS, -24, -24]
    assert [status in mutate.NOTICED for status in mutate.results().values()] == [
        *(False, True, True), *(False, False),
    ]  # fmt: skip


def test_what_is_mutated_remembers_nothing(mutate: ModuleType) -> None:
    for source in (REPOSITORY / "optima" / "tasks").glob("*.py"):
        original = source.read_text(encoding="utf-8").splitlines()
        plain = [line for line in original if not line.startswith("@lru_cache")]
        assert mutate.uncached(source).decode().splitlines() == plain
        assert not [line for line in plain if line.lstrip().startswith(("@cache", "@functools"))]


def test_what_changed_tests_run_is_found_out_anew(
    mutate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutate, "TREE", tmp_path)
    mutate.forget({"tests/test_a.py"})  # nothing is known yet
    stats = tmp_path / "mutants/mutmut-stats.json"
    stats.parent.mkdir()
    known = {"tests/test_a.py::test_x[1]": 0.1, "tests/test_ab.py::test_y": 0.2}
    stats.write_text(json.dumps({"duration_by_test": known, "stats_time": 3}))
    mutate.forget({"tests/test_a.py"})
    kept = {"tests/test_ab.py::test_y": 0.2}
    assert json.loads(stats.read_text()) == {"duration_by_test": kept, "stats_time": 3}


def test_sample_is_by_seed_and_survivors_are_listed_unless_equivalent(
    mutate: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = [f"optima.search.tree.x_f__mutmut_{k}" for k in range(10)]
    status = {names[0]: 0, names[1]: 0, names[2]: None, "optima.reward.x_g__mutmut_1": 0}
    monkeypatch.setattr(mutate, "results", lambda: dict.fromkeys(names, 1) | status)
    monkeypatch.setattr(mutate, "changes", lambda names: {k: f"{k}: - a + b" for k in names})
    monkeypatch.setattr(mutate, "EQUIVALENT", tmp_path / "equivalent.txt")
    mutate.EQUIVALENT.write_text(f"{names[1]}: - a + b\n")
    drawn = mutate.sample("search", 4, 0)
    assert drawn == mutate.sample("search", 4, 0) != mutate.sample("search", 4, 1)
    assert set(drawn) < set(names)
    share = mutate.report("search", names, 1)  # 7 of 9 tried, of which one is equivalent
    assert share == 7 / 8
    printed = capsys.readouterr().out
    assert "search, seed 1: 7 of 8 noticed (88%), 1 equivalent, 1 not tried yet" in printed
    assert printed.count("not noticed") == 1

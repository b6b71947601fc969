#!/usr/bin/env python
"""Change the pure core at random and tell which changes no test notices (mutation testing).

Run it with the training environment's Python: ``.envs/train/bin/python scripts/mutate.py``. It
takes a seeded sample of mutants per package, so it says something within minutes. Run it again and
it goes on where it stopped: results are kept in ``runs/mutation``. What is changed is a copy of the
working tree. mutmut stands in an environment of its own there, beside the training environment's
packages. Not part of CI.
"""

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Sequence, Set
from pathlib import Path

MUTMUT = "mutmut==3.8.1"
ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "runs" / "mutation"
TREE = WORK / "tree"
PYTHON = WORK / "env" / "bin" / "python"
EQUIVALENT = ROOT / "tests" / "equivalent_mutants.txt"
COPIED = ("optima", "tests", "recipes", "docs", "scripts")
TIMED_OUT = (24, 36, 255, -24)  # after some seconds, which on a busy machine says nothing
ENDLESS = 152  # the tests used up all CPU time that they were given
CPU_S = 60  # to start, and ten times what the tests need
NOTICED = (1, 3, ENDLESS)  # a test failed, or never ended
PACKAGES = {  # the sources of a package, and the tests that are about it
    "reward": (("reward.py",), ("test_reward.py",)),
    "selection": (("selection.py",), ("test_selection.py",)),
    "trainset": (("trainset.py",), ("test_trainset.py",)),
    "search": (("search/*",), ("search",)),
    "evaluation": (("evaluation/*",), ("evaluation",)),
    "tasks": (("tasks/*",), ("tasks", "test_plugins.py")),
}
PROCESSES = ("optima/tasks/judging.py", "optima/tasks/worker.py")  # not pure, slow to test
SHOW = """
import json, sys
from mutmut.mutation.diff_apply import get_diff_for_mutant
json.dump({name: get_diff_for_mutant(name) for name in json.load(sys.stdin)}, sys.stdout)
"""
SLOW = (  # for long inputs, many examples, processes, or a package that is large or installed
    "tests/tasks/test_answers.py::test_runaway_texts_cost_no_time",
    "tests/tasks/test_comparison.py::test_expressions_score_by_meaning",
    "tests/tasks/test_comparison.py::test_sameness_is_symmetric_and_reflexive",
    "tests/tasks/test_comparison.py::test_votes_and_talks_hold_the_same_answers_for_the_same",
    "tests/tasks/test_loading.py::test_a_hundred_thousand_malformed_rows_are_one_line",
    "tests/tasks/test_loading.py::test_a_row_with_any_value_at_any_place_is_a_problem_or_counted",
    "tests/tasks/test_loading.py::test_the_pinned_datasets_reads_two_wiki_from_parquet",
    "tests/test_plugins.py::test_a_broken_plug_in_leaves_the_others_listed_and_ends_with_2",
    "tests/test_plugins.py::test_a_run_goes_on_with_the_same_version_of_a_package_and_does_its_stages_"
    "anew_with_another",
    "tests/test_plugins.py::test_a_slow_metric_of_a_package_is_scored_where_it_can_be_killed",
    "tests/test_plugins.py::test_the_example_package_is_short",
    "tests/test_plugins.py::test_the_installed_example_is_listed_shown_and_planned",
    "tests/test_plugins.py::test_the_metric_of_the_example_scores_by_distance",
)


def main() -> int:
    """Run what is undecided of the sample and print the numbers; 1 while the share is too low."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("packages", nargs="*", help=f"of {', '.join(PACKAGES)}; all by default")
    options.add_argument("--sample", type=int, default=40, help="mutants per package (default 40)")
    options.add_argument(
        "--seed", type=int, nargs="+", default=[0], help="other samples (default 0)"
    )
    options.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    options.add_argument(
        "--minutes", type=float, default=60, help="stop after these, to go on later"
    )
    options.add_argument("--again", action="store_true", help="try the survivors once more")
    args = options.parse_args()
    if unknown := set(args.packages) - set(PACKAGES):
        options.error(
            f"{', '.join(sorted(unknown))}: no package; name some of {', '.join(PACKAGES)}"
        )
    deadline = time.monotonic() + 60 * args.minutes
    make_environment()
    if copy_tree() or not results():  # one mutant, for which mutmut makes all of them
        run_mutmut(("optima.selection.x_best_of_n__mutmut_1",), args.jobs, deadline)
    share = []
    for package in args.packages or PACKAGES:
        samples = {seed: sample(package, args.sample, seed) for seed in args.seed}
        status_by_name = results()
        drawn = {name for names in samples.values() for name in names}
        undecided = {name for name in drawn if is_open(status_by_name[name], args.again)}
        if undecided and time.monotonic() < deadline:
            run_mutmut(sorted(undecided), args.jobs, deadline)
        decide_by_cpu_time(drawn)
        share += [report(package, names, seed) for seed, names in samples.items()]
    return 0 if all(one >= 0.9 for one in share) else 1


def make_environment() -> None:
    """Put mutmut beside the packages of the Python that runs this."""
    if PYTHON.exists():
        return
    venv.create(WORK / "env", with_pip=True)
    (site,) = (WORK / "env" / "lib").glob("python*/site-packages")
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    (site / "train.pth").write_text(f"{ours}\n")
    subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", MUTMUT], check=True)


def copy_tree() -> bool:
    """Bring the copy up to date, and tell whether sources changed, so that mutants may be others.

    Unchanged files keep their times, and so mutmut its results.
    """
    is_changed = False
    changed_tests = set()
    for name in COPIED:
        for base in (TREE, TREE / "mutants"):
            for stale in (base / name).rglob("*.py"):
                if not (ROOT / stale.relative_to(base)).exists():
                    stale.unlink()
        for path in (ROOT / name).rglob("*"):
            target = TREE / path.relative_to(ROOT)
            if not path.is_file() or "__pycache__" in path.parts:
                continue
            content = uncached(path) if name == "optima" else path.read_bytes()
            if not target.exists() or target.read_bytes() != content:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
                is_changed |= name == "optima"
                copied_tests = TREE / "mutants" / path.relative_to(ROOT)
                if name == "tests" and copied_tests.exists():
                    shutil.copyfile(path, copied_tests)
                    changed_tests.add(str(path.relative_to(ROOT)))
    forget(changed_tests)
    for name in ("pyproject.toml", "README.md"):
        shutil.copyfile(ROOT / name, TREE / name)
    (TREE / "setup.cfg").write_text(settings())
    return is_changed


def uncached(source: Path) -> bytes:
    """Return a source whose functions remember nothing.

    What was remembered before a mutant is tried would hide it, and mutmut leaves decorated
    functions as they are.
    """
    return re.sub(rb"(?m)^@lru_cache\(.*\)\n", b"", source.read_bytes())


def forget(test_files: Set[str]) -> None:
    """Let mutmut find out anew what these tests run, as it does for tests that it never saw."""
    path = TREE / "mutants" / "mutmut-stats.json"
    if path.exists() and test_files:
        stats = json.loads(path.read_text())
        seconds = stats["duration_by_test"].items()
        stats["duration_by_test"] = {t: s for t, s in seconds if t.split("::")[0] not in test_files}
        path.write_text(json.dumps(stats, indent=4))


def settings() -> str:
    """Return mutmut's settings: what is changed, and the tests that need neither model nor rows."""
    files = [f"optima/{name}" for sources, _ in PACKAGES.values() for name in sources]
    tests = [f"tests/{name}" for _, names in PACKAGES.values() for name in names]
    sections = {
        "source_paths": ["optima"],
        "only_mutate": files,
        "do_not_mutate": list(PROCESSES),
        "also_copy": ["recipes", "docs", "scripts", "README.md"],
        "pytest_add_cli_args_test_selection": tests,
        "pytest_add_cli_args": ["-m", "not e2e", "-p", "no:cacheprovider", *left_out()],
        "do_not_mutate_patterns": [r"raise \w+", r"logger\.\w+", "Error\\("],  # words of messages
    }
    lines = [f"{name}=\n" + "".join(f"    {value}\n" for value in values)
             for name, values in sections.items()]  # fmt: skip
    return "[mutmut]\n" + "".join(lines)


def left_out() -> list[str]:
    """Return the options that leave out tests of benchmark rows, of processes, and slow ones."""
    options = ["--ignore=tests/tasks/test_judging.py", "--ignore=tests/tasks/test_scoring.py"]
    options += [f"--deselect={name}" for name in SLOW]
    for path in sorted((ROOT / "tests" / "tasks").glob("test_*.py")):
        for name in re.findall(
            r"^def (test_\w+)\([^)]*shared_data", path.read_text(), re.MULTILINE
        ):
            options.append(f"--deselect={path.relative_to(ROOT)}::{name}")
    return options


def run_mutmut(names: Sequence[str], jobs: int, deadline: float) -> None:
    """Try mutants until the deadline; mutmut keeps each result as soon as it has it."""
    command = [PYTHON, "-m", "mutmut", "run", "--max-children", str(jobs), *names]
    with (WORK / "mutmut.log").open("ab") as log, subprocess.Popen(
        command, cwd=TREE, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": ""}
    ) as process:  # fmt: skip
        try:
            status = process.wait(max(1.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            return
    if status:
        raise SystemExit(f"mutmut ended with status {status}; see the end of {WORK / 'mutmut.log'}")


def decide_by_cpu_time(names: Set[str]) -> None:
    """Try those that timed out again, within CPU time, which a busy machine does not use up."""
    stats = json.loads((TREE / "mutants" / "mutmut-stats.json").read_text())
    for path in sorted((TREE / "mutants").rglob("*.meta")):
        meta = json.loads(path.read_text())
        statuses = meta["exit_code_by_key"]
        for name in names & statuses.keys():
            if statuses[name] in TIMED_OUT:
                tests = stats["tests_by_mangled_function_name"][name.rpartition("__mutmut_")[0]]
                seconds = sum(stats["duration_by_test"].get(test, 1.0) for test in tests)
                statuses[name] = run_tests(name, tests, CPU_S + round(10 * seconds))
                path.write_text(json.dumps(meta, indent=4))


def run_tests(mutant: str, tests: Sequence[str], cpu_s: int) -> int | None:
    """Return the exit status of a mutant's tests; None where they wait and compute nothing."""
    try:
        status = subprocess.run(
            [PYTHON, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
            cwd=TREE / "mutants",
            env={**os.environ, "PYTHONPATH": "", "MUTANT_UNDER_TEST": mutant},
            stdout=subprocess.DEVNULL,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s)),
            timeout=20 * cpu_s,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        return None
    return ENDLESS if status in (-signal.SIGXCPU, -signal.SIGKILL) else status


def results() -> dict[str, int | None]:
    """Return the exit status of the tests for every mutant, None where none was run."""
    found: dict[str, int | None] = {}
    for path in sorted((TREE / "mutants").rglob("*.meta")):
        found |= json.loads(path.read_text())["exit_code_by_key"]
    return found


def sample(package: str, n: int, seed: int) -> list[str]:
    """Return up to ``n`` mutants of a package, the same for the same sources and seed."""
    sources = [name.removesuffix(".py").replace("/", ".") for name in PACKAGES[package][0]]
    prefixes = tuple(f"optima.{name.removesuffix('*')}" for name in sources)
    left_out = tuple(name.removesuffix(".py").replace("/", ".") for name in PROCESSES)
    names = [name for name in results() if name.startswith(prefixes)]
    names = sorted(name for name in names if not name.startswith(left_out))
    return sorted(random.Random(f"{seed}:{package}").sample(names, min(n, len(names))))


def is_open(status: int | None, again: bool) -> bool:
    """Tell whether a mutant has to be tried."""
    return status is None or (again and status not in NOTICED)


def report(package: str, names: Sequence[str], seed: int) -> float:
    """Print the numbers and the survivors of a sample; return the share noticed."""
    status_by_name = {name: status for name, status in results().items() if name in set(names)}
    tried = [name for name, status in status_by_name.items() if status is not None]
    noticed = [name for name in tried if status_by_name[name] in NOTICED]
    known = EQUIVALENT.read_text().splitlines() if EQUIVALENT.exists() else []
    survivors = changes(sorted(set(tried) - set(noticed)))
    equivalent = [name for name, text in survivors.items() if text in known]
    n = len(tried) - len(equivalent)
    by_module: dict[str, list[int]] = {}
    for name in tried:
        counts = by_module.setdefault(name.rpartition(".x")[0], [0, 0, 0])
        for k, names_of in enumerate((tried, noticed, equivalent)):
            counts[k] += name in names_of
    for module, (n_tried, n_noticed, n_equivalent) in sorted(by_module.items()):
        print(f"  {module}: {n_tried} tried, {n_noticed} noticed, {n_equivalent} equivalent")
    share = len(noticed) / n if n else 0.0
    print(f"{package}, seed {seed}: {len(noticed)} of {n} noticed ({share:.0%}), "
          f"{len(equivalent)} equivalent, {len(names) - len(tried)} not tried yet")  # fmt: skip
    for name, text in sorted(survivors.items()):
        if name not in equivalent:
            print(f"  not noticed: {text}")
    return share


def changes(names: Sequence[str]) -> dict[str, str]:
    """Return mutants in one line each: their function, what was taken out and what was put in.

    One process asks for all of them, as mutmut takes seconds to start.
    """
    shown = subprocess.run(
        [PYTHON, "-c", SHOW], cwd=TREE, input=json.dumps(names), capture_output=True, text=True,
        check=True, env={**os.environ, "PYTHONPATH": ""},
    ).stdout  # fmt: skip
    lines_by_name = {
        name: [line for line in diff.splitlines() if re.match(r"[-+](?![-+]{2})", line)]
        for name, diff in json.loads(shown).items()
    }
    return {
        name: f"{name.rpartition('__mutmut_')[0]}: "
        + " ".join(" ".join(line.split()) for line in lines)
        for name, lines in lines_by_name.items()
    }


if __name__ == "__main__":
    sys.exit(main())

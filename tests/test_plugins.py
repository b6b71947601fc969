"""Tasks, metrics, role sets and formats of other packages, as they are installed."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from optima import plugins
from optima.errors import DataError, RecipeError, UsageError
from optima.prompts.rendering import PromptStyle, load_formats, system_prompt
from optima.recipe.loading import load_recipe
from optima.recipe.schema import DataSection
from optima.stages.generate import TaskAgreement
from optima.tasks import TASKS, get_task
from optima.tasks.judging import Judge, JudgeError
from optima.tasks.loading import load_problems
from optima.tasks.task import Metric, RoleSet
from tests.cli.test_dry_run import write_model
from tests.fake_runs import finish, start
from tests.fakes import fake_environment

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "estimates"
CODE = """
from optima.tasks import METRICS, Metric, Problem, RoleSet, Task

def generate(split, n, dealing):
    for k in range(3):
        yield Problem(problem_id=f"{split}-{k}", task="own", question=f"{k}?", golds=(str(k + 1),))

def points(answer, gold, choices):
    return 1.0 if answer == gold else 0.25

METRIC = Metric("own", points)
FIELDS = dict(name="own", title="Own", setting="debate", answer_style="tag", has_evidence=False)
TASK = Task(**FIELDS, metric=METRIC, generate=generate)
"""
Announce = Callable[..., None]


@pytest.fixture
def announce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Announce]:
    """Install a distribution of one module, with entry points, into a folder that is searched."""
    place = tmp_path / "site"
    place.mkdir()
    monkeypatch.syspath_prepend(place)
    modules = []

    def write(module: str, code: str, *, group: str = plugins.TASKS, **points: str) -> None:
        modules.append(module)
        (place / f"{module}.py").write_text(code)
        info = place / f"{module}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.2\n")
        lines = [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
        (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
        plugins.installed.cache_clear()

    yield write
    for module in modules:
        sys.modules.pop(module, None)
    plugins.installed.cache_clear()


def refusal(name: str) -> str:
    with pytest.raises(UsageError) as said:
        get_task(name)
    assert "\n" not in str(said.value)
    return str(said.value)


def test_task_of_a_package_is_found_by_its_entry_point_and_by_its_place(
    announce: Announce,
) -> None:
    announce("own_task", CODE, own="own_task:TASK")
    task = get_task("own")
    assert (task.name, task.source, task.versions) == ("own", "own_task 1.2", ("own_task 1.2",))
    named = get_task("own_task:TASK")
    assert (named.name, named.parse) == ("own_task:TASK", task.parse)
    assert TASKS["arc"].versions == ()  # what is built in adds nothing to the identity of a stage
    problems = load_problems(task, DataSection(), "test", n_agents=2, seed=0).problems
    assert [problem.golds for problem in problems] == [("1",), ("2",), ("3",)]
    named_problems = load_problems(named, DataSection(), "test", n_agents=2, seed=0).problems
    assert {problem.task for problem in named_problems} == {"own_task:TASK"}


def test_nothing_of_a_package_runs_until_it_is_named(announce: Announce) -> None:
    announce("bomb", "raise SystemExit('run')", bomb="bomb:TASK")
    assert get_task("arc") is TASKS["arc"]
    assert "bomb" not in sys.modules
    assert refusal("bomb") == (
        "task: 'bomb' of bomb 1.2: cannot be imported (SystemExit: run); mend bomb, or name another"
    )


def test_names_that_two_have_are_refused(announce: Announce) -> None:
    announce("thief", CODE, arc="thief:TASK", own="thief:TASK")
    announce("other", CODE, own="other:TASK")
    assert refusal("arc") == (
        "task: 'arc' is given by optima itself and by thief 1.2; uninstall one, or rename its "
        "entry point in the group optima.tasks"
    )
    assert "is given by other 1.2 and by thief 1.2" in refusal("own")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent:TASK", "No module named 'absent'); install it in this environment, or put its"),
        ("odd:NOTHING", "odd:NOTHING does not exist, where an object of type Task is expected; "
         "there is odd:TASK"),
        ("odd:METRIC", "odd:METRIC is of type Metric, where an object of type Task is expected"),
        ("renamed", "its Task is called 'own'; give both one name"),
        ("nonsens", "'nonsens' is not a task (did you mean nonsense?)"),
        ("nonsense", "cannot be imported (ModuleNotFoundError: No module named 'nowhere'); mend"),
    ],
)  # fmt: skip
def test_a_name_that_leads_to_no_task_says_why(name: str, message: str, announce: Announce) -> None:
    announce("odd", CODE, renamed="odd:TASK")
    announce("broken", "import nowhere", nonsense="broken:TASK")
    assert message in refusal(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("generate=None", "task own: parse and generate: exactly one must be set"),
        ("generate=generate, metric='f1'", "task own: metric: must be an object of type Metric"),
        ("generate=generate, roles='x'", "task own: roles: must be an object of type RoleSet"),
        ("generate=generate, setting='chat'", "setting: must be one of information_exchange, deb"),
        ("generate=generate, answer_style='x'", "answer_style: must be one of tag, boxed"),
        ("generate=generate, metric=Metric('m', 'nowhere')", "metric m: score is 'nowhere'; give"),
        ("generate=generate, colour=1", "unexpected keyword argument 'colour'"),
    ],
)
def test_a_task_that_is_no_task_says_which_rule_it_breaks(
    change: str, message: str, announce: Announce
) -> None:
    announce("rules", f"{CODE}\nTASK = Task(**{{**FIELDS, 'metric': METRIC, **dict({change})}})\n")
    assert message in refusal("rules:TASK")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def generate(s, n, d): raise KeyError('x')", "generate fails .*KeyError: 'x'"),
        ("def generate(s, n, d): return iter(())", "it made no problem"),
        ("def generate(s, n, d):\n"
         "  for q in '123': yield Problem(problem_id=f'p{int(q) // 2}', task='own', question=q, "
         "golds=('1',))", "problems 2 and 3 have one problem_id, 'p1'"),
        ("def generate(s, n, d): yield {}", "a dict was made, not a Problem"),
        ("def generate(s, n, d): yield Problem(problem_id='p', task='own', question='?', "
         "golds=('',))", "problem p has no gold answer"),
        ("def generate(s, n, d): yield Problem(problem_id='p', task='own', question='?', "
         "golds=('1',), contexts=('a',))", "1 contexts for 2 agents"),
        ("METRIC = Metric('m', lambda *_: 0.5)", "'1' scores 0.5 by metric m against itself"),
        ("METRIC = Metric('m', lambda *_: 7)", "gave 7, which is not a number from 0 to 1"),
        ("METRIC = Metric('m', lambda *_: 1 / 0)", "metric m raised ZeroDivisionError"),
        ("METRIC = Metric('m', points, lambda *_: 1 / 0)", "metric m raised ZeroDivisionError"),
        ("METRIC = Metric('m', 'own_task:nothing')", "own_task:nothing\\) did not start .*nothing"),
        ("METRIC = Metric('m', 'gone:x', lambda *_: True)", "No module named 'gone'"),
        ("METRIC = Metric('m', 'own_task:points', lambda *_: None)", None),
    ],
)  # fmt: skip
def test_code_of_a_package_that_fails_is_one_line_before_a_model_is_asked(
    code: str, message: str | None, announce: Announce
) -> None:
    last = CODE.rpartition("TASK = ")
    announce("own_task", f"{last[0]}\n{code}\nTASK = {last[2]}", own="own_task:TASK")
    if message is None:  # nothing is wrong with it
        load_problems(get_task("own"), DataSection(), "train", n_agents=2, seed=0)
        return
    with pytest.raises(DataError, match=message) as said:
        load_problems(get_task("own"), DataSection(), "train", n_agents=2, seed=0)
    assert "\n" not in str(said.value)


def test_rows_that_a_package_fails_on_are_named_and_malformed_ones_counted(
    announce: Announce, tmp_path: Path
) -> None:
    code = CODE.replace("generate=generate", "parse=parse, train_files=('rows.jsonl',)")
    parse = (
        "from optima.tasks import MalformedRowError\n"
        "def parse(row, dealing):\n"
        "    if row.get('bad'):\n"
        "        raise MalformedRowError('is bad')\n"
        "    return Problem(problem_id=row['q'], task='own', question=row['q'], golds=('1',))\n"
    )
    announce("reader", parse + code, own="reader:TASK")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"q": "a"}\n{"bad": true}\n')
    data = DataSection(path=str(tmp_path), max_malformed=0.5)
    loaded = load_problems(get_task("own"), data, "train", n_agents=2, seed=0)
    assert loaded.counts() == "1 problems of 2 rows (1 malformed, 0 duplicate, 0 excluded)"
    rows.write_text('{"q": "a"}\n{"q": "b"}\n{"q": "a"}\n')
    loaded = load_problems(get_task("own"), data, "train", n_agents=2, seed=0)
    assert [(row.row, row.kind) for row in loaded.skipped] == [(3, "duplicate")]
    assert loaded.skipped[0].reason.endswith("rows.jsonl line 3: same as row 1")
    rows.write_text('{"q": "a"}\n{"question": "b"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl line 2: task own \(reader 1.2\) fails .*'q'"):
        load_problems(get_task("own"), data, "train", n_agents=2, seed=0)


def test_two_problems_of_one_id_are_refused_with_their_places(
    announce: Announce, tmp_path: Path
) -> None:
    parse = (
        "def parse(row, dealing):\n"
        "    return Problem(problem_id=row['id'], task='own', question=row['q'], golds=('1',))\n"
    )
    code = CODE.replace("generate=generate", "parse=parse, train_files=('rows.jsonl',)")
    announce("reader", parse + code, own="reader:TASK")
    (tmp_path / "rows.jsonl").write_text(
        '{"id": "x", "q": "a"}\n{"id": "y", "q": "b"}\n{"id": "x", "q": "c"}\n'
    )
    with pytest.raises(DataError, match=r"line 3: task own \(reader 1.2\) gives .* 'x' of row 1,"):
        load_problems(get_task("own"), DataSection(path=str(tmp_path)), "train", n_agents=2, seed=0)


def test_an_entry_point_that_is_no_place_harms_nobody_but_who_names_it(announce: Announce) -> None:
    announce("odd", CODE, odd="odd mod x", colon="odd:", bare="odd.mod")
    assert get_task("arc") is TASKS["arc"]
    assert "'odd' of odd 1.2: 'oddmodx' is not package.module:NAME" in refusal("odd")
    assert "'odd:' is not package.module:NAME; mend its entry point" in refusal("colon")
    assert "'odd.mod' is not package.module:NAME" in refusal("bare")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ((("a",), "b"), "give a tuple of two"),
        (("ab", "c"), "give a tuple of two"),
        ((("a", "b"), "c", "/tmp"), "give a pathlib.Path"),
        ((("a", "b"), "c", None, "last"), "give 'all' or 'first'"),
    ],
)
def test_a_role_set_says_which_rule_it_breaks(fields: tuple[Any, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        RoleSet(*fields)


def test_what_a_metric_cannot_say_of_two_answers_ends_no_talk() -> None:
    def fails(a: str, b: str, choices: Sequence[str]) -> bool:
        raise ZeroDivisionError

    def exits(a: str, b: str, choices: Sequence[str]) -> float:
        raise SystemExit(0)

    by_word = Metric("own", lambda *_: 1.0, is_same=lambda *_: True, adds_nothing=fails)
    with pytest.raises(JudgeError, match="raised ZeroDivisionError"):
        by_word.says_only("3.0", "3")
    with Judge() as judge:
        assert not TaskAgreement(by_word, (), judge).is_restated("3.0", "3")
        agreement = TaskAgreement(Metric("own", exits), (), judge)
        assert asyncio.run(agreement.is_same("3.0", "3")) is False
    with pytest.raises(JudgeError, match="raised SystemExit"):
        Metric("own", exits).points("3.0", "3")


@pytest.mark.parametrize("score", ["float('nan')", "-3", "2.0"])
def test_a_slow_score_out_of_range_is_an_error_and_never_0(announce: Announce, score: str) -> None:
    announce("slow", f"def score(answer, gold, choices):\n    return {score}\n")
    with Judge(n_workers=1) as judge, pytest.raises(JudgeError, match="not a number from 0 to 1"):
        judge.score(Metric("slow", "slow:score"), "3", ("4",))


def test_a_slow_metric_of_a_package_is_scored_where_it_can_be_killed(announce: Announce) -> None:
    announce(
        "slow_metric",
        "print('words on stdout')\n"
        "def points(answer, gold, choices):\n"
        "    print('more words')\n"
        "    while answer == 'hang': pass\n"
        "    if answer == 'bad': raise KeyError(answer)\n"
        "    return len(choices) / 4 if answer != gold else 1.0\n",
    )
    metric = Metric("slow", "slow_metric:points")
    with Judge(n_workers=1, cpu_limit_s=1.0) as judge:
        assert judge.score(metric, "a", ("b", "a")) == 1.0
        assert judge.score(metric, "a", ("b",), ("x", "y")) == 0.5
        assert judge.are_same(metric, "a", "a")
        assert not judge.are_same(metric, "a", "b")
        with pytest.raises(JudgeError, match="not compared within 1 s"):
            judge.score(metric, "hang", ("b",))
        with pytest.raises(JudgeError, match="KeyError: 'bad'"):
            judge.score(metric, "bad", ("b",))
        assert judge.score(TASKS["math"].metric, "1+x", ("x+1",)) == 1.0  # another function
    assert "slow_metric" not in sys.modules


def test_without_a_comparison_answers_are_the_same_when_each_scores_one_against_the_other() -> None:
    metric = Metric("prefix", lambda answer, gold, choices: float(answer.startswith(gold)))
    assert metric.same("ab", "a") is False  # "ab" scores 1 against "a", and "a" 0 against "ab"
    assert metric.same("a", "a") is True
    assert metric.same("", "") is False
    assert metric.says_only("The answer", "the answer") is False
    loose = Metric("loose", lambda *_: 1.0)
    assert loose.says_only("The answer", "the answer") is True
    assert loose.says_only("the answer, perhaps", "the answer") is False


def test_role_sets_and_formats_of_a_package_are_named_in_a_recipe(
    announce: Announce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "poet.txt").write_text("{{ name }} rhymes: {{ question }}{{ format_text or '' }}")
    code = (
        "from pathlib import Path\n"
        "from optima.tasks import RoleSet\n"
        f"HERE = Path({str(folder)!r})\n"
        "ROLES = RoleSet(('poet', 'critic'), 'poet', HERE, formats='first')\n"
        "LOST = RoleSet(('poet', 'bard'), 'poet', HERE)\n"
    )
    announce("verses", code, group=plugins.PROMPTS, rhymes="verses:ROLES")
    recipe = ROOT / "recipes" / "sft" / "gsm8k.yaml"

    def style(prompts: str) -> PromptStyle:
        return PromptStyle.of(
            load_recipe(recipe, [f"conversation.prompts={prompts}"]), get_task("gsm8k")
        )

    own = style("rhymes")
    probe = load_problems(TASKS["two_hop"], DataSection(), "test", n_agents=2, seed=0).problems[0]
    assert system_prompt(probe, own, agent=0, format_text=" in lists") == (
        f"Alice rhymes: {probe.question} in lists"
    )
    assert "rhymes" not in system_prompt(probe, own, agent=1)
    assert style("verses:ROLES").told([probe]) == own.told([probe])
    plain = PromptStyle.of(load_recipe(recipe), get_task("gsm8k"))
    assert own.told([probe]) != plain.told([probe])  # other roles are other inputs of a stage
    for name, message in (
        ("verses:LOST", "bard.txt: does not exist, which an agent's role needs; add it"),
        ("verses:HERE", "is of type PosixPath, where an object of type RoleSet is expected"),
        ("rymes", "rymes: is not a directory"),
    ):
        with pytest.raises(UsageError, match=f"conversation.prompts: .*{message}"):
            style(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rhymes").mkdir()
    with pytest.raises(UsageError, match=r"is a directory here too; write ./rhymes"):
        style("rhymes")
    n_built_in = len(load_formats())
    assert len(load_formats("verses:HERE")) == n_built_in + 1
    with pytest.raises(UsageError, match=r"sampling\.format_pool_path: 'verses:ROLES': "):
        load_formats("verses:ROLES")


def test_recipes_hold_for_tasks_of_packages_too(announce: Announce, tmp_path: Path) -> None:
    announce("own_task", CODE, own="own_task:TASK")
    file = tmp_path / "r.yaml"
    text = "method: sft\ntask: {}\nmodel: {{path: m}}\nfor:\n  own: {{iterations: 2}}\n"
    file.write_text(text.format("own") + '  "own_task:TASK": {iterations: 4}\n')
    assert (load_recipe(file).task, load_recipe(file).iterations) == ("own", 2)
    file.write_text(text.format("own_task:TASK") + '  "own_task:TASK": {iterations: 4}\n')
    assert (load_recipe(file).task, load_recipe(file).iterations) == ("own_task:TASK", 4)
    file.write_text(text.format("gone:TASK"))
    with pytest.raises(RecipeError, match=r"r.yaml:2: task: 'gone:TASK': cannot be imported"):
        load_recipe(file)


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the example package was installed, far from the clone."""
    place = tmp_path_factory.mktemp("outside")
    shutil.copytree(EXAMPLE, place / "src", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    argv = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-index"]
    argv += ["--no-deps", "--no-build-isolation", "--target", str(place / "site"), "./src"]
    done = subprocess.run(argv, cwd=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return place


def command(place: Path, name: str, *words: str) -> tuple[int, str, str]:
    program = Path(sys.executable).parent / name
    path = os.pathsep.join((str(place / "site"), str(ROOT)))
    done = subprocess.run(
        [str(program), *words], cwd=place, env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_the_example_package_is_short() -> None:
    lines = (EXAMPLE / "optima_estimates" / "__init__.py").read_text().splitlines()
    assert len(lines) < 60


def test_the_installed_example_is_listed_shown_and_planned(outside: Path) -> None:
    status, out, err = command(outside, "optima", "tasks")
    assert (status, err) == (0, "")
    assert "estimates debate               closeness   no       optima-estimates 0.1 Est" in out
    assert "role set 'estimators' of optima-estimates 0.1: optima_estimates:ESTIMATORS\n" in out
    rows = f"data.path={EXAMPLE / 'rows'}"
    recipe = str(EXAMPLE / "recipe.yaml")
    status, out, err = command(outside, "optima", "prompts", "show", "--recipe", recipe, rows)
    assert status == 0, err
    assert "You are Bob. Alice estimates a number, and you audit the estimate." in out
    write_model(outside / "model")
    python = str(fake_environment(outside).python)
    status, out, err = command(
        outside, "optima-sft", "--config", recipe, "--dry-run", "--quiet", "--vllm-env", python,
        "--train-env", python, "serving.device=cpu", f"model.path={outside / 'model'}", rows,
    )  # fmt: skip
    assert status == 0, err
    assert "estimates: debate, closeness, 2 agents" in out


def test_the_metric_of_the_example_scores_by_distance(
    outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(outside / "site")
    metric = get_task("optima_estimates:TASK").metric
    sys.modules.pop("optima_estimates")
    # off by 0, 2.5 and 5 of 50, where a tenth is 5: 1 - 0, 1 - 0.5, 1 - 1
    assert [metric.points(said, "50") for said in ("50", "52.5", "45", "90", "many")] == [
        1.0, pytest.approx(0.5), pytest.approx(0.0), 0.0, 0.0
    ]  # fmt: skip


def test_a_broken_plug_in_leaves_the_others_listed_and_ends_with_2(outside: Path) -> None:
    info = outside / "site" / "broken-3.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 3.0\n")
    (info / "entry_points.txt").write_text("[optima.tasks]\nbroken = nowhere_at_all:TASK\n")
    status, out, err = command(outside, "optima", "tasks")
    shutil.rmtree(info)
    assert (status, "estimates" in out, "mmlu" in out) == (2, True, True)
    assert err == (
        "optima: task: 'broken' of broken 3.0: cannot be imported (ModuleNotFoundError: No module "
        "named 'nowhere_at_all'); install it in this environment, or put its folder on PYTHONPATH\n"
    )


def test_the_module_of_the_documentation_is_a_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    (tmp_path / "capitals.py").write_text(page.split("```python\n")[1].split("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "test.jsonl").write_text(
        '{"land": "Norway", "capital": "Oslo"}\n{"land": "Monaco", "capital": "Monaco"}\n'
    )
    data = DataSection(path=str(tmp_path), max_malformed=0.5)
    loaded = load_problems(get_task("capitals:TASK"), data, "test", n_agents=2, seed=0)
    sys.modules.pop("capitals")
    assert [(p.question, p.golds) for p in loaded.problems] == [
        ("What is the capital of Norway?", ("Oslo",))
    ]
    assert [row.reason for row in loaded.skipped] == [
        "test.jsonl line 2: the question tells the answer"
    ]


def test_a_run_goes_on_with_the_same_version_of_a_package_and_does_its_stages_anew_with_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "hops.py").write_text(
        "from dataclasses import replace\n"
        "from optima.tasks import TASKS, Metric\n"
        "F1 = TASKS['two_hop'].metric\n"
        "METRIC = Metric('halved', 'hops:points')\n"
        "def points(answer, gold, choices):\n"
        "    return F1.score(answer, gold, choices) if answer == gold else 0.5\n"
        "TASK = replace(TASKS['two_hop'], name='hops', metric=METRIC)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(site), str(ROOT))))

    def publish(version: str) -> None:
        info = site / "hops.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: hops\nVersion: {version}\n")
        (info / "entry_points.txt").write_text("[optima.tasks]\nhops = hops:TASK\n")

    def scores() -> set[float]:
        rewards = tmp_path / "run" / "iter_0" / "rank" / "rewards.jsonl"
        return {json.loads(line)["task"] for line in rewards.read_text().splitlines()}

    environment = fake_environment(tmp_path)
    fields = ("task=hops", "iterations=1", "reward.lambda_loss=0", "cold_start=null")

    def finish_run() -> None:  # in a process of its own, which finds the package
        status, _, err = finish(start(tmp_path, environment, *fields))
        assert status == 0, err

    publish("1.0")
    finish_run()
    assert scores() <= {0.0, 0.5, 1.0}
    assert 0.5 in scores()
    done = tmp_path / "run" / "iter_0" / "rank" / "DONE.json"
    before = done.read_bytes()
    finish_run()
    assert done.read_bytes() == before
    publish("1.1")
    finish_run()
    assert json.loads(done.read_bytes())["inputs"] != json.loads(before)["inputs"]

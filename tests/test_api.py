"""The Python API: run, dry_run, evaluate, and the page that shows them."""

import asyncio
import doctest
import inspect
import os
import signal
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import optima
from optima.errors import RecipeError, UsageError
from optima.processes import interruption
from tests.cli.test_dry_run import write_model
from tests.fake_runs import run as run_command
from tests.fake_runs import write_recipe
from tests.fakes import fake_environment

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/python.md"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with the recipes, a small model, and stand-ins for both environments."""
    prefix = fake_environment(tmp_path / "environment").prefix
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    model = tmp_path / "models/smollm2-135m-instruct"
    model.parent.mkdir()
    write_model(model)
    (model / "model.safetensors").write_bytes(b"start")
    monkeypatch.chdir(tmp_path)
    for role in ("VLLM", "TRAIN"):
        monkeypatch.setenv(f"OPTIMA_{role}_ENV", str(prefix))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


def test_page_shows_what_happens(place: Path) -> None:
    text = PAGE.read_text("utf-8").replace("\n```", "\n")
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    found = doctest.DocTestParser().get_doctest(text, {}, PAGE.name, str(PAGE), 0)
    assert len(found.examples) >= 15
    said: list[str] = []
    doctest.DocTestRunner(optionflags=flags, verbose=False).run(found, out=said.append)
    assert "".join(said).splitlines() == []


def test_page_names_all_of_the_api() -> None:
    page = PAGE.read_text("utf-8")
    assert [name for name in optima.__all__ if f"optima.{name}" not in page and name != "Run"
            and name not in ("Recipe", "Task")] == []  # fmt: skip
    assert "`Recipe`" in page
    assert "`Task`" in page


def test_every_part_of_the_api_is_there_documented_and_typed() -> None:
    names = optima.__all__
    assert set(names) <= set(dir(optima))
    for name in names:
        part = getattr(optima, name)
        assert inspect.getdoc(part), name
        if inspect.isfunction(part):
            hints = typing.get_type_hints(part, localns={n: getattr(optima, n) for n in names})
            assert set(inspect.signature(part).parameters) | {"return"} == set(hints), name
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = optima.nothing


def test_importing_optima_imports_no_library_and_the_recipe_opens_no_socket() -> None:
    code = (
        "import sys; import optima; "
        "print(sorted(n for n in sys.modules if n.partition('.')[0] in "
        "('pydantic', 'yaml', 'aiohttp', 'pandas', 'pyarrow', 'typer', 'asyncio'))); "
        "optima.Recipe, optima.Task, optima.Problem, optima.Conversation; "
        "print(sorted(n for n in sys.modules if n in ('socket', 'ssl', 'aiohttp', 'subprocess')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    first, second = done.stdout.splitlines()
    assert first == "[]"
    assert not {"aiohttp", "ssl"} & set(second.strip("[]").replace("'", "").split(", "))


def test_run_by_words_is_stored_where_the_command_stores_it(place: Path) -> None:
    config = write_recipe(place, "sft")
    run = optima.run([config, "iterations=1", "seed=3"])
    assert run.root == Path("runs/recipe-seed3")
    assert run.recipe.seed == 3
    assert run.evaluated == ("base", "cold_start", "iter_0")
    again = optima.run(run.recipe, run.root)  # goes on, and finds all done
    assert again.metrics == run.metrics


def test_run_equals_that_of_the_command(place: Path) -> None:
    environment = fake_environment(place / "other")
    run_command(place, environment, "iterations=1", run="commanded")
    run = optima.run([place / "recipe.yaml", "iterations=1"], "called")
    commanded = optima.open_run(place / "commanded")
    assert run.recipe == commanded.recipe
    assert run.to_frame().equals(commanded.to_frame())


def test_recipe_object_is_stored_by_method_task_and_seed(place: Path) -> None:
    recipe = optima.load_recipe(write_recipe(place, "sft"), "seed=7")
    assert "run        runs/sft-two_hop-seed7\n" in optima.dry_run(recipe)
    assert "run        runs/recipe-seed7\n" in optima.dry_run([place / "recipe.yaml", "seed=7"])
    assert not (place / "runs").exists()


def test_evaluation_takes_words_a_recipe_or_the_runs_own(place: Path) -> None:
    config = write_recipe(place, "sft")
    trained = optima.run([config, "iterations=1", "conversation.max_turns=3"], "trained")
    own = optima.evaluate("trained", output="own", limit=2)
    assert own.recipe.conversation.max_turns == 3
    changed = optima.evaluate("trained", output="changed", limit=2, recipe="evaluation.n_samples=2")
    assert changed.recipe.conversation.max_turns == 3
    assert len(changed.to_frame("model")) == 2 * 2
    given = trained.recipe.model_copy(update={"seed": 5})
    by_recipe = optima.evaluate(
        ["trained", place / "model"], optima.get_task("two_hop"), output="both", recipe=given,
        limit=2,
    )  # fmt: skip
    assert by_recipe.recipe.seed == 5
    assert by_recipe.evaluated == ("trained", f"{place.name}/model")


def test_what_is_wrong_is_raised_in_one_line(place: Path) -> None:
    with pytest.raises(UsageError, match=r"^recipe: no file is named; give one"):
        optima.load_recipe("seed=1")
    with pytest.raises(RecipeError, match=r"nowhere\.yaml"):
        optima.run("nowhere.yaml")
    with pytest.raises(UsageError, match=r"^--task: is missing"):
        optima.evaluate(place / "models/smollm2-135m-instruct", output="out")
    with pytest.raises(UsageError, match="'two_hopp' is not a task"):
        optima.evaluate("models/smollm2-135m-instruct", "two_hopp", output="out")


def test_frame_without_pandas_says_what_is_missing(place: Path) -> None:
    run = optima.run([write_recipe(place, "sft"), "iterations=1", "cold_start=null"], "run")
    code = (
        "import sys; sys.modules['pandas'] = None; import optima\n"
        "from optima.errors import UsageError\n"
        f"try: optima.open_run({str(run.root.absolute())!r}).to_frame()\n"
        "except UsageError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.startswith("pandas: is not installed here; `pip install pandas`")


def test_call_from_a_notebook_whose_loop_is_running_is_made_beside_it(place: Path) -> None:
    async def cell() -> tuple[str, ...]:
        return optima.run([write_recipe(place, "sft"), "iterations=1"], "run").evaluated

    assert asyncio.run(cell()) == ("base", "cold_start", "iter_0")


def test_interrupted_cell_cancels_what_it_runs() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.5)  # what closes is not cancelled again
            ended.append("closed")

    async def cell() -> None:
        with pytest.raises(KeyboardInterrupt):
            interruption.run(work())

    loop = asyncio.new_event_loop()  # asyncio.run would take the signal itself, no notebook does
    loop.run_until_complete(cell())
    loop.close()
    assert ended == ["closed"]


def test_error_of_what_runs_beside_a_loop_is_raised() -> None:
    async def work() -> None:
        raise RuntimeError("of its own")

    async def cell() -> None:
        with pytest.raises(RuntimeError, match="of its own"):
            interruption.run(work())

    asyncio.run(cell())

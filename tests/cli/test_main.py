"""The optima command."""

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import optima
from optima.cli import doctor
from optima.cli.__main__ import PROGRAMS, program
from optima.cli.inference import multi_sc
from optima.cli.main import main
from optima.errors import UsageError
from optima.recipe.loading import load_recipe
from optima.tasks import TASKS
from tests.templates import CHATML, LLAMA3

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = str(ROOT / "recipes" / "sft" / "quickstart.yaml")


def test_recipes_lists_every_file_with_its_first_line_and_layers_apart(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["recipes", "--dir", str(ROOT / "recipes")]) == 0
    recipes, layers = capsys.readouterr().out.split("\n\n")
    assert any("sft/arc.yaml" in line and "ARC-Challenge" in line for line in recipes.splitlines())
    head, *files = layers.splitlines()
    assert head == "Layers, to go over a recipe (--config RECIPE LAYER):"
    assert [line.split()[0] for line in files] == sorted(
        str(path)
        for name in ("mixtures", "models", "teams")
        for path in (ROOT / "recipes" / name).glob("*.yaml")
    )
    assert any("Qwen2.5-Coder-0.5B-Instruct" in line for line in files)
    n_recipes = len(recipes.splitlines())
    assert n_recipes + len(files) == len(list((ROOT / "recipes").rglob("*.yaml")))


def test_recipes_in_an_empty_folder_is_a_usage_error(tmp_path: Path) -> None:
    assert main(["recipes", "--dir", str(tmp_path)]) == 2


def test_shown_recipe_loads_back_equal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["recipes", "show", QUICKSTART, "seed=7"]) == 0
    copy = tmp_path / "copy.yaml"
    copy.write_text(capsys.readouterr().out)
    assert load_recipe(copy) == load_recipe(Path(QUICKSTART), ["seed=7"])


def test_layers_are_shown_merged(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    layers = [QUICKSTART, str(ROOT / "recipes/models/qwen2.5-0.5b.yaml")]
    assert main(["recipes", "show", *layers, "seed=7"]) == 0
    copy = tmp_path / "copy.yaml"
    copy.write_text(capsys.readouterr().out)
    shown = load_recipe(copy)
    assert shown == load_recipe([Path(layer) for layer in layers], ["seed=7"])
    assert (shown.model.path, shown.seed) == ("models/qwen2.5-coder-0.5b-instruct", 7)
    assert main(["recipes", "show", "seed=7"]) == 2


def test_tasks_lists_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert names == list(TASKS)


def _heads(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("--- ")]


def test_prompts_show_prints_one_prompt_per_agent(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["prompts", "show", "--recipe", QUICKSTART, "agents.names=[Ada, Ben, Cy]"]
    assert main(argv) == 0
    heads = _heads(capsys)
    assert [head.split()[1] for head in heads if "after what" not in head] == ["Ada", "Ben", "Cy"]
    cues = [head for head in heads if "after what" in head]
    assert [head.split(" hears")[0] for head in cues] == [
        f"--- after what {name}" for name in ("Ada", "Ben", "Cy")
    ]


@pytest.mark.parametrize(
    ("template", "roles", "said"),
    [
        (CHATML, "auto", "hears"),
        (LLAMA3, "auto", None),  # all is said by the assistant: nothing is heard
        (LLAMA3, "alternate", "hears"),
        (CHATML, "assistant", None),
        (None, "auto", "hears, where the chat template alternates roles"),  # a model on the hub
    ],
)
def test_prompts_show_prints_what_is_heard_where_it_is(
    template: str | None, roles: str, said: str | None, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if template is not None:
        (tmp_path / "chat_template.jinja").write_text(template)
    path = tmp_path if template is not None else "someone/model"
    argv = ["prompts", "show", "--recipe", QUICKSTART, f"model.path={path}", f"model.roles={roles}"]
    assert main([*argv, "--agent", "Bob"]) == 0
    heads = _heads(capsys)[1:]
    assert heads == ([] if said is None else [f"--- after what Bob {said}"])


def test_prompts_show_takes_layers_by_either_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    layer = tmp_path / "three.yaml"
    layer.write_text("agents: {names: [Ada, Ben, Cy]}\n")
    for option in ("--recipe", "--config"):
        argv = ["prompts", "show", option, QUICKSTART, str(layer), "seed=1", "--agent", "Cy"]
        assert main(argv) == 0
        assert capsys.readouterr().out.startswith("--- Cy ")


def test_prompts_show_prints_one_agents_prompt_alone(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["prompts", "show", "--recipe", QUICKSTART, "--agent", "Bob"]
    assert main(argv) == 0
    prompt, cue = _heads(capsys)
    assert prompt.startswith("--- Bob (")
    assert cue.startswith("--- after what Bob hears")
    assert main([*argv[:-1], "Eve"]) == 2
    assert "--agent Eve: must be one of Alice, Bob" in capsys.readouterr().err


def test_prompts_show_refuses_a_problem_that_is_not_there() -> None:
    assert main(["prompts", "show", "--recipe", QUICKSTART, "--index", "999"]) == 2


def test_diversify_without_a_key_says_which_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    argv = ["prompts", "diversify", "--out", str(tmp_path), "--model", "m", "--base-url", "u"]
    assert main(argv) == 2
    assert "OPENAI_API_KEY: is not set" in capsys.readouterr().err


def test_doctor_ends_with_1_and_names_what_is_wrong(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["doctor", "--vllm-env", str(tmp_path), "--train-env", str(tmp_path)]
    assert main(argv) == 1
    out = capsys.readouterr().out
    assert "FAIL vllm environment: " in out
    assert str(tmp_path) in out


def test_doctor_calls_a_missing_model_wrong(tmp_path: Path) -> None:
    recipe = load_recipe(Path(QUICKSTART), [f"model.path={tmp_path}"])
    findings = {found.name: found for found in doctor.examine(recipe, str(tmp_path), None)}
    assert not findings["model"].is_ok
    assert findings["ports"].is_ok


def given(argv: list[str]) -> dict[str, Any]:
    """Return what the words of ``optima`` give to the function they call."""
    call = main.parse(argv)
    assert isinstance(call, functools.partial)
    return call.keywords


@pytest.mark.parametrize("words", ["--config a.yaml b.yaml", "--config a.yaml --config b.yaml",
                                   "--config=a.yaml b.yaml"])  # fmt: skip
@pytest.mark.parametrize("command", ["doctor", "sweep", "ablate", "transfer"])
def test_every_command_takes_layers(command: str, words: str) -> None:
    rest = {
        "sweep": ["--over", "seed=1,2", "--run-dir", "d"],
        "ablate": ["--run-dir", "d"],
        "transfer": ["--models", "m", "--tasks", "arc"],
    }
    argv = [
        command,
        "seed=1",
        *words.split(),
        "iterations=2",
        *rest.get(command, []),
        "data.n_train=3",
    ]
    options = given(argv)
    assert options["config"] == [Path("a.yaml"), Path("b.yaml")]
    assert options["overrides"] == ["seed=1", "iterations=2", "data.n_train=3"]


def test_overrides_may_stand_on_both_sides_of_an_option() -> None:
    argv = ["ablate", "--config", "r.yaml", "seed=1", "--run-dir", "d", "iterations=2"]
    argv.append("data.n_train=3")
    assert given(argv)["overrides"] == ["seed=1", "iterations=2", "data.n_train=3"]
    with pytest.raises(UsageError, match="seed=1: is not expected here"):
        main.parse(["tasks", "seed=1"])


@pytest.mark.parametrize(
    "argv",
    [
        ["try", "--config", QUICKSTART, "seed=1", "seed=2"],
        ["doctor", "seed=1", "--config", QUICKSTART, "seed=2"],
        ["recipes", "show", QUICKSTART, "seed=1", "iterations=2", "seed=2"],
        ["prompts", "show", "--recipe", QUICKSTART, "seed=1", "seed=2"],
        ["ablate", "seed=1", "--config", QUICKSTART, "--run-dir", "d", "seed=2"],
        ["sweep", "seed=1", "--config", QUICKSTART, "--over", "seed=2,3", "--run-dir", "d"],
        ["transfer", "--models", "m", "--tasks", "arc", "--output", "d", "seed=1", "seed=2"],
        ["baselines", "--model", "m", "--output", "d", "seed=1", "seed=2"],
        ["chat", "m", "seed=1", "seed=2"],
        ["rescore", "run", "seed=1", "seed=2"],
        ["pairs", "--run", "run", "pairs.theta_diff=0.1", "select.theta_diff=0.2"],
    ],
)
def test_override_given_twice_is_refused_by_every_command(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "=0.1, which" in line or "=2: takes back seed=1, which stands before it" in line
    assert not list(tmp_path.iterdir())


def test_override_of_what_a_layer_says_is_none_given_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "layer.yaml").write_text("seed: 5\ntrain: {epochs: 3.0, lora: {rank: 8}}\n")
    words = [QUICKSTART, str(tmp_path / "layer.yaml"), "seed=6", "train.lora.rank=4"]
    assert main(["recipes", "show", *words]) == 0
    out = capsys.readouterr().out
    assert "\nseed: 6\n" in out
    assert "  epochs: 3.0\n" in out
    assert "    rank: 4\n" in out


@pytest.mark.parametrize("place", [1, 3, 4, 6])
def test_word_that_is_no_override_is_refused(
    place: int, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["ablate", "--run-dir", "d", "seed=1", "--config", QUICKSTART]
    argv.insert(place, "stray")
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        ("optima: override stray: must be key=value", "optima: stray: there is ")
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_command_says_its_version(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status: object = program(name)(["--version"])
    except SystemExit as error:  # of the program that runs where only the trainers' libraries are
        status = error.code
    assert status == 0
    assert capsys.readouterr().out == f"optima {optima.__version__}\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["nothing"], [], ["try"], ["prompts"], ["report"], ["tasks", "--what"],
        ["try", "--config", "r.yaml", "--n", "many"], ["doctor", "--config"],
    ],
)  # fmt: skip
def test_words_that_make_no_command_end_with_2_and_one_line(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--help` says what can be given" in err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["comparee"], "comparee: no such command (did you mean compare?); `optima --help`"),
        (["doctor", "--confg", "x"], "--confg: no such option (did you mean --config?); "),
        (["compare", "--jsn"], "--jsn: no such option (did you mean --json?); `optima compare "),
        (["transfer", "--model", "x"], "--model: no such option (did you mean --models?); "),
        (["doctor", "--qqq"], "--qqq: no such option; `optima doctor --help` says"),
        (["doctor", "--config", "seed=1"], "--config: expected one argument"),
        (["prompts", "show", "--config", "--agent", "A"], "--config: expected one argument"),
        (["pairs", "pairs", "--nope"], "`optima pairs --help` says"),
    ],
)
def test_wrong_words_are_answered_by_what_is_meant(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    assert said in capsys.readouterr().err


# A command with a number that it cannot be -> the bounds that it names.
NUMBERS = {
    ("try", "--config", "r.yaml", "--n", "0"): "--n: 0: must be a whole number from 1 to 10000000",
    ("try", "--config", "r.yaml", "--show", "-1"): "--show: -1: must be a whole number from 0 to ",
    ("try", "--config", "r.yaml", "--n", "9" * 5000): f"--n: {'9' * 40}: must be a whole number ",
    ("try", "--config", "r.yaml", "--n", "1e3"): "--n: 1e3: must be a whole number from 1 to ",
    ("prompts", "show", "--config", "r.yaml", "--index", "1.5"): "--index: 1.5: must be a whole ",
    ("baselines", "--n-votes", "10001"): "--n-votes: 10001: must be a whole number from 1 to 10000",
    ("baselines", "--vote-temperature", "nan"): "--vote-temperature: nan: must be a number from 0 ",
    ("baselines", "--limit", "0"): "--limit: 0: must be a whole number from 1 to ",
    ("transfer", "--models", "m", "--tasks", "arc", "--limit", "-3"): "--limit: -3: must be a ",
    ("view", "r", "--port", "65536"): "--port: 65536: must be a whole number from 0 to 65535",
    ("report", "r", "--max-trees", "0"): "--max-trees: 0: must be a whole number from 1 to ",
}


@pytest.mark.parametrize("argv", NUMBERS, ids=lambda argv: " ".join(argv)[:40])
def test_number_out_of_bounds_is_refused_with_the_bounds(
    argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"optima: {NUMBERS[argv]}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("argv", [["--n-samples", "0"], ["--temperature", "2.1"]])
def test_number_of_multi_sc_out_of_bounds_is_refused(argv: list[str]) -> None:
    assert multi_sc(argv) == 2


@pytest.mark.parametrize(
    ("name", "words", "offered"),
    [
        ("optima", "optima tr", ["transfer", "try"]),
        ("optima-sft", "optima-sft --d", ["--dry-run"]),
        ("optima-infer", "optima-infer --task ", list(TASKS)),
        ("optima-infer", "optima-infer --num", []),  # of the original project: not shown
    ],
)
def test_shell_is_told_what_can_follow(name: str, words: str, offered: list[str]) -> None:
    variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), variable: "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-m", "optima.cli", name], cwd=ROOT, env={**os.environ, **asked},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert sorted(done.stdout.split()) == sorted(offered)


def test_help_imports_nothing_that_runs_a_model_or_reads_a_run() -> None:
    code = (
        "import sys; from optima.cli.main import main; main(['--help'])\n"
        "from optima.cli.inference import infer; infer(['--help'])\n"
        "heavy = ('optima.tasks', 'optima.stages', 'optima.serving', 'optima.reporting', "
        "'pydantic')\n"
        "print([n for n in sys.modules if n.startswith(heavy)], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stderr == "[]\n"


def test_mistake_is_answered_without_importing_what_takes_longest() -> None:
    mistakes = (
        *("status nowhere", "report nowhere", "rescore nowhere", "compare nowhere elsewhere"),
        *("pairs --run nowhere", "try --config nowhere.yaml", "export nowhere --output nowhere"),
    )
    code = (
        "import sys; from optima.cli.main import main\n"
        f"print([main(words.split()) for words in {mistakes}])\n"
        "heavy = {'aiohttp', 'numpy', 'matplotlib', 'pyarrow', 'huggingface_hub', 'datasets'}\n"
        "print(sorted(heavy & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{[2] * len(mistakes)}\n[]\n"

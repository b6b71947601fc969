"""The benchmarks measure what the product does."""

import importlib.util
from pathlib import Path
from types import ModuleType

from optima.conversation.loading import load_codec
from tests.templates import CHATML
from tests.tokenizers import write_tokenizer

ROOT = Path(__file__).resolve().parents[2]


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "bench" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_losses_of_the_scorer_benchmark_count_the_end_of_turn(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    write_tokenizer(tmp_path)
    end = load_codec(str(tmp_path)).end_text()
    assert end == "<|im_end|>"
    items = _load("scorer").make_items(str(tmp_path), 5, 0)
    assert [text.endswith(end) and text.count(end) == 1 for _, text in items] == [True] * 5
    assert {header for header, _ in items} == {"<|im_start|>assistant\n"}

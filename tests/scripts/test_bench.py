"""The benchmarks measure what the product does."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from optima.conversation.loading import load_codec
from tests.templates import CHATML
from tests.tokenizers import write_tokenizer

ROOT = Path(__file__).resolve().parents[2]


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "bench" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
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


def test_simulated_nodes_are_linear_until_the_orchestrator_is_busy_and_a_loss_costs_its_turns() -> (
    None
):
    nodes = _load("nodes")
    talk = nodes.Talk("made up", 4.0, 20.0)
    free = nodes.Inputs(tokens_per_s=1_000.0, n_sequences=10, turn_s=0.0)
    one, four = (nodes.simulate(free, talk, n, 2_000) for n in (1, 4))
    assert one.n_turns == four.n_turns == 8_000
    assert one.seconds == pytest.approx(8_000 * 20 / 1_000, rel=0.05)
    assert one.seconds / four.seconds == pytest.approx(4, rel=0.05)
    slow = nodes.Inputs(tokens_per_s=1_000.0, n_sequences=10, turn_s=0.02)
    found = nodes.simulate(slow, talk, 16, 2_000)
    assert found.n_turns / found.seconds == pytest.approx(50, rel=0.05)
    half_s = four.seconds / 2
    killed = nodes.simulate(free, talk, 4, 2_000, lost_at_s=half_s)
    assert killed.n_asked_again == 10
    assert killed.n_turns == 8_010
    assert killed.seconds == pytest.approx(half_s * (1 + 4 / 3), rel=0.05)
    silent = nodes.simulate(free, talk, 4, 2_000, lost_at_s=half_s, is_silent=True)
    assert silent.seconds <= max(killed.seconds * 1.05, half_s + free.timeout_s + 2)

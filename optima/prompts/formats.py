"""The pool of communication formats from which iteration 0 draws (paper section 3.1).

One text file per format; its name without the ending is the format's id.
"""

from dataclasses import dataclass
from pathlib import Path

from optima.errors import UsageError

POOL_DIR = Path(__file__).parent / "formats"


@dataclass(frozen=True, slots=True)
class Format:
    """An instruction how to write messages."""

    format_id: str
    text: str


def load_formats(extra_dir: Path | None = None) -> tuple[Format, ...]:
    """Return the built-in pool and the formats of ``extra_dir``, in the order of their names.

    Raises UsageError when the directory has no ``*.txt`` file, a file is empty, or an id is taken.
    """
    paths = sorted(POOL_DIR.glob("*.txt"))
    if extra_dir is not None:
        extra = sorted(extra_dir.glob("*.txt"))
        if not extra:
            raise UsageError(
                f"sampling.format_pool_path={extra_dir}: holds no *.txt file; write one file a "
                "format, or make some with `optima prompts diversify`"
            )
        paths += extra
    formats: dict[str, Format] = {}
    for path in paths:
        text = path.read_text(encoding="utf-8").strip()
        if not text:
            raise UsageError(f"{path}: is empty; write the instruction or remove the file")
        if path.stem in formats:
            raise UsageError(f"{path}: the name {path.stem} is taken by another format; rename it")
        formats[path.stem] = Format(path.stem, text)
    return tuple(formats.values())

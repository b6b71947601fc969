"""The pool of communication formats from which iteration 0 draws (paper section 3.1).

One text file per format; its name without the ending is the format's id.
"""

from dataclasses import dataclass
from pathlib import Path

from optima import plugins
from optima.errors import UsageError

POOL_DIR = Path(__file__).parent / "formats"


@dataclass(frozen=True, slots=True)
class Format:
    """An instruction how to write messages."""

    format_id: str
    text: str


def load_formats(more: str | Path | None = None) -> tuple[Format, ...]:
    """Return the built-in pool and the formats of ``more``, in the order of their names.

    ``more`` is a directory, or a plug-in (``plugins.FORMATS``) that is one. Raises UsageError when
    it has no ``*.txt`` file, a file is empty, or an id is taken.
    """
    paths = sorted(POOL_DIR.glob("*.txt"))
    if more is not None:
        folder = _folder(str(more))
        extra = sorted(folder.glob("*.txt"))
        if not extra:
            raise UsageError(
                f"sampling.format_pool_path={more}: holds no *.txt file; write one file a "
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


def _folder(name: str) -> Path:
    """Return the directory that a recipe names; one that is there comes before a plug-in."""
    try:
        plugin = None if Path(name).is_dir() else plugins.find(plugins.FORMATS, name)
        return Path(name) if plugin is None else plugins.load(plugin, Path)
    except UsageError as error:
        raise UsageError(f"sampling.format_pool_path: {error}") from error

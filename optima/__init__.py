"""Optima: train agents that talk to each other to be right in fewer words (arXiv 2410.08115)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optima.reader import Run, open_run

__version__ = "0.1.0"
__all__ = ["Run", "open_run"]


def __getattr__(name: str) -> Any:
    """Return a part of the API, imported when it is asked for: the trainers import no more."""
    if name in __all__:
        from optima import reader

        return getattr(reader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

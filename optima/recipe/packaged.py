"""The recipes that come with the package, for those who installed it without a clone."""

import logging
from pathlib import Path

import optima

logger = logging.getLogger(__name__)

FOLDER = "recipes"


def packaged_recipes() -> Path:
    """Return the folder of the recipes that come along: in the package, or beside it in a clone."""
    package = Path(optima.__file__).parent
    inside = package / FOLDER
    return inside if inside.is_dir() else package.parent / FOLDER


def find_recipe(path: Path) -> Path:
    """Return the file itself, or the packaged one of the name ``recipes/...`` where it is not."""
    if path.exists() or path.is_absolute() or path.parts[:1] != (FOLDER,):
        return path
    found = packaged_recipes().joinpath(*path.parts[1:])
    if ".." in path.parts or not found.is_file():
        return path
    logger.warning("%s is not here, taking %s", path, found)
    return found

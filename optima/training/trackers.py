"""Whether the trackers of ``train.report_to`` know to whom they report; imports none of them.

A tracker asks for its login when the training begins, which is after a night of generation, and a
training cannot answer.
"""

import configparser
import netrc
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from optima.errors import RecipeError

WANDB_HOST = "https://api.wandb.ai"


@dataclass(frozen=True, slots=True)
class Login:
    """How a tracker is given its key: a variable, a file below the home folder, or a mode without.

    ``modes`` are values of variables with which it asks for no key.
    """

    variables: tuple[str, ...]
    files: tuple[str, ...]
    modes: Mapping[str, tuple[str, ...]]
    remedy: str


# Those of transformers' trackers that talk to a service that wants a key (its 5.x).
LOGINS: dict[str, Login] = {
    "wandb": Login(
        ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"), (),
        {"WANDB_MODE": ("offline", "disabled", "dryrun"), "WANDB_DISABLED": ("true", "1")},
        "run `wandb login`, set WANDB_API_KEY, or keep its log here with WANDB_MODE=offline",
    ),
    "comet_ml": Login(
        ("COMET_API_KEY",), (".comet.config",),
        {"COMET_MODE": ("OFFLINE", "DISABLED"), "COMET_START_ONLINE": ("0", "false")},
        "run `comet login`, set COMET_API_KEY, or keep its log here with COMET_START_ONLINE=0",
    ),
    "neptune": Login(
        ("NEPTUNE_API_TOKEN",), (), {"NEPTUNE_MODE": ("offline", "debug")},
        "set NEPTUNE_API_TOKEN, or keep its log here with NEPTUNE_MODE=offline",
    ),
    "clearml": Login(
        ("CLEARML_API_ACCESS_KEY", "TRAINS_API_ACCESS_KEY", "CLEARML_CONFIG_FILE"),
        ("clearml.conf",), {"CLEARML_OFFLINE_MODE": ("1", "true")},
        "run `clearml-init`, or keep its log here with CLEARML_OFFLINE_MODE=1",
    ),
    "swanlab": Login(
        ("SWANLAB_API_KEY",), (".swanlab/.netrc",),
        {"SWANLAB_MODE": ("local", "offline", "disabled")},
        "run `swanlab login`, set SWANLAB_API_KEY, or keep its log here with SWANLAB_MODE=local",
    ),
}  # fmt: skip


def check_logins(names: Sequence[str]) -> None:
    """Raise RecipeError for a tracker that has no login."""
    for name in names:
        login = LOGINS.get(name)
        if login is None or _is_known(login) or (name == "wandb" and _knows_wandb()):
            continue
        raise RecipeError(
            f"train.report_to: {name}: has no login, for which the first training would wait; "
            f"{login.remedy}"
        )


def _is_known(login: Login) -> bool:
    return (
        any(os.environ.get(variable) for variable in login.variables)
        or any(
            os.environ.get(variable, "").lower() in map(str.lower, values)
            for variable, values in login.modes.items()
        )
        or any((Path.home() / file).is_file() for file in login.files)
    )


def _knows_wandb() -> bool:
    """Tell whether its settings say offline, or a netrc file has an entry for its host."""
    config = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
    settings: dict[str, str] = {}
    for path in (config / "settings", Path("wandb") / "settings"):
        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read(path, encoding="utf-8")
            settings |= parser["default"] if parser.has_section("default") else {}
        except (configparser.Error, ValueError):
            continue
    if settings.get("mode") in LOGINS["wandb"].modes["WANDB_MODE"]:
        return True
    base = os.environ.get("WANDB_BASE_URL") or settings.get("base_url") or WANDB_HOST
    named = os.environ.get("NETRC")
    files = [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]
    return any(_has_entry(path, urlsplit(base).hostname or base) for path in files)


def _has_entry(path: Path, host: str) -> bool:
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False

"""Logins of trackers, looked for where the trackers' own commands leave them."""

from pathlib import Path

import pytest

from optima.errors import RecipeError
from optima.training.launch import LOGINS, check_logins


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who is logged in nowhere."""
    for login in LOGINS.values():
        for name in (*login.variables, *login.modes):
            monkeypatch.delenv(name, raising=False)
    for name in ("NETRC", "WANDB_BASE_URL", "WANDB_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", sorted(LOGINS))
def test_tracker_without_a_login_is_refused_before_anything_is_generated(name: str) -> None:
    with pytest.raises(RecipeError, match=rf"report_to: {name}: has no login, .*; (run|set) "):
        check_logins(["tensorboard", name])


def test_trackers_that_write_files_need_no_login() -> None:
    check_logins([])
    check_logins(["tensorboard", "mlflow", "dvclive", "codecarbon"])


@pytest.mark.parametrize(
    ("tracker", "variable", "value"),
    [
        ("wandb", "WANDB_API_KEY", "k"),
        ("wandb", "WANDB_MODE", "offline"),
        ("wandb", "WANDB_MODE", "disabled"),
        ("comet_ml", "COMET_API_KEY", "k"),
        ("neptune", "NEPTUNE_API_TOKEN", "k"),
        ("clearml", "CLEARML_OFFLINE_MODE", "1"),
        ("swanlab", "SWANLAB_MODE", "local"),
    ],
)
def test_key_or_a_mode_without_one_is_enough(
    monkeypatch: pytest.MonkeyPatch, tracker: str, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    check_logins([tracker])


def test_mode_that_reports_still_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(RecipeError, match="wandb login"):
        check_logins(["wandb"])


def test_login_of_wandb_is_the_entry_of_its_host_in_netrc(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = "machine api.wandb.ai\n  login user\n  password k\n"
    (home / ".netrc").write_text(entry.replace("api.wandb.ai", "example.org"))
    with pytest.raises(RecipeError):
        check_logins(["wandb"])
    (home / ".netrc").write_text(entry)
    check_logins(["wandb"])
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080")  # another server
    with pytest.raises(RecipeError):
        check_logins(["wandb"])
    (home / "other").write_text(entry.replace("api.wandb.ai", "wandb.example.org"))
    monkeypatch.setenv("NETRC", str(home / "other"))
    check_logins(["wandb"])


def test_wandb_switched_offline_by_its_own_command_needs_no_login(home: Path) -> None:
    (home / "wandb").mkdir()
    (home / "wandb" / "settings").write_text("[default]\nmode = online\n")
    with pytest.raises(RecipeError):
        check_logins(["wandb"])
    (home / "wandb" / "settings").write_text("[default]\nmode = offline\n")
    check_logins(["wandb"])


@pytest.mark.parametrize(
    ("tracker", "file"),
    [("comet_ml", ".comet.config"), ("clearml", "clearml.conf"), ("swanlab", ".swanlab/.netrc")],
)
def test_file_that_a_login_leaves_is_enough(home: Path, tracker: str, file: str) -> None:
    (home / file).parent.mkdir(exist_ok=True)
    (home / file).touch()
    check_logins([tracker])

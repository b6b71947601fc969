"""scripts/test.sh where a browser is missing, with stand-ins for what installs one."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TOOLS = ("bash", "env", "dirname", "mkdir", "tail", "ln")
INSTALLS = 'for name in chromium chromedriver; do ln -s /bin/true "$(dirname "$0")/$name"; done'


def write_program(path: Path, text: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose PATH holds a few tools, among them an id that says root, and no browser."""
    scripts, programs = tmp_path / "scripts", tmp_path / "bin"
    for folder in (scripts, programs):
        folder.mkdir()
    shutil.copy(ROOT / "scripts/test.sh", scripts)
    write_program(scripts / "setup_envs.sh", "echo environments made")
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (programs / tool).symlink_to(found)
    write_program(programs / "id", "echo 0")
    return tmp_path


def set_up(checkout: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(checkout / "scripts/test.sh"), "setup"], env={"PATH": str(checkout / "bin")},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_browser_is_installed_by_root_where_it_is_missing(checkout: Path) -> None:
    write_program(
        checkout / "bin/apt-get", f'echo "$@"\n[[ " $* " != *" install "* ]] || {INSTALLS}'
    )
    done = set_up(checkout)
    assert done.returncode == 0, done.stderr
    assert "environments made" in done.stdout
    log = (checkout / ".envs/logs/browser.log").read_text().splitlines()
    assert [line.split()[-1] for line in log] == ["update", "chromium-driver"]
    again = set_up(checkout)
    assert "a browser and chromedriver are there" in again.stdout


@pytest.mark.parametrize("case", ["no apt-get", "no root", "apt-get fails"])
def test_missing_browser_is_one_line_that_says_what_to_install(checkout: Path, case: str) -> None:
    if case != "no apt-get":
        write_program(checkout / "bin/apt-get", "echo E: no network; exit 100")
    if case == "no root":
        write_program(checkout / "bin/id", "echo 1000")
    done = set_up(checkout)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("test: error:")]
    assert lines == [
        "test: error: no browser with its driver on PATH; install chromium (or google-chrome) and "
        "chromedriver"
    ]
    assert "environments made" not in done.stdout

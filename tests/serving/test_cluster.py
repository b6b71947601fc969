"""The cluster of a run, where there is none; with one see tests/methods/test_ray_runs.py."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from optima.errors import UsageError
from optima.serving.board import Board, Wanted, read_as
from optima.serving.cluster import describe
from tests.fake_runs import attempt
from tests.fakes import fake_environment

needs_ray = pytest.mark.skipif(
    find_spec("ray") is None, reason="Ray is not installed (scripts/setup_envs.sh --dev)"
)


def test_ray_that_is_not_installed_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as the import system has it
    line = f"serving.ray: auto: Ray is not installed in {sys.prefix}; install the cluster's release"
    with pytest.raises(UsageError, match=re.escape(line)):
        describe("auto")


@needs_ray
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_run_without_its_cluster_ends_before_it_does_anything(
    dry: tuple[str, ...], tmp_path: Path
) -> None:
    overrides = ("serving.nodes=auto", "serving.ray=127.0.0.1:1", *dry)
    status, _, err = attempt(tmp_path, fake_environment(tmp_path), *overrides)
    assert status == 2
    assert err.splitlines()[-1].startswith("optima: serving.ray: 127.0.0.1:1: [Errno 111] ")
    assert not (tmp_path / "run" / "problems").exists()
    if not dry:
        wanted = read_as(Board(tmp_path / "run" / "nodes").wanted, Wanted)
        assert wanted is not None
        assert wanted.is_over  # for nodes of others


@needs_ray
def test_cluster_that_does_not_answer_is_said_with_the_remedy() -> None:
    with pytest.raises(UsageError) as caught:
        describe("127.0.0.1:1")
    assert str(caught.value) == (
        "serving.ray: 127.0.0.1:1: [Errno 111] Connection refused; start Ray on every node (ray "
        "start --head on one, ray start --address=HOST:PORT on the others), or name the cluster's "
        "HOST:PORT"
    )

"""The cluster of a run, where there is none; with one see tests/methods/test_ray_runs.py."""

import re
import sys

import pytest

from optima.errors import UsageError
from optima.serving.cluster import describe


def test_ray_that_is_not_installed_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as the import system has it
    line = f"serving.ray: auto: Ray is not installed in {sys.prefix}; install the cluster's release"
    with pytest.raises(UsageError, match=re.escape(line)):
        describe("auto")


def test_cluster_that_does_not_answer_is_said_with_the_remedy() -> None:
    pytest.importorskip("ray", reason="Ray is not installed (scripts/setup_envs.sh --dev)")
    with pytest.raises(UsageError) as caught:
        describe("127.0.0.1:1")
    assert str(caught.value) == (
        "serving.ray: 127.0.0.1:1: [Errno 111] Connection refused; start Ray on every node (ray "
        "start --head on one, ray start --address=HOST:PORT on the others), or name the cluster's "
        "HOST:PORT"
    )

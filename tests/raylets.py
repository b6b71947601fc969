"""A Ray cluster of several raylets of this host, on loopback, in a process of its own.

Ray leaves signal handlers and threads where a cluster was started, and its processes where that
ended too soon; below guards nothing is left.
"""

import os
import secrets
import select
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from optima.processes.managed import ManagedProcess

NODE = "OPTIMA_TEST_NODE"  # what a raylet hands to all below it: its name
ANSWER_S = 90.0
VARIABLES = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback; else an address that other hosts reach
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}


class Raylets:
    """The cluster; its head runs nothing but the driver of a run, which needs ``VARIABLES``."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # paths of sockets are short
        self._process = ManagedProcess(
            [sys.executable, "-m", "tests.raylets", self._folder], name="raylets", pipes=True,
            log_path=Path(self._folder) / "log", env={**os.environ, **VARIABLES},
        )  # fmt: skip
        self._process.start()
        self.address = self._read()

    def add(self, name: str) -> None:
        self._tell("add", name)

    def kill(self, name: str) -> None:
        self._tell("kill", name)

    def stop(self) -> None:
        self._process.stop()
        shutil.rmtree(self._folder)

    def _tell(self, *words: str) -> None:
        self._process.stdin.write(" ".join(words).encode() + b"\n")
        self._process.stdin.flush()
        assert self._read() == "done"

    def _read(self) -> str:
        assert select.select([self._process.stdout], [], [], ANSWER_S)[0], "no answer in time"
        line = self._process.stdout.readline().decode().strip()
        assert line, self._process.log_excerpt()
        return line


def main(folder: str) -> None:
    """Start a head, say its address, and do what is asked for on standard input."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=False)
    nodes: dict[str, Any] = {}

    def add(name: str, **options: object) -> None:
        nodes[name] = cluster.add_node(
            num_cpus=1, object_store_memory=80 * 2**20, dashboard_agent_listen_port=0,
            temp_dir=folder, env_vars={NODE: name}, **options,
        )  # fmt: skip

    add("head", include_dashboard=False)
    print(cluster.address, file=out, flush=True)
    for line in sys.stdin:
        task, name = line.split()
        if task == "add":
            add(name)
        else:
            nodes.pop(name).kill_raylet()
        print("done", file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

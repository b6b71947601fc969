"""The batch scripts, with a stand-in for srun."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts" / "slurm"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the programs that the scripts look for; srun prints what it is given."""
    for name in (".envs/train/bin/optima-sft", ".envs/vllm/bin/python", "bin/srun"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
        path.chmod(0o755)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "slurm").symlink_to(SCRIPTS)
    return tmp_path


def _submit(checkout: Path, script: str, *arguments: str, **variables: str) -> list[str]:
    environ = {**os.environ, "PATH": f"{checkout}/bin:{os.environ['PATH']}", **variables}
    environ["SLURM_SUBMIT_DIR"] = str(checkout)
    done = subprocess.run(
        ["bash", str(SCRIPTS / script), *arguments],
        env=environ, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_run_gets_every_core_that_was_asked_for(checkout: Path) -> None:
    # srun has not taken over --cpus-per-task since Slurm 22.05: it gave the run one core of 64.
    words = _submit(checkout, "sft.sbatch", "r.yaml", "a=b c", SLURM_CPUS_PER_TASK="64")
    assert words == [
        *("--ntasks=1", "--cpus-per-task=64", ".envs/train/bin/optima-sft"),
        *("--config", "r.yaml", "a=b c"),
    ]


def test_tasks_of_an_array_differ_in_their_seed(checkout: Path) -> None:
    given = {"SLURM_CPUS_PER_TASK": "8", "SLURM_ARRAY_TASK_ID": "2"}
    words = _submit(checkout, "sft_array.sbatch", "r.yaml", **given)
    assert words[1] == "--cpus-per-task=8"
    assert words[-3:] == ["--config", "r.yaml", "seed=2"]


def test_first_node_runs_what_all_others_serve_and_each_has_its_cores(checkout: Path) -> None:
    (checkout / "bin/srun").write_text(
        "#!/bin/sh\n"
        'while [ "$1" != bash ]; do echo "$1"; shift; done\n'
        'for SLURM_PROCID in 0 1 2; do export SLURM_PROCID; echo "node $SLURM_PROCID"; "$@"; done\n'
    )
    node = checkout / ".envs/train/bin/optima"
    node.write_text('#!/bin/sh\necho serves\nfor word in "$@"; do echo "$word"; done\n')
    node.chmod(0o755)
    given = {"SLURM_CPUS_PER_TASK": "64"}
    words = _submit(checkout, "nodes.sbatch", "r.yaml", "/s/my run", "a=b c", **given)
    options = words[: words.index("node 0")]
    assert "--cpus-per-task=64" in options
    assert {"--ntasks-per-node=1", "--no-kill", "--kill-on-bad-exit=0"} <= set(options)
    serves = ["serves", "serve-node", "--run-dir", "/s/my run"]
    assert words[len(options) :] == [
        *("node 0", "--run-dir", "/s/my run", "serving.nodes=auto", "--config", "r.yaml", "a=b c"),
        *("node 1", *serves, "node 2", *serves),
    ]


def test_ray_runs_the_run_on_the_first_node_with_every_core_and_a_token_of_this_user(
    checkout: Path,
) -> None:
    (checkout / "bin/hostname").write_text("#!/bin/sh\necho first\n")
    (checkout / "bin/srun").write_text(
        '#!/bin/sh\necho "$RAY_AUTH_MODE"; echo "$RAY_AUTH_TOKEN_PATH"\n'
        'while [ "$1" != -- ]; do echo "$1"; shift; done\n'
        'echo "$1"; shift; [ -n "$NO_RAY" ] || "$@"\n'
    )
    (checkout / "bin/hostname").chmod(0o755)
    python = checkout / ".envs/train/bin/python"
    python.symlink_to(sys.executable)
    run_dir = checkout / "my run"
    given = {"SLURM_CPUS_PER_TASK": "64", "SLURM_JOB_ID": "1234567"}
    with pytest.raises(subprocess.CalledProcessError) as refused:
        _submit(checkout, "ray.sbatch", "r.yaml", str(run_dir), **given)
    assert "no environments with Ray below" in refused.value.stderr
    shutil.copy(checkout / ".envs/train/bin/optima-sft", checkout / ".envs/train/bin/ray")
    words = _submit(checkout, "ray.sbatch", "r.yaml", str(run_dir), "a=b c", **given)
    token = run_dir / "ray_token"
    assert words[:2] == ["token", str(token)]
    assert token.stat().st_mode & 0o777 == 0o600
    assert len(token.read_text().strip()) == 64
    ray, run = words.index("ray"), words.index("--")
    assert {"--ntasks-per-node=1", "--no-kill", "--cpus-per-task=64"} <= set(words[:ray])
    assert words[ray:][:4] == ["ray", "symmetric-run", "--address", "first:24567"]
    assert {"--num-cpus=64", "--include-dashboard=false"} <= set(words[ray:run])
    assert words[run + 1 :] == [  # by the stand-in for optima-sft
        *("--run-dir", str(run_dir), "serving.nodes=auto"),
        *("serving.ray=first:24567", "--config", "r.yaml", "a=b c"),
    ]
    with pytest.raises(subprocess.CalledProcessError) as failed:  # with 0, as far as Ray says
        _submit(checkout, "ray.sbatch", "r.yaml", str(run_dir), **given, NO_RAY="yes")
    assert failed.value.stderr == "Ray did not start at first:24567; its words stand above\n"

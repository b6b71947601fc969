"""Choosing devices from the recipe, CUDA_VISIBLE_DEVICES and nvidia-smi."""

from pathlib import Path

import pytest

from optima.errors import UsageError
from optima.processes.devices import (
    Devices,
    detect_devices,
    free_memory,
    gpu_memory,
    lists_bfloat16,
)
from optima.recipe.schema import ServingSection


def write_smi(directory: Path, script: str) -> None:
    """Make a stand-in for nvidia-smi."""
    smi = directory / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\n{script}\n")
    smi.chmod(0o755)


@pytest.fixture
def four_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_smi(tmp_path, 'for i in 0 1 2 3; do echo "GPU $i: Some GPU (UUID: GPU-a$i-x)"; done')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("no_gpu")
def test_host_without_gpus_computes_on_the_cpu() -> None:
    assert detect_devices(ServingSection()) == Devices("cpu")
    with pytest.raises(UsageError, match="nvidia-smi lists none"):
        detect_devices(ServingSection(device="cuda"))


@pytest.mark.usefixtures("four_gpus")
def test_all_gpus_are_taken_unless_the_recipe_names_some() -> None:
    assert detect_devices(ServingSection()) == Devices("cuda", (0, 1, 2, 3))
    some = detect_devices(ServingSection(gpus=(1, 3)))
    assert some == Devices("cuda", (1, 3))
    assert some.mask() == "1,3"
    assert detect_devices(ServingSection(device="cpu")) == Devices("cpu")


@pytest.mark.usefixtures("four_gpus")
def test_mask_keeps_the_names_of_the_gpus_this_process_may_see(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a2,3")
    devices = detect_devices(ServingSection())
    assert devices.gpus == (0, 1)
    assert devices.mask((1,)) == "3"
    assert devices.mask() == "GPU-a2,3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detect_devices(ServingSection()) == Devices("cpu")


@pytest.mark.usefixtures("four_gpus")
def test_impossible_choices_of_gpus_are_refused() -> None:
    with pytest.raises(UsageError, match="numbers from 0 to 3"):
        detect_devices(ServingSection(gpus=(4,)))
    with pytest.raises(UsageError, match="does not divide 4 GPUs"):
        detect_devices(ServingSection(tensor_parallel=3))


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize("value", ["", " ", "-1", "-1,0", "NoDevFiles"])
def test_mask_that_hides_all_gpus_means_the_cpu_unless_a_gpu_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert detect_devices(ServingSection()) == Devices("cpu")
    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES hides all"):
        detect_devices(ServingSection(device="cuda"))
    with pytest.raises(UsageError, match="CUDA_VISIBLE_DEVICES hides all"):
        detect_devices(ServingSection(gpus=(0,)))


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("0,,2", "from entry 2 on"),
        ("0,-1,2", "from entry 2 on"),
        ("1,0,1", r"from entry 3 on \('1' is .* there twice"),
        ("GPU-a0,GPU-a0", "there twice"),
        ("0,4", "there is no GPU 4.*lists GPUs 0 to 3"),
        ("GPU-b", "'GPU-b' is not the number or UUID of one GPU"),
        ("GPU-a", "'GPU-a' is not the number or UUID of one GPU"),  # begins all four
        ("0x1", "'0x1' is not the number or UUID"),
        ("MIG-1", "'MIG-1' is not the number or UUID"),
    ],
)
def test_mask_of_which_cuda_would_take_a_part_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str, reason: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    with pytest.raises(UsageError, match=f"CUDA_VISIBLE_DEVICES: .*{reason}"):
        detect_devices(ServingSection())


@pytest.mark.usefixtures("no_gpu")
def test_mask_of_gpus_on_a_host_without_any_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UsageError, match=r"CUDA_VISIBLE_DEVICES: '0': this host shows no GPU"):
        detect_devices(ServingSection())
    assert detect_devices(ServingSection(device="cpu")) == Devices("cpu")


@pytest.mark.usefixtures("four_gpus")
def test_gpu_split_by_mig_is_used_by_the_name_of_one_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (
        "echo 'GPU 0: NVIDIA A100 (UUID: GPU-aa)'; echo 'GPU 1: NVIDIA A100 (UUID: GPU-bb)'\n"
        "echo '  MIG 3g.20gb Device 0: (UUID: MIG-11)'\n"
        "echo '  MIG 3g.20gb Device 1: (UUID: MIG-22)'"
    )
    write_smi(tmp_path, lines)
    with pytest.raises(UsageError, match=r"split by MIG: name the one .* such as MIG-11"):
        detect_devices(ServingSection())
    for value, reason in {"1": "such as MIG-11", "MIG-11,MIG-22": "one MIG device only"}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        with pytest.raises(UsageError, match=reason):
            detect_devices(ServingSection())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-22")
    assert detect_devices(ServingSection()).mask() == "MIG-22"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert detect_devices(ServingSection()).mask() == "0"


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "echo 'NVIDIA-SMI has failed because it could not reach the driver.'; exit 9",
            "nvidia-smi -L: NVIDIA-SMI has failed because",
        ),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", "mismatch"),
        (
            "echo 'GPU 0: A (UUID: GPU-a)'\n"
            "echo 'Unable to determine the device handle for GPU 0000:3B:00.0: Unknown Error'",
            "nvidia-smi -L: Unable to determine the device handle for GPU 0000:3B",
        ),
        ("kill -SEGV $$", "nvidia-smi -L: status -11"),
    ],
)
def test_driver_that_fails_stops_the_run_unless_the_cpu_is_asked_for(
    tmp_path: Path, script: str, reason: str
) -> None:
    # A night on the CPU of a GPU node looks like a run that is merely slow.
    write_smi(tmp_path, script)
    with pytest.raises(UsageError, match=reason) as caught:
        detect_devices(ServingSection())
    assert "serving.device=cpu" in str(caught.value)
    assert detect_devices(ServingSection(device="cpu")) == Devices("cpu")


@pytest.mark.usefixtures("no_gpu")
def test_device_file_of_a_gpu_that_nobody_lists_stops_the_run(tmp_path: Path) -> None:
    dev = tmp_path / "dev"
    dev.mkdir()
    (dev / "nvidiactl").touch()
    assert detect_devices(ServingSection(), dev) == Devices("cpu")
    (dev / "nvidia0").touch()
    with pytest.raises(UsageError, match="not on PATH, though /dev/nvidia0 is there"):
        detect_devices(ServingSection(), dev)
    write_smi(tmp_path, "echo 'No devices were found'; exit 6")
    with pytest.raises(UsageError, match="No devices were found, though /dev/nvidia0 is there"):
        detect_devices(ServingSection(), dev)
    (dev / "nvidia0").unlink()
    assert detect_devices(ServingSection(), dev) == Devices("cpu")


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("flags\t\t: fpu sse2 avx2 avx512f avx512_bf16 amx_tile\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
        ("processor\t: 0\nmodel name\t: bf16 in the name\nflags\t\t: fpu sse2 avx2\n", False),
        ("Features\t: fp asimd i8mm bf16 dgh\n", True),
        ("Features\t: fp asimd svebf\n", False),
        ("vmx flags\t: avx512_bf16\nflags\t\t: fpu\n", False),
        ("flags\t\t: fpu\nflags\t\t: fpu avx512_bf16\n", True),
        ("isa\t: rv64imafdc\n", True),  # says nothing of flags
    ],
)
def test_processor_is_known_to_compute_bfloat16_by_its_flags(cpuinfo: str, expected: bool) -> None:
    assert lists_bfloat16(cpuinfo) is expected


def test_gpus_compute_bfloat16_whatever_the_processor_does() -> None:
    assert Devices("cuda", (0,)).has_bfloat16


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("echo 81559; echo 81559", 81559 * 2**20),
        ("echo 24576; echo 81559", 81559 * 2**20),  # which of them CUDA calls 0 is not known
        ("echo '[Insufficient Permissions]'", None),
        ("echo 'Field memory.total is not valid' >&2; exit 2", None),
    ],
)
def test_memory_of_a_gpu_is_the_largest_one_listed(
    answer: str, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_memory(Devices("cuda", (0,))) is None  # without nvidia-smi
    write_smi(tmp_path, answer)
    assert gpu_memory(Devices("cuda", (0,))) == expected
    assert gpu_memory(Devices("cpu")) is None
    assert gpu_memory(Devices("cuda", (0,), ("MIG-11",))) is None  # a part of a GPU


def _write(root: Path, text_by_path: dict[str, str]) -> Path:
    for name, text in text_by_path.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMORY = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 8000 kB\nPages: 0\n"}


def test_free_memory_is_what_the_host_has(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None
    assert free_memory(_write(tmp_path, MEMORY)) == 8000 * 1024
    _write(tmp_path, {"proc/meminfo": "MemTotal: 9000 kB\n"})
    assert free_memory(tmp_path) is None


@pytest.mark.parametrize(
    ("groups", "place", "names"),
    [
        ("0::/job/step\n", "sys/fs/cgroup/job", ("max", "current", "inactive_file")),
        ("0::/gone\n", "sys/fs/cgroup", ("max", "current", "inactive_file")),  # in a container
        ("5:devices:/\n4:memory:/job/step\n0::/\n", "sys/fs/cgroup/memory/job/step",
         ("limit_in_bytes", "usage_in_bytes", "total_inactive_file")),
    ],
)  # fmt: skip
def test_free_memory_is_what_limits_on_the_job_leave(
    groups: str, place: str, names: tuple[str, str, str], tmp_path: Path
) -> None:
    limit, used, cached = names
    files = {
        f"{place}/memory.{limit}": "5000\n",
        f"{place}/memory.{used}": "3000\n",
        f"{place}/memory.stat": f"anon 2500\n{cached} 400\nfile 500\n",
    }
    _write(tmp_path, MEMORY | {"proc/self/cgroup": groups} | files)
    assert free_memory(tmp_path) == 5000 - 3000 + 400
    (tmp_path / place / f"memory.{limit}").write_text("max\n")
    assert free_memory(tmp_path) == 8000 * 1024

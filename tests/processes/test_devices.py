"""Choosing devices from the recipe, CUDA_VISIBLE_DEVICES and nvidia-smi."""

from pathlib import Path

import pytest

from optima.errors import UsageError
from optima.processes.devices import Devices, detect_devices
from optima.recipe.schema import ServingSection


@pytest.fixture
def four_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\nfor i in 0 1 2 3; do echo "GPU $i: Some GPU (UUID: x$i)"; done\n')
    smi.chmod(0o755)
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
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa,7")
    devices = detect_devices(ServingSection())
    assert devices.gpus == (0, 1)
    assert devices.mask((1,)) == "7"
    assert devices.mask() == "GPU-aa,7"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detect_devices(ServingSection()) == Devices("cpu")


@pytest.mark.usefixtures("four_gpus")
def test_impossible_choices_of_gpus_are_refused() -> None:
    with pytest.raises(UsageError, match="numbers from 0 to 3"):
        detect_devices(ServingSection(gpus=(4,)))
    with pytest.raises(UsageError, match="does not divide 4 GPUs"):
        detect_devices(ServingSection(tensor_parallel=3))

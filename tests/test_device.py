"""Where a run is computed."""

from pathlib import Path

import pytest
import torch

from ln.suite.errors import Mistake
from ln.suite.runs import device
from ln.suite.runs.device import device_of


def test_a_gpu_that_torch_cannot_use_is_said_and_at_full_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02\nGCC version: 9\n")
    monkeypatch.setattr(device, "NVIDIA_DRIVER", driver)
    assert device_of("auto", "full").type == "cpu"  # CUDA_VISIBLE_DEVICES is empty: the user wants no GPU
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")

    def old() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nUpdate it.")

    monkeypatch.setattr(torch.cuda, "init", old)
    with pytest.raises(
        Mistake, match=r"470\.57\.02\), but torch cannot use the GPU \(The NVIDIA driver on your .* old"
    ):
        device_of("auto", "full")
    assert device_of("cpu", "full").type == "cpu"
    assert capsys.readouterr().err == ""
    assert device_of("auto", "laptop").type == "cpu"
    assert "too old" in capsys.readouterr().err


def test_a_machine_without_a_driver_is_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert device.unusable_gpu(tmp_path / "version") is None
    assert device_of("auto", "full").type == "cpu"
    assert capsys.readouterr().err == ""

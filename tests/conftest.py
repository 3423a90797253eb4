"""What every test shares: one thread, results in a folder of its own, recipes composed as on the command line."""

import os

# Two test processes with two threads each would wait for each other on two cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "offline"

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from ln.suite.config import CONFIGS, Recipe, recipe_of

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_cuda_device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested on a CPU is so on a machine with a GPU too, by this process and by those that it starts."""
    if "gpu" not in request.keywords:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons = {}
    if not torch.cuda.is_available():
        reasons["gpu"] = "no CUDA device"
    if "slow" not in config.option.markexpr:
        reasons["slow"] = "takes minutes; -m slow runs it"
    for item in items:
        for marker, reason in reasons.items():
            if marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., Recipe]:
    """recipe("experiment=mnist_b128", ...) at smoke, with results under this test's folder."""

    def make(*overrides: str) -> Recipe:
        fixed = ["profile=smoke", "tracking=disabled", "threads=1", f"results={tmp_path}/results"]
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return recipe_of(compose("config", [*fixed, *overrides]))

    return make

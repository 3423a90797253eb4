"""The profile of a training step: its parts on a case whose costs are known, and its files for an experiment."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import profile, record_function

from ln import GRU
from ln.suite.config import Recipe, Train
from ln.suite.data import Source
from ln.suite.task import Task
from scripts import profile_step
from scripts.profile_step import DATA, OPTIMIZER, RECURRENT, REST, STEP, mark_recurrent, measure, parts_of

PAUSE = 0.03


class Pause(torch.autograd.Function):
    """The identity, which takes its time in both directions."""

    @staticmethod
    def forward(ctx: object, x: Tensor, forward: float, backward: float) -> Tensor:
        ctx.backward_seconds = backward  # type: ignore[attr-defined]
        time.sleep(forward)
        return x.clone()

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[Tensor, None, None]:
        time.sleep(ctx.backward_seconds)  # type: ignore[attr-defined]
        return grads[0], None, None


class SlowGRU(GRU):
    """Takes two pauses forward and three backward."""

    def forward(self, *arguments, **more):  # type: ignore[no-untyped-def]
        output, h = super().forward(*arguments, **more)
        return Pause.apply(output, 2 * PAUSE, 3 * PAUSE), h


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru, self.out = SlowGRU(3, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.out(self.gru(x)[0])
        with record_function("softmax"):
            y = Pause.apply(y, PAUSE, 2 * PAUSE)
        return Pause.apply(y, 0.0, PAUSE)  # of no part


class SlowSGD(torch.optim.SGD):
    def step(self, closure=None):  # type: ignore[no-untyped-def]
        time.sleep(PAUSE)
        return super().step(closure)


class Known(Task):
    """A step of 11 pauses whose parts are known: 1 data, 5 recurrent, 3 softmax, 1 optimizer, 1 rest."""

    def __init__(self) -> None:
        train = Train(
            batch_size=2, steps=1, evaluate_every=1, clip_norm=1.0,
            optimizer={"_target_": f"{__name__}.SlowSGD", "lr": 0.1},
        )  # fmt: skip
        super().__init__(Recipe(train=train), Source("none", "embedded", "0", lambda: None), torch.device("cpu"))
        self.model = Model()

    def batch(self, step: int) -> tuple[Tensor, ...]:
        time.sleep(PAUSE)
        return (torch.ones(5, 2, 3),)

    def loss(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return {"loss": self.model(batch[0]).sum()}


def test_every_part_gets_its_own_forward_and_backward_time() -> None:
    task = Known()
    seen = mark_recurrent(task.model)
    found, walls = measure(task, task.recipe, first=0, steps=2)
    parts = parts_of(list(found.events()), cuda=False)
    assert set(parts) == {STEP, DATA, RECURRENT, "softmax", OPTIMIZER, REST}
    assert parts[STEP] == pytest.approx(sum(walls), rel=0.1)
    # Sleeping is exact from below; from above only what else a busy machine does is in the way.
    expected = {DATA: 1, RECURRENT: 5, "softmax": 3, OPTIMIZER: 1, REST: 1}
    for name, pauses in expected.items():
        assert parts[name] >= 2 * pauses * PAUSE * 0.99, name
        assert parts[name] < 2 * (pauses + 0.9) * PAUSE, name
    assert sum(parts[name] for name in expected) == pytest.approx(parts[STEP])
    assert seen[task.model.gru] == [(5, 2, 3)] * (profile_step.WARMUP + 2)  # type: ignore[index]


def test_nested_scopes_are_counted_once() -> None:
    with profile() as found, record_function(STEP), record_function("outer"), record_function("inner"):
        time.sleep(PAUSE)
    parts = parts_of(list(found.events()), cuda=False)
    assert set(parts) == {STEP, "outer", REST}


@pytest.mark.parametrize("norm", ["layer", "weight"])
def test_files_of_an_experiment(norm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile_step.main(
        ["order-embeddings", "profile=smoke", f"norm={norm}", "threads=1", "device=cpu", f"results={tmp_path}"]
    )
    found = json.loads((tmp_path / "bench" / "profile_order_embeddings.json").read_text())
    assert found["norm"] == norm
    assert found["data"]["status"] == "embedded"
    assert {DATA, RECURRENT, OPTIMIZER, "pairwise loss", REST} == set(found["shares"])
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert all(share >= 0 for share in found["shares"].values())
    assert found["recurrent_against_bench"] > 0
    assert all(shape.endswith(" x 32 x 12") for shape in found["recurrent_shapes"])
    assert {path.name for path in (tmp_path / "bench").iterdir()} == {
        f"profile_order_embeddings.{ending}" for ending in ("json", "png", "svg")
    }
    assert "recurrent layers" in capsys.readouterr().out


def test_an_experiment_of_cells_has_no_layer_in_the_bench(tmp_path: Path) -> None:
    profile_step.main(["draw", "profile=smoke", "threads=1", "model.glimpses=2", "device=cpu", f"results={tmp_path}"])
    found = json.loads((tmp_path / "bench" / "profile_draw.json").read_text())
    assert found["recurrent_against_bench"] is None
    assert found["shares"][RECURRENT] > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name an experiment first"),
        (["norm=none"], "name an experiment first"),
        (["order_embedings"], "experiment=order_embedings is not an experiment"),
        (["order_embeddings", "norm=lyer"], "norm=lyer is not a normalization"),
        (["order_embeddings", "model.hiden=3"], "hiden"),
    ],
)
def test_what_cannot_be_profiled_is_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        profile_step.main(arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 1
    assert sentence in error
    assert "Traceback" not in error


def test_kernels_are_counted_by_the_step_and_shared_out_by_time() -> None:
    names = ["gemm"] * 8 + ["norm"] * 4 + [f"short {i}" for i in range(2 * profile_step.LONGEST)]
    events: list[Any] = [
        SimpleNamespace(
            name=name, device_type=DeviceType.CUDA, device_time_total={"gemm": 6.0, "norm": 10.0}.get(name, 0.5)
        )
        for name in names
    ]
    events.append(SimpleNamespace(name="cudaGraphLaunch", device_type=DeviceType.CPU, device_time_total=99.0))
    found = profile_step.kernels_of(events, steps=4)
    assert found["kernels_per_step"] == 9
    assert len(found["longest_kernels"]) == profile_step.LONGEST
    assert found["longest_kernels"][:2] == [
        {"name": "gemm", "a_step": 2, "share": 0.48},
        {"name": "norm", "a_step": 1, "share": 0.40},
    ]
    assert profile_step.kernels_of([], steps=4) == {"kernels_per_step": 0, "longest_kernels": []}

"""Whole runs on a simulated CUDA device: no operation mixes devices, no captured step waits for the host, and captured
steps are the uncaptured ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from ln.kernels.triton import backend
from tests.launches import launches_of, start

pytestmark = pytest.mark.skipif("not installed" in str(backend.available()), reason="the package triton is missing")


@pytest.fixture(scope="module")
def simulated() -> Iterator[Callable[..., Any]]:
    """simulated(function, *arguments) -> what it returns or raises in a process with a simulated device."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=start) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def _run(results: str, *overrides: str, stop: int | None = None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run's run.json with counts of captures and replays, of them "steps" how often each captured training step was
    replayed, and its metrics without times; with `stop` as far as that step."""
    import json
    import signal

    from hydra import compose, initialize_config_dir

    import ln.suite.runs.train as training
    from ln.kernels.graphs import captured as capture
    from ln.suite.config import CONFIGS, recipe_of
    from tests import simulated_cuda

    # Seed 1: only seed 0 draws pictures, which takes long in Triton's interpreter.
    fixed = ["profile=smoke", "tracking=disabled", "threads=1", f"results={results}", "seed=1"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        recipe = recipe_of(compose("config", [*fixed, *overrides]))
    simulated_cuda.counts.clear()
    due = training.Loop.evaluation_due

    def stopping(loop: training.Loop) -> bool:
        if loop.step == stop:
            signal.raise_signal(signal.SIGTERM)
        return due(loop)

    steps: list[Any] = []

    def captured(work: Callable[[], None]) -> Any:
        steps.append(capture(work))
        return steps[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Loop, "evaluation_due", stopping)
        patch.setattr("ln.suite.runs.step.captured", captured)
        try:
            info = dict(training.carry_out(recipe).info)
        except KeyboardInterrupt:
            return {}, []
    folder = Path(results) / "smoke" / recipe.experiment / recipe.norm.name / str(recipe.seed)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in metrics:
        del record["seconds"]
    return info | {"counts": dict(simulated_cuda.counts), "steps": [graph.replays for graph in steps]}, metrics


SHORT = ["train.epochs=null", "train.steps=5", "train.evaluate_every=5"]
CAPTURED = {
    "mnist_b128": SHORT,
    "invariance": SHORT,
    "seq_mnist": [*SHORT, "model.side=2", "model.hidden=8", "train.batch_size=8", "model.evaluation_examples=16"],
    "draw": [
        *SHORT,
        "model.glimpses=2",
        "train.batch_size=4",
        *(f"model.{s}_examples=8" for s in ("train", "valid", "test")),
    ],
    "handwriting": [*SHORT, "model.length=2", "model.evaluate_lines=2", "train.batch_size=2"],
}


# Those whose every step runs many kernels in Triton's interpreter take minutes.
SLOW = ("draw", "handwriting")
KINDS = [("mnist_b128", "batch"), *((name, "layer") for name in CAPTURED)]


@pytest.mark.parametrize(
    ("experiment", "norm"),
    [pytest.param(*kind, marks=[pytest.mark.slow] if kind[0] in SLOW else []) for kind in KINDS],
)
def test_a_captured_run_is_the_uncaptured_one(simulated: Any, tmp_path: Path, experiment: str, norm: str) -> None:
    asked = [f"experiment={experiment}", f"norm={norm}", "device=cuda", *CAPTURED[experiment]]
    info, captured = simulated(_run, f"{tmp_path}/captured", *asked)
    plain_info, plain = simulated(_run, f"{tmp_path}/plain", *asked, "graph=off")
    assert info["status"] == "complete"
    assert info["steps"] == [2]  # the layers' own loops may be captured beside it, in evaluation
    assert plain_info["counts"] == {}
    assert captured == plain
    if experiment not in ("mnist_b128", "invariance"):
        assert "triton" in info["backend"]


# Launches of a training step outside of its loop over time, and by the step of time, at most: what a GPU's speed hangs
# on at the paper's sizes.
LAUNCHES = {"handwriting": (320, 12), "draw": (80, 150), "seq_mnist": (180, 0)}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", LAUNCHES)
def test_a_step_launches_few_kernels(simulated: Any, experiment: str) -> None:
    found, names = simulated(launches_of, experiment)
    fixed, per_step = LAUNCHES[experiment]
    assert found.fixed <= fixed
    assert found.per_step <= per_step, names


OPTIMIZERS = ["{_target_: torch.optim.Adam, lr: 0.001, fused: true}", "{_target_: torch.optim.RMSprop, lr: 0.001}"]
OPTIMIZERS += ["{_target_: ln.suite.optimizers.AdamAsPublished, lr: 0.001}"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda text: text.split(",")[0].rpartition(".")[2])
def test_a_run_goes_on_from_the_other_device(simulated: Any, tmp_path: Path, optimizer: str) -> None:
    asked = ["experiment=mnist_b128", *SHORT, "~train.optimizer", f"+train.optimizer={optimizer}"]
    _, whole = simulated(_run, f"{tmp_path}/whole", *asked, "device=cpu")
    for first, second in (("cpu", "cuda"), ("cuda", "cpu")):
        folder = f"{tmp_path}/{first}"
        simulated(_stopped, folder, 2 if first == "cpu" else 4, *asked, f"device={first}")
        info, found = simulated(_run, folder, *asked, f"device={second}")
        assert info["status"] == "complete"
        assert info["device"] == second
        assert found[-1]["test_nll"] == pytest.approx(whole[-1]["test_nll"], rel=1e-4)


def _stopped(results: str, step: int, *overrides: str) -> None:
    _run(results, *overrides, stop=step)


def _where_the_host_waits(results: str) -> tuple[Any, Any, list[str]]:
    """A run whose loss reads a value, as none may that is captured; the uncaptured run; what was warned of."""
    import logging

    import torch

    from experiments.mnist import Mnist

    loss, said = Mnist.loss, []

    def reading(task: Mnist, batch: Any) -> Any:
        found = loss(task, batch)
        noise = torch.randn((), device=task.device)  # random numbers have to survive the broken capture
        return found | {"loss": found["loss"] * (1 + 0.01 * noise), "read": torch.tensor(found["loss"].item())}

    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("ln").addHandler(handler)
    asked = ("experiment=mnist_b128", "device=cuda", *SHORT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Mnist, "loss", reading)
        return _run(f"{results}/captured", *asked), _run(f"{results}/plain", *asked, "graph=off"), said


def test_a_step_that_cannot_be_captured_runs_uncaptured_and_says_so(simulated: Any, tmp_path: Path) -> None:
    (info, found), (_, plain), said = simulated(_where_the_host_waits, str(tmp_path))
    assert info["status"] == "complete"
    assert info["counts"] == {"captures": 1}
    assert len(said) == 1
    assert "cannot be captured" in said[0]
    assert "_local_scalar_dense" in said[0]
    assert found == plain


def _with_changing_rates(graph: str, rates: list[float]) -> tuple[list[float], int, int]:
    """A weight after steps at these learning rates, and how many captures and replays it took."""
    from types import SimpleNamespace

    import torch

    from ln.suite.config import Train
    from ln.suite.runs.step import Step
    from tests import simulated_cuda

    simulated_cuda.counts.clear()
    model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.constant_(model.weight, 1.0)
    model.to("cuda")
    task: Any = SimpleNamespace(model=model, device=torch.device("cuda"), static_shapes=True)
    task.loss = lambda batch: {"loss": model(batch[0]).square().mean()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    step = Step(task, optimizer, Train(), graph)
    for number, rate in enumerate(rates):
        optimizer.param_groups[0]["lr"] = rate
        step((torch.full((3, 2), 1.0 + number, device="cuda"),))
    return model.weight.flatten().tolist(), simulated_cuda.counts["captures"], simulated_cuda.counts["replays"]


def test_a_captured_step_follows_the_learning_rate(simulated: Any) -> None:
    steps = [0.01] * 6 + [0.002] * 6
    captured, captures, replays = simulated(_with_changing_rates, "auto", steps)
    assert (captures, replays) == (2, 6)
    assert captured == simulated(_with_changing_rates, "off", steps)[0]
    falling = [0.01 / (1 + step) for step in range(12)]
    captured, captures, _ = simulated(_with_changing_rates, "auto", falling)
    assert captures == 0
    assert captured == simulated(_with_changing_rates, "off", falling)[0]


def _profiled(graph: str) -> tuple[Any, int, int]:
    """What a profile says of captured steps, how many were replayed, and how many batches it took."""
    import warnings
    from types import SimpleNamespace

    import torch

    from ln.suite.config import Train
    from scripts.profile_step import captured
    from tests import simulated_cuda

    simulated_cuda.counts.clear()
    model = torch.nn.Linear(2, 1)
    model.to("cuda")
    task: Any = SimpleNamespace(model=model, device=torch.device("cuda"), static_shapes=True)
    batches: list[int] = []
    task.batch = lambda number: batches.append(number) or (torch.ones(3, 2, device="cuda"),)
    task.loss = lambda batch: {"loss": model(batch[0]).square().mean()}
    recipe: Any = SimpleNamespace(train=Train(optimizer={"_target_": "torch.optim.SGD", "lr": 0.1}), graph=graph)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no CUDA to profile
        return captured(task, recipe, 5), simulated_cuda.counts["replays"], len(batches)


def test_captured_steps_are_profiled_as_training_takes_them(simulated: Any) -> None:
    found, replays, _ = simulated(_profiled, "auto")
    assert found["milliseconds_per_step"] > 0
    assert found["longest_kernels"] == []  # of which a simulated device has none
    assert replays == 6  # that which captured, and five
    assert simulated(_profiled, "off") == (None, 0, 0)  # and takes no steps in vain


def _what_a_device_does() -> None:
    import torch

    from ln.kernels.graphs import captured
    from tests.simulated_cuda import Refused

    x, scale = torch.zeros(2, device="cuda"), [2.0]
    assert (x.device.type, x.is_cuda, (x + 1).device.type) == ("cuda", True, "cuda")
    for refused in (lambda: x + torch.ones(2), lambda: torch.mm(x[None], torch.ones(2, 1)), lambda: x.numpy()):
        with pytest.raises((Refused, TypeError)):
            refused()
    graph = captured(lambda: x.add_(scale[0]))
    assert x.tolist() == [0, 0]  # a capture computes nothing
    scale[0] = 3.0
    graph.replay()
    assert x.tolist() == [2, 2]  # with the Python number of the capture
    y = torch.zeros(2, device="cuda")
    noise = captured(lambda: y.copy_(torch.randn(2, device="cuda")))
    noise.replay()
    first = y.tolist()
    noise.replay()
    assert y.tolist() != first
    for waits in (lambda: x.sum().item(), lambda: x[x > 1], lambda: x.cpu(), lambda: x.copy_(torch.ones(2))):
        with pytest.raises(RuntimeError, match="while a graph is captured"):
            captured(waits)


def test_the_simulated_device_refuses_what_a_real_one_does(simulated: Any) -> None:
    simulated(_what_a_device_does)

"""The Triton backend against the reference: through Triton's interpreter on the CPU, and on a device where there is
one.

The interpreter has to be chosen before Triton is imported and would then serve everybody in the process, so those tests
run in a process of their own, to which the functions named `_...` are sent.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ln import GRU, LSTM, reference
from ln.kernels.triton import backend as triton_backend
from ln.norms import CELL_SITES, NormConfig
from ln.reference import Params, Stats
from tests.recurrent_cases import GATES, hooked, judge, random_params, results

ROOT = Path(__file__).resolve().parent.parent
needs_triton = pytest.mark.skipif(
    "not installed" in str(triton_backend.available()), reason="the package triton is not installed"
)


def _interpret() -> None:
    assert "triton" not in sys.modules, "Triton was imported before its interpreter could be chosen"
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Callable[..., Any]]:
    """interpreted(function, *arguments) -> what the function returns or raises in the interpreter's process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_interpret) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


@contextmanager
def step_by_step() -> Iterator[pytest.MonkeyPatch]:
    """Within this context narrow layers take a launch for each step too, as wide ones and batch norm do."""
    from ln.kernels.triton.loop import Spec

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Spec, "in_one_launch", lambda *_: False)
        yield patch


def case(
    cell: str, cfg: NormConfig, T: int, B: int, D: int, H: int, bias: bool = True, draw: int = 0
) -> tuple[list[Tensor], Params]:
    """x, h0 and for the LSTM c0, and parameters, in float64."""
    torch.manual_seed(T + 3 * B + 5 * D + 7 * H + 1000 * draw)
    states = [torch.randn(B, H, dtype=torch.float64) for _ in range(2 if cell == "lstm" else 1)]
    return [torch.randn(T, B, D, dtype=torch.float64), *states], random_params(cell, cfg, D, H, bias)


def population(cell: str, cfg: NormConfig, T: int, H: int) -> Stats:
    """Statistics to be given for evaluation."""
    field = {"input": "ih", "recurrent": "hh", "cell": "c"}
    sizes = {field[site]: H if site == "cell" else GATES[cell] * H for site in cfg.sites_for(cell)}
    means = {f"mean_{name}": torch.randn(T, n, dtype=torch.float64) for name, n in sizes.items()}
    return Stats(**means, **{f"var_{name}": torch.rand(T, n, dtype=torch.float64) + 0.5 for name, n in sizes.items()})


def _judge(
    cell: str, cfg: NormConfig, shape: tuple[int, int, int, int], given: bool, ragged: bool, recompute: bool, bias: bool
) -> None:
    """Where gradients nearly cancel, the error of a single draw is luck; so one draw in three may exceed."""
    T, B, _, H = shape
    # Every length there is, an empty row included.
    lengths = torch.arange(B).mul(T).div(max(B - 1, 1), rounding_mode="floor").flip(0) if ragged else None
    excesses = []
    for draw in range(3):
        tensors, p = case(cell, cfg, *shape, bias, draw)
        stats = population(cell, cfg, T, H) if given else None
        try:
            judge("triton", cell, tensors, p, cfg, lengths=lengths, stats=stats, recompute=recompute)
        except AssertionError as excess:
            excesses.append(excess)
        if draw == len(excesses) * 2:
            return
    raise excesses[0]


SUBSETS = [
    (cell, sites)
    for cell in ("lstm", "gru")
    for r in range(len(CELL_SITES[cell]) + 1)
    for sites in itertools.combinations(CELL_SITES[cell], r)
    if "sum" not in sites  # which the backend refuses
]


@needs_triton
@pytest.mark.parametrize("kind", ["layer", "rms", "batch", "batch, given"])
@pytest.mark.parametrize(("cell", "sites"), SUBSETS, ids=lambda v: v if isinstance(v, str) else "+".join(v) or "none")
def test_every_subset_of_sites_matches_the_reference(interpreted: Any, cell: str, sites: Any, kind: str) -> None:
    cfg = NormConfig(kind.split(",")[0], sites=sites)
    interpreted(_judge, cell, cfg, (3, 6, 2, 5), "given" in kind, True, False, True)


@needs_triton
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 19, 5, 17), (2, 3, 2, 33)], ids=str)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("name", ["none", "layer", "rms", "batch"])
def test_odd_sizes_match_the_reference(interpreted: Any, name: str, cell: str, shape: Any) -> None:
    if name == "batch" and shape[1] < 4:
        shape = (shape[0], 12, *shape[2:])  # over two or three rows batch norm divides by chance variances
    interpreted(_judge, cell, NormConfig(name), shape, False, False, False, True)


def _judge_step_by_step(*arguments: Any) -> None:
    with step_by_step():
        _judge(*arguments)


@needs_triton
@pytest.mark.parametrize("shape", [(2, 19, 5, 17), (2, 3, 2, 33)], ids=str)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("name", ["none", "layer", "rms"])
def test_a_launch_for_each_step_matches_the_reference(interpreted: Any, name: str, cell: str, shape: Any) -> None:
    interpreted(_judge_step_by_step, cell, NormConfig(name), shape, False, False, False, True)


@needs_triton
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_one_launch_takes_128_units_and_rows_that_have_ended(interpreted: Any, cell: str) -> None:
    interpreted(_judge, cell, NormConfig("layer"), (2, 5, 2, 128), False, True, True, True)


def _launches(cell: str, name: str, H: int, B: int) -> list[str]:
    """What a forward and backward pass of two steps launches of the kernels that a time loop consists of."""
    from ln.kernels.triton import loop as triton_loop

    cfg, seen = NormConfig(name), []

    class Noted:
        def __init__(self, kernel: Any, named: str) -> None:
            self.kernel, self.named = kernel, named

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            seen.append(self.named)
            return self.kernel[grid]

    names = [(triton_loop.kernels, f"{cell}_{way}") for way in ("forward", "backward")]
    names += [(triton_loop.persistent, way) for way in ("forward", "backward")]
    tensors, p = case(cell, cfg, 2, B, 1, H)
    with pytest.MonkeyPatch.context() as patch:
        for module, named in names:
            patch.setattr(module, named, Noted(getattr(module, named), named))
        results(triton_backend, cell, tensors, p, cfg, None, None, torch.float32)
    return seen


@needs_triton
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_narrow_layers_take_all_steps_in_one_launch(interpreted: Any, cell: str) -> None:
    each = [f"{cell}_{way}" for way in ("forward", "backward") for _ in range(2)]
    assert interpreted(_launches, cell, "layer", 3, 2) == ["forward", "backward"]
    assert interpreted(_launches, cell, "batch", 3, 4) == each  # its statistics need all rows
    assert interpreted(_launches, cell, "none", 129, 1) == each
    assert interpreted(_launches, cell, "none", 1, 1025) == each


@needs_triton
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("name", ["none", "layer"])
def test_without_biases(interpreted: Any, name: str, cell: str) -> None:
    interpreted(_judge, cell, NormConfig(name), (2, 4, 3, 5), False, True, False, False)


@needs_triton
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_inner_bias_keeps_the_grey_level_of_a_scalar_input(interpreted: Any, cell: str) -> None:
    interpreted(_judge, cell, NormConfig("layer", inner_bias=True), (3, 4, 1, 5), False, False, False, True)


def _judge_in_pieces(cell: str, cfg: NormConfig, given: bool, recompute: bool, one_launch: bool) -> None:
    """Seven steps in stretches of two and chunks of three: remainders and boundaries of both."""
    from ln.kernels.triton import layer as triton_layer
    from ln.kernels.triton import loop as triton_loop

    with pytest.MonkeyPatch.context() if one_launch else step_by_step() as patch:
        patch.setattr(triton_loop.Loop, "stretch", 2)
        if recompute:
            patch.setattr(triton_layer.Call, "chunks", lambda *_: [(0, 3), (3, 6), (6, 7)])
        _judge(cell, cfg, (7, 6, 2, 5), given, True, recompute, True)


@needs_triton
@pytest.mark.parametrize("recompute", [False, True], ids=["store", "recompute"])
@pytest.mark.parametrize("kind", ["layer", "rms", "batch", "batch, given"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_time_in_pieces_matches_the_reference(interpreted: Any, cell: str, kind: str, recompute: bool) -> None:
    interpreted(_judge_in_pieces, cell, NormConfig(kind.split(",")[0]), "given" in kind, recompute, False)


@needs_triton
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_one_launch_goes_on_from_the_one_before(interpreted: Any, cell: str) -> None:
    interpreted(_judge_in_pieces, cell, NormConfig("layer"), False, True, True)


def run(module: Any, cell: str, tensors: list[Tensor], p: Params, cfg: NormConfig, **options: Any) -> list[Tensor]:
    """Output and states."""
    return list(getattr(module, cell)(*tensors, p, cfg, **options)[:-1])


def _without_gradients(cell: str) -> None:
    cfg = NormConfig("layer")
    tensors, p = case(cell, cfg, 3, 4, 2, 5)
    tensors, p = [v.float() for v in tensors], Params._make(None if v is None else v.float() for v in p)
    plain = run(triton_backend, cell, tensors, p, cfg)
    with torch.inference_mode():
        inference = run(triton_backend, cell, tensors, p, cfg)
    learned = run(triton_backend, cell, [tensors[0].requires_grad_(), *tensors[1:]], p, cfg)
    assert not plain[0].requires_grad
    assert learned[0].requires_grad
    for a, b, c in zip(plain, inference, learned, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def _half(cell: str) -> None:
    cfg = NormConfig("layer")
    tensors, p = case(cell, cfg, 3, 4, 2, 5)
    tensors, p = [v.bfloat16() for v in tensors], Params._make(None if v is None else v.bfloat16() for v in p)
    wide = [v.float() for v in tensors], Params._make(None if v is None else v.float() for v in p)
    for a, b in zip(run(triton_backend, cell, tensors, p, cfg), run(triton_backend, cell, *wide, cfg), strict=True):
        assert a.dtype == torch.bfloat16
        assert torch.equal(a, b.bfloat16())


def _backward_passes(cell: str, device: str = "cpu", steps: int = 3) -> None:
    """Two forward passes before a backward pass, and two backward passes through one graph, give what one of each
    gives.
    """
    cfg = NormConfig("layer")
    cases = []
    for shift in (0, 1):
        tensors, p = case(cell, cfg, steps, 5, 3, 6)
        tensors = [v.add(shift).to(device, torch.float32).requires_grad_() for v in tensors]
        cases.append((tensors, Params._make(None if v is None else v.to(device, torch.float32) for v in p)))

    def gradients(tensors: list[Tensor], outputs: list[Tensor], retain_graph: bool = False) -> list[Tensor]:
        loss = torch.stack([v.square().sum() for v in outputs]).sum()
        return list(torch.autograd.grad(loss, tensors, retain_graph=retain_graph))

    expected = [gradients(tensors, run(triton_backend, cell, tensors, p, cfg)) for tensors, p in cases]
    both = [run(triton_backend, cell, tensors, p, cfg) for tensors, p in cases]
    for (tensors, _), outputs, wanted in zip(cases, both, expected, strict=True):
        for retain_graph in (True, False):
            for found, right in zip(gradients(tensors, outputs, retain_graph), wanted, strict=True):
                assert torch.equal(found, right)


class _Graph:
    """Stands in for a CUDA graph: what is run while it captures is only noted, and run by replay."""

    capturing: _Graph | None = None
    work: Callable[[], None]

    def replay(self) -> None:
        self.work()


class _Stream:
    cuda_stream, device = 0, "cpu"

    def __init__(self, device: str = "cpu") -> None: ...


@contextmanager
def _capture(graph: _Graph, **options: object) -> Iterator[None]:
    _Graph.capturing = graph
    try:
        yield
    finally:
        _Graph.capturing = None


def _replay(cell: str) -> None:
    """Calls share a loop's buffers. Whatever those hold before a call, its results are those of plain launches."""
    from ln.kernels.triton import loop as triton_loop

    cfg = NormConfig("layer")
    tensors, p = case(cell, cfg, 5, 2, 2, 3)
    lengths = torch.tensor([5, 3])
    with step_by_step():
        plain = results(triton_backend, cell, tensors, p, cfg, lengths, None, torch.float32)
    steps, replays = triton_loop.Loop._steps, 0

    def noted(self: Any, length: int) -> None:
        if _Graph.capturing is None:
            return steps(self, length)

        def work() -> None:
            nonlocal replays
            replays += 1
            steps(self, length)

        _Graph.capturing.work = work
        return None

    with step_by_step() as patch:
        patch.setattr(triton_loop, "_replays", lambda *_: True)
        patch.setattr(triton_loop.Loop, "_steps", noted)
        patch.setattr(triton_loop.Loop, "stretch", 2)
        stream = _Stream()
        stand_ins = {"CUDAGraph": _Graph, "graph": _capture, "Stream": _Stream, "current_stream": lambda: stream}
        stand_ins |= {"get_rng_state": lambda: torch.zeros(16)}
        for name, value in stand_ins.items():
            patch.setattr(torch.cuda, name, value)
        for turn in range(3):
            found = results(triton_backend, cell, tensors, p, cfg, lengths, None, torch.float32)
            assert replays == (2, 8, 14)[turn]  # the first call launches each length once by itself
            for a, b in zip(found, plain, strict=True):
                assert torch.equal(a, b)
            for loop in triton_loop._loops.values():
                for buffer in (loop.state, loop.d_c, loop.z, loop.weight):
                    buffer.fill_(torch.nan)
        _backward_passes(cell, steps=3)


def _hooks(cell: str) -> None:
    hooked("triton", cell, NormConfig("layer"))


@needs_triton
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("check", [_without_gradients, _half, _backward_passes, _hooks, _replay])
def test_a_call_stands_by_itself(interpreted: Any, check: Callable[[str], None], cell: str) -> None:
    interpreted(check, cell)


def test_import_without_triton_says_why_not() -> None:
    code = """
        import sys
        sys.modules["triton"] = None
        from ln.kernels.triton import backend as triton_backend
        print(triton_backend.available())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "the package triton is not installed"


def test_reasons_are_given() -> None:
    cuda, cfg = torch.device("cuda"), NormConfig("layer")
    if not torch.cuda.is_available():
        assert triton_backend.available() in ("torch finds no CUDA device", "the package triton is not installed")
    assert triton_backend.supports("rnn", cfg, cuda, torch.float32) == "triton has no rnn"
    assert triton_backend.supports("lstm", cfg, torch.device("cpu"), torch.float32) == "triton runs on CUDA, not on cpu"
    assert "not in float64" in str(triton_backend.supports("gru", cfg, cuda, torch.float64))
    assert triton_backend.supports("gru", cfg, cuda, torch.bfloat16) is None


# A device that torch sees and Triton cannot start on.
NO_DRIVER = """
    import torch
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    from ln import kernels
    from ln.norms import NormConfig
    chosen = kernels.resolve("auto", torch.device("cuda", 0), torch.float32, "lstm", NormConfig("layer"))
    print(kernels.name_of(chosen))
    try:
        kernels.resolve("triton", torch.device("cuda", 0), torch.float32, "lstm", NormConfig("layer"))
    except RuntimeError as error:
        print(error)
"""


@needs_triton
def test_where_triton_cannot_start_torch_takes_its_place_and_it_is_said() -> None:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(NO_DRIVER)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    chosen, refused = done.stdout.splitlines()
    assert chosen == "torch"
    assert done.stderr.startswith("backend torch runs lstm with norm=layer on cuda in float32 (not triton: Triton cann")
    assert "backend=triton cannot run lstm" in refused
    assert "Triton cannot start" in refused


def _too_large() -> None:
    for name, B, H, words in (("layer", 1, 4097, "H = 4097"), ("batch", 4097, 1, "B = 4097")):
        tensors, p = case("gru", NormConfig(name), 1, B, 1, H if name == "batch" else 1)
        if name == "layer":
            tensors[1] = tensors[1].new_zeros(B, H)
        with pytest.raises(ValueError, match=words):
            run(triton_backend, "gru", tensors, p, NormConfig(name))


@needs_triton
def test_sizes_beyond_a_tile_are_refused(interpreted: Any) -> None:
    interpreted(_too_large)


# ---- On a device. ----


class OnDevice:
    """A backend's sequence functions for tensors on the CPU, computed on the device."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __getattr__(self, cell: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> tuple[Any, ...]:
            def moved(value: Any, device: str) -> Any:
                if isinstance(value, Params | Stats):
                    return type(value)(*(moved(v, device) for v in value))
                return value.to(device) if isinstance(value, Tensor) else value

            found = getattr(self.module, cell)(*(moved(v, "cuda") for v in arguments), **options)
            return tuple(moved(v, "cpu") for v in found)

        return call


REAL = [
    ("lstm", (28, 128, 28, 128)),
    ("lstm", (150, 100, 1, 100)),
    ("lstm", (5, 33, 17, 1025)),
    ("gru", (20, 128, 300, 1024)),
]


@pytest.mark.gpu
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize(("cell", "shape"), REAL, ids=str)
@pytest.mark.parametrize("name", ["none", "layer", "rms", "batch"])
def test_device_matches_the_reference(monkeypatch: Any, name: str, cell: str, shape: Any, ragged: bool) -> None:
    monkeypatch.setattr("ln.kernels.load", lambda _: OnDevice(triton_backend))
    tensors, p = case(cell, NormConfig(name), *shape)
    # At gain 1 these random nets are chaotic over many steps, and errors are luck whoever computes.
    p = p._replace(weight_hh=p.weight_hh / 2, gain_hh=None if p.gain_hh is None else p.gain_hh / 4)
    lengths = torch.randint(0, shape[0] + 1, (shape[1],)) if ragged else None
    for _ in range(3):  # launched step by step, captured and replayed, replayed
        judge("triton", cell, tensors, p, NormConfig(name), lengths=lengths)


@pytest.mark.gpu
@pytest.mark.parametrize("recompute", [False, True], ids=["store", "recompute"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_replayed_graphs_equal_plain_launches(monkeypatch: Any, cell: str, recompute: bool) -> None:
    cfg = NormConfig("layer")
    tensors, p = case(cell, cfg, 150, 32, 8, 160)

    def found() -> list[Tensor]:
        options = {"recompute": recompute}
        return results(OnDevice(triton_backend), cell, tensors, p, cfg, None, None, torch.float32, **options)

    replayed = [found() for _ in range(3)]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    plain = found()
    for run_ in replayed:
        for a, b in zip(run_, plain, strict=True):
            assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_backward_passes_through_replayed_graphs(cell: str) -> None:
    with step_by_step():
        for _ in range(3):
            _backward_passes(cell, "cuda", 70)


@pytest.mark.gpu
@pytest.mark.parametrize("hidden", [32, 160], ids=["one launch", "step by step"])
def test_within_an_outer_graph(hidden: int) -> None:
    cfg = NormConfig("layer")
    tensors, p = case("lstm", cfg, 70, 16, 8, hidden)
    x, h, c = (v.float().cuda() for v in tensors)
    p = Params._make(None if v is None else v.float().cuda() for v in p)
    x.requires_grad_()

    def work() -> Tensor:
        (gradient,) = torch.autograd.grad(run(triton_backend, "lstm", [x, h, c], p, cfg)[0].square().sum(), [x])
        return gradient

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    with torch.no_grad():
        x.mul_(-0.5)
    graph.replay()
    assert torch.equal(captured, work())


@pytest.mark.gpu
def test_recompute_halves_the_memory() -> None:
    cfg = NormConfig("layer")
    tensors, p = case("lstm", cfg, 784, 100, 1, 100)
    x, h, c = (v.float().cuda() for v in tensors)
    p = Params._make(None if v is None else v.float().cuda().requires_grad_() for v in p)
    peaks = []
    for recompute in (False, True):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(triton_backend, "lstm", [x, h, c], p, cfg, recompute=recompute)[0].sum().backward()
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] <= peaks[0] / 2, peaks


@pytest.mark.gpu
@pytest.mark.parametrize(("cell", "shape"), REAL[:2] + REAL[3:], ids=str)
def test_speed(cell: str, shape: Any, capsys: Any) -> None:
    """Forward and backward, milliseconds; the interleaved median of each."""
    T, B, D, H = shape
    cfg = NormConfig("layer")
    tensors, p = case(cell, cfg, *shape)
    leaves = [v.float().cuda().requires_grad_() for v in tensors]
    p = Params._make(None if v is None else v.float().cuda().requires_grad_() for v in p)
    cudnn = (torch.nn.LSTM if cell == "lstm" else torch.nn.GRU)(D, H, device="cuda")

    def cudnn_output() -> Tensor:
        states = tuple(v[None] for v in leaves[1:])
        return cudnn(leaves[0], states if cell == "lstm" else states[0])[0]

    def triton_output() -> Tensor:
        return run(triton_backend, cell, leaves, p, cfg)[0]

    outputs = {
        "triton": triton_output,
        "triton, step by step": triton_output,
        "naive": lambda: run(reference, cell, leaves, p, cfg)[0],
        "cuDNN without norm": cudnn_output,
    }
    times: dict[str, list[float]] = {name: [] for name in outputs}
    for turn in range(12):
        for name, output in outputs.items():
            torch.cuda.synchronize()
            start = time.perf_counter()
            with step_by_step() if name == "triton, step by step" else nullcontext():
                output().sum().backward()
            torch.cuda.synchronize()
            if turn >= 4:
                times[name].append((time.perf_counter() - start) * 1e3)
    medians = {name: statistics.median(found) for name, found in times.items()}
    with capsys.disabled():
        print(f"\n{cell} T={T} B={B} D={D} H={H} on {torch.cuda.get_device_name()}:", end=" ")
        print(", ".join(f"{name} {value:.2f} ms" for name, value in medians.items()))
    assert medians["triton"] < medians["naive"] / 3


def _operator_and_eager(cell: str, norm: str) -> None:
    from tests.test_compile import LENGTHS, B, D, H, T, _judge

    torch.manual_seed(0)
    layer = {"lstm": LSTM, "gru": GRU}[cell](D, H, norm=norm, backend="triton")
    _judge(layer, torch.randn(T, B, D), "eager", "triton", **({} if norm == "batch" else {"lengths": LENGTHS}))


@needs_triton
@pytest.mark.parametrize(("cell", "norm"), [("lstm", "layer"), ("gru", "batch")])
def test_compiled_layers_are_the_backends_operator(interpreted: Callable[..., Any], cell: str, norm: str) -> None:
    interpreted(_operator_and_eager, cell, norm)

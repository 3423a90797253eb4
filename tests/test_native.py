"""The compiled backend against the reference: outputs, every gradient, and what a user of threads and graphs relies on.

Errors are judged against float64. The yardstick is the float32 reference's own error on the same numbers: at most twice
that, plus a few units in the last place of the tensor's largest value.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import stat
import statistics
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ln import kernels, reference
from ln.kernels.native import backend as native
from ln.kernels.native import build as native_build
from ln.kernels.native import call as native_call
from ln.kernels.native import memory as native_memory
from ln.kernels.native.memory import Pool
from ln.norms import NormConfig
from ln.reference import Params, Stats
from tests.recurrent_cases import GATES

pytestmark = pytest.mark.skipif(native.available() is not None, reason=str(native.available()))


@pytest.fixture(autouse=True)
def _one_thread():
    """The reference's small operations gain nothing from threads and lose much where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


CELLS = ("lstm", "gru", "rnn")
CELL_SITES = {"lstm": ("input", "recurrent", "cell"), "gru": ("input", "recurrent"), "rnn": ("input", "recurrent")}
FLOOR = 8 * torch.finfo(torch.float32).eps


def subsets(cell: str) -> list[tuple[str, ...]]:
    sites = CELL_SITES[cell]
    return [chosen for r in range(len(sites) + 1) for chosen in itertools.combinations(sites, r)]


class Problem:
    """Inputs, parameters and cotangents of one layer in float64: x (T, B, D), states (B, H)."""

    def __init__(
        self, cell: str, cfg: NormConfig, T: int, B: int, D: int, H: int, *, ragged: bool = False, seed: int = 0
    ) -> None:
        g = torch.Generator().manual_seed(seed)
        G = GATES[cell] * H
        sites = cfg.sites_for(cell)

        def normal(*shape: int, at: float = 0.0, scale: float = 1.0) -> Tensor:
            return at + scale * torch.randn(*shape, generator=g, dtype=torch.float64)

        self.cell, self.cfg = cell, cfg
        self.inputs = {"x": normal(T, B, D), "h0": normal(B, H, scale=0.5)}
        if cell == "lstm":
            self.inputs["c0"] = normal(B, H, scale=0.5)
        p = {
            "weight_ih": normal(G, D, scale=D**-0.5),
            "weight_hh": normal(G, H, scale=H**-0.5),
            "bias_ih": normal(G, scale=0.1),
            "bias_hh": normal(G, scale=0.1),
        }
        if "input" in sites or "sum" in sites:
            p["gain_ih"] = normal(G, at=cfg.initial_gain, scale=0.1)
        if "recurrent" in sites:
            # Half the usual gain: at 1 these random nets are chaotic, and errors after 33 steps are luck.
            p["gain_hh"] = normal(G, at=cfg.initial_gain / 2, scale=0.1)
        if "cell" in sites:
            p |= {"gain_c": normal(H, at=cfg.initial_gain, scale=0.1), "bias_c": normal(H, scale=0.1)}
        if cfg.inner_bias:
            p["inner_bias_ih"] = normal(G)
        self.params = p
        self.cotangents = [normal(T, B, H), normal(B, H), normal(B, H)]
        self.lengths = torch.randint(1, T + 1, (B,), generator=g) if ragged else None
        if self.lengths is not None:
            self.lengths[0] = T

    def leaves(self, dtype: torch.dtype) -> dict[str, Tensor]:
        return {name: t.to(dtype).requires_grad_() for name, t in (self.inputs | self.params).items()}

    def forward(self, module, leaves: dict[str, Tensor], stats: Stats | None = None, **options):
        states = [leaves[name] for name in self.inputs]
        p = Params(**{name: leaves[name] for name in self.params})
        *outputs, used = getattr(module, self.cell)(*states, p, self.cfg, self.lengths, stats, **options)
        return outputs, used

    def run(
        self, module, dtype: torch.dtype = torch.float32, stats: Stats | None = None, **options
    ) -> dict[str, Tensor]:
        """Every output, statistic and gradient by name."""
        leaves = self.leaves(dtype)
        if stats is not None:
            stats = Stats(*(None if s is None else s.to(dtype) for s in stats))
        outputs, used = self.forward(module, leaves, stats, **options)
        loss = sum((o * w.to(dtype)).sum() for o, w in zip(outputs, self.cotangents, strict=False))
        grads = torch.autograd.grad(loss, list(leaves.values()))
        found = dict(zip(("output", "h", "c"), outputs, strict=False))
        found |= {f"d {name}": g for name, g in zip(leaves, grads, strict=True)}
        found |= {name: s for name, s in (used._asdict() if used else {}).items() if s is not None}
        return {name: t.detach() for name, t in found.items()}


def check(*draws: Problem, stats: Stats | None = None, **options) -> None:
    """Compares with the reference; over several draws of one problem, the geometric mean of error / allowed counts."""
    ratios: dict[str, list[float]] = {}
    for problem in draws:
        exact = problem.run(reference, torch.float64, stats, **options)
        plain = problem.run(reference, torch.float32, stats, **options)
        fast = problem.run(native, torch.float32, stats, **options)
        assert fast.keys() == exact.keys()
        for name, value in exact.items():
            size = value.abs().max()
            # A gradient that cancels to nothing (one unit under layer norm) has no digits of its own.
            if name.startswith("d "):
                size = size.clamp(min=1e-3)
            allowed = 2 * (plain[name] - value).abs().max() + FLOOR * size
            ratios.setdefault(name, []).append(float(((fast[name] - value).abs().max() + 1e-30) / (allowed + 1e-30)))
    worst = {name: statistics.geometric_mean(found) for name, found in ratios.items()}
    assert max(worst.values()) <= 1, worst


SHAPES = [(1, 3, 1, 1), (3, 1, 17, 65), (17, 3, 1, 17), (5, 65, 3, 100), (3, 17, 100, 3), (33, 5, 6, 33)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", ["none", "layer", "rms", "batch"])
def test_outputs_and_gradients_match_the_reference(name: str, cell: str, ragged: bool, shape: tuple[int, ...]) -> None:
    T, B, D, H = shape
    # Over three rows batch norm divides by chance variances and amplifies rounding without limit, so it gets more of
    # them, and several draws, since how much one draw amplifies is chance as well.
    B, draws = (max(B, 33), 5) if name == "batch" else (B, 3 if H > 1 else 1)
    check(*(Problem(cell, NormConfig(name), T, B, D, H, ragged=ragged, seed=seed) for seed in range(draws)))


@pytest.mark.parametrize(("cell", "sites"), [(c, s) for c in CELL_SITES for s in subsets(c)], ids=str)
@pytest.mark.parametrize("name", ["layer", "rms", "batch"])
def test_every_subset_of_sites(name: str, cell: str, sites: tuple[str, ...]) -> None:
    check(Problem(cell, NormConfig(name, sites=sites), 6, 33, 5, 20, ragged=True))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("D", [1, 17])
@pytest.mark.parametrize("name", ["layer", "rms"])
def test_inner_bias(name: str, cell: str, D: int) -> None:
    cfg = NormConfig(name, sites=CELL_SITES[cell], inner_bias=True)
    check(Problem(cell, cfg, 4, 5, D, 20, ragged=True))
    if cell == "rnn":
        check(Problem(cell, NormConfig(name, inner_bias=True), 4, 5, D, 20, ragged=True))


@pytest.mark.parametrize("T", [1, 6])
@pytest.mark.parametrize("name", ["none", "layer", "rms", "batch"])
def test_a_rectified_rnn(name: str, T: int) -> None:
    problem = Problem("rnn", NormConfig(name), T, 33, 5, 20, ragged=True)
    if "gain_ih" in problem.params:
        problem.params["gain_ih"] /= 2  # so that the states do not grow
    check(problem, nonlinearity="relu")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("T", [1, 5])
def test_batch_norm_with_given_statistics(cell: str, T: int) -> None:
    problem = Problem(cell, NormConfig("batch"), T, 33, 7, 40, ragged=True)
    _, used = problem.forward(reference, problem.leaves(torch.float64))
    check(problem, stats=Stats(*(None if s is None else s.detach() * 1.1 + 0.05 for s in used)))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("B", [15, 33], ids=["torch's products", "own products"])
@pytest.mark.parametrize("name", ["none", "layer", "rms", "batch"])
def test_steps_match_the_reference(name: str, B: int, cell: str) -> None:
    problem = Problem(cell, NormConfig(name), 1, B, 7, 40)

    def run(module, dtype: torch.dtype) -> list[Tensor]:
        leaves = problem.leaves(dtype)
        p = Params(**{key: leaves[key] for key in problem.params})
        x, *states = (leaves[key] for key in problem.inputs)
        new = tuple(states)
        for _ in range(2):  # twice: the states take gradients
            new, _ = kernels.step(module, cell, x[0], new, p, problem.cfg)
        loss = sum((s * w.to(dtype)).sum() for s, w in zip(new, problem.cotangents[1:], strict=False))
        return [*new, *torch.autograd.grad(loss, list(leaves.values()))]

    exact, plain, fast = (
        run(module, dtype)
        for module, dtype in ((reference, torch.float64), (reference, torch.float32), (native, torch.float32))
    )
    for e, p, f in zip(exact, plain, fast, strict=True):
        assert (f - e).abs().max() <= 2 * (p - e).abs().max() + FLOOR * e.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", ["none", "layer", "rms", "batch"])
def test_recompute_gives_the_same_bits(name: str, cell: str) -> None:
    problem = Problem(cell, NormConfig(name), 20, 33, 40, 20, ragged=True)
    stored, again = problem.run(native), problem.run(native, recompute=True)
    assert all(torch.equal(stored[key], again[key]) for key in stored)


@pytest.mark.parametrize("T", [1, 7])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", ["none", "layer", "rms", "batch"])
def test_what_lies_past_the_end_is_never_read(name: str, cell: str, T: int) -> None:
    problem = Problem(cell, NormConfig(name), T, 33, 20, 24, ragged=True)
    problem.lengths[1::7] = 0
    past = torch.arange(T).unsqueeze(1) >= problem.lengths
    clean = problem.run(native)
    for spoilt in (problem.inputs["x"], problem.cotangents[0]):
        spoilt[past] = torch.nan
    dirty = problem.run(native)
    assert all(torch.equal(clean[key], dirty[key]) for key in clean)
    assert not dirty["output"][past].any()
    assert not dirty["d x"][past].any()


def test_any_number_of_threads_gives_the_same_bits() -> None:
    problem = Problem("lstm", NormConfig("layer"), 40, 50, 40, 100, ragged=True)
    one = problem.run(native)
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        more = problem.run(native)
        assert all(torch.equal(one[key], more[key]) for key in one)


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_batch_norm_split_over_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    check(Problem("lstm", NormConfig("batch"), 6, 33, 5, 81, ragged=True))
    check(Problem("gru", NormConfig("batch"), 6, 33, 1, 81))
    check(Problem("rnn", NormConfig("batch"), 6, 33, 5, 81, ragged=True))


def test_a_kept_graph_can_be_used_twice() -> None:
    problem = Problem("lstm", NormConfig("layer"), 30, 40, 20, 64)
    leaves = problem.leaves(torch.float32)
    (output, *_), _ = problem.forward(native, leaves)
    first = torch.autograd.grad(output.sum(), list(leaves.values()), retain_graph=True)
    second = torch.autograd.grad(output.sum(), list(leaves.values()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_two_forward_passes_before_the_first_one_is_differentiated() -> None:
    a, b = (Problem("gru", NormConfig("layer"), 30, 40, 20, 64, seed=seed) for seed in (1, 2))
    leaves, others = a.leaves(torch.float32), b.leaves(torch.float32)
    (output, *_), _ = a.forward(native, leaves)
    alone = torch.autograd.grad(output.square().sum(), list(leaves.values()))
    (output, *_), _ = a.forward(native, leaves)
    (other, *_), _ = b.forward(native, others)
    other.sum().backward()
    after = torch.autograd.grad(output.square().sum(), list(leaves.values()))
    assert all(torch.equal(x, y) for x, y in zip(alone, after, strict=True))


def test_python_threads_do_not_disturb_each_other() -> None:
    problems = [Problem("lstm", NormConfig("layer"), 20, 40, 20, 64, seed=seed) for seed in range(4)]
    alone = [problem.run(native) for problem in problems]
    together: dict[int, dict[str, Tensor]] = {}

    def work(i: int) -> None:
        for _ in range(3):
            together[i] = problems[i].run(native)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(alone[i][key], together[i][key]) for i in range(4) for key in alone[i])


def test_a_gradient_that_nobody_asked_for_is_not_computed() -> None:
    problem = Problem("lstm", NormConfig("layer"), 5, 4, 20, 16)
    leaves = problem.leaves(torch.float32)
    leaves["x"] = leaves["x"].detach()
    (output, *_), _ = problem.forward(native, leaves)
    output.sum().backward()
    assert leaves["x"].grad is None
    assert leaves["weight_ih"].grad is not None
    with torch.no_grad():
        (output, *_), _ = problem.forward(native, leaves)
    assert not output.requires_grad


@pytest.mark.parametrize("name", ["layer", "batch"])
@pytest.mark.parametrize("cell", CELLS)
def test_memory_is_let_go_by_checkpoints_and_after_the_backward_pass(
    cell: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "POOL", pool := Pool())
    problem = Problem(cell, NormConfig(name), 40, 64, 20, 64, ragged=True)
    leaves = problem.leaves(torch.float32)
    sources = list(leaves.values())

    def loss() -> Tensor:
        outputs, _ = problem.forward(native, leaves)
        return outputs[0].square().sum()

    kept = loss()
    stored = pool._used
    assert stored > 0
    plain = torch.autograd.grad(kept, sources)
    wanted = sum(4 * g.numel() for g in plain)  # at most: gradients may lie in the pool
    assert pool._used <= 1.2 * wanted < stored
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(kept, sources)
    before = pool._used
    kept = checkpoint(loss, use_reentrant=False)
    assert pool._used == before
    assert all(torch.equal(a, b) for a, b in zip(plain, torch.autograd.grad(kept, sources), strict=True))
    with torch.autograd.graph.saved_tensors_hooks(Tensor.clone, Tensor.clone):
        kept = loss()
    assert all(torch.equal(a, b) for a, b in zip(plain, torch.autograd.grad(kept, sources), strict=True))


def test_changing_the_output_in_place_is_noticed() -> None:
    problem = Problem("lstm", NormConfig("layer"), 5, 4, 20, 16)
    (output, *_), _ = problem.forward(native, problem.leaves(torch.float32))
    loss = output.sum()
    output.data.add_(0)  # unseen by autograd, and harmless
    with torch.no_grad():
        output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.fixture
def _defaults():
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.usefixtures("_defaults")
@pytest.mark.parametrize("set_default", [torch.set_default_dtype, torch.set_default_device])
@pytest.mark.parametrize("T", [1, 6])
@pytest.mark.parametrize("cell", CELLS)
def test_torchs_defaults_do_not_matter(cell: str, T: int, set_default) -> None:
    problems = [Problem(cell, NormConfig(name), T, 3, 5, 20, ragged=r) for name in ("layer", "batch") for r in (0, 1)]
    runs = [(p, p.leaves(torch.float32), [w.float() for w in p.cotangents]) for p in problems]

    def run() -> list[Tensor]:
        found = []
        for problem, leaves, cotangents in runs:
            outputs, used = problem.forward(native, leaves)
            found += [*outputs, *(value for value in used or () if value is not None)]
            found += torch.autograd.grad(outputs, list(leaves.values()), cotangents[: len(outputs)])
        return found

    before = run()
    set_default(torch.float64 if set_default is torch.set_default_dtype else "meta")
    assert all(torch.equal(a, b) for a, b in zip(before, run(), strict=True))


def test_memory_of_another_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match=r"hs must be .*float32 on cpu"):
        native_call.point(native_call.Args(), "hs", torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("T", [1, 6])
@pytest.mark.parametrize("cell", CELLS)
def test_a_lazy_sign_of_a_gradient_or_of_statistics_is_read(cell: str, T: int) -> None:
    problem = Problem(cell, NormConfig("batch"), T, 3, 5, 20)
    _, used = problem.forward(native, problem.leaves(torch.float32))

    def run(negative) -> list[Tensor]:
        leaves = problem.leaves(torch.float32)
        stats = Stats(*(None if s is None else negative(-s) for s in used))
        outputs, _ = problem.forward(native, leaves, stats=stats)
        weights = [negative(w.float()) for w in problem.cotangents[: len(outputs)]]
        return [*outputs, *torch.autograd.grad(outputs, list(leaves.values()), weights)]

    assert all(torch.equal(a, b) for a, b in zip(run(torch.neg), run(torch._neg_view), strict=True))


@pytest.mark.parametrize("name", ["layer", "rms", "batch"])
@pytest.mark.parametrize("cell", CELLS)
def test_training_follows_the_reference(cell: str, name: str) -> None:
    """30 steps of SGD; the losses part by no more than those of the reference in float32 and float64, doubled."""
    problem = Problem(cell, NormConfig(name), 6, 33, 10, 32)
    target = torch.randn(33, 32, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def losses(module, dtype: torch.dtype) -> Tensor:
        leaves = problem.leaves(dtype)
        trained = [leaves[key] for key in problem.params]
        found = []
        for _ in range(30):
            (output, *_), _ = problem.forward(module, leaves)
            loss = (output[-1] - target.to(dtype)).square().mean()
            grads = torch.autograd.grad(loss, trained)
            with torch.no_grad():
                for parameter, grad in zip(trained, grads, strict=True):
                    parameter.sub_(0.5 * grad)
            found.append(loss.detach())
        return torch.stack(found).double()

    exact, plain = losses(reference, torch.float64), losses(reference, torch.float32)
    fast = losses(native, torch.float32)
    assert exact[-1] < 0.97 * exact[0]
    assert (fast - exact).abs().max() <= 2 * (plain - exact).abs().max() + FLOOR * exact.max()


@pytest.mark.parametrize("capability", ["AVX2", "DEFAULT"])
def test_other_instruction_sets(capability: str) -> None:
    """The code compiled for lesser processors, in a process of its own, where this one can run it."""
    if capability == "AVX2" and torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this processor has no AVX2")
    code = (
        "from tests.test_native import *\n"
        "for cell in CELLS:\n"
        "    for name in ('none', 'layer', 'batch'):\n"
        "        check(Problem(cell, NormConfig(name), 5, 33, 18, 41, ragged=True))\n"
        "        check(Problem(cell, NormConfig(name), 3, 33, 3, 7))\n"
    )
    run_python(code, {"ATEN_CPU_CAPABILITY": capability.lower()})


def run_python(code: str, changed: dict[str, str]) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p or "." for p in sys.path)} | changed
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


SAY = "from ln.kernels.native import backend; print(backend.available())"


def test_without_a_compiler_the_reason_is_said(tmp_path: Path) -> None:
    assert "g++ is not on the PATH" in run_python(SAY, {"PATH": str(tmp_path), "LN_CACHE": str(tmp_path), "CXX": "g++"})


def test_a_failing_compiler_is_quoted(tmp_path: Path) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(
        "#!/bin/sh\ncase $1 in -dump*) echo 1;; *) echo 'native.cpp:1: error: no room' >&2; exit 1;; esac\n"
    )
    compiler.chmod(0o755)
    said = run_python(SAY, {"CXX": str(compiler), "LN_CACHE": str(tmp_path / "cache")})
    assert "native.cpp:1: error: no room" in said
    assert len(said.splitlines()) == 1


def test_a_cache_that_others_can_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "native").mkdir()
    (tmp_path / "native").chmod(0o777)
    assert "can be written by others" in run_python(SAY, {"LN_CACHE": str(tmp_path)})


def test_processes_that_start_at_once_compile_once(tmp_path: Path) -> None:
    code = (
        "from ln.kernels.native import build as b\n"
        "run = b._run\n"
        "b._run = lambda command: (print('compiled') if '-c' in command else None, run(command))[1]\n"
        "b.load()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p or "." for p in sys.path), "LN_CACHE": str(tmp_path)}
    running = [  # all wait for the first
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [process.communicate()[0] for process in running]
    assert all(process.returncode == 0 for process in running)
    assert "".join(said).count("compiled") == 1
    assert stat.S_IMODE((tmp_path / "native").stat().st_mode) == 0o700
    assert sorted(f.suffix for f in (tmp_path / "native").iterdir()) == ["", ".sha256", ".so"]


def test_the_library_shares_torchs_threads() -> None:
    """One OpenMP runtime in the process; two would each keep their own pool of threads. In a process of its own, since
    other packages bring their own runtime along."""
    code = "from ln.kernels.native import build; build.load(); print(open('/proc/self/maps').read())"
    maps = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert len({path for path in maps if "libgomp" in path or "libiomp5" in path}) == 1


def test_memory_is_reused_only_when_nothing_refers_to_it() -> None:
    pool = Pool()
    a = pool.empty(300, 1000)
    at = a.data_ptr()
    kept = a[5]
    del a
    assert pool.empty(300, 1000).data_ptr() != at
    del kept
    addresses = {(t := pool.empty(300, 1000)).data_ptr(), pool.empty(300, 1000).data_ptr()}
    del t
    assert at in addresses


def test_memory_of_sizes_no_longer_wanted_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a small layer left behind must not push out what a larger one wants in turn at every pass."""
    pool = Pool()
    small = [pool.empty(1 << 19) for _ in range(4)]
    del small
    mapped: list[int] = []
    plain = mmap.mmap
    monkeypatch.setattr(native_memory.mmap, "mmap", lambda *a, **k: mapped.append(a[1]) or plain(*a, **k))
    for _ in range(3):
        pool.empty(1 << 20)
        pool.empty(3 << 19)
    assert len(mapped) == 2


def test_a_repeated_pass_takes_all_its_memory_from_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though forward and backward want different sizes, more of them together than are ever in use at once."""
    monkeypatch.setattr(native, "POOL", Pool())
    problem = Problem("lstm", NormConfig("layer"), 28, 128, 28, 128)
    problem.run(native)
    mapped: list[int] = []
    plain = mmap.mmap
    monkeypatch.setattr(native_memory.mmap, "mmap", lambda *a, **k: mapped.append(a[1]) or plain(*a, **k))
    problem.run(native)
    assert not mapped


def test_the_arguments_are_those_that_the_compiler_laid_out() -> None:
    fields = native_build.fields_of("Args")
    assert fields[0] == ("T", ctypes.c_int64)
    assert fields[-1] == ("work", ctypes.c_void_p)
    assert ("eps", ctypes.c_double) in fields
    assert len({name for name, _ in fields}) == len(fields) > 50
    assert ctypes.sizeof(native_call.Args) == native_build.load().ln_args_size()

"""What the benchmark measures: one recurrent layer, forward and backward with every gradient, in each implementation.

Shapes: T time, B batch, D input, H hidden. Each entry of IMPLEMENTATIONS takes (shape, device) and returns a function
that runs one forward and backward pass of the layer on inputs made from one seed. Peers hold no code of `ln`.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import rnn


@dataclass(frozen=True)
class Shape:
    name: str
    cell: str
    T: int
    B: int
    D: int
    H: int
    ragged: bool = False  # sequences of 1 ... T steps in place of T; who cannot leave the padding out computes it too

    def __str__(self) -> str:
        return f"{self.cell.upper()} T{'1-' * self.ragged}{self.T} B{self.B} D{self.D} H{self.H}"

    def lengths(self) -> Tensor | None:
        """(B) evenly spread, in a random order."""
        if not self.ragged:
            return None
        order = torch.randperm(self.B, generator=torch.Generator().manual_seed(0))
        return torch.linspace(1, self.T, self.B).round().long()[order]

    @property
    def gflop(self) -> float:
        """Of the matrix products, forward and backward with every gradient: three products of each weight matrix."""
        lengths = self.lengths()
        steps = self.T * self.B if lengths is None else int(lengths.sum())
        return 3 * 2e-9 * steps * (4 if self.cell == "lstm" else 3) * self.H * (self.D + self.H)


Pass = Callable[[], None]
ALONE = "(1 thread)"  # in the name of what runs on one thread, however many there are


def products(M: int, N: int, K: int) -> dict[str, Callable[[], Any]]:
    """C (M, N) = A (M, K) B^T in float32 by MKL (torch.mm), oneDNN, and the native backend's own."""
    from ln.kernels.native import backend as native
    from ln.kernels.native import build as native_build

    A, B, C = torch.randn(M, K), torch.randn(N, K), torch.empty(M, N)
    found: dict[str, Callable[[], Any]] = {"torch.mm": partial(torch.mm, A, B.t(), out=C)}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        found["oneDNN"] = partial(torch.ops.mkldnn._linear_pointwise, A, B, None, "none", [], "")
    if native.available() is None:
        gemm = native_build.load().ln_gemm
        kept = A, B, C, torch.empty(gemm(M, N, K, None, None, None, None))
        pointers = [ctypes.c_void_p(t.data_ptr()) for t in kept]
        found[f"ln native {ALONE}"] = lambda: (gemm(M, N, K, *pointers), kept)
    return found


def _inputs(s: Shape, device: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(s.T, s.B, s.D, device=device, requires_grad=True)
    return x, torch.randn(s.T, s.B, s.H, device=device)


def _module_pass(module: nn.Module, s: Shape, device: str) -> Pass:
    """A pass of a module that takes x (T, B, D) and returns (output (T, B, H), ...) or the output."""
    x, cotangent = _inputs(s, device)
    module = module.to(device)

    def run() -> None:
        x.grad = None
        for p in module.parameters():
            p.grad = None
        out = module(x)
        (out[0] if isinstance(out, tuple) else out).backward(cotangent)

    return run


class PlainLSTM(nn.Module):
    """The layer-normalized LSTM as everyone writes it: nn.Linear and nn.LayerNorm in a Python loop."""

    def __init__(self, D: int, H: int) -> None:
        super().__init__()
        self.H = H
        self.input, self.recurrent = nn.Linear(D, 4 * H, bias=False), nn.Linear(H, 4 * H, bias=False)
        self.input_norm, self.recurrent_norm, self.cell_norm = nn.LayerNorm(4 * H), nn.LayerNorm(4 * H), nn.LayerNorm(H)

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = (self.input_norm(self.input(x)) + self.recurrent_norm(self.recurrent(h))).chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(self.cell_norm(c)), c

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[1], self.H)
        outputs = []
        for t in range(x.shape[0]):
            h, c = self.step(x[t], h, c)
            outputs.append(h)
        return torch.stack(outputs)


class PlainGRU(nn.Module):
    """The layer-normalized GRU as everyone writes it; the reset gate after the product."""

    def __init__(self, D: int, H: int) -> None:
        super().__init__()
        self.H = H
        self.input, self.recurrent = nn.Linear(D, 3 * H, bias=False), nn.Linear(H, 3 * H, bias=False)
        self.input_norm, self.recurrent_norm = nn.LayerNorm(2 * H), nn.LayerNorm(2 * H)
        self.input_norm_n, self.recurrent_norm_n = nn.LayerNorm(H), nn.LayerNorm(H)

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        a, b = self.input(x), self.recurrent(h)
        r, z = torch.sigmoid(self.input_norm(a[:, : 2 * self.H]) + self.recurrent_norm(b[:, : 2 * self.H])).chunk(
            2, dim=1
        )
        n = torch.tanh(self.input_norm_n(a[:, 2 * self.H :]) + r * self.recurrent_norm_n(b[:, 2 * self.H :]))
        return (1 - z) * n + z * h

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[1], self.H)
        outputs = []
        for t in range(x.shape[0]):
            h = self.step(x[t], h)
            outputs.append(h)
        return torch.stack(outputs)


class PlainRNN(nn.Module):
    """The layer-normalized simple RNN of the paper's equation 4 in a Python loop."""

    def __init__(self, D: int, H: int) -> None:
        super().__init__()
        self.H = H
        self.input, self.recurrent = nn.Linear(D, H, bias=False), nn.Linear(H, H, bias=False)
        self.norm = nn.LayerNorm(H)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[1], self.H)
        outputs = []
        for t in range(x.shape[0]):
            h = torch.tanh(self.norm(self.input(x[t]) + self.recurrent(h)))
            outputs.append(h)
        return torch.stack(outputs)


class PlainFastWeights(nn.Module):
    """Fast weights as their paper's equations 1 and 2 read, one inner step: the matrix A in a Python loop."""

    def __init__(self, D: int, H: int) -> None:
        super().__init__()
        self.H = H
        self.input, self.recurrent = nn.Linear(D, H), nn.Linear(H, H, bias=False)
        self.norm = nn.LayerNorm(H)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[1], self.H)
        A = x.new_zeros(x.shape[1], self.H, self.H)
        outputs = []
        for t in range(x.shape[0]):
            sustained = self.input(x[t]) + self.recurrent(h)
            h = torch.relu(self.norm(sustained + torch.bmm(A, torch.relu(sustained)[:, :, None])[:, :, 0]))
            A = 0.95 * A + 0.5 * torch.bmm(h[:, :, None], h[:, None, :])
            outputs.append(h)
        return torch.stack(outputs)


class ScriptedLSTM(nn.Module):
    """In the manner of PyTorch's fastrnns: the input's product out of the loop, the loop compiled by TorchScript."""

    def __init__(self, D: int, H: int) -> None:
        super().__init__()
        self.H = H
        self.input, self.recurrent = nn.Linear(D, 4 * H, bias=False), nn.Linear(H, 4 * H, bias=False)
        self.input_norm, self.recurrent_norm, self.cell_norm = nn.LayerNorm(4 * H), nn.LayerNorm(4 * H), nn.LayerNorm(H)

    def forward(self, x: Tensor) -> Tensor:
        steps = self.input_norm(self.input(x)).unbind(0)
        h = torch.zeros(x.shape[1], self.H, device=x.device)
        c = h
        outputs: list[Tensor] = []
        for step in steps:
            i, f, g, o = (step + self.recurrent_norm(self.recurrent(h))).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(self.cell_norm(c))
            outputs.append(h)
        return torch.stack(outputs)


class ScriptedGRU(nn.Module):
    def __init__(self, D: int, H: int) -> None:
        super().__init__()
        self.H = H
        self.input, self.recurrent = nn.Linear(D, 3 * H, bias=False), nn.Linear(H, 3 * H, bias=False)
        self.input_norm, self.recurrent_norm = nn.LayerNorm(2 * H), nn.LayerNorm(2 * H)
        self.input_norm_n, self.recurrent_norm_n = nn.LayerNorm(H), nn.LayerNorm(H)

    def forward(self, x: Tensor) -> Tensor:
        a = self.input(x)
        gates = self.input_norm(a[:, :, : 2 * self.H]).unbind(0)
        candidates = self.input_norm_n(a[:, :, 2 * self.H :]).unbind(0)
        h = torch.zeros(x.shape[1], self.H, device=x.device)
        outputs: list[Tensor] = []
        for gate, candidate in zip(gates, candidates):  # noqa: B905  (TorchScript knows no strict=)
            b = self.recurrent(h)
            r, z = torch.sigmoid(gate + self.recurrent_norm(b[:, : 2 * self.H])).chunk(2, 1)
            n = torch.tanh(candidate + r * self.recurrent_norm_n(b[:, 2 * self.H :]))
            h = (1 - z) * n + z * h
            outputs.append(h)
        return torch.stack(outputs)


def torch_nn(s: Shape, device: str) -> Pass:
    module, lengths = (nn.LSTM if s.cell == "lstm" else nn.GRU)(s.D, s.H), s.lengths()
    return _module_pass(module if lengths is None else Packed(module, lengths), s, device)


class Packed(nn.Module):
    """A layer of torch.nn on the real steps only, by packing and unpacking."""

    def __init__(self, module: nn.Module, lengths: Tensor) -> None:
        super().__init__()
        self.module, self.lengths = module, lengths

    def forward(self, x: Tensor) -> Tensor:
        packed, _ = self.module(rnn.pack_padded_sequence(x, self.lengths, enforce_sorted=False))
        return rnn.pad_packed_sequence(packed, total_length=len(x))[0]


def plain(s: Shape, device: str) -> Pass:
    return _module_pass((PlainLSTM if s.cell == "lstm" else PlainGRU)(s.D, s.H), s, device)


def torchscript(s: Shape, device: str) -> Pass:
    if not hasattr(torch.jit, "script"):
        raise RuntimeError("this torch has no TorchScript any more")
    return _module_pass(torch.jit.script((ScriptedLSTM if s.cell == "lstm" else ScriptedGRU)(s.D, s.H)), s, device)


def compiled(s: Shape, device: str) -> Pass:
    module: Any = (PlainLSTM if s.cell == "lstm" else PlainGRU)(s.D, s.H)
    module.step = torch.compile(module.step)
    return _module_pass(module, s, device)


def jax_scan(s: Shape, device: str) -> Pass:
    """lax.scan under jit, the input's product out of the loop; gradients of x and all parameters."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu" if device == "cpu" else "cuda")
    if torch.get_num_threads() == 1:
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    try:
        import jax
        import jax.numpy as jnp
    except ImportError as error:
        raise RuntimeError("jax is not installed (the extra `bench`)") from error
    x, cotangent = (jnp.asarray(t.detach().cpu().numpy()) for t in _inputs(s, device))
    H, G = s.H, (4 if s.cell == "lstm" else 3) * s.H
    keys = jax.random.split(jax.random.PRNGKey(0), 2)
    p = {
        "W": jax.random.normal(keys[0], (s.D, G)) * H**-0.5,
        "U": jax.random.normal(keys[1], (H, G)) * H**-0.5,
        **{k: jnp.ones(G) for k in ("gx", "gh")},
        **{k: jnp.zeros(G) for k in ("bx", "bh")},
        "gc": jnp.ones(H),
        "bc": jnp.zeros(H),
    }

    def norm(z, gain, bias):
        d = z - z.mean(-1, keepdims=True)
        return d * jax.lax.rsqrt((d * d).mean(-1, keepdims=True) + 1e-5) * gain + bias

    def lstm_step(p, carry, a):
        h, c = carry
        i, f, g, o = jnp.split(a + norm(h @ p["U"], p["gh"], p["bh"]), 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(norm(c, p["gc"], p["bc"]))
        return (h, c), h

    def gru_step(p, h, a):
        b = h @ p["U"]
        r, z = jnp.split(jax.nn.sigmoid(a[:, : 2 * H] + norm(b[:, : 2 * H], p["gh"][: 2 * H], p["bh"][: 2 * H])), 2, -1)
        n = jnp.tanh(a[:, 2 * H :] + r * norm(b[:, 2 * H :], p["gh"][2 * H :], p["bh"][2 * H :]))
        h = (1 - z) * n + z * h
        return h, h

    def loss(p, x):
        a, start = x @ p["W"], jnp.zeros((s.B, H))
        if s.cell == "lstm":
            a = norm(a, p["gx"], p["bx"])
            out = jax.lax.scan(lambda carry, t: lstm_step(p, carry, t), (start, start), a)[1]
        else:
            rz, n = (norm(a[..., k], p["gx"][k], p["bx"][k]) for k in (slice(0, 2 * H), slice(2 * H, None)))
            out = jax.lax.scan(lambda h, t: gru_step(p, h, t), start, jnp.concatenate([rz, n], -1))[1]
        return (out * cotangent).sum()

    grad = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return lambda: jax.block_until_ready(grad(p, x))


def ours(backend: str, norm: str = "layer", recompute: bool = False) -> Callable[[Shape, str], Pass]:
    def make(s: Shape, device: str) -> Pass:
        from ln.kernels import load
        from ln.norms import NormConfig
        from ln.reference import Params

        module = load(backend)
        cfg = NormConfig(norm)  # a norm of the weights is no business of the kernels
        reason = module.available() or module.supports(s.cell, cfg, torch.device(device), torch.float32)
        if reason:
            raise RuntimeError(reason)
        x, cotangent = _inputs(s, device)
        G, sites = (4 if s.cell == "lstm" else 3) * s.H, cfg.sites_for(s.cell)

        def leaf(t: Tensor) -> Tensor:
            return t.to(device).requires_grad_()

        def gain(n: int) -> Tensor:
            return leaf(torch.full((n,), cfg.initial_gain))

        weights = [leaf(torch.randn(G, n) * s.H**-0.5) for n in (s.D, s.H)]
        scales = [leaf(w.detach().norm(dim=1)) for w in weights] if cfg.traits.reparameterizes else []
        rest = [
            leaf(torch.zeros(G)),
            leaf(torch.zeros(G)),
            gain(G) if "input" in sites else None,
            gain(G) if "recurrent" in sites else None,
            gain(s.H) if "cell" in sites else None,
            leaf(torch.zeros(s.H)) if "cell" in sites else None,
        ]
        lengths = s.lengths()
        lengths = None if lengths is None else lengths.to(device)
        states = [torch.zeros(s.B, s.H, device=device) for _ in range(2 if s.cell == "lstm" else 1)]
        leaves = [t for t in (x, *weights, *scales, *rest) if t is not None]

        def run() -> None:
            for t in leaves:
                t.grad = None
            w = weights
            if scales:  # w = g v / ||v||, once for the sequence
                w = [torch._weight_norm(v, g[:, None], 0) for v, g in zip(weights, scales, strict=True)]
            output, *_ = getattr(module, s.cell)(x, *states, Params(*w, *rest), cfg, lengths, recompute=recompute)
            output.backward(cotangent)

        return run

    return make


# Baseline first: ratios are to it. cuDNN is what torch.nn runs on CUDA.
IMPLEMENTATIONS: dict[str, Callable[[Shape, str], Pass]] = {
    "torch.nn, no norm": torch_nn,
    "plain loop": plain,
    "TorchScript": torchscript,
    "torch.compile": compiled,
    "JAX scan": jax_scan,
    "ln torch": ours("torch"),
    "ln native": ours("native"),
    "ln native, recompute": ours("native", recompute=True),
    "ln native, batch norm": ours("native", "batch"),
    "ln native, weight norm": ours("native", "weight"),
    "ln triton": ours("triton"),
}

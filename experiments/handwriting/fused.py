"""The first LSTM and its window on a GPU: a matrix product and one fused kernel to a pen step, in each direction.

Computes what `network.Network.one_by_one` does. The gradients of all weights come after the loop, from all steps at
once. Shapes: T steps, B batch, U characters of a text, A alphabet, H hidden, G = 4H gates, K Gaussians of the window.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from experiments.handwriting.pen_kernels import pen_backward, pen_forward
from ln import LSTMCell
from ln.kernels.torch.sites import added
from ln.kernels.triton.layer import Call, Layer, Terms
from ln.kernels.triton.tiles import write_table
from ln.reference import Params

_TILE = 8192  # the most elements of a tile, Gaussians by units or by characters: 512 units of 10 Gaussians
_CHUNK = 8  # characters that a program takes at a time


def fits(cell: LSTMCell, window: nn.Linear, U: int) -> bool:
    """Whether the kernels take such a network and texts so long; the statistics of batch norm need all rows at once."""
    K = triton.next_power_of_2(window.out_features // 3)
    longest = triton.next_power_of_2(max(cell.hidden_size, U))
    return cell.kernel_norm.traits.axis != "batch" and K <= 32 and longest * K <= _TILE


def pen_steps(
    cell: LSTMCell, window: nn.Linear, points: Tensor, texts: Tensor, characters: Tensor
) -> tuple[Tensor, Tensor]:
    """The states (T, B, H) and the window's weights (T, B, U) after each step; before the first all is zero.

    points (T, B, 3), which are given no gradient; texts (B, U) classes; characters (B, U, A) one-hot.
    """
    p = cell.params("", points.dtype)
    inputs = (window.weight, window.bias, *p)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
    cfg = cell.kernel_norm
    call = Call("lstm", cfg, cfg.sites_for("lstm"), None, None, recompute=False, keep=keep)
    with torch.cuda.device(points.device) if points.is_cuda else nullcontext():
        states, weights = _PenSteps.apply(call, points.contiguous(), texts.contiguous(), characters, *inputs)
    return states, weights


class _PenSteps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: Call, points: Tensor, texts: Tensor, characters: Tensor, *inputs: Any
    ) -> tuple[Tensor, Tensor]:
        run = _Run(call, points, texts, characters, *inputs)
        states = run.forward()
        if call.keep:
            ctx.run = run
            ctx.save_for_backward(states)
        return states, run.weights[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        d_states, d_weights = (grad.contiguous() for grad in grads)
        found = ctx.run.backward(*ctx.saved_tensors, d_states, d_weights)
        names = ("window.weight", "window.bias", *Params._fields)
        wanted = zip(names, ctx.needs_input_grad[4:], strict=True)
        return (None,) * 4 + tuple(found.get(name) if need else None for name, need in wanted)


class _Run:
    """One call: what its kernels read and write, from the forward pass to the end of the backward pass."""

    def __init__(
        self,
        call: Call,
        points: Tensor,
        texts: Tensor,
        characters: Tensor,
        weight: Tensor,
        bias: Tensor,
        *parameters: Any,
    ) -> None:
        self.points, self.characters, self.p = points, characters, Params(*parameters)
        (T, B, _), (G, D) = points.shape, self.p.weight_ih.shape
        H, U, K, save, new = G // 4, texts.shape[1], len(weight) // 3, call.keep, points.new_empty
        self.sizes, self.T, self.eps = (B, H, U, K), T, call.cfg.eps
        layer = self.layer = Layer(call, self.p, B)
        blocks = {f"BLOCK_{n}": triton.next_power_of_2(size) for n, size in (("H", H), ("U", U), ("K", K))}
        flags = layer.spec.shape()[1]
        self.settings = blocks | {n: flags[n] for n in ("NORM", "RECURRENT", "CELL", "BIAS", "enable_fp_fusion")} | {
            "INPUT": layer.input.on, "CHUNK": _CHUNK,
            "num_warps": min(16, max(1, blocks["BLOCK_H"] * blocks["BLOCK_K"] // 1024)),
        }  # fmt: skip
        # The points' part of the summed inputs; the kernels add the window's.
        summed = F.linear(points, self.p.weight_ih[:, :3], self.p.inner_bias_ih)
        gates = torch.empty_like(summed) if save and layer.input.on else summed

        def statistics(on: bool) -> tuple[Tensor | None, Tensor | None]:
            return (new(T, 1, B), new(T, 1, B)) if on and save else (None, None)

        self.input_statistics = statistics(layer.input.on)
        (mean_h, var_h), (mean_c, var_c) = statistics(layer.recurrent.on), statistics(layer.out.on)
        zh = new(T, B, G) if save and layer.recurrent.on else None
        self.terms = Terms(summed, gates, zh, mean_h, var_h, mean_c, var_c, [])
        self.cells, self.weights, self.places = new(T + 1, B, H), new(T + 1, B, U), new(T + 1, B, K)
        for before in (self.cells, self.weights, self.places):
            before[0] = 0
        columns = points.new_zeros(D - 2, G)  # of W_ih, by the class of a character; the last one is nothing
        columns[:-1] = self.p.weight_ih[:, 3:].t()
        looks = new(T, B, 3 * K) if save else None
        self.own = (
            *self.input_statistics, summed, columns, texts, self.p.gain_ih, layer.input.bias, self.weights, self.places,
            looks, weight, bias,
        )  # fmt: skip

    def table(self, second: Tensor, gradients: tuple[Tensor | None, ...], own: tuple[Tensor, ...] = ()) -> Tensor:
        """The addresses that the kernels ask for. second: the states, backward their gradient; gradients: what an
        LSTM's backward pass writes; own: what the window's does."""
        pointers = (*self.layer.pointers(self.terms, 0, 0, second, self.cells), *gradients, None, *self.own, *own)
        table = torch.empty(len(pointers), dtype=torch.int64, device=second.device)
        write_table[(1,)](table, pointers, COUNT=len(pointers), enable_fp_fusion=False)
        return table

    def forward(self) -> Tensor:
        """-> the states (T, B, H)."""
        (B, H, *_), weight, new = self.sizes, self.p.weight_hh.t(), self.points.new_empty
        states, h, zh = new(self.T, B, H), self.points.new_zeros(B, H), new(B, 4 * H)
        table, save = self.table(states, (None, None, None)), self.layer.call.keep
        for k in range(self.T):
            torch.mm(h, weight, out=zh)
            pen_forward[(B,)](table, h, zh, *self.sizes, k, self.eps, SAVE=save, **self.settings)
        return states

    def backward(self, states: Tensor, d_states: Tensor, d_weights: Tensor) -> dict[str, Tensor | None]:
        """-> the gradients of all parameters, by name."""
        (B, H, U, K), T, layer, new = self.sizes, self.T, self.layer, self.points.new_empty
        d_gates = new(T, B, 4 * H)
        d_zh = torch.empty_like(d_gates) if layer.recurrent.on else None
        d_y = new(T, B, H) if layer.out.on or layer.bias is not None else None
        recurrent, d_places, d_looks = new(T + 1, B, U), new(T + 1, B, K), new(T, B, 3 * K)
        recurrent[T], d_places[T] = 0, 0
        d_h, d_c, d_z = self.points.new_zeros(B, H), self.points.new_zeros(B, H), new(B, 4 * H)
        table = self.table(d_states, (d_gates, d_zh, d_y), (d_weights, recurrent, d_places, d_looks))
        for k in reversed(range(T)):
            pen_backward[(B,)](table, d_h, d_c, d_z, *self.sizes, k, self.eps, **self.settings)
            if k:
                torch.mm(d_z, self.p.weight_hh, out=d_h)
        d_aim = d_looks.flatten(0, 1)
        grads: dict[str, Tensor | None] = {
            "window.weight": d_aim.t() @ states.flatten(0, 1), "window.bias": d_aim.sum(0)
        }  # fmt: skip

        def add(name: str, value: Tensor | None) -> None:
            grads[name] = added(grads.get(name), value)

        needed = {name for name, value in self.p._asdict().items() if value is not None}
        terms, before = self.terms, self.points.new_zeros(B, H)
        layer.recurrent_parameters(add, needed, terms, d_gates, d_zh, d_y, before, states, self.cells, 0, T)
        if layer.input.on:
            mean, var = self.input_statistics
            assert mean is not None
            assert var is not None
            terms = terms._replace(x_statistics=layer.input.saved(mean, var))
        shown = torch.bmm(self.weights[:-1].transpose(0, 1), self.characters).transpose(0, 1)
        x = torch.cat([self.points, shown], -1)
        layer.input_parameters(add, needed, terms, d_gates, x, None, 0, T)
        return grads

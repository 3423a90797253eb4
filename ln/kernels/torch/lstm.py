"""The LSTM of the torch backend: forward and backward over a sequence written out by hand.

Shapes: T time, B batch, D input, H hidden, G = 4H gates (i, f, g, o). Equations 20 to 22 of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ln.kernels import gate
from ln.kernels.torch.sites import (
    Saved,
    Setup,
    added,
    affine_gradients,
    chunks,
    part,
    previous,
    product,
    stacked,
    summed,
    told_apart,
)
from ln.reference import Params


class _Activations(NamedTuple):
    """What the backward pass needs of a stretch of time."""

    zx: Tensor  # (t, B, G) summed inputs from x
    zh: Tensor  # (t, B, G) summed inputs from h
    gates: Tensor  # (t, B, G) sigmoids of i, f, 2g, o: tanh(g) = 2 sigmoid(2g) - 1
    out: Tensor  # (t, B, H) tanh(LN(c))
    saved_x: Saved
    saved_h: Saved
    saved_c: Saved


class LSTMLayer:
    """One layer in one direction: its norms and the computation of all its steps."""

    def __init__(self, p: Params, setup: Setup) -> None:
        self.p, self.setup, self.H = p, setup, p.weight_hh.shape[1]
        # Both biases enter after the norms, so one norm's bias can carry the two.
        self.norm_x = setup.site("input", p.gain_ih, summed(p.bias_ih, p.bias_hh))
        self.norm_h = setup.site("recurrent", p.gain_hh, None)
        self.norm_c = setup.site("cell", p.gain_c, p.bias_c)
        self.given_x, self.given_h, self.given_c = (setup.given_for(name) for name in ("ih", "hh", "c"))

    def from_inputs(self, x: Tensor, start: int, end: int) -> tuple[Tensor, Tensor, Saved]:
        """The input term of a stretch at once: summed inputs and normalized ones (t, B, G)."""
        z = product(x[start:end].flatten(0, 1), self.p.weight_ih.t())
        z = z.view(end - start, x.shape[1], z.shape[1])
        if self.p.inner_bias_ih is not None:
            z += self.p.inner_bias_ih
        valid = None if self.setup.valid is None else self.setup.valid[start:end]
        y, saved = self.norm_x.forward(z, valid, part(self.given_x, slice(start, end)))
        return z, y, saved

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, list[_Activations]]:
        """-> output, cell states (T, B, H) and, if they are to be stored, the activations of each stretch."""
        (T, B, _), H = x.shape, self.H
        output, cells = x.new_empty(T, B, H), x.new_empty(T, B, H)
        weight, kept = self.p.weight_hh.t(), []
        statistics: tuple[list[Saved], ...] = ([], [], [])
        batch = self.setup.cfg.traits.axis == "batch"
        for start, end in chunks(T, B, 4 * H):
            zx, gates, saved_x = self.from_inputs(x, start, end)
            out = output.new_empty(end - start, B, H)
            zh: list[Tensor] = []
            saved_h: list[Saved] = []
            saved_c: list[Saved] = []
            steps = zip(
                gates.unbind(),
                gates.chunk(4, -1)[2].unbind(),
                out.unbind(),
                output[start:end],
                cells[start:end],
                strict=True,
            )
            for t, (a, g, out_t, h_t, c_t) in enumerate(steps, start):
                valid = None if self.setup.valid is None else self.setup.valid[t]
                z = product(h, weight)
                y, saved = self.norm_h.forward(z, valid, part(self.given_h, t))
                a += y
                g *= 2
                i, f, g, o = a.sigmoid_().chunk(4, -1)
                torch.mul(f, c, out=c_t).addcmul_(i, g, value=2).sub_(i)  # eq 21
                c = c_t
                y, saved_y = self.norm_c.forward(c, valid, part(self.given_c, t))
                torch.mul(y, 2, out=out_t).sigmoid_().mul_(2).sub_(1)
                h = torch.mul(o, out_t, out=h_t)  # eq 22
                if self.setup.store:
                    zh.append(z)
                if self.setup.store or batch:
                    saved_h.append(saved)
                    saved_c.append(saved_y)
            if batch:
                statistics[0].append(saved_x)
                statistics[1].extend(saved_h)
                statistics[2].extend(saved_c)
            if self.setup.store:
                per_step = (stacked(saved_h), stacked(saved_c))
                kept.append(_Activations(zx, torch.stack(zh), gates, out, saved_x, *per_step))
        for name, pieces in zip(("ih", "hh", "c"), statistics, strict=True):
            self.setup.keep_statistics(name, pieces)
        return output, cells, kept

    def last(self, cells: Tensor, c0: Tensor) -> Tensor:
        """c (B, H) at each row's last step; c0 for a row without steps."""
        ends = self.setup.ends
        return cells[-1].clone() if ends is None else torch.where(ends.any(0), (cells * ends).sum(0), c0)

    def again(self, x: Tensor, before: Tensor, cells: Tensor, start: int, end: int) -> _Activations:
        """The activations of a stretch from the states alone: no loop, since every state is known."""
        zx, gates, saved_x = self.from_inputs(x, start, end)
        at = slice(start, end)
        valid = None if self.setup.valid is None else self.setup.valid[at]
        zh = product(before.flatten(0, 1), self.p.weight_hh.t()).view_as(gates)
        y, saved_h = self.norm_h.forward(zh, valid, part(self.given_h, at))
        gates += y
        gates.chunk(4, -1)[2].mul_(2)
        y, saved_c = self.norm_c.forward(cells[at], valid, part(self.given_c, at))
        out = (2 * y).sigmoid_().mul_(2).sub_(1)
        return _Activations(zx, zh, gates.sigmoid_(), out, saved_x, saved_h, saved_c)

    def backward(
        self,
        x: Tensor,
        h0: Tensor,
        c0: Tensor,
        output: Tensor,
        cells: Tensor,
        kept: list[_Activations],
        d_output: Tensor,
        d_last: Tensor,
        needs_x: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor, Params]:
        """-> the gradients of x, h0, c0 and the parameters."""
        (T, B, _), H, p, setup = x.shape, self.H, self.p, self.setup
        d_x = torch.empty_like(x) if needs_x else None
        d_h = torch.zeros_like(h0)
        d_c = d_last if setup.ends is None else torch.zeros_like(c0)
        grads: dict[str, Tensor | None] = dict.fromkeys(Params._fields)
        stretches = chunks(T, B, 4 * H)
        for index in reversed(range(len(stretches))):
            start, end = stretches[index]
            before = previous(output, h0, start, end)
            c_before = previous(cells, c0, start, end)
            act = kept.pop() if kept else self.again(x, before, cells, start, end)
            i, _, g, _ = act.gates.chunk(4, -1)
            i4, g = 4 * i, 2 * g - 1
            d_a, d_out = torch.empty_like(act.gates), torch.empty_like(act.out)
            d_zh: list[Tensor] = []
            valid = None if setup.valid is None else setup.valid[start:end]
            for t in reversed(range(end - start)):
                valid_t = None if valid is None else valid[t]
                saved_h, saved_c = (tuple(v[t] for v in saved) for saved in (act.saved_h, act.saved_c))
                s, out, a = act.gates[t], act.out[t], d_a[t]
                _, f, _, o = s.chunk(4, -1)
                a_i, a_f, a_g, a_o = a.chunk(4, -1)
                d_h = d_h + d_output[start + t]
                torch.mul(d_h, out, out=a_o)
                y = torch.ops.aten.tanh_backward.grad_input(d_h.mul_(o), out, grad_input=d_out[t])
                through, _, _ = self.norm_c.backward(y, cells[start + t], saved_c, valid_t, True, False)
                d_c = d_c + through
                if setup.ends is not None:
                    d_c.addcmul_(setup.ends[start + t], d_last)
                torch.mul(d_c, g[t], out=a_i)
                torch.mul(d_c, c_before[t], out=a_f)
                torch.mul(d_c, i4[t], out=a_g)
                d_c = d_c.mul_(f)
                torch.ops.aten.sigmoid_backward.grad_input(a, s, grad_input=a)
                z, _, _ = self.norm_h.backward(a, act.zh[t], saved_h, valid_t, True, False)
                d_zh.append(z)
                d_h = product(z, p.weight_hh)
            d_z_all = torch.stack(d_zh[::-1])
            self._accumulate(grads, act, d_a, d_z_all, d_out, before, cells[start:end], valid)
            d_x_part = self._input_gradients(grads, act, d_a, x[start:end], valid, needs_x)
            if d_x is not None and d_x_part is not None:
                d_x[start:end] = d_x_part
        # Both biases enter at the same place. Each has a tensor of its own, which a caller may add to.
        grads["bias_hh"] = None if grads["bias_ih"] is None else grads["bias_ih"].clone()
        if setup.ends is not None:
            d_c = d_c + d_last * ~setup.ends.any(0)  # a row of length 0 ends where it began
        present = (None if value is None else grads[name] for name, value in zip(Params._fields, p, strict=True))
        return d_x, d_h, d_c, Params(*present)  # type: ignore[arg-type]

    def _accumulate(
        self,
        grads: dict[str, Tensor | None],
        act: _Activations,
        d_a: Tensor,
        d_z: Tensor,
        d_out: Tensor,
        before: Tensor,
        cells: Tensor,
        valid: Tensor | None,
    ) -> None:
        """Add a stretch's share of the gradients of the recurrent weights and of the recurrent and cell norms."""
        d_weight, _ = affine_gradients(d_z, before, self.p.weight_hh, False)
        _, gain, _ = self.norm_h.backward(d_a, act.zh, act.saved_h, valid, False, True)
        _, gain_c, bias_c = self.norm_c.backward(d_out, cells, act.saved_c, valid, False, True)
        for name, value in (("weight_hh", d_weight), ("gain_hh", gain), ("gain_c", gain_c), ("bias_c", bias_c)):
            grads[name] = added(grads[name], value)

    def _input_gradients(
        self,
        grads: dict[str, Tensor | None],
        act: _Activations,
        d_a: Tensor,
        x: Tensor,
        valid: Tensor | None,
        needs_x: bool,
    ) -> Tensor | None:
        """Add a stretch's share of the gradients of the input term; -> that of x."""
        d_z, gain, bias = self.norm_x.backward(d_a, act.zx, act.saved_x, valid, True, True)
        assert d_z is not None
        d_weight, d_x = affine_gradients(d_z, x, self.p.weight_ih, needs_x)
        inner = d_z.sum((0, 1)) if self.p.inner_bias_ih is not None else None
        terms = {"weight_ih": d_weight, "gain_ih": gain, "bias_ih": bias, "inner_bias_ih": inner}
        for name, value in terms.items():
            grads[name] = added(grads[name], value)
        return d_x


class LSTMFunction(torch.autograd.Function):
    """(x, h0, c0, setup, *params) -> output (T, B, H) and c (B, H) at each row's last step."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, h0: Tensor, c0: Tensor, setup: Setup, *params: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        layer = LSTMLayer(Params(*params), setup)  # type: ignore[arg-type]
        output, cells, kept = layer.forward(x, h0, c0)
        last = layer.last(cells, c0)
        ctx.setup, ctx.sizes = setup, [[1 if isinstance(v, Tensor) else len(v) for v in act] for act in kept]
        ctx.save_for_backward(x, h0, c0, output, cells, *params, *_flattened(kept))
        return output, last

    @staticmethod
    def backward(ctx: Any, d_output: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        x, h0, c0, output, cells, *rest = ctx.saved_tensors
        params, activations = told_apart(rest)
        if gate.differentiates_further((d_output, d_last)):
            inputs, needed = (x, h0, c0, *params), (*ctx.needs_input_grad[:3], *ctx.needs_input_grad[4:])
            d_inputs = ctx.setup.reference_gradients("lstm", inputs, needed, (d_output, None, d_last))
            return *d_inputs[:3], None, *d_inputs[3:]
        layer = LSTMLayer(params, ctx.setup)
        kept = _rebuilt(activations, ctx.sizes)
        d_x, d_h, d_c, grads = layer.backward(x, h0, c0, output, cells, kept, d_output, d_last, ctx.needs_input_grad[0])
        return d_x, d_h, d_c, None, *grads


def _flattened(kept: list[_Activations]) -> list[Tensor]:
    return [tensor for act in kept for value in act for tensor in (value if isinstance(value, tuple) else (value,))]


def _rebuilt(tensors: Sequence[Tensor], sizes: list[list[int]]) -> list[_Activations]:
    queue = iter(tensors)
    fields: list[list[Any]] = [[tuple(next(queue) for _ in range(size)) for size in act] for act in sizes]
    return [_Activations(*(v if n >= 4 else v[0] for n, v in enumerate(act))) for act in fields]

"""The GRU of the torch backend: forward and backward over a sequence written out by hand.

Shapes: T time, B batch, D input, H hidden, G = 3H gates (r, z, n). Equations 26 to 28 of the paper.
Layer norm takes the statistics of (r, z) and of n separately, so both terms are kept in these two groups.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ln.kernels import gate
from ln.kernels.torch.sites import (
    Saved,
    Setup,
    SiteNorm,
    added,
    affine_gradients,
    chunks,
    part,
    previous,
    product,
    stacked,
    summed,
    tanh_,
    told_apart,
)
from ln.reference import Params


class _Group:
    """One term's share of one group of gates: norm(v W^T + inner bias) for v = x or v = h."""

    def __init__(self, p: Params, setup: Setup, term: str, columns: slice, bias: Tensor | None) -> None:
        weight, gain, inner = (
            (p.weight_ih, p.gain_ih, p.inner_bias_ih) if term == "ih" else (p.weight_hh, p.gain_hh, None)
        )
        self.weight = weight[columns]
        self.inner = None if inner is None else inner[columns]
        self.norm: SiteNorm = setup.site(
            "input" if term == "ih" else "recurrent",
            None if gain is None else gain[columns],
            None if bias is None else bias[columns],
        )
        self.given = setup.given_for(term, columns)

    def forward(self, values: Tensor, valid: Tensor | None, given: Saved | None) -> tuple[Tensor, Tensor, Saved]:
        """values (..., m) -> summed inputs (..., n), their normalized form, and what the norm's backward needs."""
        z = product(values.flatten(0, -2), self.weight.t())
        if self.inner is not None:
            z += self.inner
        z = z.view(*values.shape[:-1], z.shape[-1])
        y, saved = self.norm.forward(z, valid, given)
        return z, y, saved

    def gradients(
        self,
        d_y: Tensor,
        d_z: Tensor | None,
        z: Tensor,
        values: Tensor,
        saved: Saved,
        valid: Tensor | None,
        needs: bool,
    ) -> tuple[Tensor | None, ...]:
        """Gradients of weight, gain, bias, inner bias and, if needed, values over a stretch; d_z if it is known
        already."""
        d_z_new, gain, bias = self.norm.backward(d_y, z, saved, valid, d_z is None, True)
        d_z = d_z_new if d_z is None else d_z
        assert d_z is not None
        weight, d_values = affine_gradients(d_z, values, self.weight, needs)
        return weight, gain, bias, (None if self.inner is None else d_z.sum((0, 1))), d_values


class _Activations(NamedTuple):
    """What the backward pass needs of a stretch of time; pairs are the groups (r, z) and n."""

    zx: Saved  # (t, B, 2H), (t, B, H) summed inputs from x
    zh: Saved  # the same from h
    gates: Tensor  # (t, B, 2H) sigmoids of r, z
    n: Tensor  # (t, B, H)
    hn: Tensor  # (t, B, H) the normalized recurrent term that r multiplies
    saved: tuple[Saved, Saved, Saved, Saved]  # of the norms: x to (r, z), x to n, h to (r, z), h to n


_GROUPS = (("ih", 0), ("ih", 1), ("hh", 0), ("hh", 1))


class GRULayer:
    """One layer in one direction: its norms and the computation of all its steps."""

    def __init__(self, p: Params, setup: Setup) -> None:
        self.p, self.setup, self.H = p, setup, p.weight_hh.shape[1]
        H = self.H
        gates, candidate = slice(0, 2 * H), slice(2 * H, 3 * H)
        # The recurrent bias of n stays inside the product with r; those of r and z may join the input's.
        self.x_gates = _Group(p, setup, "ih", gates, summed(p.bias_ih, p.bias_hh))
        self.x_n = _Group(p, setup, "ih", candidate, p.bias_ih)
        self.h_gates = _Group(p, setup, "hh", gates, None)
        self.h_n = _Group(p, setup, "hh", candidate, p.bias_hh)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, list[_Activations]]:
        """-> output (T, B, H) and, if they are to be stored, the activations of each stretch."""
        (T, B, _), H, setup = x.shape, self.H, self.setup
        output = x.new_empty(T, B, H)
        kept = []
        batch = setup.cfg.traits.axis == "batch"
        statistics: tuple[list[Saved], ...] = ([], [], [], [])
        for start, end in chunks(T, B, 3 * H):
            at = slice(start, end)
            valid = None if setup.valid is None else setup.valid[at]
            zx_gates, gates, saved_x_gates = self.x_gates.forward(x[at], valid, part(self.x_gates.given, at))
            zx_n, n_all, saved_x_n = self.x_n.forward(x[at], valid, part(self.x_n.given, at))
            steps: list[tuple[Tensor, ...]] = []
            saved_gates: list[Saved] = []
            saved_n: list[Saved] = []
            for t in range(start, end):
                valid_t = None if setup.valid is None else setup.valid[t]
                a, n = gates[t - start], n_all[t - start]
                z_gates, y_gates, saved_a = self.h_gates.forward(h, valid_t, part(self.h_gates.given, t))
                z_n, hn, saved_b = self.h_n.forward(h, valid_t, part(self.h_n.given, t))
                r, z = a.add_(y_gates).sigmoid_().chunk(2, -1)  # eq 26
                n = tanh_(n.addcmul_(r, hn))  # eq 27
                h = torch.lerp(n, h, z, out=output[t])  # eq 28
                if setup.store:
                    steps.append((z_gates, z_n, hn))
                if setup.store or batch:
                    saved_gates.append(saved_a)
                    saved_n.append(saved_b)
            if batch:
                for pieces, new in zip(statistics, ([saved_x_gates], [saved_x_n], saved_gates, saved_n), strict=True):
                    pieces.extend(new)
            if setup.store:
                zh_gates, zh_n, hn_all = (torch.stack(pieces) for pieces in zip(*steps, strict=True))
                saved = (saved_x_gates, saved_x_n, stacked(saved_gates), stacked(saved_n))
                kept.append(_Activations((zx_gates, zx_n), (zh_gates, zh_n), gates, n_all, hn_all, saved))
        for name, groups in (("ih", statistics[:2]), ("hh", statistics[2:])):
            both = [_side_by_side(a, b) for a, b in zip(*groups, strict=True)]
            setup.keep_statistics(name, both)
        return output, kept

    def again(self, x: Tensor, before: Tensor, start: int, end: int) -> _Activations:
        """The activations of a stretch from the states alone: no loop, since every state is known."""
        at = slice(start, end)
        valid = None if self.setup.valid is None else self.setup.valid[at]
        zx_gates, gates, saved_a = self.x_gates.forward(x[at], valid, part(self.x_gates.given, at))
        zx_n, n, saved_b = self.x_n.forward(x[at], valid, part(self.x_n.given, at))
        zh_gates, y_gates, saved_c = self.h_gates.forward(before, valid, part(self.h_gates.given, at))
        zh_n, hn, saved_d = self.h_n.forward(before, valid, part(self.h_n.given, at))
        r, _ = gates.add_(y_gates).sigmoid_().chunk(2, -1)
        tanh_(n.addcmul_(r, hn))
        return _Activations((zx_gates, zx_n), (zh_gates, zh_n), gates, n, hn, (saved_a, saved_b, saved_c, saved_d))

    def backward(
        self, x: Tensor, h0: Tensor, output: Tensor, kept: list[_Activations], d_output: Tensor, needs_x: bool
    ) -> tuple[Tensor | None, Tensor, Params]:
        """-> the gradients of x, h0 and the parameters."""
        (T, B, _), H, setup = x.shape, self.H, self.setup
        d_x = torch.empty_like(x) if needs_x else None
        d_h = torch.zeros_like(h0)
        totals: dict[tuple[str, str, int], Tensor | None] = {}
        stretches = chunks(T, B, 3 * H)
        for index in reversed(range(len(stretches))):
            start, end = stretches[index]
            before = previous(output, h0, start, end)
            act = kept.pop() if kept else self.again(x, before, start, end)
            valid = None if setup.valid is None else setup.valid[start:end]
            d_gates, d_n, d_hn = torch.empty_like(act.gates), torch.empty_like(act.n), torch.empty_like(act.hn)
            d_zh: list[tuple[Tensor, Tensor]] = []
            for t in reversed(range(end - start)):
                valid_t = None if valid is None else valid[t]
                saved_gates, saved_n = (tuple(v[t] for v in saved) for saved in act.saved[2:])
                s, n = act.gates[t], act.n[t]
                r, z = s.chunk(2, -1)
                d_r, d_z = d_gates[t].chunk(2, -1)
                d_h = d_h + d_output[start + t]
                torch.mul(d_h, before[t] - n, out=d_z)
                kept_h = d_h * z
                a = torch.ops.aten.tanh_backward.grad_input(d_h.sub_(kept_h), n, grad_input=d_n[t])
                torch.mul(a, act.hn[t], out=d_r)
                torch.mul(a, r, out=d_hn[t])
                torch.ops.aten.sigmoid_backward.grad_input(d_gates[t], s, grad_input=d_gates[t])
                z_gates, _, _ = self.h_gates.norm.backward(d_gates[t], act.zh[0][t], saved_gates, valid_t, True, False)
                z_n, _, _ = self.h_n.norm.backward(d_hn[t], act.zh[1][t], saved_n, valid_t, True, False)
                d_zh.append((z_gates, z_n))
                d_h = kept_h.add_(product(z_gates, self.h_gates.weight)).add_(product(z_n, self.h_n.weight))
            d_zh_gates, d_zh_n = (torch.stack(pieces[::-1]) for pieces in zip(*d_zh, strict=True))
            at = slice(start, end)
            work = (
                (self.x_gates, d_gates, None, act.zx[0], x[at], act.saved[0], needs_x),
                (self.x_n, d_n, None, act.zx[1], x[at], act.saved[1], needs_x),
                (self.h_gates, d_gates, d_zh_gates, act.zh[0], before, act.saved[2], False),
                (self.h_n, d_hn, d_zh_n, act.zh[1], before, act.saved[3], False),
            )
            for (term, group), (owner, d_y, d_z_all, z_all, values, saved, needs) in zip(_GROUPS, work, strict=True):
                *found, d_values = owner.gradients(d_y, d_z_all, z_all, values, saved, valid, needs)
                for kind, value in zip(("weight", "gain", "bias", "inner_bias"), found, strict=True):
                    key = (kind, term, group)
                    totals[key] = added(totals.get(key), value)
                if d_x is not None and d_values is not None:
                    d_x[at] = d_values if group == 0 else d_x[at] + d_values
        return d_x, d_h, self._joined(totals)

    def _joined(self, totals: dict[tuple[str, str, int], Tensor | None]) -> Params:
        """The gradients of both groups in one tensor for each parameter there is."""
        if ("bias", "ih", 0) in totals:
            totals["bias", "hh", 0] = totals["bias", "ih", 0]
        grads: list[Tensor | None] = []
        for name, value in zip(Params._fields, self.p, strict=True):
            kind, _, term = name.rpartition("_")
            pieces = [totals.get((kind, term, group)) for group in (0, 1)]
            present = [piece for piece in pieces if piece is not None]
            grads.append(torch.cat(present) if value is not None and len(present) == 2 else None)
        return Params(*grads)  # type: ignore[arg-type]


def _side_by_side(a: Saved, b: Saved) -> Saved:
    return tuple(torch.cat(pair, -1) for pair in zip(a, b, strict=True))


class GRUFunction(torch.autograd.Function):
    """(x, h0, setup, *params) -> output (T, B, H)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h0: Tensor, setup: Setup, *params: Tensor | None) -> Tensor:
        output, kept = GRULayer(Params(*params), setup).forward(x, h0)  # type: ignore[arg-type]
        ctx.setup, ctx.spec = setup, None
        leaves, ctx.spec = torch.utils._pytree.tree_flatten(kept)
        ctx.save_for_backward(x, h0, output, *params, *leaves)
        return output

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, ...]:
        x, h0, output, *rest = ctx.saved_tensors
        params, activations = told_apart(rest)
        if gate.differentiates_further((d_output,)):
            inputs = (x, h0, None, *params)
            needed = (*ctx.needs_input_grad[:2], False, *ctx.needs_input_grad[3:])
            d_inputs = ctx.setup.reference_gradients("gru", inputs, needed, (d_output, None))
            return *d_inputs[:2], None, *d_inputs[3:]
        kept = torch.utils._pytree.tree_unflatten(activations, ctx.spec)
        layer = GRULayer(params, ctx.setup)
        d_x, d_h, grads = layer.backward(x, h0, output, kept, d_output, ctx.needs_input_grad[0])
        return d_x, d_h, None, *grads

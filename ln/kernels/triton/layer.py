"""One call of the Triton backend: the input terms and parameter gradients of all steps at once around the time loop.

Shapes: T time, B batch, t steps of a chunk of time, D input, H hidden, G gates (4H LSTM: i, f, g, o; 3H GRU: r, z, n).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ln.kernels.torch.sites import BatchNorm, LayerNorm, RMSNorm, SiteNorm, added, summed
from ln.kernels.triton.loop import Loop, Pointers, Spec, loop_for
from ln.kernels.triton.tiles import BATCH, GIVEN, LAYER, NO_NORM, RMS
from ln.norms import NormConfig
from ln.reference import Params, Stats

_GRID = 65535  # the most programs of a launch's second axis
_CHUNK = 1 << 22  # summed inputs in a chunk of time, where activations are not stored


class Site:
    """The norm of a site over many steps at once; in the GRU statistics over features are those of (r, z) and of n."""

    def __init__(self, call: Call, site: str, gain: Tensor | None, bias: Tensor | None, units: int) -> None:
        self.on, self.bias, self.eps, self.rows = site in call.sites, bias, call.cfg.eps, call.norm < BATCH.value
        self.centred = call.cfg.traits.centred
        split = units // 3 * 2
        self.parts = [slice(0, split), slice(split, units)] if self.rows and call.cell == "gru" else [slice(0, units)]
        self.norms: list[SiteNorm] = []
        if self.on:
            assert gain is not None
            for part in self.parts:
                beta = None if bias is None else bias[part]
                if self.rows:
                    self.norms.append((LayerNorm if self.centred else RMSNorm)(gain[part], beta, self.eps))
                else:
                    self.norms.append(BatchNorm(gain[part], beta, self.eps, call.norm == GIVEN.value))

    def forward(self, z: Tensor, valid: Tensor | None, given: tuple[Tensor, ...] | None) -> tuple[Tensor, list[Tensor]]:
        """z (t, B, n) -> its norm plus bias, which may be z itself, and the statistics of each part."""
        if not self.on:
            return (z if self.bias is None else z.add_(self.bias)), []
        results = [norm.forward(z[..., part], valid, given) for part, norm in zip(self.parts, self.norms, strict=True)]
        y = results[0][0] if len(results) == 1 else torch.cat([y for y, _ in results], -1)
        return y, [statistic for _, saved in results for statistic in saved]

    def saved(self, mean: Tensor, var: Tensor) -> list[Tensor]:
        """Statistics as the kernels leave them, in the form that `forward` returns."""
        if not self.rows:
            return [mean.unsqueeze(1), var.unsqueeze(1)]
        rstd = (var + self.eps).rsqrt_()
        kept = (mean, rstd) if self.centred else (rstd,)
        return [s[:, j].unsqueeze(-1).contiguous() for j in range(len(self.parts)) for s in kept]

    def backward(
        self, dy: Tensor, z: Tensor, saved: list[Tensor], valid: Tensor | None, inputs: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of z (if inputs) and of the gain."""
        n = len(saved) // len(self.parts)
        results = [
            norm.backward(dy[..., part], z[..., part], tuple(saved[n * j : n * j + n]), valid, inputs, True)
            for j, (part, norm) in enumerate(zip(self.parts, self.norms, strict=True))
        ]
        d_z, d_gain = ([result[index] for result in results] for index in (0, 1))
        return _joined(d_z), _joined(d_gain)


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present, -1) if len(present) > 1 else parts[0]


class Terms(NamedTuple):
    """What the backward pass needs of a chunk of time, t steps; None or empty where a site is off."""

    zx: Tensor | None  # (t, B, G) summed inputs from x
    gates: Tensor  # (t, B, G) the input terms first, then what the kernels make of them
    zh: Tensor | None  # (t, B, G) summed inputs from h
    mean_h: Tensor | None  # layer norm (t, parts, B), batch norm (t, G)
    var_h: Tensor | None
    mean_c: Tensor | None  # layer norm (t, 1, B), batch norm (t, H)
    var_c: Tensor | None
    x_statistics: list[Tensor]


@dataclass
class Call:
    """One call: what is not a tensor that takes a gradient."""

    cell: str
    cfg: NormConfig
    sites: tuple[str, ...]
    lengths: Tensor | None
    given: Stats | None
    recompute: bool
    keep: bool  # a backward pass may follow
    used: Stats | None = None  # batch statistics that a forward pass leaves

    @property
    def norm(self) -> int:
        if not self.sites:
            return NO_NORM.value
        if self.cfg.traits.axis == "features":
            return (LAYER if self.cfg.traits.centred else RMS).value
        return BATCH.value if self.given is None else GIVEN.value

    def chunks(self, T: int, B: int, G: int) -> list[tuple[int, int]]:
        # What is computed again is so in one launch, a row of its grid to each step.
        length = T if self.keep and not self.recompute else min(_GRID, max(16, _CHUNK // (B * G)))
        return [(start, min(start + length, T)) for start in range(0, T, length)]

    def valid(self, start: int, end: int) -> Tensor | None:
        """(t, B, 1) 1 where a row has not ended, if batch statistics need to know."""
        if self.lengths is None or self.norm != BATCH.value:
            return None
        time = torch.arange(start, end, device=self.lengths.device).unsqueeze(1)
        return (time < self.lengths).float().unsqueeze(-1)

    def given_for(self, name: str, start: int, end: int) -> tuple[Tensor, ...] | None:
        if self.given is None or getattr(self.given, f"mean_{name}") is None:
            return None
        return tuple(getattr(self.given, f"{kind}_{name}")[start:end] for kind in ("mean", "var"))


class Layer:
    """The computation of one call."""

    def __init__(self, call: Call, p: Params, B: int) -> None:
        self.call, self.p, self.B = call, p, B
        self.lstm, (self.G, self.H) = call.cell == "lstm", p.weight_hh.shape
        H, bias_hh = self.H, p.bias_hh
        if bias_hh is not None and not self.lstm:
            # r multiplies the recurrent bias of n, which therefore is the kernels'.
            bias_hh = torch.cat([bias_hh[: 2 * H], bias_hh.new_zeros(H)])
        bias = summed(p.bias_ih, bias_hh)
        self.input = Site(call, "input", p.gain_ih, bias, self.G)
        self.recurrent = Site(call, "recurrent", p.gain_hh, None, self.G)
        self.out = Site(call, "cell", p.gain_c, p.bias_c, H)
        self.bias = p.bias_c if self.lstm else p.bias_hh
        flags = (self.recurrent.on, self.out.on, self.bias is not None, call.lengths is not None)
        self.spec = Spec(call.cell, B, H, call.norm, *flags, call.cfg.eps, p.weight_hh.device)

    def terms(self, x: Tensor, start: int, end: int, store: bool) -> Terms:
        """The input terms of a chunk, and room for what the kernels leave: with `store` all that backward needs."""
        call, steps, B = self.call, end - start, self.B
        z = F.linear(x[start:end], self.p.weight_ih, self.p.inner_bias_ih)
        given = call.given_for("ih", start, end)
        site_given = None if given is None else tuple(s.unsqueeze(1) for s in given)
        y, x_statistics = self.input.forward(z, call.valid(start, end), site_given)
        statistics: list[Tensor | None] = []
        for site, name, units in ((self.recurrent, "hh", self.G), (self.out, "c", self.H)):
            pair: tuple[Tensor | None, ...] | None = call.given_for(name, start, end)
            if pair is None:
                shape = (steps, len(site.parts), B) if site.rows else (steps, units)
                pair = tuple(x.new_empty(shape) if site.on and (store or not site.rows) else None for _ in range(2))
            statistics += pair
        zh = x.new_empty(steps, B, self.G) if store and (self.recurrent.on or not self.lstm) else None
        return Terms._make((z if store and self.input.on else None, y, zh, *statistics, x_statistics))

    def left(self, t: int) -> Tensor | None:
        return None if self.call.lengths is None else self.call.lengths - t

    def pointers(self, terms: Terms, t: int, start: int, second: Tensor, third: Tensor | None) -> Pointers:
        """Entries 0 to 11 of the kernels' table for a stretch from step t of a chunk that begins at `start`."""
        at = t - start
        zh, *statistics = (None if s is None else s[at:] for s in terms[2:7])
        return (
            self.left(t),
            terms.gates[at:],
            second,
            third,
            zh,
            self.p.gain_hh,
            self.p.gain_c,
            self.bias,
            *statistics,
        )

    def before(self, h0: Tensor, output: Tensor, start: int, end: int) -> Tensor:
        """(t, B, H) the state before each step."""
        return torch.cat([h0[None], output[: end - 1]]) if start == 0 else output[start - 1 : end - 1]

    def forward(self, x: Tensor, h0: Tensor, c0: Tensor | None) -> tuple[list[Tensor], Tensor | None, Terms | None]:
        """-> output, h, c; c at all steps (T + 1, B, H); the terms, if they are to be stored."""
        call, (T, B, _) = self.call, x.shape
        store = call.keep and not call.recompute
        output = x.new_empty(T, B, self.H)
        cells = None
        if c0 is not None:
            cells = x.new_empty(T + 1, B, self.H)
            cells[0] = c0
        statistics: list[list[Tensor | None]] = []
        with loop_for(self.spec, False, store, self.p.weight_hh, T) as loop:
            loop.state.copy_(h0)
            for start, end in call.chunks(T, B, self.G):
                terms = self.terms(x, start, end, store)
                stretches = [
                    self.pointers(terms, t, start, output[t:], None if cells is None else cells[t:])
                    for t in range(start, end, loop.stretch)
                ]
                loop.run(stretches, end - start)
                if call.norm == BATCH.value:
                    of_x: list[Tensor | None] = [s.squeeze(1) for s in terms.x_statistics]
                    statistics.append([*(of_x or [None, None]), *terms[3:7]])
            h = loop.kept(loop.state)
        if call.norm == BATCH.value:
            fields = zip(*statistics, strict=True)
            call.used = Stats(*(None if rows[0] is None else torch.cat(rows) for rows in fields))
        outputs = [output, h] if cells is None else [output, h, cells[T].clone()]
        return outputs, cells, terms if store else None

    def again(
        self, loop: Loop, x: Tensor, h0: Tensor, output: Tensor, cells: Tensor | None, start: int, end: int
    ) -> Terms:
        """The terms of a chunk from the states alone, in one launch for all steps."""
        terms = self.terms(x, start, end, True)
        zh = F.linear(self.before(h0, output, start, end), self.p.weight_hh)
        third = None if cells is None else cells[start:]
        loop.rebuild(end - start, zh, self.pointers(terms, start, start, output[start:], third))
        return terms._replace(zh=None if terms.zh is None else zh)

    def backward(
        self,
        x: Tensor,
        h0: Tensor,
        output: Tensor,
        cells: Tensor | None,
        kept: Terms | None,
        d_last: list[Tensor],
        needed: set[str],
    ) -> dict[str, Tensor | None]:
        """The gradients of what is needed, by name, given those of output, h and c."""
        call, (T, B, _) = self.call, x.shape
        d_output, d_x = d_last[0], torch.empty_like(x) if "x" in needed else None
        grads: dict[str, Tensor | None] = {"x": d_x}

        def add(name: str, value: Tensor | None) -> None:
            grads[name] = added(grads.get(name), value)

        with loop_for(self.spec, True, False, self.p.weight_hh, T) as loop:
            loop.state.copy_(d_last[1])
            if self.lstm:
                loop.d_c.copy_(d_last[2])
            for start, end in reversed(call.chunks(T, B, self.G)):
                terms = kept or self.again(loop, x, h0, output, cells, start, end)
                d_a = torch.empty_like(terms.gates)
                d_zh = None if terms.zh is None else torch.empty_like(d_a)
                d_y = (
                    x.new_empty(end - start, B, self.H)
                    if self.lstm and (self.out.on or self.bias is not None)
                    else None
                )
                written = (d_a, d_zh, d_y)
                stretches: list[Pointers] = []
                for t in range(start, end, loop.stretch):
                    third = cells[t:] if cells is not None else (output[t - 1] if t else h0)
                    at = (None if w is None else w[t - start :] for w in written)
                    stretches.append((*self.pointers(terms, t, start, d_output[t:], third), *at, output[t:]))
                loop.run(stretches, end - start)
                self.recurrent_parameters(add, needed, terms, d_a, d_zh, d_y, h0, output, cells, start, end)
                del d_zh, d_y, written, stretches  # as large as what the norm of the input term is about to take
                self.input_parameters(add, needed, terms, d_a, x, None if d_x is None else d_x[start:end], start, end)
            grads["h0"], grads["c0"] = loop.kept(loop.state), loop.kept(loop.d_c)
        return grads

    def recurrent_parameters(
        self, add: Callable[[str, Tensor | None], None], needed: set[str], terms: Terms, d_a: Tensor,
        d_zh: Tensor | None, d_y: Tensor | None, h0: Tensor, output: Tensor, cells: Tensor | None, start: int, end: int,
    ) -> None:  # fmt: skip
        """A chunk's share of the gradients of W_hh and of what comes after it."""
        H, valid = self.H, self.call.valid(start, end)
        if "weight_hh" in needed:
            # The state before the first step lies elsewhere than the others; two products spare a copy of all of them.
            d_z = d_a if d_zh is None else d_zh
            total = d_z[0].t() @ (h0 if start == 0 else output[start - 1])
            if end - start > 1:
                total.addmm_(d_z[1:].flatten(0, 1).t(), output[start : end - 1].flatten(0, 1))
            add("weight_hh", total)
        d_h = d_a
        if not self.lstm and needed & {"bias_hh", "gain_hh"}:
            d_h = torch.cat([d_a[..., : 2 * H], d_a[..., 2 * H :] * terms.gates[..., :H]], -1)  # r multiplies n's term
        if "bias_hh" in needed:
            add("bias_hh", d_h.sum((0, 1)))
        if "gain_hh" in needed and self.recurrent.on:
            assert terms.zh is not None
            assert terms.mean_h is not None
            assert terms.var_h is not None
            saved = self.recurrent.saved(terms.mean_h, terms.var_h)
            add("gain_hh", self.recurrent.backward(d_h, terms.zh, saved, valid, False)[1])
        if d_y is not None and "bias_c" in needed:
            add("bias_c", d_y.sum((0, 1)))
        if d_y is not None and "gain_c" in needed and self.out.on:
            assert cells is not None
            assert terms.mean_c is not None
            assert terms.var_c is not None
            saved = self.out.saved(terms.mean_c, terms.var_c)
            add("gain_c", self.out.backward(d_y, cells[start + 1 : end + 1], saved, valid, False)[1])

    def input_parameters(
        self, add: Callable[[str, Tensor | None], None], needed: set[str], terms: Terms, d_a: Tensor, x: Tensor,
        d_x: Tensor | None, start: int, end: int,
    ) -> None:  # fmt: skip
        """A chunk's share of the gradients of W_ih and of what comes after it; d_x (t, B, D) is filled."""
        if "bias_ih" in needed:
            add("bias_ih", d_a.sum((0, 1)))
        d_zx: Tensor | None = d_a
        if self.input.on:
            assert terms.zx is not None
            d_zx, gain = self.input.backward(d_a, terms.zx, terms.x_statistics, self.call.valid(start, end), True)
            if "gain_ih" in needed:
                add("gain_ih", gain)
        assert d_zx is not None
        flat = d_zx.flatten(0, 1)
        if "weight_ih" in needed:
            add("weight_ih", flat.t() @ x[start:end].flatten(0, 1))
        if "inner_bias_ih" in needed:
            add("inner_bias_ih", flat.sum(0))
        if d_x is not None:
            torch.mm(flat, self.p.weight_ih, out=d_x.flatten(0, 1))

"""The specification of the recurrent layers: one function per equation of the paper. Slow; any device and dtype.

Shapes: T time, B batch, D input, H hidden, G gates (4H in the LSTM: i, f, g, o; 3H in the GRU: r, z, n; H in the RNN).
Equation numbers are those of "Layer Normalization" (Ba, Kiros, Hinton 2016); the forms of batch norm are those of
"Recurrent Batch Normalization" (Cooijmans et al. 2016); RMS norm (Zhang & Sennrich 2019) stands where layer norm does.
Everything here is differentiable twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ln.norms import NormConfig

name = "reference"  # as a backend


class Params(NamedTuple):
    """Parameters of one layer in one direction; None where the norm, its sites or bias=False leave one out."""

    weight_ih: Tensor  # (G, D)
    weight_hh: Tensor  # (G, H)
    bias_ih: Tensor | None = None  # (G)
    bias_hh: Tensor | None = None  # (G)
    gain_ih: Tensor | None = None  # (G); the gain of the sum where the sum is normalized
    gain_hh: Tensor | None = None  # (G)
    gain_c: Tensor | None = None  # (H)
    bias_c: Tensor | None = None  # (H)
    inner_bias_ih: Tensor | None = None  # (G)


class Stats(NamedTuple):
    """Batch statistics of each step (biased variances); None where a site is not normalized. One step has T = 1."""

    mean_ih: Tensor | None = None  # (T, G); the statistics of the sum where the sum is normalized
    var_ih: Tensor | None = None
    mean_hh: Tensor | None = None  # (T, G)
    var_hh: Tensor | None = None
    mean_c: Tensor | None = None  # (T, H)
    var_c: Tensor | None = None


def layer_norm(z: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Equations 15 and 16 without the bias: z (B, n) -> (B, n), statistics over the n units of each case."""
    mean = z.mean(-1, keepdim=True)
    var = (z - mean).square().mean(-1, keepdim=True)
    return (z - mean) / (var + eps).sqrt() * gain


def rms_norm(z: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Equation 4 of Zhang & Sennrich 2019 without the bias: as `layer_norm`, by the root of the mean square."""
    return z / (z.square().mean(-1, keepdim=True) + eps).sqrt() * gain


def batch_statistics(z: Tensor, valid: Tensor | None, centred: bool = True) -> tuple[Tensor, Tensor]:
    """Mean (n) and biased variance (n) of z (B, n) over the rows where valid (B, 1) holds; zeros where it holds
    nowhere. Not centred, the mean is 0 and the variance the mean square."""
    if valid is None:
        valid = torch.ones_like(z[:, :1], dtype=torch.bool)
    count = valid.sum().clamp(min=1)
    mean = torch.where(valid, z, 0).sum(0) / count if centred else torch.zeros_like(z[0])
    var = torch.where(valid, z - mean, 0).square().sum(0) / count
    return mean, var


class _Step:
    """What the sites of one step share: the norm, the rows that count, how many units share statistics over the
    features, and statistics given or used (by name of the site)."""

    def __init__(self, cfg: NormConfig, cell: str, valid: Tensor | None, given: Stats | None, H: int) -> None:
        self.cfg, self.sites, self.valid, self.given = cfg, cfg.sites_for(cell), valid, given
        self.widths = [gates * H for gates in cfg.gate_groups(cell)]
        self.used: dict[str, Tensor] = {}

    def normalize(self, z: Tensor, site: str, name: str, gain: Tensor | None) -> Tensor:
        """z (B, n) normalized and scaled by gain (n) if the site is on, else z."""
        if site not in self.sites:
            return z
        assert gain is not None
        if self.cfg.traits.axis == "features":
            norm = layer_norm if self.cfg.traits.centred else rms_norm
            if site == "cell" or len(self.widths) == 1:
                return norm(z, gain, self.cfg.eps)
            parts = zip(torch.split(z, self.widths, -1), torch.split(gain, self.widths), strict=True)
            return torch.cat([norm(part, part_gain, self.cfg.eps) for part, part_gain in parts], -1)
        if self.given is None:
            mean, var = batch_statistics(z, self.valid, self.cfg.traits.centred)
        else:
            mean, var = getattr(self.given, f"mean_{name}")[0], getattr(self.given, f"var_{name}")[0]
        self.used |= {f"mean_{name}": mean[None], f"var_{name}": var[None]}
        return (z - mean) / (var + self.cfg.eps).sqrt() * gain

    def stats(self) -> Stats | None:
        return Stats(**self.used) if self.cfg.traits.axis == "batch" else None


def _summed_inputs(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.nn.functional.linear(x, weight, bias)


def _plus(z: Tensor, *biases: Tensor | None) -> Tensor:
    for bias in biases:
        z = z if bias is None else z + bias
    return z


def _terms(x: Tensor, h: Tensor, p: Params, s: _Step) -> tuple[Tensor, Tensor]:
    """W_ih x and W_hh h (B, G), each normalized where its site is on."""
    input = s.normalize(_summed_inputs(x, p.weight_ih, p.inner_bias_ih), "input", "ih", p.gain_ih)
    return input, s.normalize(_summed_inputs(h, p.weight_hh), "recurrent", "hh", p.gain_hh)


def _sum(x: Tensor, h: Tensor, p: Params, s: _Step) -> Tensor:
    """The sum of both terms and its biases (B, G); with the site "sum" LN(W_ih x + W_hh h) and the biases."""
    input, recurrent = _terms(x, h, p, s)
    return _plus(s.normalize(input + recurrent, "sum", "ih", p.gain_ih), p.bias_ih, p.bias_hh)


def _lstm(x: Tensor, h: Tensor, c: Tensor, p: Params, s: _Step) -> tuple[Tensor, Tensor]:
    """Equations 20 to 22: statistics over all 4H gates at once, or with gates="each" over H of each gate, separately
    for input and recurrent terms; c is carried un-normalized and normalized only on its way to h. With
    `carry_normalized` c' = LN(f c + i g) is carried on, and h' = o tanh(c')."""
    if "sum" in s.sites:
        summed = _sum(x, h, p, s)
    else:
        input, recurrent = _terms(x, h, p, s)
        summed = _plus(input, p.bias_ih) + _plus(recurrent, p.bias_hh)
    i, f, g, o = summed.chunk(4, -1)  # eq 20
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()  # eq 21
    normalized = _plus(s.normalize(c, "cell", "c", p.gain_c), p.bias_c)
    return o.sigmoid() * normalized.tanh(), normalized if s.cfg.carry_normalized else c  # eq 22


def _gru(x: Tensor, h: Tensor, p: Params, s: _Step) -> Tensor:
    """Equations 26 to 28 with torch's sign of z: statistics over (r, z) together and over n, per term, or with `gates`
    over (r, z, n) together or each by itself; r multiplies the normalized recurrent term. With the site "sum"
    (r, z, n) = LN(W_ih x + W_hh h), and r multiplies all of n: n' = tanh(r n)."""
    if "sum" in s.sites:
        r, z, n = _sum(x, h, p, s).chunk(3, -1)
        n = (r.sigmoid() * n).tanh()
    else:
        input, recurrent = _terms(x, h, p, s)
        (r, z, n), (hr, hz, hn) = _plus(input, p.bias_ih).chunk(3, -1), _plus(recurrent, p.bias_hh).chunk(3, -1)
        r, z = r + hr, z + hz  # eq 26
        n = (n + r.sigmoid() * hn).tanh()  # eq 27
    z = z.sigmoid()
    return (1 - z) * n + z * h  # eq 28


def _rnn(x: Tensor, h: Tensor, p: Params, s: _Step, nonlinearity: str) -> Tensor:
    """Equation 4: the sum of both terms normalized once; with the sites input and recurrent, each term by itself."""
    a = _sum(x, h, p, s)
    return a.tanh() if nonlinearity == "tanh" else a.relu()


def _scan(
    x: Tensor,
    state: tuple[Tensor, ...],
    cell: str,
    cfg: NormConfig,
    step: Callable[..., tuple[Tensor, ...]],
    lengths: Tensor | None,
    stats: Stats | None,
    recompute: bool,
) -> tuple[Tensor, tuple[Tensor, ...], Stats | None]:
    """Run step(x_t, *state, s) -> state over time. The state of a row is held past its end and its output is 0
    there."""
    outputs, used = [], []

    def one(x_t: Tensor, valid: Tensor | None, given: Stats | None, *state: Tensor) -> tuple[Any, ...]:
        s = _Step(cfg, cell, valid, given, state[0].shape[-1])
        return step(x_t, *state, s), s.stats()

    for t, x_t in enumerate(x.unbind()):  # a trace of this loop refuses sequences of another length
        valid = None if lengths is None else (t < lengths).unsqueeze(-1)
        given = None if stats is None else Stats(*(None if row is None else row[t : t + 1] for row in stats))
        arguments: tuple[Any, ...] = (x_t, valid, given, *state)
        new, stats_t = checkpoint(one, *arguments, use_reentrant=False) if recompute else one(*arguments)
        state = new if valid is None else tuple(torch.where(valid, a, b) for a, b in zip(new, state, strict=True))
        outputs.append(state[0] if valid is None else torch.where(valid, state[0], 0))
        used.append(stats_t)
    if cfg.traits.axis != "batch":
        return torch.stack(outputs), state, None
    joined = Stats(*(None if rows[0] is None else torch.cat(rows) for rows in zip(*used, strict=True)))
    return torch.stack(outputs), state, joined


def lstm(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    p: Params,
    cfg: NormConfig,
    lengths: Tensor | None = None,
    stats: Stats | None = None,
    *,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Stats | None]:
    """LSTM over a sequence, equations 20 to 22.

    x (T, B, D); h0, c0 (B, H); lengths (B) int64; stats: batch statistics to use in place of the batch's own.
    -> output (T, B, H), 0 past a row's end; h, c (B, H) at each row's last step; the batch statistics used, or None.
    `recompute` stores only the states and computes each step again in the backward pass.
    """

    def step(x: Tensor, h: Tensor, c: Tensor, s: _Step) -> tuple[Tensor, ...]:
        return _lstm(x, h, c, p, s)

    output, (h, c), used = _scan(x, (h0, c0), "lstm", cfg, step, lengths, stats, recompute)
    return output, h, c, used


def gru(
    x: Tensor,
    h0: Tensor,
    p: Params,
    cfg: NormConfig,
    lengths: Tensor | None = None,
    stats: Stats | None = None,
    *,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Stats | None]:
    """GRU over a sequence, equations 26 to 28; arguments and results as in `lstm`, without c."""

    def step(x: Tensor, h: Tensor, s: _Step) -> tuple[Tensor, ...]:
        return (_gru(x, h, p, s),)

    output, (h,), used = _scan(x, (h0,), "gru", cfg, step, lengths, stats, recompute)
    return output, h, used


def rnn(
    x: Tensor,
    h0: Tensor,
    p: Params,
    cfg: NormConfig,
    lengths: Tensor | None = None,
    stats: Stats | None = None,
    nonlinearity: str = "tanh",
    *,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Stats | None]:
    """Simple RNN over a sequence, equation 4, with nonlinearity tanh or relu; arguments and results as in `gru`."""

    def step(x: Tensor, h: Tensor, s: _Step) -> tuple[Tensor, ...]:
        return (_rnn(x, h, p, s, nonlinearity),)

    output, (h,), used = _scan(x, (h0,), "rnn", cfg, step, lengths, stats, recompute)
    return output, h, used


def available() -> str | None:
    """Why this backend cannot be used here, or None: this one always can."""
    return None


def supports(cell: str, cfg: NormConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why this backend cannot run such a layer, or None: this one runs all."""
    return None

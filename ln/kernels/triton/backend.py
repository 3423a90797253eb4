"""Backend `triton`: LSTM and GRU on CUDA with one launch for all steps of a narrow layer, else one matrix product and
one fused kernel per step (`loop` has the rule); signatures of `ln.reference`.

Shapes: T time, B batch, D input, H hidden, G gates (4H LSTM: i, f, g, o; 3H GRU: r, z, n).

The input term W_ih x and its norm are computed for all steps at once, and so are, after the loop of the backward pass,
the gradients of all parameters and of x. Computes in float32 whatever the inputs' dtype; whether products may use TF32
is torch's setting, torch.backends.cuda.matmul (off by default), but for those inside a narrow layer's one launch, which
never do. Under TRITON_INTERPRET=1 it runs on the CPU, slowly.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ln.kernels import contract, gate
from ln.norms import NormConfig, Statistics, refusal
from ln.reference import Params, Stats

if TYPE_CHECKING:
    from ln.kernels.triton.layer import Call

name = "triton"
_IMPLEMENTED = (
    Statistics("features", centred=True),
    Statistics("features", centred=False),
    Statistics("batch", centred=True),
)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MAX_ROWS = _MAX_UNITS = 4096  # loop.TILE, known without triton


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def available() -> str | None:
    """None where Triton and a CUDA device, or Triton's interpreter, are there; else why not."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if _interpreted():
        return None
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    if torch.cuda.get_device_capability() < (7, 0):
        return "the CUDA device has a compute capability below 7.0"
    return _refusal()


@functools.cache
def _refusal() -> str | None:
    """Why Triton cannot start on the CUDA device, or None.

    Triton compiles its driver at the first launch, with a C compiler, Python's headers and a libcuda that it has to
    find, so only a launch can tell.
    """
    try:
        from ln.kernels.triton.tiles import write_table

        table = torch.zeros(1, dtype=torch.int64, device="cuda")
        write_table[(1,)](table, (table,), COUNT=1, enable_fp_fusion=False)  # without a word on it Triton warns
        # Within a capture nothing has run yet.
        if not torch.cuda.is_current_stream_capturing() and table.item() != table.data_ptr():
            return "Triton's first kernel computed something else than it should"
    except Exception as error:  # whatever a compiler, a linker or the driver has to say
        return f"Triton cannot start ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
    return None


def supports(cell: str, cfg: NormConfig, device: torch.device, dtype: torch.dtype) -> str | None:
    """None where this backend can run such a layer, else why not."""
    if cell not in ("lstm", "gru"):
        return f"triton has no {cell}"
    if device.type != ("cpu" if _interpreted() else "cuda"):
        return f"triton runs on {'the CPU under its interpreter' if _interpreted() else 'CUDA'}, not on {device.type}"
    if dtype not in _DTYPES:
        return f"triton computes in float32, not in {str(dtype).removeprefix('torch.')}"
    return refusal(cell, cfg, _IMPLEMENTED)


class _Sequence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: Any, x: Tensor, h0: Tensor, c0: Tensor | None, *parameters: Tensor | None
    ) -> tuple[Tensor, ...]:
        from ln.kernels.triton.layer import Layer

        outputs, cells, kept = Layer(call, Params(*parameters), x.shape[1]).forward(x, h0, c0)  # type: ignore[arg-type]
        ctx.call, ctx.stored = call, kept is not None
        terms = () if kept is None else (*kept[:-1], *kept.x_statistics)
        ctx.save_for_backward(x, h0, c0, outputs[0], cells, *parameters, *terms)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor | None, ...]:
        from ln.kernels.triton.layer import Layer, Terms

        # A hook on saved tensors may bring them back with other strides.
        saved: list[Any] = [None if t is None else t.contiguous() for t in ctx.saved_tensors]
        x, h0, c0, output, cells, *others = saved
        if gate.differentiates_further(d_outputs):
            call, inputs = ctx.call, (x, h0, c0, *others[: len(Params._fields)])
            given = (call.cell, call.cfg, call.lengths, call.given)
            return None, *gate.reference_gradients(*given, inputs, ctx.needs_input_grad[1:], d_outputs)
        n, m = len(Params._fields), len(Terms._fields) - 1
        kept = Terms._make((*others[n : n + m], others[n + m :])) if ctx.stored else None
        names = ("x", "h0", "c0", *Params._fields)
        wanted = {name for name, need in zip(names, ctx.needs_input_grad[1:], strict=True) if need}
        layer = Layer(ctx.call, Params(*others[:n]), x.shape[1])
        grads = layer.backward(x, h0, output, cells, kept, [d.contiguous() for d in d_outputs], wanted)
        return (None, *(grads.get(name) if name in wanted else None for name in names))


def _prepared(
    call: contract.Call, x: Tensor, h0: Tensor, c0: Tensor | None, p: Params
) -> tuple[Call, list[Tensor | None]]:
    """The call, and x, h0, c0 and the parameters, as the kernels read them.

    ValueError: more than 4096 units, or with batch norm more than 4096 rows.
    """
    from ln.kernels.triton.layer import Call

    cfg, stats = call.cfg, call.given
    if h0.shape[1] > _MAX_UNITS:
        raise ValueError(
            f"the triton backend takes at most {_MAX_UNITS} units, but H = {h0.shape[1]}; use backend=torch"
        )
    if cfg.traits.axis == "batch" and x.shape[1] > _MAX_ROWS:
        raise ValueError(
            f"batch norm in the triton backend takes at most {_MAX_ROWS} rows, but B = {x.shape[1]}; use backend=torch"
        )
    inputs = [None if t is None else t.float().contiguous() for t in (x, h0, c0, *p)]
    lengths = None if call.lengths is None else call.lengths.to(x.device, torch.int64).contiguous()
    given = None if stats is None else Stats(*(None if s is None else s.detach().float().contiguous() for s in stats))
    x32, h32, c32, *params32 = inputs
    gate.check_call("triton", call.cell, x32, h32, c32, Params(*params32), given, lengths)  # type: ignore[arg-type]
    return Call(call.cell, cfg, cfg.sites_for(call.cell), lengths, given, call.recompute, call.keep), inputs


def _sequence(
    cell: str, x: Tensor, h0: Tensor, c0: Tensor | None, p: Params, cfg: NormConfig, lengths: Tensor | None,
    stats: Stats | None, recompute: bool,
) -> tuple[list[Tensor], Stats | None]:  # fmt: skip
    from ln.kernels.triton.layer import Layer

    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, h0, c0, *p))
    call, inputs = _prepared(contract.Call(cell, cfg, lengths, stats, recompute, keep), x, h0, c0, p)
    if keep:
        outputs = list(_Sequence.apply(call, *inputs))
    else:
        x32, h32, c32, *params32 = inputs
        outputs, _, _ = Layer(call, Params(*params32), x.shape[1]).forward(x32, h32, c32)  # type: ignore[arg-type]
    used = (call.used or stats or Stats()) if cfg.traits.axis == "batch" else None
    return [output.to(x.dtype) for output in outputs], used


def result_shapes(call: contract.Call, x: Tensor, h0: Tensor) -> dict[str, tuple[int, ...]]:
    """See `Operable`: the states are kept, and all other activations computed again."""
    (T, B, _), H, lstm = x.shape, h0.shape[1], call.cell == "lstm"
    shapes: dict[str, tuple[int, ...]] = {"output": (T, B, H), "h": (B, H)} | ({"c": (B, H)} if lstm else {})
    shapes |= contract.statistics_shapes(call, T, H, gate.GATES[call.cell] * H)
    return shapes | ({"cells": (T + 1, B, H)} if lstm else {})


def forward(call: contract.Call, x: Tensor, h0: Tensor, c0: Tensor | None, p: Params) -> list[Tensor]:
    """See `Operable`."""
    from ln.kernels.triton.layer import Layer

    own, (x, h0, c0, *params) = _prepared(call._replace(recompute=True), x, h0, c0, p)  # type: ignore[assignment]
    last, cells, _ = Layer(own, Params(*params), x.shape[1]).forward(x, h0, c0)  # type: ignore[arg-type]
    found = dict(zip(("output", "h", "c"), last, strict=False)) | (own.used or Stats())._asdict() | {"cells": cells}
    return [found[name] for name in result_shapes(call, x, h0)]  # type: ignore[misc]


def backward(
    call: contract.Call,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    p: Params,
    results: dict[str, Tensor],
    grads: Sequence[Tensor | None],
    wanted: set[str],
) -> dict[str, Tensor]:
    """See `Operable`."""
    from ln.kernels.triton.layer import Layer

    own, (x, h0, c0, *params) = _prepared(call._replace(recompute=True), x, h0, c0, p)  # type: ignore[assignment]
    last = (results[name] for name in ("output", "h", "c") if name in results)
    d_last = [torch.zeros_like(r) if d is None else d.contiguous() for r, d in zip(last, grads, strict=True)]
    layer, states = Layer(own, Params(*params), x.shape[1]), (results["output"], results.get("cells"))  # type: ignore[arg-type]
    return layer.backward(x, h0, *states, None, d_last, wanted)  # type: ignore[return-value]


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
    """LSTM over a sequence, as `ln.reference.lstm`: x (T, B, D); h0, c0 (B, H) -> (T, B, H), (B, H), (B, H),
    statistics.

    ValueError: more than 4096 units, or with batch norm more than 4096 rows.
    """
    (output, h, c), used = _sequence("lstm", x, h0, c0, p, cfg, lengths, stats, recompute)
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
    """GRU over a sequence, as `ln.reference.gru`: x (T, B, D); h0 (B, H) -> (T, B, H), (B, H), statistics; errors as in
    `lstm`.
    """
    (output, h), used = _sequence("gru", x, h0, None, p, cfg, lengths, stats, recompute)
    return output, h, used

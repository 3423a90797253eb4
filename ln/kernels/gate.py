"""What the fast backends must know before they run: whether anything but plain eager arithmetic goes on, and whether
the tensors are what their code will read.

A fast backend reads memory and hands back memory, which no tracer, no functional transform and no second derivative can
see through. Wherever one of those is at work the reference, made of torch's own operations, takes the fast one's place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from ln import reference
from ln.kernels.contract import sequence
from ln.norms import NormConfig
from ln.reference import Params, Stats

COMPILING = "torch.compile"
EXPORTING = "torch.export"
TRACING = "torch.jit.trace"
WATCHED = "a torch dispatch mode"
_PLAIN = (Tensor, Parameter)
_F = TypeVar("_F", bound=Callable[..., Any])
GATES = {"lstm": 4, "gru": 3, "rnn": 1}  # summed inputs of a unit


def constant(function: _F) -> _F:
    """A function that torch.compile calls while it traces, and of whose result it makes a constant.

    torch.compiler.assume_constant_result does the same, but would import the compiler together with this library.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant
def _transformed() -> bool:
    """Whether a transform of torch.func is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None


@constant
def _exporting() -> bool:
    """Whether torch.export is at work; what torch.compile of torch 2.11 makes of the call itself is always true."""
    return torch.compiler.is_exporting()


@constant
def processes() -> int:
    """How many processes torch.distributed runs, 1 where it does not."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def beyond_eager(tensors: Iterable[Tensor | None]) -> str | None:
    """What is going on that only torch's own operations can follow, or None in plain eager code.

    `tensors` are those that the call reads.
    """
    if _transformed():
        return "a transform of torch.func"
    if torch.compiler.is_compiling():
        return EXPORTING if _exporting() else COMPILING
    if torch._C._get_tracing_state() is not None:
        return TRACING
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation"
    if torch._C._len_torch_dispatch_stack():
        own = all(getattr(mode, "_mode_key", None) is None for mode in _get_current_dispatch_mode_stack())
        return WATCHED if own else "make_fx, fake tensors or another tracer of torch's"
    for tensor in tensors:
        if tensor is not None and type(tensor) not in _PLAIN:
            return f"tensors of type {type(tensor).__name__}"
    return None


def out_of_reach(kept: Iterable[Tensor], tensors: Iterable[Tensor | None]) -> bool:
    """Whether a transform of torch.func is at work on some of `tensors` but not on all that is `kept`, in which what is
    computed of them then cannot be written."""
    if torch.compiler.is_compiling() or not _transformed():
        return False
    level = torch._C._functorch.maybe_get_level
    return max(level(tensor) for tensor in tensors if tensor is not None) > min(map(level, kept))


def differentiates_further(grads: Iterable[Tensor | None], compiling: bool = False) -> bool:
    """In a backward pass: whether its own result will be differentiated (create_graph=True) or is being transformed;
    `compiling`: whether a compiler is welcome to trace it."""
    if torch.is_grad_enabled() or (_transformed() if compiling else beyond_eager(grads)):
        return True
    # torch.autograd.grad(is_grads_batched=True) batches by means of its own, which no level of torch.func shows.
    return any(grad is not None and torch._C._functorch.is_legacy_batchedtensor(grad) for grad in grads)


def reference_gradients(
    cell: str,
    cfg: NormConfig,
    lengths: Tensor | None,
    stats: Stats | None,
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    grads: Sequence[Tensor | None],
    nonlinearity: str = "tanh",
) -> list[Tensor | None]:
    """The backward pass of the reference, which can be differentiated again.

    inputs: x (T, B, D), h0, c0 (None but in the LSTM) and the fields of Params; needed: which of them take a gradient;
    grads: those of the output and the last states -> the gradients of the inputs, None where not needed.
    """
    create = torch.is_grad_enabled()
    with torch.enable_grad():
        # Of what one input may itself be computed from another, this layer's gradients are to know nothing: each is cut
        # off by a view, or, where no graph is to grow, by a copy of the reference.
        values = [
            v if v is None or not need else (v.view_as(v) if create else v.detach().requires_grad_())
            for v, need in zip(inputs, needed, strict=True)
        ]
        x, h0, c0, *params = values
        assert x is not None
        states = tuple(state for state in (h0, c0) if state is not None)
        p = Params(*params)  # type: ignore[arg-type]
        output, last, _ = sequence(reference, cell, x, states, p, cfg, lengths, stats, nonlinearity=nonlinearity)
        outputs = (output, *last)
        wanted = [n for n, (v, need) in enumerate(zip(values, needed, strict=True)) if need and v is not None]
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
        result: list[Tensor | None] = [None] * len(values)
        if pairs and wanted:
            ends, weights = zip(*pairs, strict=True)
            sources = [values[n] for n in wanted]
            found = torch.autograd.grad(ends, sources, weights, create_graph=create, allow_unused=True)  # type: ignore[arg-type]
            for n, grad in zip(wanted, found, strict=True):
                result[n] = grad
    return result


def length_range(lengths: Tensor, T: int) -> tuple[int, int]:
    """The least and the greatest of some lengths (B), B > 0; a GPU is waited for. ValueError: outside 0 ... T."""
    low, high = (int(value) for value in lengths.aminmax())
    if low < 0 or high > T:
        raise ValueError(f"lengths must lie in 0 ... T = {T}, but range over {low} ... {high}")
    return low, high


def check_call(
    backend: str,
    cell: str,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    p: Params,
    stats: Stats | None = None,
    lengths: Tensor | None = None,
) -> None:
    """What a fast backend asks before it runs, shapes as in `ln.reference`.

    RuntimeError where something goes on that only the reference can follow; ValueError with the first tensor whose
    size, dtype or device is not what follows from x, h0 and the cell.
    """
    reason = beyond_eager((x, h0, c0, *p))
    if reason and not can_run(backend, reason):
        raise RuntimeError(refusal(backend, reason))
    check_sizes(cell, x, h0, c0, p)
    (T, B, _), H = x.shape, h0.shape[-1]
    G = GATES[cell] * H
    dtype, device = x.dtype, x.device
    if stats is not None:
        for name, value in zip(Stats._fields, stats, strict=True):
            size = (T, H if name.endswith("_c") else G)
            if value is not None and (value.shape != size or value.dtype is not dtype or value.device != device):
                raise ValueError(mismatch(name, value, size, dtype, device))
    if lengths is not None and (lengths.shape != (B,) or lengths.dtype is not torch.int64 or lengths.device != device):
        raise ValueError(mismatch("lengths", lengths, (B,), torch.int64, device))


def check_sizes(cell: str, x: Tensor, h0: Tensor, c0: Tensor | None, p: Params, width: int | None = None) -> None:
    """ValueError with the first state or parameter whose size, dtype or device is not what follows from x (..., B, D),
    h0 (B, H) and the cell; width: of the layer's input where that is not x."""
    (B, D), H = x.shape[-2:], h0.shape[-1]
    D = D if width is None else width
    G = GATES[cell] * H
    dtype, device = x.dtype, x.device
    sizes = ((G, D), (G, H), (G,), (G,), (G,), (G,), (H,), (H,), (G,))
    for size, value in zip(((B, H), (B, H), *sizes), (h0, c0, *p), strict=True):
        if value is not None and (value.shape != size or value.dtype is not dtype or value.device != device):
            name = next(n for n, v in zip(("h0", "c0", *Params._fields), (h0, c0, *p), strict=True) if v is value)
            raise ValueError(mismatch(name, value, size, dtype, device))


def can_run(backend: str, beyond: str) -> bool:
    """Whether a backend is right although something goes on beyond eager code: torch's operations may be watched."""
    return backend == "reference" or (backend == "torch" and beyond == WATCHED)


def refusal(backend: str, reason: str) -> str:
    """Why a fast backend that was asked for by name does not run."""
    return f"backend={backend} cannot be seen through by {reason}; ask for backend=auto or backend=reference"


def mismatch(name: str, value: Tensor, size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> str:
    """The sentence of a tensor that is not as the others ask."""
    return (
        f"{name} must be {size} of {dtype} on {device}, but is {tuple(value.shape)} of {value.dtype} on {value.device}"
    )

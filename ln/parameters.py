"""What the recurrent modules and cells have in common: parameters, their init, and input checks.

Shapes: T time, B batch, D input, H hidden, G gates (4H LSTM, 3H GRU, H RNN).
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ln import checks, kernels
from ln.averages import MovingAverages
from ln.kernels import gate
from ln.norms import NormConfig
from ln.reference import Params

_VECTORS = Params._fields[2:]
_FIELD = {"input": "ih", "recurrent": "hh", "cell": "c", "sum": "ih"}
_PLAIN = NormConfig("none")


class NormalizedRecurrence(MovingAverages):
    """Parameters and moving averages of recurrent layers, told apart by a suffix such as "_l0_reverse" ("" in a
    cell)."""

    lowered = False  # whether autocast on the CPU lowers torch's own such layer

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        bias: bool,
        norm: str | NormConfig,
        backend: str,
        factory: dict[str, Any],
    ) -> None:
        super().__init__()
        self.input_size = checks.size("input_size", input_size)
        self.hidden_size = checks.size("hidden_size", hidden_size)
        self.bias = checks.flag("bias", bias)
        self.cell, self.backend = cell, backend
        if backend != "auto":
            kernels.load(backend)  # refuses a name that is none
        self.norm = NormConfig.of(norm)
        self.sites = self.norm.sites_for(cell)
        # Weight norm is done with before the recurrence starts, so that the backends never see it.
        self.kernel_norm = self.norm if self.sites else _PLAIN
        self.backend_used: str | None = None
        if self.input_size == 1 and "input" in self.sites and self.norm.loses_scalars:
            warnings.warn(
                f"norm={self.norm.name} keeps only the sign of a scalar input (input_size=1); "
                "norm=NormConfig(..., inner_bias=True) keeps its size",
                stacklevel=4,  # the line that makes the layer
            )
        self._factory = factory

    def add_direction(self, suffix: str, input_size: int, states: tuple[str, ...] = ()) -> None:
        """Register the parameters and buffers of one layer in one direction; `states` names its learned initial
        states."""
        H = self.hidden_size
        G = gate.GATES[self.cell] * H
        self._suffixes.append(suffix)
        sizes: dict[str, tuple[int, ...]] = {}
        for name, columns in (("weight_ih", input_size), ("weight_hh", H)):
            if self.norm.traits.reparameterizes:
                sizes |= {f"{name}{suffix}_g": (G, 1), f"{name}{suffix}_v": (G, columns)}
            else:
                sizes[f"{name}{suffix}"] = (G, columns)
        if self.bias:
            sizes |= {f"bias_ih{suffix}": (G,), f"bias_hh{suffix}": (G,)}
        if self.norm.inner_bias:
            sizes[f"inner_bias_ih{suffix}"] = (G,)
        widths = {_FIELD[site]: H if site == "cell" else G for site in self.sites}
        sizes |= {f"gain_{field}{suffix}": (width,) for field, width in widths.items()}
        if "cell" in self.sites and self.bias:
            sizes[f"bias_c{suffix}"] = (H,)
        sizes |= {f"{state}{suffix}": (H,) for state in states}
        self._fields = {name.removesuffix(suffix) for name in sizes}
        for name, size in sizes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(size, **self._factory)))
        if self.norm.traits.population and self.sites:
            self.add_averages(suffix, widths, self._factory)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights as in torch.nn, uniform in +-1/sqrt(H), and so the biases without normalized sites. With them gains
        start at the config's gain and biases at 0 (section 6 of the paper). Learned states start at 0, batch statistics
        as if no batch had been seen."""
        bound = 1 / math.sqrt(self.hidden_size)
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith("gain_"):
                nn.init.constant_(parameter, self.norm.initial_gain)
            elif name.startswith(("h0", "c0", "bias_c")) or (name.startswith("bias_") and self.sites):
                nn.init.zeros_(parameter)
            elif not name.endswith("_g"):
                # The inner bias too: at 0, equation 15 would cancel the scale of a scalar input from the start.
                nn.init.uniform_(parameter, -bound, bound)
        for name, parameter in self.named_parameters(recurse=False):
            if name.endswith("_g"):
                v = self.get_parameter(name[:-1] + "v")
                parameter.copy_(v.norm(dim=1, keepdim=True))
        self.reset_averages()

    def weight(self, name: str) -> Tensor:
        """A weight matrix; under weight norm g v / ||v||, row by row."""
        if not self.norm.traits.reparameterizes:
            matrix: Tensor = getattr(self, name)
            return matrix
        g: Tensor = getattr(self, f"{name}_g")
        v: Tensor = getattr(self, f"{name}_v")
        if v.dim() != 2 or g.shape != (v.shape[0], 1) or g.dtype is not v.dtype or g.device != v.device:
            # torch's kernel takes it for granted.
            found = (f"{tuple(value.shape)} of {value.dtype} on {value.device}" for value in (g, v))
            raise ValueError(
                f"{name}_g must have the length of each row of {name}_v, but they are {' and '.join(found)}"
            )
        if gate.beyond_eager((g, v)) is None:
            return torch._weight_norm(v, g, 0)  # the same in one pass over memory
        return v * (g / _norms(v))

    @torch.no_grad()
    def set_weight(self, name: str, value: Tensor) -> None:
        """Give a weight matrix a value; under weight norm v gets it and g its rows' lengths. ValueError for a row of
        zeros there: it has no direction."""
        if self.norm.traits.reparameterizes:
            lengths = _row_lengths(name, value)
            getattr(self, f"{name}_v").copy_(value)
            getattr(self, f"{name}_g").copy_(lengths)
        else:
            getattr(self, name).copy_(value)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Weights in the other form, as torch.nn has them or as weight norm has them, are brought into this layer's."""
        own = self.norm.traits.reparameterizes
        for name in [f"weight_{term}{suffix}" for suffix in self._suffixes for term in ("ih", "hh")]:
            whole, g, v = (prefix + name + end for end in ("", "_g", "_v"))
            if own and whole in state_dict and not (g in state_dict or v in state_dict):
                state_dict[v] = state_dict.pop(whole)
                state_dict[g] = _row_lengths(name, state_dict[v])
            elif name in self._parameters and whole not in state_dict and g in state_dict and v in state_dict:
                value = state_dict.pop(v)
                state_dict[whole] = value * (state_dict.pop(g) / value.norm(dim=1, keepdim=True))
        self.make_room_for(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def params(self, suffix: str, dtype: torch.dtype) -> Params:
        """The parameters of one layer and direction in a dtype, with the fields a backend expects."""

        own = self._reference_parameter().dtype

        def cast(name: str, value: Tensor | None) -> Tensor | None:
            if value is None:
                return None
            if value.dtype is not own:
                raise ValueError(f"{name}{suffix} must be {own}, as the other parameters are, but is {value.dtype}")
            return value if own is dtype else value.to(dtype)

        weights = (self.weight("weight_ih" + suffix), self.weight("weight_hh" + suffix))
        values = (*weights, *(getattr(self, name + suffix) if name in self._fields else None for name in _VECTORS))
        return Params(*map(cast, Params._fields, values))  # type: ignore[arg-type]

    def returned_dtype(self, x: Tensor) -> torch.dtype:
        """What torch.nn returns: the input's dtype, or autocast's where torch's own layer is one that it lowers, which
        float64 never is."""
        if _autocast(x.device) and (self.lowered or x.device.type == "cuda") and x.dtype is not torch.float64:
            return torch.get_autocast_dtype(x.device.type)
        return x.dtype

    def trains(self, *inputs: Tensor) -> bool:
        """Whether a gradient may be asked for of a call with these inputs."""
        if not torch.is_grad_enabled():
            return False
        return any(value.requires_grad for value in (*inputs, *self._parameters.values()) if value is not None)

    def resolved(self, x: Tensor, beyond: str | None) -> kernels.Backend:
        """The backend for a call, noted in `backend_used`."""
        if 0 in x.shape:
            beyond, wanted = "a batch without a case", "auto"  # nothing to compute, and shapes to return
        else:
            wanted = self.backend
        module = kernels.resolve(wanted, x.device, working_dtype(x.dtype), self.cell, self.kernel_norm, beyond)
        self.note(kernels.name_of(module))
        return module

    def note(self, backend: str) -> None:
        """Keep what ran the last call in `backend_used`; a module's attributes are slow to set."""
        # What a compiled graph has read it would watch, and compile again when it changes.
        if torch.compiler.is_compiling() or self.backend_used != backend:
            self.backend_used = backend

    def __prepare_scriptable__(self) -> None:
        """What torch.jit.script asks of each module before it reads the code."""
        raise NotImplementedError(
            f"torch.jit.script cannot read {type(self).__name__}; use torch.compile or torch.export"
        )

    def matched(self, x: Tensor, dims: int, letters: str) -> Tensor:
        """x after the checks of its shape, device and dtype; under autocast in the dtype of the parameters."""
        if not isinstance(x, Tensor):
            raise TypeError(f"input must be a tensor {letters}, but is a {type(x).__name__}")
        if x.dim() != dims or x.shape[-1] != self.input_size:
            raise ValueError(f"input must be {letters} with D = {self.input_size}, but is {tuple(x.shape)}")
        parameter = self._reference_parameter()
        if x.device != parameter.device:
            raise ValueError(
                f"input is on {x.device}, but the parameters are on {parameter.device}; move one to the other"
            )
        if _autocast(x.device) and x.is_floating_point():
            x = x.to(parameter.dtype)
        if x.dtype != parameter.dtype:
            raise ValueError(f"input is {x.dtype}, but the parameters are {parameter.dtype}; convert one to the other")
        return x

    def matched_state(self, state: Tensor, name: str, x: Tensor, shape: tuple[int, ...], letters: str) -> Tensor:
        """An initial state after the same checks."""
        if not isinstance(state, Tensor) or state.shape != shape:
            found = tuple(state.shape) if isinstance(state, Tensor) else type(state).__name__
            raise ValueError(f"{name} must be {letters} = {shape}, but is {found}")
        if state.device != x.device:
            raise ValueError(f"{name} is on {state.device}, but the input is on {x.device}; move one to the other")
        if _autocast(x.device) and state.is_floating_point():
            state = state.to(x.dtype)
        if state.dtype != x.dtype:
            raise ValueError(f"{name} is {state.dtype}, but the input is {x.dtype}; convert one to the other")
        return state

    def _reference_parameter(self) -> Tensor:
        """The one whose device and dtype the others share; by its name, since a replica has no parameters to list."""
        ending = "_v" if self.norm.traits.reparameterizes else ""
        parameter: Tensor = getattr(self, f"weight_ih{self._suffixes[0]}{ending}")
        return parameter

    def described(self, options: Iterable[tuple[str, Any]]) -> str:
        """The sizes, those of the options (name, default) that differ from their default, the norm and the backend."""
        pairs = [(name, getattr(self, name)) for name, default in options if getattr(self, name) != default]
        pairs += [("norm", self.norm.name)] + ([("sites", self.sites)] if self.sites else [])
        plain = NormConfig(self.norm.name)
        settings = [f.name for f in dataclasses.fields(plain) if f.name not in ("name", "sites")]
        pairs += [(n, getattr(self.norm, n)) for n in settings if getattr(self.norm, n) != getattr(plain, n)]
        pairs.append(("backend", self.backend))
        return ", ".join([str(self.input_size), str(self.hidden_size), *(f"{name}={value!r}" for name, value in pairs)])


def _norms(matrix: Tensor) -> Tensor:
    """||v|| of each row: (n, 1)."""
    norms: Tensor = matrix.norm(dim=1, keepdim=True)
    return norms


def _row_lengths(name: str, value: Tensor) -> Tensor:
    lengths = _norms(value)
    if not lengths.is_meta and not bool((lengths > 0).all()):
        row = int((lengths > 0).logical_not().flatten().nonzero()[0])
        raise ValueError(f"row {row} of {name} has length 0, and weight norm can give it no direction")
    return lengths


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half precision is computed in float32: sums over features and over time would lose it."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _autocast(device: torch.device) -> bool:
    if not torch._C._is_any_autocast_enabled() or not torch.amp.is_autocast_available(device.type):
        return False
    return torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """A context in which autocast leaves the recurrence alone."""
    if _autocast(device):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()

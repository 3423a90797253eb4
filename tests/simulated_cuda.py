"""A simulated CUDA device: tensors that say `cuda:0` and compute on the CPU.

What a real device refuses is refused: tensors of both devices in one operation, .numpy(), and, while a graph is
captured, whatever waits for the device or copies from the host. A capture executes nothing; it is recorded operation by
operation and replayed on the same memory, with the Python numbers of the capture and fresh random numbers, as CUDA
graphs do it. Kernels of Triton run in its interpreter. Speed and rounding are not those of a GPU.

`install` changes torch for good, so it has to be called in a process of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    return_and_correct_aliasing,
)
from torch.utils._pytree import tree_flatten, tree_map

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
# Operations whose result's size or value the host needs.
WAIT = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "_unique2", "unique_consecutive"}
WAIT |= {"unique_dim", "repeat_interleave_tensor", "bincount"}
# Operations that give memory or another look at it, and launch nothing.
NO_LAUNCH = {"view", "_unsafe_view", "expand", "transpose", "t", "permute", "select", "slice", "unsqueeze", "squeeze"}
NO_LAUNCH |= {"detach", "alias", "split", "unbind", "as_strided", "diagonal", "lift_fresh", "chunk", "unfold", "narrow"}
NO_LAUNCH |= {"split_with_sizes", "view_as", "_reshape_alias", "empty", "empty_like", "new_empty", "empty_strided"}
NO_LAUNCH |= {"new_empty_strided"}
RANDOM = {"randn", "rand", "randn_like", "rand_like", "normal_", "bernoulli_", "uniform_", "randperm", "randint"}
RANDOM |= {"normal", "native_dropout", "bernoulli", "random_", "randint_like", "exponential_"}
MAY_MIX = {"_to_copy", "copy_", "index", "index_put_", "_index_put_impl_", "_unsafe_index"}
BATCH_NORM = {"native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit"}

counts: Counter[str] = Counter()  # captures, replays
launches: Counter[str] = Counter()  # kernels by name, without those of replayed graphs


class Refused(RuntimeError):
    """A real device would not have done this."""


class Simulated(Tensor):
    """A tensor on the simulated device, around the one in the CPU's memory that holds its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, real: Tensor, requires_grad: bool = False) -> Simulated:
        # To autograd's C++ it is a tensor on the CPU; to whoever asks in Python it is not.
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, real.size(), strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype,
            layout=real.layout, device=CPU, requires_grad=requires_grad,
        )  # fmt: skip
        made.held = real.detach()
        return made

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    def __repr__(self, *arguments: Any, **options: Any) -> str:
        return f"Simulated({self.held})"

    def numpy(self, *arguments: Any, **options: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def cpu(self, *arguments: Any, **options: Any) -> Tensor:
        return self.to("cpu")

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def get_device(self) -> int:
        return 0

    def __deepcopy__(self, memo: Any) -> Tensor:
        return Simulated(self.held.clone(), self.requires_grad)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.clone().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(func, args, kwargs or {})


class Factories(TorchDispatchMode):
    """Sees what has no tensor argument, such as torch.zeros(device="cuda")."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatched(func, args, kwargs or {})


def real(value: Any) -> Any:
    return value.held if isinstance(value, Simulated) else value


def lifted(value: Any) -> Any:
    return Simulated(value) if isinstance(value, Tensor) and not isinstance(value, Simulated) else value


def tensors(value: Any) -> list[Tensor]:
    return [t for t in tree_flatten(value)[0] if isinstance(t, Tensor)]


class RandomNumbers:
    """The device's own random numbers. A capture that breaks off leaves them unusable until they are given a state."""

    def __init__(self) -> None:
        self.broken = False
        self.seed(1)

    def seed(self, seed: int) -> None:
        self.state = torch.Generator().manual_seed(seed).get_state()

    def get(self, device: Any = None) -> Tensor:
        return self.state.clone()

    def set(self, state: Tensor, device: Any = None) -> None:
        self.state = state.clone()

    def drawing(self, run: Callable[[], Any]) -> Any:
        if self.broken:
            raise Refused("Offset increment outside graph capture encountered unexpectedly.")
        before = torch.default_generator.get_state()
        torch.default_generator.set_state(self.state)
        try:
            return run()
        finally:
            self.state = torch.default_generator.get_state()
            torch.default_generator.set_state(before)

    # As one of torch.cuda.default_generators.
    def graphsafe_set_state(self, other: RandomNumbers) -> None:
        self.state, self.broken = other.state, False

    # As torch.Generator("cuda").
    def set_state(self, state: Tensor) -> RandomNumbers:
        self.state = state.clone()
        return self

    def graphsafe_get_state(self) -> RandomNumbers:
        return self


class Graph:
    """What a capture recorded, and its replay."""

    current: Graph | None = None

    def __init__(self, keep_graph: bool = False) -> None:
        self.log: list[tuple[bool, Callable[[], Any]]] = []
        self.kept: list[Any] = []  # what it computes with lives as long as it does
        self.replays = 0

    def record(self, func: Any, name: str, args: Any, kwargs: Any, draws: bool) -> Any:
        if func._schema.is_mutable and name not in BATCH_NORM:
            self.log.append((draws, lambda: func(*args, **kwargs)))
            written = [
                kwargs[a.name] if a.name in kwargs else args[i]
                for i, a in enumerate(func._schema.arguments)
                if a.alias_info is not None and a.alias_info.is_write
            ]
            returns = len(func._schema.returns)
            return None if returns == 0 else written[0] if returns == 1 else tuple(written[:returns])
        # Its running statistics are the only thing that a function of this kind may change on being recorded.
        statistics = [(t, t.clone()) for t in args[3:5] if t is not None] if name in BATCH_NORM else []
        out = func(*args, **kwargs)
        for tensor, before in statistics:
            tensor.copy_(before)
        given = {t.untyped_storage()._cdata for t in tensors((args, kwargs))}
        fresh = [t.untyped_storage()._cdata not in given for t in tensors(out)]

        def again() -> None:
            for target, value, new in zip(tensors(out), tensors(func(*args, **kwargs)), fresh, strict=True):
                if new:
                    target.copy_(value)

        if any(fresh) and name not in NO_LAUNCH:
            self.log.append((draws, again))
        self.kept.append((out, args, kwargs))
        return out

    def replay(self) -> None:
        if Graph.current is not None:
            raise Refused("a graph is replayed while another is captured")
        counts["replays"] += 1
        self.replays += 1
        with _disable_current_modes(), torch.enable_grad():
            for draws, run in self.log:
                numbers.drawing(run) if draws else run()


class Stream:
    made = 0

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        Stream.made += 1
        self.cuda_stream, self.device = Stream.made % 32 + 1, CUDA

    def wait_stream(self, other: Stream) -> None: ...

    def is_capturing(self) -> bool:
        return Graph.current is not None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.cuda_stream == other.cuda_stream

    def __hash__(self) -> int:
        return self.cuda_stream


numbers = RandomNumbers()
streams = [Stream()]


@contextlib.contextmanager
def on(stream: Stream) -> Iterator[None]:
    streams.append(stream)
    try:
        yield
    finally:
        streams.pop()


@contextlib.contextmanager
def capture(graph: Graph, stream: Stream | None = None, **options: Any) -> Iterator[None]:
    if Graph.current is not None:
        raise Refused("a capture within a capture")
    counts["captures"] += 1
    before, Graph.current = numbers.get(), graph
    try:
        with on(stream or Stream()):
            yield
    except BaseException:
        numbers.broken = True
        raise
    finally:
        Graph.current, numbers.state = None, before


def place() -> str:
    ours = [f for f in traceback.extract_stack() if "/ln/" in f.filename or "/experiments/" in f.filename]
    return f"{os.path.basename(ours[-1].filename)}:{ours[-1].lineno}" if ours else "outside of the suite"


def refuse_in_capture(what: str) -> None:
    if Graph.current is not None:
        raise Refused(f"{what} while a graph is captured, at {place()}")


def dispatched(func: Any, args: Any, kwargs: Any) -> Any:
    """One operation of torch, on either device."""
    given, name = tensors((args, kwargs)), func._schema.name.split("::")[1]
    simulated = any(isinstance(t, Simulated) for t in given)
    asked = kwargs.get("device")
    asked = None if asked is None else torch.device(asked).type
    if not simulated and asked != "cuda":
        return func(*args, **kwargs)
    on_host = [t for t in given if not isinstance(t, Simulated) and t.dim() > 0]
    if simulated and on_host and name not in MAY_MIX:
        backward = any(frame.name == "_engine_run_backward" for frame in traceback.extract_stack())
        if not backward or any(bool(t.any()) for t in on_host):
            shapes = [(type(t).__name__, tuple(t.shape)) for t in given]
            raise Refused(f"expected all tensors on the same device, but {name} got {shapes} at {place()}")
        # Zeros that autograd's C++ made for what has no gradient; a device's would lie there.
        args, kwargs = tree_map(lifted, (args, kwargs))
    if name in WAIT:
        refuse_in_capture(name)
    if name in ("index", "index_put_", "_index_put_impl_"):
        for index in args[1]:
            if isinstance(index, Tensor) and (index.dtype == torch.bool or not isinstance(index, Simulated)):
                refuse_in_capture(f"{name} by a mask or from the host")
    to_host = name == "_to_copy" and asked == "cpu"
    if to_host or (name == "_to_copy" and not simulated):
        refuse_in_capture("a copy between host and device")
    if name == "copy_" and isinstance(args[0], Simulated) != isinstance(args[1], Simulated):
        refuse_in_capture("a copy between host and device")
        with _disable_current_modes():
            real(args[0]).copy_(real(args[1]))
        return args[0]
    real_args, real_kwargs = tree_map(real, (args, kwargs))
    if asked is not None:
        real_kwargs["device"] = CPU
    draws = torch.Tag.nondeterministic_seeded in func.tags or name in RANDOM
    if name not in NO_LAUNCH and not to_host:
        launches[name] += 1
    with _disable_current_modes():
        if Graph.current is not None:
            out = Graph.current.record(func, name, real_args, real_kwargs, draws)
        elif draws:
            out = numbers.drawing(lambda: func(*real_args, **real_kwargs))
        else:
            out = func(*real_args, **real_kwargs)
    if to_host:
        return out.clone() if out is real_args[0] else out
    out = tree_map(lifted, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if simulated else out


class Moved(torch.autograd.Function):
    """A copy on the other device, or in another type on the way, and its gradient back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, device: torch.device, dtype: torch.dtype | None) -> Tensor:
        ctx.back = x.device, x.dtype
        return torch.ops.aten._to_copy(x, device=device, **({} if dtype is None else {"dtype": dtype}))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        device, dtype = ctx.back
        return gradients[0].to(device, dtype), None, None


_to = Tensor.to


def to(self: Tensor, *arguments: Any, **options: Any) -> Tensor:
    if arguments and isinstance(arguments[0], Tensor):
        device, dtype = arguments[0].device, arguments[0].dtype
    else:
        device, dtype, *_ = torch._C._nn._parse_to(*arguments, **options)
    if device is None or device.type == self.device.type:
        if not isinstance(self, Simulated):
            return _to(self, *arguments, **options)
        return self if dtype in (None, self.dtype) else _to(self, dtype)
    if "cuda" in (device.type, self.device.type):
        return Moved.apply(self, CUDA if device.type == "cuda" else device, dtype)
    return _to(self, *arguments, **options)


def install() -> None:
    """Make torch believe that this machine has a GPU, and run Triton's kernels for it in Triton's interpreter."""
    os.environ["TRITON_INTERPRET"] = "1"
    torch.autograd.set_multithreading_enabled(False)
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    Tensor.to = Simulated.to = to  # type: ignore[method-assign, assignment]

    def nothing(*arguments: Any) -> None: ...

    def synchronize(*arguments: Any) -> None:
        refuse_in_capture("synchronize")

    replaced = {
        "_lazy_init": nothing, "init": nothing, "is_available": lambda: True, "device_count": lambda: 1,
        "current_device": lambda: 0, "get_device_capability": lambda *_: (9, 0), "synchronize": synchronize,
        "get_device_name": lambda *_: "simulated", "is_current_stream_capturing": lambda: Graph.current is not None,
        "current_stream": lambda *_: streams[-1], "Stream": Stream, "stream": on, "graph": capture, "CUDAGraph": Graph,
        "device": lambda _: contextlib.nullcontext(), "max_memory_allocated": lambda *_: 0, "empty_cache": nothing,
        "reset_peak_memory_stats": nothing, "get_rng_state": numbers.get, "set_rng_state": numbers.set,
        "manual_seed_all": numbers.seed, "manual_seed": numbers.seed, "default_generators": (numbers,),
    }  # fmt: skip
    for name, value in replaced.items():
        setattr(torch.cuda, name, value)
    torch.accelerator.current_accelerator = lambda check_available=False: torch.device("cuda")
    torch.accelerator.current_stream = lambda *_: streams[-1]
    _replace_what_makes_tensors()
    _replace_what_asks_cpp_for_the_device()
    _run_triton_here()
    Factories().__enter__()


def _replace_what_makes_tensors() -> None:
    load, tensor, pad, generator = torch.load, torch.tensor, torch.nn.utils.rnn.pad_sequence, torch.Generator

    def on_cuda(device: Any) -> bool:
        return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"

    def loaded(path: Any, map_location: Any = None, **options: Any) -> Any:
        found = load(path, map_location="cpu" if on_cuda(map_location) else map_location, **options)
        return tree_map(lambda v: v.to(CUDA) if isinstance(v, Tensor) else v, found) if on_cuda(map_location) else found

    def made(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        found = tensor(data, **options)
        return found.to(CUDA) if on_cuda(device) else found

    class Generator:
        def __new__(cls, device: Any = "cpu") -> Any:
            return RandomNumbers() if on_cuda(device) else generator(device)

    def padded(sequences: Any, *arguments: Any, **options: Any) -> Tensor:
        with _disable_current_modes():
            found = pad([real(t) for t in sequences], *arguments, **options)
        return Simulated(found) if isinstance(sequences[0], Simulated) else found

    torch.load, torch.tensor, torch.nn.utils.rnn.pad_sequence = loaded, made, padded  # type: ignore[assignment]
    torch.Generator = Generator  # type: ignore[misc, assignment]


def _replace_what_asks_cpp_for_the_device() -> None:
    foreach, *users = (
        importlib.import_module(name)
        for name in ("torch.utils._foreach_utils", "torch.nn.utils.clip_grad", "torch.optim.optimizer")
    )
    group = foreach._group_tensors_by_device_and_dtype

    def grouped(lists: Any, with_indices: bool = False) -> Any:
        device = CUDA if any(isinstance(t, Simulated) for tensors in lists for t in tensors) else CPU
        return {(device, dtype): value for (_, dtype), value in group(lists, with_indices).items()}

    for module in (foreach, *users):
        module._group_tensors_by_device_and_dtype = grouped  # type: ignore[attr-defined]
    backward = torch.autograd.function.BackwardCFunction
    apply = backward.apply

    def applied(self: Any, *gradients: Any) -> Any:
        # Zeros for an output without a gradient, which autograd makes: on a device they would lie there.
        if any(isinstance(t, Simulated) for t in self.saved_tensors):
            gradients = tuple(map(lifted, gradients))
        return apply(self, *gradients)

    backward.apply = applied  # type: ignore[method-assign]


def _run_triton_here() -> None:
    from triton.runtime.interpreter import GridExecutor

    from ln.kernels import gate
    from ln.kernels.triton import backend, loop

    backend._interpreted = lambda: False
    # Simulated tensors stand for plain ones of a GPU, which need no other way than the eager one.
    gate.beyond_eager = lambda tensors: None
    call = GridExecutor.__call__

    def launch(self: Any, *arguments: Any, **options: Any) -> None:
        if any(not isinstance(t, Simulated) for t in tensors((arguments, options))):
            raise Refused("Pointer argument cannot be accessed from Triton (cpu tensor?)")
        given = tree_map(real, (arguments, options))

        def run() -> None:
            with _disable_current_modes():
                call(self, *given[0], **given[1])

        launches[f"triton {self.fn.__name__}"] += 1
        if Graph.current is None:
            run()
        else:
            Graph.current.log.append((False, run))
            Graph.current.kept.append(given)

    GridExecutor.__call__ = launch
    loop.Spec.on_gpu = False  # type: ignore[assignment, method-assign]

"""CUDA graphs: whether they may be used, and how one is captured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_allowed = True


def use_graphs(allowed: bool) -> None:
    """Whether backends may capture their time loops as CUDA graphs and replay them, as they do by default. Launching
    every step by itself is slower; it is what is left where a driver refuses to capture."""
    global _allowed
    _allowed = allowed


def graphs_allowed() -> bool:
    return _allowed


def captured(work: Callable[[], None], **options: Any) -> torch.cuda.CUDAGraph:
    """The graph of what `work` launches; options are those of `torch.cuda.graph`.

    RuntimeError, with its first cause, where something in it cannot be captured. Nothing has been computed then, and
    random numbers go on from where they were.
    """
    graph, random_state = torch.cuda.CUDAGraph(), torch.cuda.get_rng_state()
    try:
        with torch.cuda.graph(graph, **options):
            work()
    except RuntimeError as error:
        _end_random_capture(random_state)
        cause: BaseException = error
        while cause.__context__ is not None:  # the end of a broken capture fails too, and says less
            cause = cause.__context__
        raise RuntimeError((str(cause).splitlines() or [type(cause).__name__])[0]) from error
    return graph


def _end_random_capture(state: Tensor) -> None:
    """A capture that breaks off leaves the generator's state captured, and no random number can be drawn from it."""
    fresh = torch.Generator("cuda").set_state(state)
    torch.cuda.default_generators[torch.cuda.current_device()].graphsafe_set_state(fresh.graphsafe_get_state())

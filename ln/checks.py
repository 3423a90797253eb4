"""What the recurrent modules ask of their arguments; each bad one gets one sentence."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any

from torch import Tensor


def whole(name: str, value: int) -> int:
    """A whole number; an int as it is, since a compiler may leave it open."""
    try:
        if not isinstance(value, bool):
            return value if isinstance(value, int) else operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{name} must be an int, but is {value!r}")


def size(name: str, value: int) -> int:
    """A whole number of at least 1."""
    number = whole(name, value)
    if number < 1:
        raise ValueError(f"{name}={number} must be at least 1")
    return number


def flag(name: str, value: bool) -> bool:
    """True or False: of anything else, such as the word "False", Python's truth would be a guess."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, but is {value!r}")
    return value


def share(name: str, value: float) -> float:
    """A number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number in [0, 1], but is {value!r}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} must lie in [0, 1]")
    return float(value)


def nonlinearity(value: str) -> str:
    if value not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity={value} is unknown; choose tanh or relu")
    return value


def no_projection(proj_size: int) -> None:
    if proj_size != 0:
        raise ValueError(f"proj_size={proj_size} is not supported: the LSTM here has no projection of h; leave it at 0")


def states(hx: Any, names: Sequence[str], letters: str) -> tuple[Tensor, ...] | None:
    """A state as a tuple: the pair (h, c) of an LSTM, or the one tensor of the others."""
    if hx is None:
        return None
    if len(names) == 1:
        return (hx,)
    if not isinstance(hx, tuple | list) or len(hx) != 2:
        raise ValueError(f"hx must be the pair (h, c), each {letters}")
    return tuple(hx)

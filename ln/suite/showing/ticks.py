"""Ticks that a person reads: round numbers in plain digits, thousands as k, and few of them on a logarithmic axis."""

import math

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

MOST_DECADES = 5  # labelled on one axis
WHOLE = 5  # from this length on an axis is labelled in whole numbers: an epoch 7.5 is none
SMALL = 1e-3  # below it a logarithmic axis is labelled in powers of ten


def plain_ticks(axes: Axes) -> None:
    """Set both axes' ticks from their limits, which must not change afterwards."""
    plain_axis(axes.xaxis, *axes.get_xlim())
    plain_axis(axes.yaxis, *axes.get_ylim())


def plain_axis(axis: Axis, one: float, other: float) -> None:
    """Set the ticks of an axis between its two ends."""
    low, high = sorted((one, other))
    if axis.get_scale() == "log":
        _logarithmic(axis, low, high)
    else:
        whole = high - low >= WHOLE
        axis.set_major_locator(MaxNLocator(nbins=7 if whole else 5, steps=[1, 2, 2.5, 5, 10], integer=whole))
        end = max(abs(low), high)
        axis.set_major_formatter(FuncFormatter(lambda value, _: counted(value, end)))


def counted(value: float, end: float) -> str:
    """A number as an axis that goes to `end` has it: 20000 is 20k, and 0.5 stays 0.5."""
    if end >= 1e6:
        return "0" if value == 0 else f"{value / 1e6:g}M"
    if end >= 1e4:
        return "0" if value == 0 else f"{value / 1e3:g}k"
    return f"{value:.6g}"


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten; between less than two of them 1, 2 and 5 of each; between less than a factor of three round
    numbers at equal distances."""
    decades = math.log10(high / low)
    if decades < math.log10(3):
        return [tick for tick in MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high) if tick > 0]
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = math.ceil(decades / MOST_DECADES)
    parts = (1, 2, 5) if decades < 2 else (1,)
    return [part * 10.0**power for power in range(first, last + 1) for part in parts if power % every == 0]


def _logarithmic(axis: Axis, low: float, high: float) -> None:
    ticks = [tick for tick in log_ticks(low, high) if low * 0.999 <= tick <= high * 1.001]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    if low < SMALL and all(math.log10(tick).is_integer() for tick in ticks):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"$10^{{{round(math.log10(value))}}}$"))
    else:
        axis.set_major_formatter(FuncFormatter(lambda value, _: counted(value, value)))

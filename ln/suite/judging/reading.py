"""How a published curve is read: its best point, when it gets somewhere, and how far single points scatter."""

from collections.abc import Sequence

import numpy as np

from ln.suite.judging.published import Curve, Key, published_curves

RESAMPLINGS = 2_000


def curve(experiment: str, metric: str, norm: str) -> Curve:
    return published_curves()[Key(experiment, metric, norm)]


def smooth(values: Sequence[float], width: int) -> np.ndarray:
    """The centred moving average over `width` points, over fewer at the ends."""
    half = width // 2
    return np.array([np.mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def reach(x: Sequence[float], y: Sequence[float] | np.ndarray, target: float, lower: bool) -> float | None:
    """The first x drawn at which a curve is as good as the target."""
    good = np.asarray(y) <= target if lower else np.asarray(y) >= target
    return x[int(np.argmax(good))] if good.any() else None


def best(of: Curve, lower: bool) -> tuple[float, float]:
    """x and value of a curve's best point, the first of equals."""
    i = int(np.argmin(of.y) if lower else np.argmax(of.y))
    return of.x[i], of.y[i]


def share_to_best(ours: Curve, theirs: Curve, lower: bool) -> float | None:
    """The part of what `theirs` needs for its best value after which `ours` has reached it."""
    at, value = best(theirs, lower)
    mine = reach(ours.x, ours.y, value, lower)
    return None if mine is None else mine / at


def resampled_shares(ours: Curve, theirs: Curve, width: int) -> np.ndarray:
    """(RESAMPLINGS,) `share_to_best` of the smoothed curves with each curve's own point noise put on again; inf where
    it is never reached. Higher is better."""
    noise = np.random.default_rng(0)
    smoothed = [smooth(c.y, width) for c in (ours, theirs)]
    # A point is part of its own average, so the residual is smaller than the noise by this factor.
    spreads = [
        np.std(np.array(c.y) - s) / np.sqrt(1 - 1 / width) for c, s in zip((ours, theirs), smoothed, strict=True)
    ]
    shares = []
    for _ in range(RESAMPLINGS):
        mine, other = (s + noise.normal(0, d, len(s)) for s, d in zip(smoothed, spreads, strict=True))
        at = int(np.argmax(other))
        mine_at = reach(ours.x, mine, other[at], lower=False)
        shares.append(np.inf if mine_at is None else mine_at / theirs.x[at])
    return np.array(shares)


def percent(share: float | None) -> str:
    return "never" if share is None else f"{100 * share:.0f} %"


def common(a: Curve, b: Curve) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The x that both curves have, and their values there."""
    first, second = (dict(zip(c.x, c.y, strict=True)) for c in (a, b))
    x = [position for position in first if position in second]
    return np.array(x), np.array([first[p] for p in x]), np.array([second[p] for p in x])

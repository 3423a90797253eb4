"""Intervals, checked by simulation: coverage, and how often no effect is called one."""

import math
from collections.abc import Iterator

import numpy as np
import pytest

from ln.suite.judging.claims import REPRODUCED, Measured, better, faster
from ln.suite.judging.stats import Interval, first_reach, mean_interval, proportion_half_width, ratio_interval

SIMULATIONS = 4000


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_95_percent_intervals_cover_the_truth_93_to_97_percent_of_the_time(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    hits = ratio_hits = 0
    for _ in range(SIMULATIONS):
        values = rng.normal(2.0, 0.3, seeds)
        interval = mean_interval(values)
        hits += interval.low <= 2.0 <= interval.high
        interval = ratio_interval(np.exp(rng.normal(0.5, 0.2, seeds)), np.exp(rng.normal(0.0, 0.2, seeds)))
        ratio_hits += interval.low <= math.exp(0.5) <= interval.high
    assert 0.93 <= hits / SIMULATIONS <= 0.97
    assert 0.93 <= ratio_hits / SIMULATIONS <= 0.97


def learning_curve(rng: np.random.Generator, seed: int, evaluations: int, noise: float, speed: float) -> Measured:
    """A run whose loss decays to a floor: seeds differ in speed and floor, evaluations in noise."""
    rate, floor = 0.6 * math.exp(rng.normal(0, speed)), 1 + rng.normal(0, 0.02)
    steps = np.arange(1, evaluations + 1)
    values = floor + 2 * np.exp(-rate * steps) + rng.normal(0, noise, evaluations)
    records = [{"step": int(s) * 100, "valid_loss": float(v)} for s, v in zip(steps, values, strict=True)]
    return Measured({"status": "complete", "identity": {"seed": seed}}, records)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("evaluations", "noise", "speed"), [(12, 0.02, 0.3), (30, 0.05, 0.0), (4, 0.01, 0.1)])
def test_no_difference_is_called_reproduced_at_most_3_percent_of_the_time(
    seeds: int, evaluations: int, noise: float, speed: float
) -> None:
    rng = np.random.default_rng([seeds, evaluations])
    check = {"norm": "layer", "baseline": "none", "metric": "valid_loss", "direction": "lower"}
    trials, said = 2000, {"better": 0, "faster": 0}
    for _ in range(trials):
        sides = [{s: learning_curve(rng, s, evaluations, noise, speed) for s in range(seeds)} for _ in range(2)]
        said["better"] += better(check, sides).verdict == REPRODUCED
        said["faster"] += faster(check, sides).verdict == REPRODUCED
    # 3 % plus two standard errors of the simulation itself.
    limit = 0.03 + 2 * math.sqrt(0.03 * 0.97 / trials)
    assert said["better"] / trials <= limit
    assert said["faster"] / trials <= limit


def test_a_true_effect_is_found() -> None:
    rng = np.random.default_rng(0)
    check = {"norm": "layer", "baseline": "none", "metric": "valid_loss", "direction": "lower"}
    found = 0
    for _ in range(100):
        quick = {seed: learning_curve(rng, seed, 12, 0.01, 0.1) for seed in range(5)}
        slow = {}
        for seed in range(5):
            run = learning_curve(rng, seed, 12, 0.01, 0.1)
            slow[seed] = Measured(run.info, [{**r, "valid_loss": r["valid_loss"] + 0.5} for r in run.records])
        found += faster(check, [quick, slow]).verdict == REPRODUCED
    assert found >= 95


def test_an_interval_needs_two_seeds() -> None:
    with pytest.raises(ValueError, match="at least 2 seeds"):
        mean_interval([1.0])


def test_equal_values_are_as_uncertain_as_their_grid() -> None:
    assert mean_interval([0.5, 0.5, 0.5]).high == 0.5
    assert mean_interval([0.5, 0.5, 0.5], floor=0.1).high > 0.7


def curves() -> Iterator[tuple[list[float], float, bool, float | None]]:
    yield [4.0, 2.0, 1.0], 3.0, True, 15.0  # half-way between steps 10 and 20
    yield [4.0, 2.0, 1.0], 5.0, True, 10.0  # reached before the first evaluation: no earlier than it
    yield [4.0, 2.0, 1.0], 0.5, True, None
    yield [0.1, 0.5, 0.9], 0.7, False, 25.0


@pytest.mark.parametrize(("values", "target", "lower", "expected"), list(curves()))
def test_first_reach(values: list[float], target: float, lower: bool, expected: float | None) -> None:
    assert first_reach([10, 20, 30], values, target, lower) == pytest.approx(expected)


def test_a_proportions_half_width_is_the_binomials() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.binomial(10000, 0.02, 4000) / 10000 - rng.binomial(10000, 0.03, 4000) / 10000
    assert proportion_half_width([0.02, 0.03], 10000) == pytest.approx(1.96 * drawn.std(), rel=0.05)


def test_an_interval_around_nothing_is_written_as_zero() -> None:
    assert str(Interval(-2.4e-15, -6.4, 6.4)) == "0 [-6.4, 6.4]"
    assert str(Interval(2.4e-15, 2.3e-15, 2.5e-15)) == "2.4e-15 [2.3e-15, 2.5e-15]"
    assert str(Interval(1.5, -math.inf, math.inf)) == "1.5 [-inf, inf]"

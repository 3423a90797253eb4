"""Intervals and rules, checked by simulation: coverage, how often no effect is called one, and power as planned."""

import math
from collections.abc import Iterator

import numpy as np
import pytest

from ln.suite.judging.checks import Outcome, better, faster, value
from ln.suite.judging.claims import Expected, load_claims
from ln.suite.judging.power import POWER, planned, power, seeds_expected, seeds_for_power
from ln.suite.judging.stats import (
    Interval,
    difference,
    effective_examples,
    first_reach,
    mean_interval,
    paired_half_width,
    prediction_interval,
    quotient,
    ratio_interval,
    widened,
)
from ln.suite.runs.read import Measured
from tests.judged_runs import check

SIMULATIONS = 4000


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_95_percent_intervals_cover_the_truth_93_to_97_percent_of_the_time(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    hits = ratio_hits = predicted = 0
    for _ in range(SIMULATIONS):
        values = rng.normal(2.0, 0.3, seeds)
        interval = mean_interval(values)
        hits += interval.low <= 2.0 <= interval.high
        interval = ratio_interval(np.exp(rng.normal(0.5, 0.2, seeds)), np.exp(rng.normal(0.0, 0.2, seeds)))
        ratio_hits += interval.low <= math.exp(0.5) <= interval.high
        interval = prediction_interval(values)
        predicted += interval.low <= rng.normal(2.0, 0.3) <= interval.high
    assert 0.93 <= hits / SIMULATIONS <= 0.97
    assert 0.93 <= ratio_hits / SIMULATIONS <= 0.97
    assert 0.93 <= predicted / SIMULATIONS <= 0.97


@pytest.mark.parametrize(("ours", "theirs", "spread"), [(3, 3, 1.0), (3, 3, 3.0), (5, 2, 1.0)])
def test_the_difference_of_two_folders_of_runs_is_covered_at_least_95_percent_of_the_time(
    ours: int, theirs: int, spread: float
) -> None:
    rng = np.random.default_rng(0)
    hits = ratio_hits = 0
    for _ in range(SIMULATIONS):
        a, b = (mean_interval(rng.normal(2.0, s, n)) for s, n in ((0.1, ours), (0.1 * spread, theirs)))
        apart = difference(a, b)
        hits += apart.low <= 0.0 <= apart.high
        a, b = (
            ratio_interval(np.exp(rng.normal(mean, s, n)), np.ones(n))
            for mean, s, n in ((0.5, 0.1, ours), (0.0, 0.1 * spread, theirs))
        )
        apart = quotient(a, b)
        ratio_hits += apart.low <= math.exp(-0.5) <= apart.high
    assert 0.95 <= hits / SIMULATIONS <= 0.995
    assert 0.95 <= ratio_hits / SIMULATIONS <= 0.995


@pytest.mark.parametrize("correlation", [0.5, 0.8])
def test_a_shared_test_set_is_covered_at_the_assumed_correlation_and_above(correlation: float) -> None:
    """Whether an example is got right is its own doing here, nearly alike for both norms; a test set and 3 seeds are
    drawn."""
    rng = np.random.default_rng(0)
    examples, seeds, hits = 400, 3, 0
    shared = math.sin(math.pi * correlation / 2)  # of the normal variables, for the correlation of their signs
    for _ in range(SIMULATIONS):
        both, own = rng.normal(size=examples), rng.normal(size=(2, examples))
        right = math.sqrt(shared) * both + math.sqrt(1 - shared) * own > 0  # proportions of one half
        scores = right.mean(1)[:, None] + rng.normal(0, 0.01, (2, seeds))
        interval = mean_interval(scores[0] - scores[1])
        interval = widened(interval, paired_half_width(scores[0].mean(), scores[1].mean(), examples))
        hits += interval.low <= 0 <= interval.high
    assert 0.94 <= hits / SIMULATIONS <= (0.98 if correlation == 0.5 else 1.0)


def test_the_cases_of_one_item_are_worth_less_than_as_many_items() -> None:
    assert effective_examples(1000, 1) == 1000
    assert effective_examples(1000, 5) == pytest.approx(1667, abs=1)


def learning_curve(rng: np.random.Generator, seed: int, evaluations: int, noise: float, speed: float) -> Measured:
    """A run whose loss decays to a floor: seeds differ in speed and floor, evaluations in noise."""
    rate, floor = 0.6 * math.exp(rng.normal(0, speed)), 1 + rng.normal(0, 0.02)
    steps = np.arange(1, evaluations + 1)
    values = floor + 2 * np.exp(-rate * steps) + rng.normal(0, noise, evaluations)
    records = [{"step": int(s) * 100, "valid_loss": float(v)} for s, v in zip(steps, values, strict=True)]
    return Measured({"status": "complete", "identity": {"seed": seed}}, records)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize(("evaluations", "noise", "speed"), [(12, 0.02, 0.3), (30, 0.05, 0.0), (4, 0.01, 0.1)])
def test_no_difference_is_called_one_at_most_3_percent_of_the_time(
    seeds: int, evaluations: int, noise: float, speed: float
) -> None:
    rng = np.random.default_rng([seeds, evaluations])
    trials, said = 1500, {"better": 0, "faster": 0}
    for _ in range(trials):
        sides = [{s: learning_curve(rng, s, evaluations, noise, speed) for s in range(seeds)} for _ in range(2)]
        said["better"] += better(check("better"), sides).outcome == Outcome.HOLDS
        said["faster"] += faster(check("faster"), sides).outcome == Outcome.HOLDS
    # 3 % plus two standard errors of the simulation itself.
    limit = 0.03 + 2 * math.sqrt(0.03 * 0.97 / trials)
    assert said["better"] / trials <= limit
    assert said["faster"] / trials <= limit


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_a_number_just_out_of_tolerance_is_called_reproduced_at_most_3_percent_of_the_time(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    said = 0
    for _ in range(SIMULATIONS):
        published = 2.0 + rng.normal(0, 0.05)  # one run
        ours = rng.normal(2.3, 0.05, seeds)
        asked = check("value", at="last", published=published, tolerance=0.3)
        side = {s: Measured({"status": "complete"}, [{"step": 1, "valid_loss": v}]) for s, v in enumerate(ours)}
        said += value(asked, [side]).outcome == Outcome.HOLDS
    assert said / SIMULATIONS <= 0.03 + 2 * math.sqrt(0.03 * 0.97 / SIMULATIONS)


@pytest.mark.parametrize(("effect", "spread"), [(0.3, 0.1), (0.3, 0.25), (0.1, 0.2)])
def test_power_is_as_planned(effect: float, spread: float) -> None:
    seeds = seeds_for_power(effect, spread)
    assert seeds is not None
    rng = np.random.default_rng(seeds)
    found = sum(mean_interval(rng.normal(effect, spread, seeds)).low > 0 for _ in range(SIMULATIONS)) / SIMULATIONS
    assert found == pytest.approx(power(effect, spread, seeds), abs=0.02)
    assert found >= POWER - 0.02
    assert seeds == 3 or power(effect, spread, seeds - 1) < POWER
    assert seeds_for_power(0.01, 1.0) is None


@pytest.mark.parametrize(("seeds", "least"), [(3, 0.5), (5, 0.9)])
def test_three_fifths_of_the_updates_is_found_where_the_best_is_noisy(seeds: int, least: float) -> None:
    """Nine tenths of the improvement is reached where the curve is steep; the noisy best itself is not."""
    rng = np.random.default_rng(seeds)
    trials = 300
    found = 0
    steps = np.arange(1, 41)
    for _ in range(trials):
        sides = []
        for speed in (0.1 / 0.6, 0.1):
            runs = {}
            for seed in range(seeds):
                rate = speed * math.exp(rng.normal(0, 0.15))
                values = 1 + 2 * np.exp(-rate * steps) + rng.normal(0, 0.02, len(steps))
                records = [{"step": int(s), "valid_loss": float(v)} for s, v in zip(steps, values, strict=True)]
                runs[seed] = Measured({"status": "complete"}, records)
            sides.append(runs)
        found += faster(check("faster"), sides).outcome == Outcome.HOLDS
    assert found / trials >= least


def test_a_claims_power_is_planned_on_the_scale_of_its_interval() -> None:
    asked = check("faster", expected=Expected(effect=0.6, spread=0.2, steps=500))
    assert seeds_expected(asked) == seeds_for_power(-math.log(0.6), 0.2) == 4
    assert seeds_expected(check("better", expected=Expected(effect=0.6, spread=0.2))) == seeds_for_power(0.6, 0.2) == 4
    assert seeds_expected(check("better")) is None
    lines = list(planned(load_claims("draw"), "laptop"))
    (line,) = [line for line in lines if line.startswith("draw_faster ")]
    assert "4 seeds of 6,000 updates for 0.7 of the updates, spread 0.15" in line
    (line,) = [line for line in lines if line.startswith("draw_better ")]
    assert line.endswith("are planned")


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


def test_an_interval_around_nothing_is_written_as_zero() -> None:
    assert str(Interval(-2.4e-15, -6.4, 6.4)) == "0 [-6.4, 6.4]"
    assert str(Interval(2.4e-15, 2.3e-15, 2.5e-15)) == "2.4e-15 [2.3e-15, 2.5e-15]"
    assert str(Interval(1.5, -math.inf, math.inf)) == "1.5 [-inf, inf]"

"""The kinds of check, each a pure function of runs."""

import math
from dataclasses import replace

import pytest

from ln.suite.judging import checks, curve_checks
from ln.suite.judging.checks import Outcome, better, faster, three_way, value
from ln.suite.judging.curve_checks import curve
from ln.suite.judging.published import Curve, Key, Source
from ln.suite.judging.stats import Interval
from ln.suite.runs.read import Measured
from tests.judged_runs import check, run, seeds

HOLDS, FAILS, OPEN = Outcome.HOLDS, Outcome.FAILS, Outcome.OPEN
DEAD = Measured({**run(1.0).info, "status": "diverged"}, [])


@pytest.mark.parametrize(
    ("interval", "outcome"),
    [((0.1, 0.2), HOLDS), ((-0.1, 0.2), OPEN), ((-0.2, -0.1), FAILS), ((0.0, 0.0), OPEN), ((-0.1, 0.0), FAILS)],
)
def test_the_ending_of_a_difference(interval: tuple[float, float], outcome: Outcome) -> None:
    assert three_way(Interval(sum(interval) / 2, *interval), 0.0, math.inf) == outcome


def test_less_than_claimed_is_not_the_opposite() -> None:
    ending = [three_way(Interval(x, x - 0.1, x + 0.1), 0.9, math.inf, contrary=0.5) for x in (1.1, 0.9, 0.7, 0.3)]
    assert ending == [HOLDS, OPEN, Outcome.SHORT, FAILS]
    ending = [three_way(Interval(x, x - 0.1, x + 0.1), -math.inf, 0.5, contrary=1.0) for x in (0.3, 0.5, 0.7, 1.2)]
    assert ending == [HOLDS, OPEN, Outcome.SHORT, FAILS]


def test_a_published_number_is_where_a_further_run_could_lie() -> None:
    published = check("value", "test_loss", "final", published=1.0, tolerance=0.1)
    assert value(published, [seeds(run(1.01), run(1.0), run(0.99))]).outcome == HOLDS
    assert value(published, [seeds(run(2.01), run(2.0), run(1.99))]).outcome == FAILS
    assert value(published, [seeds(run(1.0))]).outcome == OPEN
    # The mean of these is known to 0.05, but one further run is not known to 0.1.
    spread = seeds(run(0.96), run(1.04), run(0.96), run(1.04), run(1.0))
    assert value(published, [spread]).outcome == OPEN
    assert value(check("value", "test_loss", "final", within=(0.9, 1.1)), [spread]).outcome == HOLDS


def test_better_pairs_by_seed() -> None:
    layer, none = seeds(run(1.0), run(2.0), run(3.0)), seeds(run(1.1), run(2.1), run(3.11))
    assert better(check("better"), [layer, none]).outcome == HOLDS
    assert better(check("better"), [none, layer]).outcome == FAILS
    crossed = [layer, {0: none[2], 1: none[0], 2: none[1]}]
    assert better(check("better"), crossed).outcome == OPEN


def test_one_test_set_of_both_leaves_less_uncertain_than_two_but_something() -> None:
    layer, none = seeds(run(0.30), run(0.31), run(0.30)), seeds(run(0.40), run(0.41), run(0.401))
    plain = better(check("better", "test_error", "final"), [layer, none])
    shared = better(check("better", "test_error", "final", proportion=True), [layer, none])
    assert plain.outcome == HOLDS
    assert shared.outcome == HOLDS  # 100 examples each would leave 0.13 uncertain, the same 100 leave 0.09
    assert shared.interval.high - shared.interval.low > plain.interval.high - plain.interval.low
    closer = seeds(run(0.35), run(0.36), run(0.351))
    assert better(check("better", "test_error", "final", proportion=True), [closer, none]).outcome == OPEN


def test_more_beyond_another_experiment_is_a_difference_of_differences() -> None:
    small = [seeds(run(0.15), run(0.16), run(0.15)), seeds(run(0.22), run(0.24), run(0.22))]
    large = [seeds(run(0.12), run(0.13), run(0.12)), seeds(run(0.13), run(0.14), run(0.13))]
    finding = better(check("better", at="last"), [*small, *large])
    assert finding.outcome == HOLDS
    assert finding.interval.estimate == pytest.approx(0.19 / 3, rel=0.01)
    assert better(check("better", at="last"), [large[0], large[0], *large]).outcome == FAILS


RAMP = [4 - 0.3 * i for i in range(14)]


def test_faster_looks_for_nine_tenths_of_the_baselines_improvement() -> None:
    quick = seeds(*[run(*[4 - 0.6 * i for i in range(7)]) for _ in range(4)])
    slow = seeds(*[run(*RAMP) for _ in range(4)])
    assert checks.target_for(check("faster"), list(slow.values())) == pytest.approx(4 - 0.9 * 0.3 * 13)
    finding = faster(check("faster", share=0.6), [quick, slow])
    assert finding.outcome == HOLDS
    assert finding.interval.estimate == pytest.approx((10 + 10 * 0.9 * 13 / 2) / (10 + 10 * 0.9 * 13))
    assert "published: 0.6" in finding.measured
    assert faster(check("faster"), [slow, quick]).outcome == FAILS
    assert faster(check("faster"), [slow, slow]).outcome == OPEN


def test_a_share_of_the_paper_is_reported_not_judged() -> None:
    quick, slow = (seeds(*[run(*[4 - speed * i for i in range(14)]) for _ in range(4)]) for speed in (0.27, 0.2))
    assert faster(check("faster", share=0.1), [quick, slow]).outcome == HOLDS


def test_a_fixed_target() -> None:
    quick, slow = seeds(*[run(4, 1, 1, 1)] * 3), seeds(*[run(4, 3, 2, 1)] * 3)
    assert faster(check("faster", target=2.5), [quick, slow]).interval.estimate == pytest.approx(15 / 25)


def test_never_is_later_than_the_end_of_the_longest_run() -> None:
    quick = seeds(*[run(1.0, 0.5, 0.4, 0.3, *[0.3 + 0.01 * seed] * 8) for seed in range(3)])
    slow = seeds(*[run(*[3.0 - 0.1 * i for i in range(12)]) for _ in range(3)])
    finding = faster(check("faster"), [slow, quick])
    assert finding.outcome == FAILS
    assert "3 and" in finding.reason  # all three slow runs never get there
    # A run that diverges early has not got there early.
    short = Measured({**run(1.0).info, "status": "diverged"}, run(2.9).records[:1])
    assert faster(check("faster"), [seeds(short, short, short), quick]).outcome == FAILS


def test_a_diverged_run_is_the_worst_never_dropped() -> None:
    fine = seeds(run(1.0), run(1.01), run(0.99))
    assert better(check("better"), [{**fine, 2: DEAD}, fine]).outcome != HOLDS
    assert better(check("better"), [fine, seeds(DEAD, DEAD, DEAD)]).outcome == HOLDS
    assert value(check("value", "test_loss", "final", within=(None, 5.0)), [{**fine, 2: DEAD}]).outcome == FAILS


def test_baselines_that_diverged_are_no_loss_and_no_certainty() -> None:
    ours = seeds(run(0.10), run(0.10), run(0.10))
    lost = better(check("better"), [ours, seeds(run(0.05), run(0.06), DEAD)])  # two losses, and a gain beyond measure
    assert lost.outcome == OPEN
    assert lost.interval.estimate == pytest.approx((-0.05 - 0.04 + 0.0) / 3)
    alone = better(check("better"), [ours, seeds(run(0.101), DEAD, DEAD)])
    assert alone.outcome == OPEN
    assert alone.interval is None
    assert "2 of 3 baseline runs diverged" in alone.reason


def test_what_a_run_is_held_beyond_must_not_have_diverged() -> None:
    fine = seeds(run(0.1), run(0.1), run(0.1))
    beyond = better(check("better", at="last"), [fine, fine, seeds(DEAD, DEAD, DEAD), fine])
    assert beyond.outcome == OPEN


def test_one_seed_that_diverged_decides_nothing() -> None:
    assert value(check("value", "test_loss", "final", within=(None, 5.0)), [seeds(DEAD)]).outcome == OPEN


def test_a_ratio_whose_every_run_ended_before_the_target_is_a_bound() -> None:
    quick = seeds(*[run(1.0, 0.5, 0.4, 0.3, *[0.3 + 0.01 * seed] * 8) for seed in range(3)])
    slow = seeds(*[run(*[3.0 - 0.1 * i for i in range(12)]) for _ in range(3)])
    assert faster(check("faster"), [slow, quick]).bound == "more than"
    assert "takes more than" in faster(check("faster"), [slow, quick]).measured
    assert faster(check("faster"), [quick, quick]).bound == ""


def test_an_improvement_below_nothing_is_said_as_how_much_worse() -> None:
    good, bad = seeds(run(2, 1.0), run(2, 1.1)), seeds(run(2, 2.0), run(2, 2.3))
    said = [better(check("better", at="last"), sides) for sides in ([good, bad], [bad, good])]
    assert [finding.measured.partition(" by ")[0] for finding in said] == [
        "layer norm better than no norm",
        "layer norm worse than no norm",
    ]
    assert said[0].measured.partition(" by ")[2] == said[1].measured.partition(" by ")[2]


@pytest.mark.parametrize(
    ("within", "values", "place"),
    [
        ((None, 1.3), (1.0, 1.01, 1.02), "the interval lies below 1.3"),
        ((None, 1.3), (2.0, 2.01, 2.02), "the interval lies above 1.3"),
        ((1.3, None), (1.0, 1.01, 1.02), "the interval lies below 1.3"),
        ((1.3, None), (2.0, 2.01, 2.02), "the interval lies above 1.3"),
        ((1.3, None), (1.0, 1.3, 1.6), "the interval straddles 1.3"),
        ((0.0, 1.3), (1.0, 1.01, 1.02), "the interval lies within [0, 1.3]"),
        ((0.0, 1.3), (2.0, 2.01, 2.02), "the interval lies outside [0, 1.3]"),
    ],
)
def test_a_range_without_an_end_is_named_by_the_other(
    within: tuple[float | None, ...], values: tuple[float, ...], place: str
) -> None:
    assert value(check("value", at="last", within=within), [seeds(*[run(2, v) for v in values])]).reason == place


def test_beside_a_fixed_target_stands_what_nine_tenths_say() -> None:
    quick, slow = seeds(*[run(4, 1, 1, 1)] * 3), seeds(*[run(4, 3, 2, 1)] * 3)
    said = faster(check("faster", target=2.5), [quick, slow]).measured
    assert "; 0.5" in said
    assert said.endswith("to nine tenths of the baseline's improvement")


def test_all_diverged_is_no_difference_of_zero() -> None:
    dead = seeds(DEAD, DEAD, DEAD)
    for kind in (better, faster):
        finding = kind(check("better"), [dead, dead])
        assert finding.outcome == OPEN
        assert finding.measured == "diverged"
        assert finding.reason == "every run of both diverged"
    nothing = seeds(*[run(math.nan, math.nan)] * 3)  # complete, but its network is no longer finite
    assert better(check("better"), [nothing, nothing]).measured == "diverged"


def drawn(*y: float) -> Curve:
    x = tuple(10.0 * (i + 1) for i in range(len(y)))
    return Curve(Key("mnist_b128", "valid_loss", "layer"), Source("f", "", "", "", "", ""), "step", x, y)


def test_a_curve_is_held_against_the_published_ones_own_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    published = drawn(1.0, 0.82, 0.58, 0.42, 0.18, 0.02)
    other = replace(published, key=published.key._replace(norm="batch"), y=tuple(y + 0.04 for y in published.y))
    monkeypatch.setattr(curve_checks, "published_curves", lambda: {one.key: one for one in (published, other)})
    noises = check("curve", noises=3)
    assert curve_checks.noise(published.y) == pytest.approx(math.sqrt((0.06**2 + 0.08**2 + 0.08**2 + 0.08**2) / 24))
    near = [run(*(y + shift for y in published.y)) for shift in (0.05, 0.04, 0.06)]
    far = [run(*(y + shift for y in published.y)) for shift in (0.25, 0.24, 0.26)]
    assert curve(noises, [seeds(*near)]).outcome == HOLDS
    assert curve(noises, [seeds(*near)]).reason.endswith("as would the published curve of batch")
    assert curve(noises, [seeds(*far)]).outcome == FAILS
    assert curve(check("curve", tolerance=0.3), [seeds(*far)]).outcome == HOLDS
    # Runs of the first part are held against the first part.
    assert curve(noises, [seeds(*(run.until(50) for run in near))]).outcome == HOLDS
    assert curve(noises, [seeds(*(run.until(20) for run in near))]).outcome == Outcome.LACKING
    assert curve(noises, [seeds(near[0])]).outcome == OPEN


def test_an_unstable_curve_is_judged_by_when_it_gets_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    published = drawn(1.0, 1.0, 1.0, 0.5, 0.4, 0.3)
    monkeypatch.setattr(curve_checks, "published_curves", lambda: {published.key: published})
    level = check("curve", level=0.7, factor=1.5)
    same = seeds(run(1.0, 1.0, 1.0, 0.5, 0.5, 0.5), run(1.0, 1.0, 0.9, 0.5, 0.5, 0.5), run(1, 1, 1, 0.4, 0.4, 0.4))
    early = seeds(*[run(1.0, 0.1, 0.1, 0.1, 0.1, 0.1)] * 3)
    never = seeds(*[run(*[1.0] * 6)] * 3)
    assert curve(level, [same]).outcome == HOLDS
    assert curve(level, [early]).outcome == FAILS
    assert curve(level, [never]).outcome == FAILS
    assert "3 of 3 runs never are" in curve(level, [never]).reason
    assert curve(check("curve", level=0.1, factor=1.5), [same]).outcome == Outcome.LACKING


def test_above_counts_the_checkpoints_at_which_a_run_does_better() -> None:
    nearly = check("above", at_least=0.75)
    high = seeds(*[run(2.0, 3.0, 4.0, 5.0)] * 3)
    assert checks.above(nearly, [seeds(*[run(1.0, 2.0, 3.0, 4.0)] * 3), high]).outcome == HOLDS
    half = checks.above(nearly, [seeds(*[run(1.0, 2.0, 5.0, 6.0)] * 3), high])
    assert half.outcome == Outcome.SHORT
    assert half.interval is not None
    assert half.interval.estimate == 0.5
    mixed = seeds(run(1.0, 2.0, 3.0, 4.0), run(1.0, 2.0, 5.0, 6.0), run(1.0, 2.0, 3.0, 6.0))
    found = checks.above(nearly, [mixed, high])
    assert found.outcome == OPEN
    # Student's interval of (1, 0.5, 0.75) ends at 1.37, and no share does.
    assert found.interval is not None
    assert found.interval.high == 1.0
    # Three checkpoints that the runs did not live to see are the baseline's.
    short = checks.above(nearly, [seeds(*[run(1.0)] * 3), high]).interval
    assert short is not None
    assert short.estimate == 0.25
    assert checks.above(nearly, [seeds(run(1.0)), seeds(run(2.0))]).outcome == OPEN

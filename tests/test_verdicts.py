"""Verdicts: which word an outcome becomes at which scale, and what says nothing of a norm."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ln.suite.judging.checks import Outcome
from ln.suite.judging.claims import Check, Claim, ClaimsFile, Expected, Figure, Reference, RunsWanted
from ln.suite.judging.verdicts import (
    NOT_REPRODUCED,
    NOT_RUN,
    OPPOSITE_SEEN,
    REPRODUCED,
    SEEN,
    UNDECIDED,
    Verdict,
    in_words,
    judge_runs,
    strongest,
    word_for,
    write_verdicts,
)
from ln.suite.runs.read import Measured, load_runs
from tests.judged_runs import check, run, seeds

# Flat at the end, so that nothing is still improving.
LOW, HIGH = [3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [3.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]


def three(values: list[float], **info: Any) -> dict[int, Measured]:
    return seeds(*[run(*(v + 0.01 * seed for v in values), seed=seed, **info) for seed in range(3)])


def judged(asked: Check, *sides: dict[int, Measured], profile: str = "laptop", **more: Any) -> Verdict:
    wanted = RunsWanted(experiments=("mnist_b128",), norms=("none", "layer"), seeds={})
    metrics = {"valid_loss": "lower", "test_loss": "lower"}
    claim = Claim(id="a", sentence="s", source="src", checks=(asked,))
    document = ClaimsFile("t", "f", wanted, metrics, Figure(()), (claim,), **more)
    runs: dict[str, Any] = {}
    for (experiment, norm), side in zip(asked.sides, sides, strict=True):
        runs.setdefault(experiment, {})[norm] = side
    (verdict,) = judge_runs(document, runs, profile)
    return verdict


@pytest.mark.parametrize(
    ("outcome", "faithful", "elsewhere"),
    [
        (Outcome.HOLDS, REPRODUCED, SEEN),
        (Outcome.FAILS, NOT_REPRODUCED, OPPOSITE_SEEN),
        (Outcome.SHORT, NOT_REPRODUCED, UNDECIDED),
        (Outcome.OPEN, UNDECIDED, UNDECIDED),
    ],
)
def test_the_words_fit_the_scale(outcome: Outcome, faithful: str, elsewhere: str) -> None:
    assert word_for(outcome, faithful=True) == faithful
    assert word_for(outcome, faithful=False) == elsewhere


@pytest.mark.parametrize(
    ("profile", "status", "word"),
    [("full", "original", REPRODUCED), ("full", "substitute", SEEN), ("laptop", "original", SEEN)],
)
def test_reproduced_is_said_of_the_papers_protocol_on_original_data_only(profile: str, status: str, word: str) -> None:
    data = {"status": status, "name": "MNIST"}
    sides = [three(LOW, data=data), three(HIGH, data=data)]
    assert judged(check("better"), *sides, profile=profile).verdict == word
    assert judged(check("better", scale_free=True), *sides, profile=profile).verdict == REPRODUCED


def test_a_protocol_that_is_not_known_cannot_be_reproduced() -> None:
    original = {"data": {"status": "original", "name": "MNIST"}}
    sides = [three(LOW, **original), three(HIGH, **original)]
    assert judged(check("better"), *sides, profile="full", known_protocol=False).verdict == SEEN


def test_the_seeds_of_a_comparison_are_those_that_both_sides_have() -> None:
    more = {**three(LOW), 3: run(*LOW, seed=3), 4: run(*LOW, seed=4)}
    assert judged(check("better"), more, three(HIGH)).seeds == [0, 1, 2]


def shown(verdict: str, profile: str, interval: bool = True) -> dict[str, Any]:
    return {"verdict": verdict, "profile": profile, "scale": profile, "data": "original", "reason": "why",
            "measured": "1.5", "findings": [{"interval": {} if not interval else {"low": 1.0}}]}  # fmt: skip


def test_what_is_decided_is_shown_and_named_where_a_more_faithful_profile_is_open() -> None:
    diverged, seen = shown(NOT_REPRODUCED, "full", interval=False), shown(SEEN, "laptop")
    assert strongest([diverged, seen]) == diverged
    still = strongest([shown(UNDECIDED, "full"), shown(OPPOSITE_SEEN, "laptop")])
    assert still is not None
    assert (still["verdict"], still["profile"]) == (UNDECIDED, "full")
    assert still["reason"] == "why; at laptop: opposite seen, 1.5"
    assert still["elsewhere"] == "at laptop: opposite seen, 1.5"


def test_a_verdict_names_the_part_of_the_protocol_that_it_is_said_of() -> None:
    part = {"verdict": REPRODUCED, "scale": "full, first 6 of 130 epochs"}
    assert in_words(part) == "reproduced (first 6 of 130 epochs)"
    assert in_words(part | {"scale": "full"}) == "reproduced"
    assert in_words(part | {"verdict": UNDECIDED}) == "undecided"


def test_runs_of_different_data_are_not_judged_together() -> None:
    digits = {"data": {"status": "embedded", "name": "digits"}}
    mixed = {**three(LOW), 3: run(*LOW, seed=3, **digits)}
    for sides in ((mixed, three(HIGH)), (three(LOW), three(HIGH, **digits))):
        verdict = judged(check("better"), *sides)
        assert verdict.verdict == NOT_RUN
        assert verdict.reason.startswith("its runs have different data, MNIST [original] and digits [embedded]")


@pytest.mark.parametrize(
    ("profile", "status", "said"), [("laptop", "original", "profile full"), ("full", "embedded", "original")]
)
def test_published_numbers_are_judged_at_full_on_original_data_only(profile: str, status: str, said: str) -> None:
    asked = check("value", "test_loss", "final", published=1.0, tolerance=1.0)
    verdict = judged(asked, three(LOW, data={"status": status, "name": "MNIST"}), profile=profile)
    assert verdict.verdict == NOT_RUN
    assert said in verdict.reason


def partial(values: list[float], steps: int) -> dict[int, Measured]:
    identity = {"train": {"epochs": 20, "steps": None}}
    runs = three(values, status="partial")
    return {
        seed: replace(run.until(steps), info={**run.info, "identity": {**identity, "seed": seed}})
        for seed, run in runs.items()
    }


def test_the_first_part_of_the_protocol_is_judged_as_that() -> None:
    sides = [partial(LOW, 80), partial(HIGH, 60)]
    verdict = judged(check("better"), *sides, profile="full")
    assert verdict.verdict == REPRODUCED
    assert verdict.scale == "full, first 6 of 20 epochs"
    # What is said of the end, and published numbers, wait for the end.
    for asked in (check("better", at="last"), check("better", "test_loss", "final")):
        end = judged(asked, *sides, profile="full")
        assert end.verdict == NOT_RUN
        assert "about the end of the protocol; these runs are full, first 6 of 20 epochs" in end.reason
    minimum = check("value", at="best", published=1.0, tolerance=1.0)
    assert judged(minimum, sides[0], profile="full").verdict == NOT_RUN


def test_a_fixed_target_is_for_runs_of_the_whole_protocol() -> None:
    # Nobody gets to 0.5; both get nine tenths of the way.
    asked = check("faster", target=0.5)
    late = [3.0, 3.0, 3.0, 3.0, *LOW[1:5]]
    assert judged(asked, three(LOW), three(late), profile="full").verdict == UNDECIDED
    assert judged(asked, three(LOW), three(late)).verdict == SEEN
    assert judged(asked, partial(LOW, 80), partial(late, 80), profile="full").verdict == REPRODUCED


def test_a_model_no_better_than_a_simple_one_says_nothing() -> None:
    floor = Reference(label="a guess", of=("valid_loss",), value=0.9)
    weak = judged(check("better"), three(LOW), three(HIGH), references=(floor,))
    assert weak.verdict == UNDECIDED
    assert "too weak: the better of the two norms reaches 1.01, a guess 0.9" in weak.reason
    assert "how many more updates that takes cannot be told from these" in weak.reason
    # One that only the baseline cannot beat is an effect.
    between = replace(floor, value=1.5)
    assert judged(check("better"), three(LOW), three(HIGH), references=(between,)).verdict == SEEN
    # A reference of other data is none.
    other = replace(floor, data="substitute")
    assert judged(check("better"), three(LOW), three(HIGH), references=(other,)).verdict == SEEN
    measured = Reference(label="it", of=("test_loss", "valid_loss"), metric="test_floor")
    assert "too weak" in judged(check("better"), three(LOW), three(HIGH), references=(measured,)).reason


def test_a_curve_still_falling_says_nothing_of_the_end() -> None:
    falling = [3.0, 2.6, 2.2, 1.9, 1.6, 1.3, 1.0, 0.8]
    verdict = judged(check("better"), three(falling), three(HIGH))
    assert verdict.verdict == UNDECIDED
    assert "still improving: 25% of a curve's whole improvement came in its last quarter" in verdict.reason
    assert "about 5 times the updates would show its end" in verdict.reason
    assert judged(check("faster"), three(falling), three([v + 0.5 for v in falling])).verdict != NOT_RUN
    # The end of the paper's own protocol is its end.
    assert judged(check("better"), three(falling), three(HIGH), profile="full").verdict == REPRODUCED


def test_what_is_open_says_how_many_seeds_would_decide_it() -> None:
    ours, theirs = [1.0, 1.4, 1.2], [1.3, 1.4, 1.5]
    sides = [seeds(*[run(*[5.0, *[v] * 7], seed=i) for i, v in enumerate(values)]) for values in (ours, theirs)]
    verdict = judged(check("better"), *sides)
    assert verdict.verdict == UNDECIDED
    assert "about 9 seeds of as many updates would decide it" in verdict.reason
    few = judged(check("better"), seeds(run(1.0)), seeds(run(2.0)))
    assert few.verdict == UNDECIDED
    assert "1 seed gives no interval; run at least 3" in few.reason
    expected = check("better", expected=Expected(effect=0.3, spread=0.2))
    assert (
        "; 6 seeds have a power of 80% for the effect that is expected"
        in judged(expected, {0: run(1.0)}, {0: run(2.0)}).reason
    )


def test_a_number_that_straddles_its_range_says_what_would_decide_it() -> None:
    apart = [
        seeds(*[run(5.0, v, seed=i) for i, v in enumerate(values)]) for values in ([1.0, 1.4, 1.2], [1.0, 1.1, 1.2])
    ]
    within = judged(check("value", at="last", within=(None, 1.3)), apart[0])
    assert within.reason == ("the interval straddles 1.3; about 34 seeds of as many updates would decide it")
    published = check("value", at="last", published=1.0, tolerance=0.25, scale_free=True)
    assert judged(published, apart[0]).reason.endswith(
        "; no number of seeds would decide it, since single runs scatter too much"
    )
    close = judged(replace(published, tolerance=0.35), apart[1])
    assert close.reason.endswith(" seeds of as many updates would decide it")


def test_what_is_undecided_for_its_length_says_its_seeds_too() -> None:
    falling = [3.0, 2.6, 2.2, 1.9, 1.6, 1.3, 1.0, 0.8]
    asked = check("better", expected=Expected(effect=0.3, spread=0.2, steps=500))
    assert judged(asked, three(falling), three(HIGH)).reason.endswith(
        "would show its end; 6 seeds of 500 updates have a power of 80% for the effect that is expected"
    )


def test_what_cannot_be_asked_is_not_run() -> None:
    missing = judged(check("better"), three(LOW), {})
    assert missing.verdict == NOT_RUN
    assert missing.reason == "no finished run of norm none at profile laptop"
    assert judged(check("better", "valid_error"), three(LOW), three(HIGH)).reason == "these runs have no valid_error"
    other = judged(check("better", dataset="CIFAR-10"), three(LOW), three(HIGH))
    assert other.verdict == NOT_RUN
    assert other.reason == "it is judged on CIFAR-10; these runs have MNIST"


def test_a_baseline_may_be_another_experiments_run_of_the_same_norm() -> None:
    asked = check("better", baseline="layer", baseline_experiment="small_gain")
    assert "better than layer norm of small_gain by 1" in judged(asked, three(LOW), three(HIGH)).measured
    assert judged(asked, three(HIGH), three(LOW)).verdict == OPPOSITE_SEEN


def test_a_claim_without_a_measurement_says_what_it_takes() -> None:
    wanted = RunsWanted(experiments=("mnist_b128",), norms=("none",), seeds={})
    claim = Claim(id="a", sentence="s", source="src", checks=(), needs="a stopwatch")
    (verdict,) = judge_runs(ClaimsFile("t", "f", wanted, {}, Figure(()), (claim,)), {}, "laptop")
    assert (verdict.verdict, verdict.reason) == (NOT_RUN, "it would take a stopwatch")


PART = {"step": 20, "epoch": 2.0, "last_step": 40}  # how far a run has come


def test_runs_are_read_up_to_a_torn_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "laptop" / "mnist_b128" / "layer" / "3"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({**run(1.0).info, **PART, "status": "partial"}))
    (folder / "metrics.jsonl").write_text('{"step": 10, "valid_loss": 2.0}\n{"step": 20, "valid_l')
    runs = load_runs(tmp_path, "laptop", "mnist_b128")
    assert runs["layer"][3].curve("valid_loss") == ([10], [2.0])
    assert capsys.readouterr().err.count("cut short") == 1


@pytest.mark.parametrize(("status", "counts"), [("interrupted", False), ("partial", True), ("diverged", True)])
def test_which_runs_count(status: str, counts: bool, tmp_path: Path) -> None:
    folder = tmp_path / "laptop" / "mnist_b128" / "layer" / "0"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({**run(1.0).info, **PART, "status": status}))
    assert bool(load_runs(tmp_path, "laptop", "mnist_b128")) == counts


def test_verdicts_hold_no_infinities(tmp_path: Path) -> None:
    verdict = Verdict("a", "s", "src", "", REPRODUCED, "", "", "laptop", "original", [0], findings=[{"x": math.inf}])
    assert json.loads(write_verdicts([verdict], tmp_path).read_text())[0]["findings"] == [{"x": None}]

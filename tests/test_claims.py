"""Verdicts as pure functions of runs on disk."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ln.suite.config import names
from ln.suite.errors import Mistake
from ln.suite.judging import claims
from ln.suite.judging.claims import INCONCLUSIVE, NOT_REPRODUCED, NOT_RUN, REPRODUCED, Measured
from ln.suite.showing.report import groups
from ln.suite.sweeps.wanted import wanted


def run(*values: float, seed: int = 0, status: str = "complete", **info: Any) -> Measured:
    """A run evaluated every 10 steps, whose last value is its final one."""
    records: list[dict[str, Any]] = [
        {"step": 10 * (i + 1), "epoch": i + 1, "valid_loss": v} for i, v in enumerate(values)
    ]
    if status == "complete":
        records.append({"step": 10 * len(values), "final": True, "test_loss": values[-1], "test_error": values[-1]})
    base = {"status": status, "identity": {"seed": seed}, "data": {"status": "original", "name": "MNIST"}}
    return Measured({**base, "examples": {"test": 100, "valid": 100}, **info}, records)


def seeds(*runs: Measured) -> dict[int, Measured]:
    return dict(enumerate(runs))


COMPARE = {"norm": "layer", "baseline": "none", "metric": "valid_loss", "direction": "lower"}


def test_value_within_its_tolerance() -> None:
    check = {"norm": "layer", "metric": "test_loss", "direction": "lower", "published": 1.0, "tolerance": 0.1}
    near = [seeds(run(1.01), run(1.0), run(0.99))]
    assert claims.value(check, near).verdict == REPRODUCED
    assert claims.value(check, [seeds(run(2.01), run(2.0), run(1.99))]).verdict == NOT_REPRODUCED
    assert claims.value(check, [seeds(run(0.8), run(1.0), run(1.3))]).verdict == INCONCLUSIVE
    assert claims.value(check, [seeds(run(1.0))]).verdict == INCONCLUSIVE


def test_a_proportion_is_as_uncertain_as_its_test_set() -> None:
    check = {"norm": "layer", "metric": "test_error", "direction": "lower", "published": 0.5, "tolerance": 0.05}
    runs = [seeds(run(0.5), run(0.501), run(0.499))]
    assert claims.value(check, runs).verdict == REPRODUCED
    # 100 examples cannot tell 0.5 from 0.45 or 0.55, however well the seeds agree.
    assert claims.value({**check, "proportion": True}, runs).verdict == INCONCLUSIVE


def test_better_pairs_by_seed() -> None:
    layer, none = seeds(run(1.0), run(2.0), run(3.0)), seeds(run(1.1), run(2.1), run(3.11))
    assert claims.better(COMPARE, [layer, none]).verdict == REPRODUCED
    assert claims.better(COMPARE, [none, layer]).verdict == NOT_REPRODUCED
    crossed = [layer, {0: none[2], 1: none[0], 2: none[1]}]
    assert claims.better(COMPARE, crossed).verdict == INCONCLUSIVE


def test_faster_counts_a_run_that_never_reaches_the_target_as_later_than_its_end() -> None:
    quick = seeds(*[run(1.0, 0.5, 0.4, 0.3, *[0.3 + 0.01 * seed] * 8) for seed in range(3)])
    slow = seeds(*[run(*[3.0 - 0.1 * i for i in range(12)]) for _ in range(3)])
    finding = claims.faster(COMPARE, [slow, quick])
    assert finding.verdict == NOT_REPRODUCED
    assert "3 and" in finding.reason  # all three slow runs never get there


def test_faster_against_a_published_share() -> None:
    quick = seeds(*[run(*[4 - 0.6 * i for i in range(7)]) for _ in range(4)])
    slow = seeds(*[run(*[4 - 0.3 * i for i in range(14)]) for _ in range(4)])
    runs = [quick, slow]
    check = {**COMPARE, "target": 1.0}
    assert claims.faster(check, runs).verdict == REPRODUCED
    assert claims.faster({**check, "at_most": 0.3}, runs).verdict == NOT_REPRODUCED


def test_a_diverged_run_is_counted_never_dropped() -> None:
    dead = Measured({**run(1.0).info, "status": "diverged"}, [])
    fine = seeds(run(1.0), run(1.01), run(0.99))
    assert claims.better(COMPARE, [{**fine, 2: dead}, fine]).verdict != REPRODUCED
    assert claims.better(COMPARE, [fine, seeds(dead, dead, dead)]).verdict == REPRODUCED
    value = {"norm": "layer", "metric": "test_loss", "direction": "lower", "within": [None, 5.0]}
    assert claims.value(value, [{**fine, 2: dead}]).verdict == NOT_REPRODUCED


def test_curve_against_published_points() -> None:
    check = {
        "norm": "layer",
        "metric": "valid_loss",
        "direction": "lower",
        "points": {10: 1.0, 20: 0.5},
        "tolerance": 0.1,
    }
    assert claims.curve(check, [seeds(run(1.0, 0.52), run(1.01, 0.5), run(1.0, 0.51))]).verdict == REPRODUCED
    assert claims.curve(check, [seeds(run(2.0, 1.5), run(2.01, 1.5), run(2.0, 1.51))]).verdict == NOT_REPRODUCED
    assert claims.curve(check, [seeds(run(1.0), run(1.0))]).verdict == NOT_REPRODUCED  # ends too early


@pytest.mark.parametrize(
    ("profile", "status", "said"), [("laptop", "original", "profile full"), ("full", "embedded", "original")]
)
def test_published_numbers_are_judged_at_full_on_original_data_only(profile: str, status: str, said: str) -> None:
    check = {
        "kind": "value",
        "norm": "layer",
        "metric": "test_loss",
        "direction": "lower",
        "published": 1,
        "tolerance": 1,
    }
    runs = [seeds(run(1.0, data={"status": status}), run(1.0, data={"status": status}))]
    finding = claims._check(check, runs, profile)
    assert finding.verdict == NOT_RUN
    assert said in finding.reason


def test_a_missing_norm_is_not_run() -> None:
    finding = claims._check({"kind": "better", **COMPARE}, [seeds(run(1.0)), {}], "laptop")
    assert finding.verdict == NOT_RUN
    assert finding.reason == "no finished run of norm none at profile laptop"


def test_above_counts_the_checkpoints_at_which_a_run_does_better() -> None:
    check = {**COMPARE, "at_least": 0.75}
    high = seeds(*[run(2.0, 3.0, 4.0, 5.0)] * 3)
    assert claims.above(check, [seeds(*[run(1.0, 2.0, 3.0, 4.0)] * 3), high]).verdict == REPRODUCED
    half = claims.above(check, [seeds(*[run(1.0, 2.0, 5.0, 6.0)] * 3), high])
    assert half.verdict == NOT_REPRODUCED
    assert half.interval is not None
    assert half.interval.estimate == 0.5
    mixed = seeds(run(1.0, 2.0, 3.0, 4.0), run(1.0, 2.0, 5.0, 6.0), run(1.0, 2.0, 3.0, 6.0))
    assert claims.above(check, [mixed, high]).verdict == INCONCLUSIVE
    # Three checkpoints that the runs did not live to see are the baseline's.
    short = claims.above(check, [seeds(*[run(1.0)] * 3), high]).interval
    assert short is not None
    assert short.estimate == 0.25
    assert claims.above({**check, "direction": "higher"}, [high, mixed]).verdict == INCONCLUSIVE
    assert claims.above(check, [seeds(run(1.0)), seeds(run(2.0))]).verdict == INCONCLUSIVE


def test_a_baseline_may_be_another_experiments_run_of_the_same_norm() -> None:
    claim = {"id": "gain", "sentence": "", "source": "", "kind": "better", **COMPARE, "baseline": "layer"}
    claim |= {"baseline_experiment": "small_gain"}
    runs = {"usual": {"layer": seeds(run(1.0), run(2.0), run(3.0))}}
    runs["small_gain"] = {"layer": seeds(run(1.1), run(2.1), run(3.11))}
    document = {"runs": {"experiments": ["usual", "small_gain"]}, "claims": [claim]}
    (verdict,) = claims.judge_runs(document, runs, "laptop")
    assert verdict.verdict == REPRODUCED
    assert "better than layer of small_gain by 0.1" in verdict.measured
    (turned,) = claims.judge_runs(document, dict(zip(runs, reversed(runs.values()), strict=True)), "laptop")
    assert turned.verdict == NOT_REPRODUCED


def test_runs_are_read_up_to_a_torn_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "laptop" / "mnist_b128" / "layer" / "3"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(run(1.0).info))
    (folder / "metrics.jsonl").write_text('{"step": 10, "valid_loss": 2.0}\n{"step": 20, "valid_l')
    runs = claims.load_runs(tmp_path, "laptop", "mnist_b128")
    assert runs["layer"][3].curve("valid_loss") == ([10], [2.0])
    assert capsys.readouterr().out.count("cut short") == 1


def test_unfinished_runs_do_not_count(tmp_path: Path) -> None:
    folder = tmp_path / "laptop" / "mnist_b128" / "layer" / "0"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"status": "interrupted"}))
    assert claims.load_runs(tmp_path, "laptop", "mnist_b128") == {}


@pytest.mark.parametrize("group", groups())
def test_every_claims_file_is_whole(group: str) -> None:
    """Every check names a kind, known norms and a known experiment, and what its kind needs."""
    document = claims.load_claims(group)
    experiments = document["runs"]["experiments"]
    assert set(experiments) <= set(names("experiment"))
    assert set(document["runs"]["seeds"]) == {"smoke", "laptop", "full"}
    norms = wanted(group, "full").norms
    assert set(norms) == set(experiments)
    identifiers = [claim["id"] for claim in document["claims"]]
    assert len(set(identifiers)) == len(identifiers)
    for claim in document["claims"]:
        for check in [{**claim, **check} for check in claim.get("checks", [{}])]:
            assert check["kind"] in claims.KINDS, claim["id"]
            for experiment, norm in claims._sides(check, experiments[0]):
                assert norm in norms[experiment], claim["id"]
            assert check["direction"] in ("lower", "higher")
            needs = {"value": ("within", "tolerance"), "curve": ("points",), "above": ("at_least",)}
            assert any(key in check for key in needs.get(check["kind"], ("baseline",))), claim["id"]
            assert claim["sentence"]
            assert claim["source"]


def test_an_unknown_group_is_one_sentence() -> None:
    with pytest.raises(Mistake, match="choose one of"):
        claims.load_claims("mnits")


def test_verdicts_hold_no_infinities(tmp_path: Path) -> None:
    verdict = claims.Verdict(
        "a", "s", "src", "", REPRODUCED, "", "", "laptop", "original", [0], findings=[{"x": math.inf}]
    )
    assert json.loads(claims.write_verdicts([verdict], tmp_path).read_text())[0]["findings"] == [{"x": None}]

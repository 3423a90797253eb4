"""Claims of the paper as data, judged from measured runs.

`configs/claims/<experiment>.yaml` lists, for each claim, its sentence, source, published numbers and checks. A check is
one of five kinds, each a function from runs to a finding. `judge_runs` judges runs that were read
from their files and trains nothing.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ln.suite.config import CONFIGS
from ln.suite.errors import Mistake
from ln.suite.judging.stats import (
    Interval,
    first_reach,
    mean_interval,
    proportion_half_width,
    ratio_interval,
    widen,
)
from ln.suite.runs.folder import DIVERGED, DONE, read_metrics

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NOT_RUN = "reproduced", "not_reproduced", "inconclusive", "not_run"
# A claim of several checks is as good as its worst.
WORST_FIRST = (NOT_RUN, NOT_REPRODUCED, INCONCLUSIVE, REPRODUCED)


@dataclass(frozen=True)
class Measured:
    """A run as read from its folder."""

    info: dict[str, Any]
    records: list[dict[str, Any]]

    @property
    def diverged(self) -> bool:
        return self.info["status"] == DIVERGED

    def curve(self, metric: str, x: str = "step") -> tuple[list[float], list[float]]:
        """The evaluations of a metric: x values (step, epoch or seconds) and values."""
        points = [(r[x], r[metric]) for r in self.records if not r.get("final") and r.get(metric) is not None]
        return [p[0] for p in points], [p[1] for p in points]

    def value(self, metric: str, at: str, lower: bool) -> float:
        """A metric `at` the end of training (last), at its best (best), or on the checkpoint that validation chose
        (final). A diverged run's is as bad as can be."""
        worst = math.inf if lower else -math.inf
        if self.diverged:
            return worst
        if at == "final":
            return next(r[metric] for r in self.records if r.get("final"))
        values = self.curve(metric)[1]
        if at == "last":
            return values[-1]
        return min(values) if lower else max(values)


Seeds = dict[int, Measured]
Runs = dict[str, Seeds]  # norm -> seed -> run


def load_runs(results: str | Path, profile: str, experiment: str) -> Runs:
    """The done runs of an experiment. Unfinished ones do not count yet."""
    runs: Runs = {}
    for path in sorted((Path(results) / profile / experiment).glob("*/*/run.json")):
        info = json.loads(path.read_text())
        if info["status"] in DONE:
            records = read_metrics(path.parent / "metrics.jsonl")
            runs.setdefault(path.parent.parent.name, {})[int(path.parent.name)] = Measured(info, records)
    return runs


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    verdict: str
    measured: str  # as text, with its interval
    reason: str  # one sentence
    interval: Interval | None = None


@dataclass
class Verdict:
    """A claim and what the runs say of it."""

    claim: str
    sentence: str
    source: str
    published: str
    verdict: str
    measured: str
    reason: str
    profile: str
    data: str
    seeds: list[int]
    extension: bool = False
    findings: list[dict[str, Any]] = field(default_factory=list)


def load_claims(group: str) -> dict[str, Any]:
    """The contents of configs/claims/<group>.yaml."""
    path = CONFIGS / "claims" / f"{group}.yaml"
    if not path.exists():
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise Mistake(f"{group} is not an experiment with claims; choose one of {', '.join(known)}")
    return yaml.safe_load(path.read_text())


def judge_runs(document: dict[str, Any], runs: dict[str, Runs], profile: str) -> list[Verdict]:
    """The verdict on every claim of a claims file from the done runs of one profile, by experiment."""
    default = document["runs"]["experiments"][0]
    return [_judge_claim(claim, runs, default, profile) for claim in document["claims"]]


def _judge_claim(claim: dict[str, Any], runs: dict[str, Runs], default: str, profile: str) -> Verdict:
    checks = [{**claim, **check} for check in claim.get("checks", [{}])]
    findings, used = [], []
    for check in checks:
        sides = [runs[experiment].get(norm, {}) for experiment, norm in _sides(check, default)]
        findings.append(_check(check, sides, profile))
        used += [run for side in sides for run in side.values()]
    worst = min(findings, key=lambda finding: WORST_FIRST.index(finding.verdict))
    texts = [
        check.get("quantity", "") + " " * ("quantity" in check) + f.measured
        for check, f in zip(checks, findings, strict=True)
    ]
    holding = sum(finding.verdict == REPRODUCED for finding in findings)
    summary = f"{holding} of {len(findings)} checks hold" if len(findings) > 3 else "; ".join(filter(None, texts))
    return Verdict(
        claim=claim["id"],
        sentence=claim["sentence"],
        source=claim["source"],
        published=str(claim.get("published_text", claim.get("published", ""))),
        verdict=worst.verdict,
        measured="" if worst.verdict == NOT_RUN else summary,
        reason=worst.reason
        if len(findings) <= 3 or worst.verdict != REPRODUCED
        else "every check's interval is inside",
        profile=profile,
        data=", ".join(sorted({run.info["data"]["status"] for run in used})),
        seeds=sorted({run.info["identity"]["seed"] for run in used}),
        extension=claim.get("source_kind") == "extension",
        findings=[asdict(finding) for finding in findings],
    )


def _sides(check: dict[str, Any], default: str) -> list[tuple[str, str]]:
    """Experiment and norm of the runs that are judged, and of their baseline where there is one."""
    experiment = check.get("experiment", default)
    if "baseline" not in check:
        return [(experiment, check["norm"])]
    return [(experiment, check["norm"]), (check.get("baseline_experiment", experiment), check["baseline"])]


def _baseline(check: dict[str, Any]) -> str:
    return check["baseline"] + (f" of {check['baseline_experiment']}" if "baseline_experiment" in check else "")


def _check(check: dict[str, Any], sides: list[Seeds], profile: str) -> Finding:
    names = [check["norm"], *([_baseline(check)] if "baseline" in check else [])]
    missing = [name for name, side in zip(names, sides, strict=True) if not side]
    if missing:
        return Finding(NOT_RUN, "", f"no finished run of norm {' and '.join(missing)} at profile {profile}")
    refusal = _protocol_refusal(check, sides, profile)
    if refusal:
        return Finding(NOT_RUN, "", refusal)
    return KINDS[check["kind"]](check, sides)


def _protocol_refusal(check: dict[str, Any], sides: list[Seeds], profile: str) -> str:
    """Published numbers are judged at the paper's protocol only, unless the claim says otherwise."""
    default = {"profile": "full", "data": "original"} if check["kind"] in ("value", "curve") else {}
    requires = check.get("requires", default)
    statuses = {run.info["data"]["status"] for side in sides for run in side.values()}
    if "profile" in requires and requires["profile"] != profile:
        return f"a published number, judged at profile {requires['profile']}; these runs are {profile}"
    if "data" in requires and statuses != {requires["data"]}:
        return f"a published number, judged on {requires['data']} data; these runs have {', '.join(sorted(statuses))}"
    return ""


def _paired(sides: list[Seeds]) -> tuple[list[Measured], list[Measured]]:
    ours, theirs = sides
    seeds = sorted(ours.keys() & theirs.keys())
    return [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]


def _lower(check: dict[str, Any]) -> bool:
    return check["direction"] == "lower"


def _too_few(count: int) -> Finding:
    return Finding(
        INCONCLUSIVE, "", f"{count} seed{'s' * (count != 1)} give{'s' * (count == 1)} no interval; run at least 3"
    )


def _test_set_half_width(check: dict[str, Any], groups: list[list[Measured]]) -> float:
    """What the finite split adds to the uncertainty of a proportion; 0 for other metrics."""
    if not check.get("proportion"):
        return 0.0
    split = check["metric"].split("_")[0]
    scale = check.get("scale", 1.0)  # 100 where the metric is in percent
    means = []
    for runs in groups:
        values = [run.value(check["metric"], check.get("at", "final"), _lower(check)) / scale for run in runs]
        means.append(sum(values) / len(values))
    return scale * proportion_half_width(means, groups[0][0].info["examples"][split])


def value(check: dict[str, Any], sides: list[Seeds]) -> Finding:
    """The mean over seeds lies within `tolerance` of `published`, or `within` [low, high]."""
    low, high = check.get("within") or (
        check["published"] - check["tolerance"],
        check["published"] + check["tolerance"],
    )
    low, high = (-math.inf if low is None else low), (math.inf if high is None else high)
    measured = list(sides[0].values())
    values = [run.value(check["metric"], check.get("at", "final"), _lower(check)) for run in measured]
    if not all(map(math.isfinite, values)):
        return Finding(
            NOT_REPRODUCED, "diverged", f"{sum(run.diverged for run in measured)} of {len(values)} seeds diverged"
        )
    if len(values) < 2:
        return _too_few(len(values))
    interval = widen(mean_interval(values), _test_set_half_width(check, [measured]))
    band = f"[{low:.4g}, {high:.4g}]"
    if interval.within(low, high):
        return Finding(REPRODUCED, str(interval), f"the interval lies within {band}", interval)
    if interval.disjoint(low, high):
        return Finding(NOT_REPRODUCED, str(interval), f"the interval lies outside {band}", interval)
    return Finding(INCONCLUSIVE, str(interval), f"the interval straddles an end of {band}", interval)


def better(check: dict[str, Any], sides: list[Seeds]) -> Finding:
    """The improvement over the baseline, paired by seed, excludes zero."""
    ours, theirs = _paired(sides)
    if len(ours) < 2:
        return _too_few(len(ours))
    sign, at = (1.0 if _lower(check) else -1.0), check.get("at", "best")
    gains = []
    for mine, other in zip(ours, theirs, strict=True):
        a, b = (run.value(check["metric"], at, _lower(check)) for run in (mine, other))
        gains.append(0.0 if mine.diverged and other.diverged else sign * (b - a))
    finite = [gain for gain in gains if math.isfinite(gain)]
    if any(gain == -math.inf for gain in gains):
        lost = sum(run.diverged for run in ours)
        verdict = NOT_REPRODUCED if not any(gain > 0 for gain in gains) else INCONCLUSIVE
        return Finding(verdict, "diverged", f"{lost} of {len(ours)} seeds of norm {check['norm']} diverged")
    if not finite:
        return Finding(
            REPRODUCED if len(gains) >= 3 else INCONCLUSIVE, "baseline diverged", "every baseline run diverged"
        )
    # A baseline that diverged lost by more than can be measured; it is counted as the largest gain that was.
    gains = [max(finite) if gain == math.inf else gain for gain in gains]
    interval = mean_interval(gains)
    if not any(run.diverged for run in (*ours, *theirs)):
        interval = widen(interval, _test_set_half_width(check, [ours, theirs]))
    text = f"{check['norm']} better than {_baseline(check)} by {interval}"
    if interval.low > 0:
        return Finding(REPRODUCED, text, "the paired difference excludes zero", interval)
    if interval.high < 0:
        return Finding(NOT_REPRODUCED, text, f"{_baseline(check)} is better", interval)
    return Finding(INCONCLUSIVE, text, "the paired difference does not exclude zero", interval)


def faster(check: dict[str, Any], sides: list[Seeds]) -> Finding:
    """The steps needed, as a share of the baseline's, lie below `at_most` (1 unless the claim names a share).

    The target is a fixed `target`, or the best that the baseline reaches. That best is averaged over the *other* seeds:
    a run cannot fail to reach its own best, so judging a seed by its own would bias the ratio where there is no
    difference. A run that never reaches the target counts as later than its last step.
    """
    ours, theirs = _paired(sides)
    if len(ours) < 2:
        return _too_few(len(ours))
    lower, at_most = _lower(check), check.get("at_most", 1.0)
    bests = [run.value(check["metric"], "best", lower) for run in theirs]
    mine, others, variances, never = [], [], [], [0, 0]
    for index in range(len(ours)):
        rest = [best for i, best in enumerate(bests) if i != index and math.isfinite(best)]
        if "target" not in check and not rest:
            return Finding(INCONCLUSIVE, "", "the baseline's other runs diverged, so there is no target to reach")
        target = check["target"] if "target" in check else sum(rest) / len(rest)
        reached = []
        for which, run in enumerate((ours[index], theirs[index])):
            steps, values = run.curve(check["metric"])
            every = steps[0] if steps else 1.0
            step = first_reach(steps, values, target, lower)
            never[which] += step is None
            reached.append(step if step is not None else (steps[-1] if steps else 0.0) + every)
            # A step read off a grid of evaluations is uncertain by the grid, on the log scale by its relative width.
            variances.append((every / reached[-1]) ** 2 / 12)
        mine.append(reached[0])
        others.append(reached[1])
    floor = math.sqrt(sum(variances) / len(ours))
    interval = ratio_interval(mine, others, floor)
    text = f"{check['norm']} takes {interval} of {_baseline(check)}'s steps"
    note = f" ({never[0]} and {never[1]} of {len(ours)} runs never reach the target)" if any(never) else ""
    if interval.high < at_most:
        return Finding(REPRODUCED, text, f"the ratio of steps lies below {at_most:g}{note}", interval)
    if interval.low > at_most:
        return Finding(NOT_REPRODUCED, text, f"the ratio of steps lies above {at_most:g}{note}", interval)
    return Finding(INCONCLUSIVE, text, f"the ratio of steps straddles {at_most:g}{note}", interval)


def curve(check: dict[str, Any], sides: list[Seeds]) -> Finding:
    """The mean absolute distance from the published `points` {x: value} is at most `tolerance`."""
    x = check.get("x", "step")
    distances = []
    for run in sides[0].values():
        positions, values = run.curve(check["metric"], x)
        if run.diverged or not positions or positions[-1] < max(check["points"]):
            return Finding(NOT_REPRODUCED, "", f"a run ends before the published curve does, at {x} {positions[-1:]}")
        gaps = []
        for position, published in check["points"].items():
            nearest = min(range(len(positions)), key=lambda i: abs(positions[i] - position))
            gaps.append(abs(values[nearest] - published))
        distances.append(sum(gaps) / len(gaps))
    if len(distances) < 2:
        return _too_few(len(distances))
    interval, tolerance = mean_interval(distances), check["tolerance"]
    text = f"mean distance {interval}"
    if interval.high <= tolerance:
        return Finding(REPRODUCED, text, f"the curve stays within {tolerance:g} of the published points", interval)
    if interval.low > tolerance:
        return Finding(
            NOT_REPRODUCED, text, f"the curve is farther than {tolerance:g} from the published points", interval
        )
    return Finding(INCONCLUSIVE, text, f"the distance straddles {tolerance:g}", interval)


def above(check: dict[str, Any], sides: list[Seeds]) -> Finding:
    """The share of the checkpoints at which a run does better than the baseline's of its seed is `at_least` so large.

    A checkpoint that one of the two did not live to see counts for the other.
    """
    ours, theirs = _paired(sides)
    if len(ours) < 2:
        return _too_few(len(ours))
    sign, at_least = (1.0 if _lower(check) else -1.0), check["at_least"]
    shares = []
    for mine, other in zip(ours, theirs, strict=True):
        a, b = (dict(zip(*run.curve(check["metric"]), strict=True)) for run in (mine, other))
        checkpoints = a.keys() | b.keys()
        wins = sum(x not in b or (x in a and sign * (b[x] - a[x]) > 0) for x in checkpoints)
        shares.append(wins / len(checkpoints) if checkpoints else 0.0)
    interval = mean_interval(shares)
    text = f"{check['norm']} above {_baseline(check)} at {interval} of the checkpoints"
    if interval.low >= at_least:
        return Finding(REPRODUCED, text, f"the share of checkpoints lies above {at_least:g}", interval)
    if interval.high < at_least:
        return Finding(NOT_REPRODUCED, text, f"the share of checkpoints lies below {at_least:g}", interval)
    return Finding(INCONCLUSIVE, text, f"the share of checkpoints straddles {at_least:g}", interval)


KINDS: dict[str, Callable[[dict[str, Any], list[Seeds]], Finding]] = {
    "value": value,
    "better": better,
    "faster": faster,
    "curve": curve,
    "above": above,
}


def write_verdicts(verdicts: list[Verdict], folder: Path) -> Path:
    """verdicts.json, from which tables and pages are made."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "verdicts.json"
    path.write_text(json.dumps(_finite([asdict(v) for v in verdicts]), indent=2) + "\n")
    return path


def _finite(value: Any) -> Any:
    """Infinities as null: JSON has none."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

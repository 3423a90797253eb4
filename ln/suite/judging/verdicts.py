"""What measured runs say of every claim, in words that fit their scale. Trains nothing: judges runs that were read.

`reproduced` and `not_reproduced` are said of the paper's protocol, whole or its first part, on original data, and of
claims that need no scale. At reduced sizes or on other data an effect is `seen`, or its opposite is.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ln.suite.files import write_text
from ln.suite.judging.checks import KINDS, Finding, Outcome
from ln.suite.judging.claims import CURVE, VALUE, Check, Claim, ClaimsFile
from ln.suite.judging.curve_checks import curve
from ln.suite.judging.doubts import doubt, expectation, remedy
from ln.suite.judging.on_paper import on_paper
from ln.suite.runs.read import Measured, Runs, Seeds, say_once

REPRODUCED, NOT_REPRODUCED, SEEN, OPPOSITE_SEEN = "reproduced", "not_reproduced", "seen", "opposite_seen"
UNDECIDED, NOT_RUN = "undecided", "not_run"
# A claim of several checks is as good as its worst.
WORST_FIRST = (NOT_RUN, NOT_REPRODUCED, OPPOSITE_SEEN, UNDECIDED, SEEN, REPRODUCED)
WORDS = {
    REPRODUCED: "reproduced",
    NOT_REPRODUCED: "not reproduced",
    SEEN: "seen",
    OPPOSITE_SEEN: "opposite seen",
    UNDECIDED: "undecided",
    NOT_RUN: "not judged",
}
MEANINGS = {
    REPRODUCED: "by the paper's protocol (profile full, original data), whole or the first part that is named; or a "
    "statement about equations, which holds at any scale",
    NOT_REPRODUCED: "the same, and the claim does not hold",
    SEEN: "the claimed direction shows in runs of another size, on other data, or of a protocol that is not all "
    "published; nothing is said of the paper's numbers",
    OPPOSITE_SEEN: "the opposite direction shows in such runs",
    UNDECIDED: "the interval allows either; or these runs cannot tell whatever it is, since they were still improving "
    "or a trivial method does better than both sides",
    NOT_RUN: "there are no such runs, or they are not ones that a published number can be judged by",
}
DECIDED = (REPRODUCED, NOT_REPRODUCED, SEEN, OPPOSITE_SEEN)
NOT_HELD = ": the paper's own figure fails this rule, which is not held against a run"
FAITHFUL_PROFILE, ORIGINAL = "full", "original"


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
    on_paper: str = ""  # what the same rule says of the paper's own figure
    scale: str = ""  # how much of the protocol was run, in words
    extension: bool = False
    findings: list[dict[str, Any]] = field(default_factory=list)


def judge_runs(document: ClaimsFile, runs: dict[str, Runs], profile: str) -> list[Verdict]:
    """The verdict on every claim of a claims file from the runs of one profile, by experiment."""
    return [_judge_claim(claim, document, runs, profile) for claim in document.claims]


def unjudged(document: ClaimsFile) -> list[dict[str, Any]]:
    """The claims before there is any run: what the paper's own figure says of them, and what they would take."""
    verdicts = judge_runs(document, {}, "")
    needs = {claim.id: claim.needs for claim in document.claims}
    return [asdict(v if needs[v.claim] else replace(v, reason="no run yet")) for v in verdicts]


def _judge_claim(claim: Claim, document: ClaimsFile, runs: dict[str, Runs], profile: str) -> Verdict:
    judged = [_judge_check(check, document, runs, profile) for check in claim.checks]
    shown = [(check.quantity if len(claim.checks) > 1 else "", on_paper(check)) for check in claim.checks]
    used = [
        run
        for check in claim.checks
        for experiment, norm in check.sides
        for run in runs.get(experiment, {}).get(norm, {}).values()
    ]
    verdict = Verdict(
        claim=claim.id,
        sentence=claim.sentence,
        source=claim.source,
        published=claim.published,
        verdict=NOT_RUN,
        measured="",
        reason=f"it would take {claim.needs}" if claim.needs else "",
        profile=profile,
        data=", ".join(sorted({run.data for run in used})),
        seeds=_shared_seeds(claim, runs),
        on_paper="; ".join(_named(quantity, paper.text + NOT_HELD * paper.fails) for quantity, paper in shown if paper),
        scale=scale_of(used, profile),
        extension=claim.extension,
    )
    if not judged:
        return verdict
    words, found = [word for word, _ in judged], [finding for _, finding in judged]
    worst = min(range(len(judged)), key=lambda i: WORST_FIRST.index(words[i]))
    texts = [_named(c.quantity, f.measured) for c, f in zip(claim.checks, found, strict=True)]
    many = len(found) > 3
    good = sum(word in (REPRODUCED, SEEN) for word in words)
    summary = f"{good} of {len(found)} checks hold" if many else "; ".join(filter(None, texts))
    all_hold = many and words[worst] in (REPRODUCED, SEEN)
    return replace(
        verdict,
        verdict=words[worst],
        measured="" if words[worst] == NOT_RUN else summary,
        reason="every check's interval is inside" if all_hold else found[worst].reason,
        findings=[
            {
                "verdict": word,
                "measured": text,
                "reason": finding.reason,
                "interval": asdict(finding.interval) if finding.interval else None,
                "bound": finding.bound,
                "beside": asdict(finding.beside.ratio) if finding.beside else None,
            }
            for word, finding, text in zip(words, found, texts, strict=True)
        ],
    )


def _named(quantity: str, text: str) -> str:
    """What was measured, with its quantity where it has one: `R@1: ...`."""
    return ": ".join(filter(None, (quantity.rstrip(":"), text)))


def _shared_seeds(claim: Claim, runs: dict[str, Runs]) -> list[int]:
    """The seeds that every check which has runs is judged by: a comparison's are those that both sides have."""
    sides = [[runs.get(experiment, {}).get(norm, {}) for experiment, norm in check.sides] for check in claim.checks]
    by_check = [set.intersection(*map(set, each)) for each in sides if any(each)]
    return sorted(set.intersection(*(filter(None, by_check)))) if any(by_check) else []


def _judge_check(check: Check, document: ClaimsFile, runs: dict[str, Runs], profile: str) -> tuple[str, Finding]:
    sides = [runs.get(experiment, {}).get(norm, {}) for experiment, norm in check.sides]
    refusal = _refusal(check, sides, profile)
    if refusal:
        return NOT_RUN, Finding(Outcome.LACKING, "", refusal)
    sides, partial = _same_part(sides)
    every = [run for side in sides for run in side.values()]
    faithful = document.known_protocol and profile == FAITHFUL_PROFILE and all(run.data == ORIGINAL for run in every)
    if not faithful or partial:
        # A fixed target is read off the paper's own curve, which only runs of the whole protocol are runs of.
        check = replace(check, target=None)
    finding = (curve if check.kind == CURVE else KINDS[check.kind])(check, sides)
    if finding.outcome == Outcome.LACKING:
        return NOT_RUN, finding
    why = doubt(check, document, sides, faithful and not partial)
    if why:
        why = "; ".join(filter(None, (why, expectation(check, finding.limit))))
    paper = on_paper(check, sides)
    if paper and paper.fails and finding.outcome in (Outcome.FAILS, Outcome.SHORT):
        why = (
            why
            or f"the paper's own figure fails this rule too ({paper.text}), so that it is not held against these runs"
        )
    if why:
        finding = replace(finding, outcome=Outcome.OPEN, reason=why)
    elif finding.outcome == Outcome.OPEN:
        finding = replace(finding, reason="; ".join(filter(None, (finding.reason, remedy(check, finding)))))
    elif finding.outcome == Outcome.SHORT and not faithful:
        finding = replace(finding, reason=f"{finding.reason}: less than is claimed, though not its opposite")
    return word_for(finding.outcome, faithful or check.scale_free), finding


def word_for(outcome: Outcome, faithful: bool) -> str:
    """An outcome in the words that its scale allows."""
    if outcome == Outcome.OPEN:
        return UNDECIDED
    if outcome == Outcome.HOLDS:
        return REPRODUCED if faithful else SEEN
    if faithful:
        return NOT_REPRODUCED
    return OPPOSITE_SEEN if outcome == Outcome.FAILS else UNDECIDED


def _refusal(check: Check, sides: Sequence[Seeds], profile: str) -> str:
    """Why these runs cannot be asked; empty where they can."""
    missing = [
        norm if experiment == check.experiment else f"{norm} of {experiment}"
        for (experiment, norm), side in zip(check.sides, sides, strict=True)
        if not side
    ]
    if missing:
        return f"no finished run of norm {' and '.join(missing)} at profile {profile}"
    every = [run for side in sides for run in side.values()]
    sets = sorted({f"{run.info['data']['name']} [{run.data}]" for run in every})
    if len(sets) > 1:
        return f"its runs have different data, {' and '.join(sets)}, and cannot be judged together"
    data = every[0].data
    if check.kind in (VALUE, CURVE) and not check.scale_free and not (check.kind == VALUE and check.published is None):
        if profile != FAITHFUL_PROFILE:
            return f"a published number, judged at profile {FAITHFUL_PROFILE}; these runs are {profile}"
        if data != ORIGINAL:
            return f"a published number, judged on {ORIGINAL} data; these runs have {data}"
    others = sorted({run.info["data"]["name"] for run in every if check.dataset not in run.info["data"]["name"]})
    if check.dataset and others:
        return f"it is judged on {check.dataset}; these runs have {', '.join(others)}"
    at_the_end = check.at in ("final", "last") or (check.kind == VALUE and check.at == "best")
    if at_the_end and any(run.partial for run in every):
        return f"about the end of the protocol; these runs are {scale_of(every, profile)}"
    if not all(run.has(check.metric, check.at) for run in every):
        return f"these runs have no {check.metric}"
    return ""


def _same_part(sides: Sequence[Seeds]) -> tuple[list[Seeds], bool]:
    """The runs, cut to the part that all of them have where some are the first part of the protocol only."""
    partial = [run for side in sides for run in side.values() if run.partial]
    if not partial:
        return list(sides), False
    end = min(run.records[-1]["step"] for run in partial if run.records)
    return [{seed: run.until(end) for seed, run in side.items()} for side in sides], True


def scale_of(runs: Sequence[Measured], profile: str) -> str:
    """How much of the paper's protocol some runs are, in words."""
    if not runs:
        return ""
    parts = [run for run in runs if run.partial and run.records]
    if not parts:
        return profile
    shortest = min(parts, key=lambda run: run.records[-1]["step"])
    train, last = shortest.info["identity"].get("train", {}), shortest.records[-1]
    if train.get("epochs"):
        return f"{profile}, first {last['epoch']:.3g} of {train['epochs']:g} epochs"
    return f"{profile}, first {last['step']:,} of {train.get('steps') or 0:,} updates"


def lengths(scales: Iterable[str], profile: str) -> list[str]:
    """What several scales of a profile are besides it: "whole", then the first parts, the shortest first."""
    parts = {scale.removeprefix(f"{profile}, first ") for scale in scales} - {""}
    shortest_first = sorted(parts - {profile}, key=lambda part: float(part.split()[0].replace(",", "")))
    return ["whole"] * (profile in parts) + [f"first {part}" for part in shortest_first]


def in_words(verdict: dict[str, Any]) -> str:
    """A verdict, and of what part of the protocol it is said where that is not the whole."""
    part = verdict["scale"].partition(", ")[2] if verdict["verdict"] in DECIDED else ""
    return WORDS[verdict["verdict"]] + f" ({part})" * bool(part)


def strongest(verdicts: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Of one claim's verdicts at several profiles, the most faithful first, the one to show: the first that decides or
    has an interval, else the first that judged anything, else the first of any runs. A single faithful run, which
    decides nothing, does not hide what many smaller ones decide; and where the one shown is open, its reason, and a
    further key `elsewhere`, say what another profile decides."""

    def evidence(verdict: dict[str, Any]) -> tuple[bool, ...]:
        measured = verdict["verdict"] in DECIDED or any(finding["interval"] for finding in verdict["findings"])
        return measured, verdict["verdict"] != NOT_RUN, bool(verdict["data"])

    shown = max(verdicts, key=evidence, default=None)
    if shown is None or shown["verdict"] in DECIDED:
        return shown
    elsewhere = "; ".join(
        f"at {other['scale'] or other['profile']}: {WORDS[other['verdict']]}, {other['measured']}"
        for other in verdicts
        if other["verdict"] in DECIDED
    )
    return shown | {"reason": "; ".join(filter(None, (shown["reason"], elsewhere))), "elsewhere": elsewhere}


def write_verdicts(verdicts: list[Verdict], folder: Path) -> Path:
    """verdicts.json, from which tables and pages are made."""
    path = folder / "verdicts.json"
    write_text(path, json.dumps(_finite([asdict(v) for v in verdicts]), indent=2) + "\n")
    return path


def read_verdicts(folder: Path) -> list[dict[str, Any]]:
    """What `write_verdicts` wrote; nothing where there is no such file, or one of other words than today's."""
    path = folder / "verdicts.json"
    known = {entry.name for entry in fields(Verdict)}
    try:
        found = list(json.loads(path.read_bytes()))
        return found if all(known == set(verdict) and verdict["verdict"] in WORDS for verdict in found) else []
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        say_once(f"{path} cannot be read ({error}); it is passed over")
        return []


def _finite(value: Any) -> Any:
    """Infinities as null: JSON has none."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

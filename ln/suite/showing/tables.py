"""Results as data: results/runs.csv with a row for each run that counts, results/claims.csv with one for each check.

In a notebook, where a column of numbers is converted by whatever reads it:

    from ln.suite.showing.tables import claims, runs
    rows = claims("results")  # a list of dicts; pandas.DataFrame(rows) makes a table of it
"""

import csv
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ln.suite.config import PROFILES
from ln.suite.errors import Mistake
from ln.suite.files import write_text
from ln.suite.judging.claims import load_claims
from ln.suite.judging.verdicts import NOT_RUN, judge_runs
from ln.suite.runs.read import Measured, load_runs
from ln.suite.showing.report import groups

RUNS = (
    "profile", "group", "experiment", "norm", "seed", "status", "data", "dataset", "steps", "seconds",
    "steps_per_second", "commit", "dirty", "hardware", "device", "backend",
)  # fmt: skip
CLAIMS = (
    "profile", "group", "claim", "check", "kind", "source", "extension", "metric", "experiment", "norm", "baseline",
    "published", "measured", "low", "high", "verdict", "reason", "scale", "data", "seeds", "commit", "hardware",
    "seconds",
)  # fmt: skip


def runs(results: str | Path) -> list[dict[str, Any]]:
    """A dict for each run that counts: RUNS, and as `final/<metric>` what it came to on the test split."""
    rows = []
    for group, profile in _places(results):
        for experiment in load_claims(group).runs.experiments:
            for norm, by_seed in load_runs(results, profile, experiment).items():
                for seed, run in sorted(by_seed.items()):
                    rows.append(_run(run, profile=profile, group=group, experiment=experiment, norm=norm, seed=seed))
    return rows


def _run(run: Measured, **place: Any) -> dict[str, Any]:
    info = run.info
    row = dict.fromkeys(RUNS) | place | {key: info[key] for key in RUNS if key in info and key != "data"}
    row |= {"data": run.data, "dataset": info["data"]["name"], "steps": info.get("steps", info.get("step"))}
    return row | {f"final/{name}": value for name, value in info.get("final", {}).items()}


def claims(results: str | Path) -> list[dict[str, Any]]:
    """A dict for each check at each profile that has runs (CLAIMS), judged from the runs' files; of what no profile
    has, one that says it was not run. measured, low and high are on the scale of the check: a ratio of steps
    (`faster`), an improvement (`better`), else the metric's own."""
    rows: list[dict[str, Any]] = []
    places = _places(results)
    for group in groups():
        document = load_claims(group)
        for profile in [profile for of, profile in places if of == group] or [""]:
            found = {name: load_runs(results, profile, name) for name in document.runs.experiments} if profile else {}
            for claim, verdict in zip(document.claims, judge_runs(document, found, profile), strict=True):
                judged = verdict.findings or [{"verdict": NOT_RUN, "reason": verdict.reason, "interval": None}]
                for check, finding in zip(claim.checks, judged, strict=False):
                    used = [run for e, norm in check.sides for run in found.get(e, {}).get(norm, {}).values()]
                    interval = finding["interval"] or {}
                    rows.append({
                        "profile": profile, "group": group, "claim": claim.id, "check": check.quantity,
                        "kind": check.kind, "source": claim.source, "extension": claim.extension,
                        "metric": check.metric, "experiment": check.experiment, "norm": check.norm,
                        "baseline": check.baseline, "published": check.published if check.published is not None
                        else check.share, "measured": interval.get("estimate"), "low": interval.get("low"),
                        "high": interval.get("high"), "verdict": finding["verdict"], "reason": finding["reason"],
                        "scale": verdict.scale, "data": verdict.data, "seeds": len(verdict.seeds),
                        "commit": _each(used, "commit"), "hardware": _each(used, "hardware"),
                        "seconds": sum(run.info.get("seconds") or 0.0 for run in used),
                    })  # fmt: skip
    return rows


def write_tables(results: str | Path) -> list[Path]:
    """Write runs.csv and claims.csv into a results folder.

    Raises:
        Mistake: the folder is not there, or cannot be written.
    """
    folder = Path(results)
    if not folder.is_dir():
        raise Mistake(f"{folder} is not a folder with results; run an experiment first, such as make reproduce-mnist")
    paths = []
    for name, columns, rows in (("runs", RUNS, runs(folder)), ("claims", CLAIMS, claims(folder))):
        more = sorted({key for row in rows for key in row} - set(columns))
        text = io.StringIO()
        writer = csv.DictWriter(text, [*columns, *more], lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
        write_text(folder / f"{name}.csv", text.getvalue())
        paths.append(folder / f"{name}.csv")
    return paths


def _places(results: str | Path) -> list[tuple[str, str]]:
    """Group and profile of all that has runs, the most faithful profile first."""
    return [
        (group, profile)
        for group in groups()
        for profile in reversed(PROFILES)
        if any(load_runs(results, profile, name) for name in load_claims(group).runs.experiments)
    ]


def _each(used: Iterable[Measured], key: str) -> str:
    return "; ".join(sorted({str(run.info[key]) for run in used if run.info.get(key)}))


def _cell(value: Any) -> Any:
    """Numbers as they are, what is none as nothing."""
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else value

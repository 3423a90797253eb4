"""Verdicts as people read them in the terminal, and generated blocks of a page."""

import shutil
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

from ln.suite.config import CONFIGS, imported
from ln.suite.judging.claims import load_claims
from ln.suite.judging.verdicts import NOT_RUN, WORDS, judge_runs, lengths, read_verdicts, scale_of, write_verdicts
from ln.suite.runs.read import load_runs
from ln.suite.showing.panels import claim_figure, has_runs
from ln.suite.showing.text import joined


def conclude(group: str, profile: str, results: str | Path) -> tuple[list[dict[str, Any]], Path | None]:
    """Judge a group's claims at a profile, write verdicts.json and the figure; returns the verdicts and the figure's
    path (None while no run has a curve that it draws)."""
    document = load_claims(group)
    folder = Path(results) / profile / group
    runs = {name: load_runs(results, profile, name) for name in document.runs.experiments}
    write_verdicts(judge_runs(document, runs, profile), folder)
    measured = [run for by_norm in runs.values() for by_seed in by_norm.values() for run in by_seed.values()]
    if not measured:
        return read_verdicts(folder), None
    figure = None
    if any(has_runs(panel, runs) for panel in document.figure.panels):
        data = ", ".join(sorted({f"{run.info['data']['name']} [{run.info['data']['status']}]" for run in measured}))
        parts = lengths({scale_of([run], profile) for run in measured}, profile)
        scale = profile if parts == ["whole"] else f"{profile}, {joined(parts)}"
        figure = claim_figure(document, runs, folder / "figure.png", f"{data}, profile {scale}")
    else:
        for name in ("figure.png", "figure.svg"):  # of runs that are gone, or of the published curves alone
            (folder / name).unlink(missing_ok=True)
    for path in document.drawings:
        imported(path)(runs, folder)
    return read_verdicts(folder), figure


def terminal_table(verdicts: list[dict[str, Any]]) -> str:
    """One block per claim, wrapped to the terminal; claims that were not judged in one for each reason."""
    width = min(shutil.get_terminal_size((100, 20)).columns, 120)
    blocks = []
    for verdict in verdicts:
        if verdict["verdict"] == NOT_RUN:
            continue
        count = len(verdict["seeds"])
        seeds = f"{count} seed{'s' * (count != 1)}" if count else "no runs"
        label = f"[{verdict['scale'] or verdict['profile']}, {verdict['data'] or 'no data'}, {seeds}]"
        lines = [f"{WORDS[verdict['verdict']].upper():15} {verdict['sentence']} ({verdict['source']})"]
        if verdict["measured"]:
            lines.append(f"measured: {verdict['measured']}")
        if verdict["on_paper"]:
            lines.append(f"on the paper's own figure: {verdict['on_paper']}")
        lines.append(f"{verdict['reason']} {label}")
        blocks += [
            textwrap.fill(line, width, initial_indent="" if number == 0 else " " * 16, subsequent_indent=" " * 16)
            for number, line in enumerate(lines)
        ]
    reasons = Counter(verdict["reason"] for verdict in verdicts if verdict["verdict"] == NOT_RUN)
    for reason, count in reasons.items():
        line = f"{WORDS[NOT_RUN].upper():15} {count} claim{'s' * (count != 1)}: {reason}"
        blocks.append(textwrap.fill(line, width, subsequent_indent=" " * 16))
    return "\n".join(blocks)


def groups() -> list[str]:
    """Every claims file, in the order of the paper's sections."""
    files = sorted((CONFIGS / "claims").glob("*.yaml"))
    return sorted((f.stem for f in files), key=lambda group: (load_claims(group).order, group))


def with_block(readme: str, block: str) -> str:
    """The README with a generated block replaced: the one whose first and last line `block` has too."""
    begin, *_, end = block.splitlines()
    before, rest = readme.split(begin)
    return before + block + rest.split(end)[1]

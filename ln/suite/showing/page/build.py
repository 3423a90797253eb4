"""`make report`: results/index.html, one page that needs no network, and results/REPORT.md.

Both are judged afresh from the runs' files, and the same files always make the same page, byte for byte.
"""

import base64
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import plotly
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ln.norms import NORMS
from ln.suite.config import PROFILES
from ln.suite.errors import Mistake
from ln.suite.files import write_text
from ln.suite.judging.claims import ClaimsFile, load_claims
from ln.suite.judging.findings import findings
from ln.suite.judging.verdicts import (
    FAITHFUL_PROFILE,
    MEANINGS,
    NOT_REPRODUCED,
    NOT_RUN,
    OPPOSITE_SEEN,
    REPRODUCED,
    SEEN,
    UNDECIDED,
    WORDS,
    in_words,
    judge_runs,
    read_verdicts,
    strongest,
    unjudged,
)
from ln.suite.showing import scoreboard
from ln.suite.showing.findings import INTRODUCTION
from ln.suite.showing.findings import page as findings_page
from ln.suite.showing.page import curves
from ln.suite.showing.page.found import PageRun, commit, find_runs, made_with, measured
from ln.suite.showing.page.pictures import Album, Picture, undamaged
from ln.suite.showing.report import groups
from ln.suite.showing.text import Ready, code, duration, href, markdown

HERE = Path(__file__).parent
MARKS = {REPRODUCED: "✓", SEEN: "✓", NOT_REPRODUCED: "✗", OPPOSITE_SEEN: "✗", UNDECIDED: "≈", NOT_RUN: "–"}


LINES = (
    "In the figures thick lines are means over seeds (geometric ones on a logarithmic axis), thin ones single runs; "
    "dashed or dotted in the norms' colours are the paper's own curves; shades are the paper's bands or, of measured "
    "scores, their deviation over folds of cross-validation"
)


@dataclass
class Block:
    """One experiment group at one profile."""

    group: str
    profile: str
    found: list[PageRun]
    verdicts: list[dict[str, Any]]
    claim_metrics: list[str]
    figure: Picture | None = None
    pictures: list[Picture] = field(default_factory=list)

    @property
    def key(self) -> str:
        return f"{self.group}-{self.profile}"

    @property
    def done(self) -> list[PageRun]:
        return [run for run in self.found if run.done]

    @property
    def unfinished(self) -> list[PageRun]:
        return [run for run in self.found if not run.done]

    @property
    def diverged(self) -> list[PageRun]:
        return [run for run in self.found if run.diverged]

    @property
    def data(self) -> list[str]:
        return sorted({f"{run.info['data']['name']} [{run.info['data']['status']}]" for run in self.done})

    @property
    def made_with(self) -> list[tuple[str, int]]:
        return made_with(self.found)

    @property
    def norms(self) -> list[str]:
        return curves.norms(self.found)

    @property
    def axes(self) -> list[tuple[str, str]]:
        return curves.axes(self.done)


@dataclass
class Section:
    """One claims file: its claims, each with the verdict of the most faithful profile that judged it, and its runs."""

    group: str
    document: ClaimsFile
    rows: list[dict[str, Any]]
    blocks: list[Block]

    @property
    def command(self) -> str:
        return f"make reproduce-{self.group.replace('_', '-')}"

    @property
    def faithful(self) -> list[dict[str, Any]]:
        """The verdicts at the paper's protocol."""
        return [verdict for block in self.blocks if block.profile == FAITHFUL_PROFILE for verdict in block.verdicts]

    @property
    def board(self) -> list[scoreboard.Row]:
        """Its lines of the scoreboard."""
        return scoreboard.rows_of(self.group, {row["claim"]: row for row in self.rows})

    @property
    def counts(self) -> dict[str, int]:
        """How many claims came to each verdict, those there are."""
        return {word: count for word in WORDS if (count := sum(row["verdict"] == word for row in self.rows))}

    @property
    def deviations(self) -> list[str]:
        return [" ".join(str(text).split()) for text in self.document.deviations]


@dataclass(frozen=True)
class Built:
    """The two files, and what the reader of the terminal should know."""

    page: Path
    markdown: Path
    notes: list[str]


def write_page(results: str | Path) -> Built:
    """Write index.html, REPORT.md and FINDINGS.md into a results folder.

    Raises:
        Mistake: the folder is not there.
    """
    folder = Path(results)
    if not folder.is_dir():
        raise Mistake(f"{folder} is not a folder with results; run an experiment first, such as make reproduce-mnist")
    notes: list[str] = []
    sections = [_section(group, folder, notes) for group in groups()]
    board = [line for section in sections for line in section.board]
    album = Album(folder)
    at_a_glance = None  # of no runs there is nothing to see
    if any(block.done for section in sections for block in section.blocks):
        picture = scoreboard.picture(board, folder / scoreboard.PICTURE)
        at_a_glance = album.take(picture, scoreboard.PICTURE_SAYS, "", "Speeds")
    _add_pictures(sections, folder, album)
    blocks = [block for section in sections for block in section.blocks]
    points = curves.points_each([block.found for block in blocks])
    drawn = {
        block.key: curves.payload(section.document, block.found, points)
        for section in sections
        for block in section.blocks
        if block.done
    }
    rows = [row for section in sections for row in section.rows]
    shared = {
        "sections": sections,
        "beside": album.beside_the_claims(),
        "rows": rows,
        "board": board,
        "at_a_glance": at_a_glance,
        "protocol": scoreboard.protocol({s.group: s.faithful for s in sections}),
        "notes": notes,
        "meanings": MEANINGS,
        "lines": LINES,
        "reproduced": scoreboard.reproduced(rows),
        "counts": {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in WORDS},
        "findings": findings(),
        "introduction": INTRODUCTION,
        "statuses": sorted({status for row in rows for status in row["data"].split(", ") if status}),
    }
    page, report = folder / "index.html", folder / "REPORT.md"
    data = {"palette": curves.palette(), "plots": drawn}
    write_text(
        page,
        environment(html=True)
        .get_template("page.html")
        .render(
            **shared,
            style=Markup((HERE / "page.css").read_text()),
            script=Markup((HERE / "page.js").read_text()),
            curves=_script_data(data),
            plotly=Markup(_packed(get_plotlyjs())) if drawn else "",
            plotly_version=plotly.__version__,
            points=points,
        ),
    )
    ready = {"table": Ready(scoreboard.table(board)), "verdict_list": Ready(scoreboard.meanings())}
    write_text(report, environment(html=False).get_template("REPORT.md").render(**shared, **ready))
    write_text(folder / "FINDINGS.md", findings_page(findings()))
    return Built(page, report, notes)


def _section(group: str, results: Path, notes: list[str]) -> Section:
    document = load_claims(group)
    experiments = document.runs.experiments
    blocks = []
    for profile in _profiles(results):
        runs = {name: find_runs(results, profile, name) for name in experiments}
        found = [run for name in experiments for run in runs[name]]
        for run in found:
            if run.torn:
                notes.append(f"{run.folder}/metrics.jsonl: the last line is cut short; read up to it")
        if found:
            verdicts = [
                vars(v) for v in judge_runs(document, {name: measured(runs[name]) for name in experiments}, profile)
            ]
            if any(run.done for run in found) and _brief(read_verdicts(results / profile / group)) != _brief(verdicts):
                command = f"make verdict-{group.replace('_', '-')} PROFILE={profile}"
                notes.append(f"{profile}/{group}: the figure and verdicts.json are not of these runs; {command}")
            metrics = list(dict.fromkeys(check.metric for check in document.checks))
            blocks.append(Block(group, profile, found, verdicts, metrics))
    return Section(group, document, _rows(group, document, blocks), blocks)


def _profiles(results: Path) -> list[str]:
    """The most faithful first. Smoke runs are for tests: shown only where there is nothing else."""
    present = [profile for profile in reversed(PROFILES) if (results / profile).is_dir()]
    return [profile for profile in present if profile != PROFILES[0]] or present


def _brief(verdicts: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(v["claim"], v["verdict"], v["measured"], v["reason"], list(v["seeds"])) for v in verdicts]


def _rows(group: str, document: ClaimsFile, blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """One row per claim: the strongest verdict there is."""
    nothing = unjudged(document)
    rows = [
        strongest([block.verdicts[number] for block in blocks]) or nothing[number] for number in range(len(nothing))
    ]
    return [{"group": group, **row} for row in rows]


def _add_pictures(sections: Sequence[Section], results: Path, album: Album) -> None:
    """Figures first: where there is no room for all pictures, single runs' are the ones that are only linked."""
    blocks = [(section.document, block) for section in sections for block in section.blocks]
    for document, block in blocks:
        path = results / block.profile / block.group / "figure.png"
        if path.exists() and undamaged(path):
            panels = "; ".join(panel.title or panel.metric for panel in document.figure.panels)
            alt = f"Curves of {block.group}, one colour per norm. Panels: {panels}."
            block.figure = album.take(path, alt, f"{document.figure_of_paper}, measured")
    for document, block in blocks:
        block.pictures = album.of_folder(results / block.profile / block.group, document.title)
    for _, block in blocks:
        block.pictures += album.of_runs(block.found)


def environment(html: bool) -> Environment:
    """Everything that a template writes is escaped: as HTML, or as text in Markdown."""
    made = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=html,
        finalize=None if html else markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"href": href, "code": code, "commit": commit, "duration": duration}
    made.filters |= {"in_words": in_words, "number": "{:.4g}".format, "runs": lambda n: f"{n} run" + "s" * (n != 1)}
    labels = {norm: traits.label for norm, traits in NORMS.items()}
    made.globals |= {"words": WORDS, "marks": MARKS, "labels": labels, "palette": curves.palette()}
    made.globals["symbols"] = {norm: entry["sign"] for norm, entry in curves.palette().items()}
    return made


def _packed(script: str) -> str:
    """A script of megabytes as gzip in base64: the page unpacks it with the browser's DecompressionStream."""
    return base64.b64encode(gzip.compress(script.encode(), 9, mtime=0)).decode()


def _script_data(data: dict[str, Any]) -> Markup:
    # `<` is escaped so that no text can end the script element that holds the data.
    return Markup(json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))

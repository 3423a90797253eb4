"""Workspaces and reports in W&B, built from the claims files: the paper's figures as panels, its numbers as text.

One workspace per experiment, one report per claims file. A run's group is `<experiment>/<profile>` and its job type its
norm (runs/mirror.py), so a panel's lines are norms, averaged over seeds, with a band of one standard deviation. The
published curves are runs of other groups and job types (published_runs.py), and so lines of their own.
"""

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import wandb_workspaces.expr as expr
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from matplotlib.colors import to_hex, to_rgb

from ln.norms import NORMS
from ln.suite.config import names
from ln.suite.files import write_text
from ln.suite.judging.claims import ClaimsFile, Panel, load_claims
from ln.suite.judging.verdicts import WORDS, read_verdicts
from ln.suite.runs.mirror import project
from ln.suite.showing.figures import X_LABELS
from ln.suite.showing.published_runs import group_of, has_curves, job_type_of

COLOURS: dict[Any, Any] = {norm: traits.colour for norm, traits in NORMS.items()}  # by job type
# W&B draws every line of a panel the same way, so the published ones are told by a paler colour.
PALE: dict[Any, Any] = {
    job_type_of(norm): to_hex((0.5 + 0.5 * red, 0.5 + 0.5 * green, 0.5 + 0.5 * blue))
    for norm, (red, green, blue) in ((norm, to_rgb(colour)) for norm, colour in COLOURS.items())
}


def groups_of(experiment: str, profile: str) -> dict[str, str]:
    """The W&B groups of an experiment's runs and, where a figure draws it, of its published curves, by their names."""
    published = {group_of(experiment): group_of(experiment)} if has_curves(experiment) else {}
    return {experiment: f"{experiment}/{profile}", **published}


def line_plot(panel: Panel, x: str) -> wr.LinePlot:
    """A panel of a claims file's figure, against step, epoch or seconds."""
    return wr.LinePlot(
        title=panel.title or panel.metric,
        x=x,
        y=[panel.metric, *([panel.also.metric] if panel.also and panel.also.metric else [])],
        log_x=panel.log_x or None,
        log_y=panel.log or None,
        title_x=X_LABELS[x],
        title_y=panel.label,
        groupby="JobType",
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        max_runs_to_show=100,
    )


def plots(panels: list[Panel], x: str | None = None) -> list[Any]:
    """The panels against their own x, or each metric once against another."""
    if x is None:
        return [line_plot(panel, panel.x) for panel in panels]
    once = {panel.metric: replace(panel, title=panel.metric, log_x=False) for panel in panels}
    return [line_plot(panel, x) for panel in once.values()]


def pictures(results: str | Path, profile: str, experiment: str) -> list[str]:
    """Media keys of the pictures that an experiment's runs have drawn."""
    found = Path(results, profile, experiment).glob("*/*/*.png")
    return sorted({f"pictures/{path.stem}" for path in found})


def published(document: ClaimsFile, experiment: str) -> str:
    """The published numbers of an experiment as a Markdown table."""
    lines = ["| Claim | Source | Published |", "|---|---|---|"]
    for claim in document.claims:
        if claim.experiment in (experiment, ""):
            lines.append(f"| {claim.sentence} | {claim.source} | {claim.published} |")
    return "\n".join(lines)


def verdict_table(group: str, profile: str, results: str | Path) -> str:
    """The verdicts on disk as a Markdown table, or a sentence where nothing is judged yet."""
    verdicts = read_verdicts(Path(results) / profile / group)
    if not verdicts:
        return f"Not judged yet at profile {profile}: `make verdict-{group.replace('_', '-')} PROFILE={profile}`."
    lines = [
        "| Claim | Published | On the paper's own figure | Measured (95 % interval) | Verdict | Data, seeds |",
        "|---|---|---|---|---|---|",
    ]
    for v in verdicts:
        data = f"{v['data'] or '-'}, {len(v['seeds'])}"
        row = (v["sentence"], v["published"], v["on_paper"], v["measured"] or v["reason"], WORDS[v["verdict"]], data)
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def workspace(group: str, experiment: str, profile: str, results: str | Path, entity: str) -> ws.Workspace:
    """The figure's panels of one experiment, the same against iteration and seconds, its pictures, its numbers."""
    document = load_claims(group)
    panels = panels_of(document, experiment)
    sections = [
        ws.Section(name=document.figure_of_paper, panels=plots(panels), is_open=True, pinned=True),
        ws.Section(name="Against iteration", panels=plots(panels, "step")),
        ws.Section(name="Against seconds", panels=plots(panels, "seconds")),
        ws.Section(
            name="Published and judged",
            panels=[
                wr.MarkdownPanel(markdown=published(document, experiment)),
                wr.MarkdownPanel(markdown=verdict_table(group, profile, results)),
            ],
            is_open=True,
        ),
    ]
    keys = pictures(results, profile, experiment)
    if keys:
        sections.append(ws.Section(name="Pictures", panels=[wr.MediaBrowser(media_keys=keys)]))
    return ws.Workspace(
        entity=entity,
        project=project(),
        name=f"{experiment} ({profile})",
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=expr.And(expr.Metric("Group").isin(list(groups_of(experiment, profile).values()))),
            groupby=[expr.Metric("JobType")],
            group_colors=COLOURS | PALE,
        ),
    )


def report(group: str, profile: str, results: str | Path, entity: str, *, saved: bool) -> wr.Report:
    """A claims file as a page: its verdicts, then for each experiment its panels beside the published numbers.

    A report that is to be `saved` names its runs' project, which wandb-workspaces looks up in W&B.
    """
    document = load_claims(group)
    command = f"`make reproduce-{group.replace('_', '-')} PROFILE={profile}`"
    blocks: list[Any] = [
        wr.MarkdownBlock(f"{document.figure_of_paper}, at profile {profile}: {command}"),
        wr.H2("Verdicts"),
        wr.MarkdownBlock(verdict_table(group, profile, results)),
    ]
    for experiment in document.runs.experiments:
        runsets = [
            wr.Runset(
                entity=entity if saved else "",
                project=project() if saved else "",
                name=name,
                filters=expr.And(expr.Metric("Group") == group),
                groupby=["JobType"],
            )
            for name, group in groups_of(experiment, profile).items()
        ]
        keys = pictures(results, profile, experiment)
        media = [wr.MediaBrowser(media_keys=keys)] if keys else []
        colours: Any = {
            wr.RunsetGroup(name, (wr.RunsetGroupKey(wr.Metric("JobType"), job_type),)): colour
            for name in groups_of(experiment, profile)
            for job_type, colour in (COLOURS if name == experiment else PALE).items()
        }
        panels = plots(panels_of(document, experiment))
        blocks += [
            wr.H2(experiment),
            wr.MarkdownBlock(published(document, experiment)),
            wr.PanelGrid(runsets=runsets, panels=[*panels, *media], custom_run_colors=colours),
        ]
    blocks += [wr.H2("Deviations"), wr.MarkdownBlock("\n".join(f"- {line}" for line in document.deviations))]
    return wr.Report(project=project(), entity=entity, title=f"{document.title} ({profile})", blocks=blocks)


def panels_of(document: ClaimsFile, experiment: str) -> list[Panel]:
    """The figure's panels of an experiment; a variant that has none is looked at as the first experiment is."""
    panels = document.figure.panels
    own = [panel for panel in panels if panel.experiment == experiment]
    return own or [panel for panel in panels if panel.experiment == document.runs.experiments[0]]


def write_json(group: str, profile: str, results: str | Path, folder: Path) -> list[Path]:
    """What would be sent to W&B, as JSON files; nothing is sent."""
    models = {f"{group}.report": report(group, profile, results, "entity", saved=False)._to_model()}
    for experiment in load_claims(group).runs.experiments:
        models[f"{experiment}.workspace"] = workspace(group, experiment, profile, results, "entity")._to_model()
    written = []
    for name, model in models.items():
        path = folder / f"{name}.json"
        text = model.model_dump_json(by_alias=True, exclude_none=True)
        write_text(path, json.dumps(json.loads(text), indent=1) + "\n")
        written.append(path)
    return written


def save(group: str, profile: str, results: str | Path, entity: str) -> list[str]:
    """Put a claims file's workspaces and report into W&B; returns their addresses."""
    with contextlib.redirect_stderr(io.StringIO()):  # the library prints each address as well
        saved = [report(group, profile, results, entity, saved=True).save().url]
        for experiment in load_claims(group).runs.experiments:
            saved.append(workspace(group, experiment, profile, results, entity).save().url)
    return saved


def chosen(group: str | None) -> list[str]:
    """One claims file, or all."""
    if group is None:
        return names("claims")
    load_claims(group)
    return [group]

"""Dashboards as code: what would be sent to W&B is what its library reads, and says what the claims files say."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces.reports.v2.internal import ReportViewspec
from wandb_workspaces.workspaces.internal import View

from ln.norms import NORMS
from ln.suite.config import Recipe, names
from ln.suite.judging.claims import load_claims
from ln.suite.runs.train import carry_out
from ln.suite.showing.published_runs import has_curves
from ln.suite.showing.report import conclude
from ln.suite.showing.workspaces import panels_of, write_json


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("a dry run uses no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("group", names("claims"))
def test_the_dry_run_is_what_the_library_reads_and_the_claims_say(group: str, tmp_path: Path) -> None:
    document = load_claims(group)
    written = {path.name: path.read_text() for path in write_json(group, "laptop", "results", tmp_path)}
    experiments = list(document.runs.experiments)
    assert set(written) == {f"{group}.report.json", *(f"{e}.workspace.json" for e in experiments)}
    for experiment in experiments:
        view = View.model_validate_json(written[f"{experiment}.workspace.json"])
        workspace = ws.Workspace._from_model(view)
        panels = panels_of(document, experiment)
        figure, by_step, by_seconds = workspace.sections[:3]
        assert [plot.y[0] for plot in figure.panels] == [wr.Metric(panel.metric) for panel in panels]
        assert [plot.log_y or False for plot in figure.panels] == [panel.log for panel in panels]
        assert {plot.x for plot in by_step.panels} == {wr.Metric("step")}
        assert {plot.x for plot in by_seconds.panels} == {wr.Metric("seconds")}
        for plot in (*figure.panels, *by_step.panels, *by_seconds.panels):
            assert (plot.groupby, plot.groupby_aggfunc, plot.groupby_rangefunc) == ("JobType", "mean", "stddev")
        assert f"{experiment}/laptop" in str(workspace.runset_settings.filters)
        colours = workspace.runset_settings.group_colors
        assert {norm: colours[norm] for norm in NORMS} == {norm: traits.colour for norm, traits in NORMS.items()}
        # What is published is in the panels too, never under a norm's own name.
        assert (f"published/{experiment}" in str(workspace.runset_settings.filters)) == has_curves(experiment)
        assert set(colours) == {*NORMS, *(f"published {norm}" for norm in NORMS)}
    report = wr.Report._from_model(ReportViewspec.model_validate_json(written[f"{group}.report.json"]))
    grids = [block for block in report.blocks if isinstance(block, wr.PanelGrid)]
    assert [grid.runsets[0].name for grid in grids] == experiments
    for experiment, grid in zip(experiments, grids, strict=True):
        assert len(grid.panels) >= len(panels_of(document, experiment))
        assert f"{experiment}/laptop" in str(grid.runsets[0].filters)
        published = [runset for runset in grid.runsets[1:] if f"published/{experiment}" in str(runset.filters)]
        assert len(published) == len(grid.runsets) - 1 == has_curves(experiment)
        assert len(grid.custom_run_colors) == len(NORMS) * len(grid.runsets)
    text = "\n".join(block.text for block in report.blocks if isinstance(block, wr.MarkdownBlock))
    for claim in document.claims:
        assert claim.sentence in text
        assert claim.published in text
    for deviation in document.deviations:
        assert deviation in text


def test_the_verdicts_and_pictures_on_disk_are_in_both(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    results = tmp_path / "results"
    for norm in ("layer", "batch"):
        run = carry_out(recipe("experiment=mnist_b128", f"norm={norm}"))
    (run.folder / "samples.png").write_bytes(b"")
    verdicts, _ = conclude("mnist", "smoke", results)
    for path in write_json("mnist", "smoke", results, tmp_path / "json"):
        text = json.dumps(json.loads(path.read_text()), ensure_ascii=False)
        assert verdicts[0]["reason"] in text
        assert ("pictures/samples" in text) == (path.name != "mnist_b4.workspace.json")

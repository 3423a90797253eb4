"""What a sweep comes to: the verdicts and figure of an experiment, or a value against a setting for each norm."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ln.norms import NORMS, Normalization
from ln.suite.config import names
from ln.suite.runs.folder import DONE, FAILED
from ln.suite.runs.read import PARTIAL, Measured, load_runs
from ln.suite.runs.tracking import mirror_verdicts
from ln.suite.showing.figures import new_figure, save
from ln.suite.showing.report import conclude, terminal_table
from ln.suite.showing.ticks import plain_axis
from ln.suite.sweeps.cells import Definition, SweepCell, value_root
from ln.suite.sweeps.launch import BUSY, Outcome

WIDE = 10  # times the smallest value is where a linear axis hides what differs


def conclude_sweep(group: str, profile: str, results: str, overrides: list[str]) -> str:
    """Judge and draw what is finished, as text for the terminal; verdicts and figures go to W&B as well."""
    if group not in names("claims"):
        figure = sensitivity_figure(Definition.load(group), profile, results)
        return f"\nfigure: {figure or 'none, no run is finished'}"
    verdicts, figure = conclude(group, profile, results)
    if figure is not None:
        mirror_verdicts(Path(results) / profile / group, overrides)
    return f"\n{terminal_table(verdicts)}\n\nfigure: {figure or 'none, no run is finished'}"


def closing_lines(cells: Sequence[SweepCell], outcomes: Mapping[Path, Outcome]) -> tuple[list[str], bool]:
    """A sentence for each cell that is not done (those never begun in one), and whether one failed or was not ours to
    carry out, so that the verdicts lack it."""
    lines, failed, left = [], False, 0
    for cell in cells:
        outcome = outcomes.get(cell.folder)
        if outcome is None:
            left += 1
        elif outcome.status == FAILED:
            failed = True
            where = "" if str(cell.folder) in outcome.sentence else f"{cell.folder}: "
            lines.append(f"failed: {where}{outcome.sentence}")
        elif outcome.status == BUSY:
            failed = True
            lines.append(f"left to its owner: {outcome.sentence}")
        elif outcome.status not in (*DONE, PARTIAL):
            lines.append(f"{outcome.status}: {cell.folder}; the same command goes on from its checkpoint")
    if left:
        lines.append(f"not begun: {left} runs; the same command goes on with them")
    return lines, failed


def sensitivity_figure(definition: Definition, profile: str, results: str | Path) -> Path | None:
    """The metric at the end of training against the swept setting, for each norm; None while no run is finished."""
    assert definition.setting is not None
    values = definition.parameters[definition.setting]
    experiment = next(word.partition("=")[2] for word in definition.fixed if word.startswith("experiment="))
    by_value = {value: load_runs(value_root(results, definition, value), profile, experiment) for value in values}
    done = [run for runs in by_value.values() for by_seed in runs.values() for run in by_seed.values()]
    if not done:
        return None
    figure, axes = new_figure(1, width=4.6, height=3.2)
    axis = axes[0, 0]
    axis.set_xscale("log")
    offset = 1.0
    for norm, traits in NORMS.items():
        runs = {value: list(found[norm].values()) for value, found in by_value.items() if norm in found}
        if runs:
            draw_norm(axis, traits, runs, definition.metric, offset)
            offset *= 1.05  # diverged runs of several norms beside, not on, each other
    reached = [run.value(definition.metric, "final", True) for run in done if not run.diverged]
    if reached and min(reached) > 0 and max(reached) > WIDE * min(reached):
        axis.set_yscale("log")
    plain_axis(axis.yaxis, *axis.get_ylim())
    data = ", ".join(sorted({f"{run.info['data']['name']} [{run.info['data']['status']}]" for run in done}))
    axis.set_xticks(values, [f"{value:g}" for value in values])
    axis.xaxis.minorticks_off()
    axis.set_xlabel(definition.setting.rpartition(".")[2].replace("lr", "learning rate").replace("_", " "))
    axis.set_ylabel(definition.metric.replace("_", " ").capitalize())
    axis.set_title(f"{experiment}: {data}, profile {profile}")
    figure.legend(loc="outside lower center", ncols=2)
    return save(figure, Path(results) / "sweeps" / definition.name / f"figure-{profile}.png")


def draw_norm(axis: Any, norm: Normalization, runs: dict[Any, list[Measured]], metric: str, offset: float) -> None:
    """Every seed a faint point, the mean over seeds a line; a run that diverged a cross at the top."""
    finite = {value: [run.value(metric, "final", True) for run in found if not run.diverged] for value, found in
              runs.items()}  # fmt: skip
    for value, found in finite.items():
        axis.plot([value] * len(found), found, "o", color=norm.colour, alpha=0.3, markersize=3)
        if len(found) < len(runs[value]):
            axis.plot([value * offset], [0.97], "x", color=norm.colour, transform=axis.get_xaxis_transform())
    # The mean of some seeds would look better than the setting is, so the line leaves out where one diverged.
    whole = {value: fmean(found) if len(found) == len(runs[value]) else float("nan") for value, found in finite.items()}
    axis.plot(list(whole), list(whole.values()), color=norm.colour, linewidth=1.8, label=norm.label)

"""The published curves as runs of their own in W&B, `published/<experiment> <norm>`: beside ours, never among them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ln.suite.errors import Mistake
from ln.suite.judging.published import Curve, published_curves
from ln.suite.runs import mirror
from ln.suite.runs.tracking import has_copy


@dataclass(frozen=True)
class PublishedRun:
    """The published curves of one experiment with one norm."""

    experiment: str
    norm: str
    curves: tuple[Curve, ...]

    @property
    def name(self) -> str:
        return f"published/{self.experiment} {self.norm}"

    @property
    def id(self) -> str:
        return f"published-{self.experiment}-{self.norm}"

    def records(self) -> list[dict[str, Any]]:
        """As a run's metrics.jsonl would have them: one for each place on an axis."""
        rows: dict[tuple[str, float], dict[str, Any]] = {}
        for curve in self.curves:
            for x, y in zip(curve.x, curve.y, strict=True):
                rows.setdefault((curve.axis, x), {curve.axis: x})[curve.key.metric] = y
        return [rows[place] for place in sorted(rows)]


def group_of(experiment: str) -> str:
    """The W&B group of an experiment's published curves; our runs' is `<experiment>/<profile>`."""
    return f"published/{experiment}"


def job_type_of(norm: str) -> str:
    """Not the norm alone, by which our runs are averaged over their seeds."""
    return f"published {norm}"


def has_curves(experiment: str) -> bool:
    """Whether any figure draws the experiment."""
    return any(key.experiment == experiment for key in published_curves())


def published_runs(results: str | Path, *, everything: bool) -> list[PublishedRun]:
    """Those of the experiments that have a run under a results folder: all, or those without a copy here."""
    present = {path.parents[2].name for path in Path(results).glob("*/*/*/*/run.json")}
    found: dict[tuple[str, str], list[Curve]] = {}
    for key, curve in published_curves().items():
        if key.experiment in present:
            found.setdefault((key.experiment, key.norm), []).append(curve)
    runs = [PublishedRun(*place, tuple(curves)) for place, curves in found.items()]
    return [run for run in runs if everything or not has_copy(results, run.id)]


def upload(run: PublishedRun, results: str | Path, mode: str) -> None:
    """Make a published run's copy in W&B.

    Raises:
        Mistake: W&B refused it or cannot be reached.
    """
    try:
        wandb = mirror.quiet_wandb()
        made = wandb.init(
            project=mirror.project(),
            dir=str(Path(results).resolve()),
            mode=mode,
            id=run.id,
            name=run.name,
            group=group_of(run.experiment),
            job_type=job_type_of(run.norm),
            config={curve.key.metric: asdict(curve.source) for curve in run.curves},
            settings=mirror.settings(wandb),
        )
        for curve in run.curves:
            made.define_metric(curve.key.metric, step_metric=curve.axis)
        for record in run.records():
            made.log(record)
        made.finish()
    except Exception as error:  # whatever W&B and the network come up with
        raise Mistake(f"{run.name} is not in W&B: {mirror.first_line(error)}") from error

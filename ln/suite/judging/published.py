"""The published curves: `configs/published/*.csv`, in the units of our runs' metrics.jsonl.

A file holds the curves of one published figure: `# key: value` lines say where they were read and how exactly (`HEAD`),
then comes one column for x and one for each curve, named `experiment/metric/norm` and, where the figure has a band,
`experiment/metric/norm/low` and `/high`. Values are as published; `X_UNITS` and `METRICS` are the one place where they
become ours. An empty cell between a curve's first and last value is a point that the plotting program left out because
it lay on the line between its neighbours: `between` says along which line it is put back.
"""

import csv
import functools
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ln.norms import NORMS
from ln.suite.config import CONFIGS, names
from ln.suite.errors import Mistake

FOLDER = CONFIGS / "published"
HEAD = ("source", "page", "x", "axes", "resolution", "between")  # and `until`, where a drawing outruns its x axis
ORIGINAL = "original"  # the horizontal lines of Figure 3, Kiros et al. (2015); no norm of ours
BANDS = ("low", "high")
BETWEEN = ("linear", "logarithmic", "nothing")


class Unit(NamedTuple):
    """What one unit of a figure's x axis is on ours: `axis` = factor * x + offset."""

    axis: str  # step | epoch
    factor: float
    offset: float = 0.0


X_UNITS = {
    "300 updates": Unit("step", 300),  # Figure 1 counts validations, one every 300 updates
    "1,000 updates": Unit("step", 1_000),
    "50,000 updates": Unit("step", 50_000),  # Figure 3 counts checkpoints
    "200 updates": Unit("step", 200),
    "epochs": Unit("epoch", 1),
    # Figure 6 has 65 points, each the mean of two consecutive evaluations, its band these two; with one evaluation an
    # epoch, which its first values fit, point 0 is the mean of epochs 1 and 2.
    "pairs of evaluations": Unit("epoch", 2, 1.5),
}
# Our metric -> what a published value is multiplied by: Figure 2 and Cooijmans et al. draw errors and accuracies as
# fractions, ours are per cent; Figure 3 draws Pearson's r and the mean squared error times 100.
METRICS = {
    "valid_image_r1": 1.0,
    "valid_image_r5": 1.0,
    "valid_image_r10": 1.0,
    "valid_error": 100.0,
    "valid_accuracy": 100.0,
    "valid_sick_r": 0.01,
    "valid_sick_mse": 0.01,
    "valid_mr": 1.0,
    "valid_cr": 1.0,
    "valid_subj": 1.0,
    "valid_mpqa": 1.0,
    "test_bound": 1.0,
    "test_nll": 1.0,
    "train_loss": 1.0,
    "train_nll": 1.0,
    "test_error": 1.0,
}
# What a claim is judged by and no figure draws: the sum that selects the order embeddings' checkpoint.
SUMS = {"valid_image_recall_sum": ("valid_image_r1", "valid_image_r5", "valid_image_r10")}


class Key(NamedTuple):
    """Which of our runs' curves a published one is the counterpart of."""

    experiment: str
    metric: str
    norm: str


@dataclass(frozen=True)
class Source:
    """Where a curve was read and how exactly."""

    figure: str  # the file's name
    source: str
    page: str
    axes: str
    resolution: str
    between: str


@dataclass(frozen=True)
class Curve:
    """A published curve in our units: one run, as the figure shows it."""

    key: Key
    source: Source
    axis: str  # what x counts: step | epoch
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()  # the band, where there is one
    high: tuple[float, ...] = ()
    interpolated: frozenset[float] = frozenset()  # the x that are no points of the drawing

    def until(self, end: float) -> "Curve":
        """The curve's first part, up to x = `end`."""
        count = sum(x <= end for x in self.x)
        parts = {name: getattr(self, name)[:count] for name in ("x", "y", *BANDS)}
        return replace(self, **parts)


Curves = dict[Key, Curve]


@functools.cache
def published_curves() -> Curves:
    """Every curve of `configs/published/`, and the sums that claims are judged by."""
    return read_folder(FOLDER)


def read_folder(folder: Path) -> Curves:
    """The curves of every CSV file in a folder.

    Raises:
        Mistake: a file is not as described above, or two files hold the same curve.
    """
    curves: Curves = {}
    for path in sorted(folder.glob("*.csv")):
        for key, curve in read_figure(path).items():
            if key in curves:
                raise Mistake(f"{path} has the curve {'/'.join(key)}, which {curves[key].source.figure}.csv has too")
            curves[key] = curve
    return curves | dict(_sums(curves))


def read_figure(path: Path) -> Curves:
    """The curves of one file.

    Raises:
        Mistake: it has a line, column, unit or curve that is not known.
    """
    lines = path.read_text().splitlines()
    head = _head(path, [line for line in lines if line.startswith("#")])
    unit = X_UNITS[head["x"]]
    until = _number(path, "until", head["until"]) if "until" in head else np.inf
    rows = list(csv.reader(line for line in lines if line and not line.startswith("#")))
    if not rows or not rows[0] or rows[0][0] != "x":
        raise Mistake(f"{path} must have a row of column names, of which the first is x")
    columns, body = rows[0], rows[1:]
    uneven = [row for row in body if len(row) != len(columns)]
    if uneven:
        raise Mistake(f"{path} has {len(columns)} columns, but the row of x = {uneven[0][0]} has {len(uneven[0])}")
    if len(set(columns)) < len(columns):
        raise Mistake(f"{path} has two columns of one name")
    kept = [row for row in body if _number(path, "x", row[0]) <= until]
    positions = [float(row[0]) for row in kept]
    if any(a >= b for a, b in itertools.pairwise(positions)):
        raise Mistake(f"{path}: x must grow from row to row")
    cells = {name: [row[index] for row in kept] for index, name in enumerate(columns)}
    keys = {column: _key(path, column, columns) for column in columns[1:]}
    where = Source(path.stem, *(head[name] for name in HEAD if name != "x"))
    curves = {}
    for column, key in keys.items():
        if column.endswith(tuple(f"/{band}" for band in BANDS)):
            continue
        x, y, added = _filled(path, column, positions, cells[column], head["between"])
        bands = [
            _filled(path, name, positions, cells[name], head["between"])[1] if name in cells else []
            for name in (f"{column}/{band}" for band in BANDS)
        ]
        if any(band and len(band) != len(y) for band in bands):
            raise Mistake(f"{path}: the band of {column} must have the same points as the curve")
        scale = METRICS[key.metric]
        low, high = (tuple(scale * value for value in band) for band in bands)
        curves[key] = Curve(
            key,
            where,
            unit.axis,
            tuple(unit.factor * value + unit.offset for value in x),
            tuple(scale * value for value in y),
            low,
            high,
            frozenset(unit.factor * value + unit.offset for value in added),
        )
    return curves


def _head(path: Path, lines: list[str]) -> dict[str, str]:
    pairs = [line.lstrip("# ").partition(": ") for line in lines]
    head = {name: value.strip() for name, _, value in pairs}
    known = (*HEAD, "until")
    for name in head:
        if name not in known:
            raise Mistake(f"{path}: {name} is not a line of its head; those are {', '.join(known)}")
    missing = [name for name in HEAD if name not in head]
    if missing:
        raise Mistake(f"{path}: its head lacks {' and '.join(missing)}, as in `# {missing[0]}: ...`")
    _known(path, "unit of x", head["x"], X_UNITS)
    _known(path, "way between points", head["between"], BETWEEN)
    return head


def _key(path: Path, column: str, columns: list[str]) -> Key:
    parts = column.split("/")
    if len(parts) == 4 and parts[3] in BANDS and "/".join(parts[:3]) in columns:
        parts.pop()
    if len(parts) != 3:
        raise Mistake(f"{path}: the column {column} is neither experiment/metric/norm nor the low or high of one")
    key = Key(*parts)
    _known(path, "experiment", key.experiment, names("experiment"))
    _known(path, "metric", key.metric, METRICS)
    _known(path, "norm", key.norm, (*NORMS, ORIGINAL))
    return key


def _known(path: Path, what: str, name: str, choices: Iterable[str]) -> None:
    if name not in choices:
        raise Mistake(f"{path}: {name} is no {what}; choose one of {'; '.join(choices)}")


def _number(path: Path, column: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise Mistake(f"{path}: {text!r} in the column {column} is not a number") from None


def _filled(
    path: Path, column: str, positions: list[float], cells: list[str], between: str
) -> tuple[list[float], list[float], list[float]]:
    """x and y of a column from its first value to its last, and the x that were put back between them."""
    given = {x: _number(path, column, cell) for x, cell in zip(positions, cells, strict=True) if cell}
    if not given:
        raise Mistake(f"{path}: the column {column} is empty")
    if between == "nothing":
        return list(given), list(given.values()), []
    x = [position for position in positions if min(given) <= position <= max(given)]
    on_page = np.log if between == "logarithmic" else np.asarray
    values = np.interp(on_page(x), on_page(list(given)), list(given.values()))
    return x, [float(value) for value in values], [position for position in x if position not in given]


def _sums(curves: Curves) -> Iterable[tuple[Key, Curve]]:
    for name, terms in SUMS.items():
        for first in [curve for key, curve in curves.items() if key.metric == terms[0]]:
            parts = [curves[first.key._replace(metric=term)] for term in terms]
            values = [dict(zip(part.x, part.y, strict=True)) for part in parts]
            x = tuple(position for position in first.x if all(position in value for value in values))
            added = frozenset.union(*(part.interpolated for part in parts))
            key = first.key._replace(metric=name)
            y = tuple(sum(value[position] for value in values) for position in x)
            yield key, Curve(key, first.source, first.axis, x, y, interpolated=added & set(x))

"""The figures: the published curves behind ours, in the paper's axes, with ticks and labels that a person can read."""

import itertools
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex

from ln.norms import NORMS
from ln.suite.config import names
from ln.suite.errors import Mistake
from ln.suite.judging.claims import Panel, Window, claims_file, load_claims
from ln.suite.judging.curve_checks import LEAST
from ln.suite.judging.published import Key, published_curves
from ln.suite.runs.read import Measured, Runs
from ln.suite.showing import panels
from ln.suite.showing.panels import arranged, claim_figure, comes_into, draw_panel, legend_columns
from ln.suite.showing.ticks import counted, log_ticks

BOUND = Panel("test_bound", "draw", x="epoch", title="test", paper=Window((0, 100), (80, 100)))


def run(x: str, metric: str, points: dict[float, float]) -> Measured:
    info = {"status": "complete", "data": {"name": "MNIST", "status": "original"}, "identity": {"seed": 0}}
    return Measured(info, [{"step": position, x: position, metric: value} for position, value in points.items()])


def runs_of(panel: Panel, points: dict[float, float]) -> dict[str, Runs]:
    return {panel.experiment: {"layer": {0: run(panel.x, panel.metric, points)}}}


NEAR = {float(epoch): 120 - 0.9 * epoch for epoch in range(1, 41)}  # comes to 84 nats in 40 epochs
FAR = {float(epoch): 200 - 6 * epoch for epoch in range(1, 13)}


def drawn(panel: Panel, runs: dict[str, Runs], measured: bool = True) -> Any:
    figure, axes = plt.subplots()
    draw_panel(axes, panel, runs, measured)
    plt.close(figure)
    return axes


def test_our_curve_in_the_papers_axes_has_the_published_one_dashed_behind_it():
    axes = drawn(BOUND, runs_of(BOUND, NEAR))
    assert axes.get_xlim() == (0, 100)
    assert axes.get_ylim() == (80, 100)
    published = [line for line in axes.lines if line.is_dashed()]
    ours = [line for line in axes.lines if not line.is_dashed()]
    assert {to_hex(line.get_color()) for line in published} == {
        NORMS[norm].colour.lower() for norm in ("none", "weight", "layer")
    }
    assert max(line.zorder for line in published) < min(line.zorder for line in ours)
    layer = published_curves()[Key("draw", "test_bound", "layer")]
    assert any(tuple(line.get_xdata()) == layer.x and tuple(line.get_ydata()) == layer.y for line in published)


@pytest.mark.parametrize(("log", "mean"), [(True, 1e-4), (False, 5e-3)])
def test_the_mean_over_seeds_is_that_of_the_axis(log: bool, mean: float) -> None:
    panel = Panel("train_nll", "draw", log=log)
    seeds = {seed: run(panel.x, panel.metric, {1.0: value, 2.0: 0.0}) for seed, value in enumerate((1e-2, 1e-6))}
    line = max(drawn(panel, {"draw": {"layer": seeds}}).lines, key=lambda line: line.get_linewidth())
    assert line.get_ydata()[0] == pytest.approx(mean, rel=1e-3)
    assert line.get_ydata()[1] == pytest.approx(LEAST if log else 0.0)


def test_a_curve_that_does_not_come_there_gets_axes_of_its_own():
    near, far = runs_of(BOUND, NEAR), runs_of(BOUND, FAR)
    assert comes_into(BOUND, near)
    assert not comes_into(BOUND, far)  # 128 nats
    assert not comes_into(BOUND, runs_of(BOUND, {1.0: 90.0, 20.0: 90.0}))  # a fifth of the axis
    assert not comes_into(BOUND, {})
    for runs in (near, far):
        for record in runs["draw"]["layer"][0].records:
            record["train_loss"] = record["test_bound"]
    figure = load_claims("draw").figure
    assert [(panel.metric, ours, said) for panel, ours, said in arranged(figure, near)[0]] == [
        ("test_bound", True, ""),
        ("train_loss", True, ""),
    ]
    assert [(panel.metric, ours, said) for panel, ours, said in arranged(figure, far)[0]] == [
        ("test_bound", False, "published"),
        ("test_bound", True, "measured"),
        ("train_loss", True, ""),
    ]
    axes = drawn(BOUND, far)
    assert axes.get_ylim()[1] > 190  # the published curves do not move our axes


def test_without_a_run_the_paper_stands_alone():
    parts, columns = arranged(load_claims("order_embeddings").figure, {})
    assert ([said for *_, said in parts], columns) == (["published"] * 3, 3)
    reader = load_claims("attentive_reader").figure
    shown, _ = arranged(reader, {"attentive_reader_gain01": {"layer": {0: run("step", "valid_error", {1.0: 50.0})}}})
    assert [panel.title for panel, *_ in shown] == ["Figure 2", "BN-e*", "gains of 0.1"]  # no empty axes
    (text,) = drawn(Panel("valid_nll", "skip_thoughts"), {}).texts
    assert text.get_text() == "no run yet"


def test_second_curves_are_drawn_another_way():
    (panel,) = load_claims("handwriting").figure.panels
    axes = drawn(panel, {}, measured=False)
    styles = {line.get_linestyle() for line in axes.lines}
    assert len(axes.lines) == 4  # as in the paper: test and training, without and with layer norm
    assert axes.get_xscale() == "log"
    assert axes.get_ylim() == (-900, 0)  # lower is further down
    assert len({tuple(map(str, line._unscaled_dash_pattern[1])) for line in axes.lines}) == 2, styles


@pytest.mark.parametrize("group", names("claims"))
def test_in_every_figure_panels_have_titles_and_no_text_lies_on_another(
    group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = load_claims(group)
    runs: dict[str, Runs] = {}
    for panel in document.figure.panels:
        last = 1.7 if panel.x == "epoch" else 1234.0
        points = {last * (i + 1) / 15: 0.9 * 0.8**i for i in range(15)}
        for norm in panel.norms or document.runs.norms:
            seeds = runs.setdefault(panel.experiment, {}).setdefault(norm, {0: run(panel.x, panel.metric, points)})
            for record, (position, value) in zip(seeds[0].records, points.items(), strict=True):
                record |= {panel.x: position, panel.metric: value}
    kept: list[Any] = []
    monkeypatch.setattr(panels, "save", lambda figure, path: kept.append(figure) or path)
    claim_figure(document, runs, tmp_path / "figure.png", "some data [substitute], profile laptop")
    (figure,) = kept
    figure.draw_without_rendering()
    titles = [axis.get_title() for axis in figure.axes]
    assert all(titles)
    assert len(set(titles)) == len(titles)
    renderer = figure.canvas.get_renderer()
    boxes = [(figure._suptitle.get_text(), figure._suptitle.get_window_extent(renderer))]
    boxes += [("legend", legend.get_window_extent(renderer)) for legend in figure.legends]
    for axis in figure.axes:
        texts = [axis.title, axis.xaxis.label, axis.yaxis.label]
        for side in (axis.xaxis, axis.yaxis):
            low, high = sorted(side.get_view_interval())
            texts += [tick.label1 for tick in side.get_major_ticks() if low <= tick.get_loc() <= high]
        boxes += [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text()]
    page = figure.bbox
    for (one, box), (other, second) in itertools.combinations(boxes, 2):
        assert not box.padded(-1).overlaps(second.padded(-1)), f"{one!r} touches {other!r}"
    for text, box in boxes:
        assert page.x0 <= box.x0 + 1, f"{text!r} is cut off"
        assert box.x1 - 1 <= page.x1, f"{text!r} is cut off"
    plt.close(figure)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.6, 1.0, [0.6, 0.7, 0.8, 0.9, 1.0]),  # never "9x10^-1"
        (25, 400, [50, 100, 200]),
        (200, 200_000, [1_000, 10_000, 100_000]),
        (1e-7, 2, [1e-6, 1e-4, 1e-2, 1]),
        (0.002, 0.03, [0.002, 0.005, 0.01, 0.02]),
    ],
)
def test_a_logarithmic_axis_has_round_ticks(low: float, high: float, expected: list[float]) -> None:
    shown = [tick for tick in log_ticks(low, high) if low <= tick <= high * (1 + 1e-9)]
    assert shown == pytest.approx(expected)


def test_every_tick_is_written_as_a_person_writes_it():
    axes = drawn(Panel("x", "draw", log=True), {"draw": {"layer": {0: run("step", "x", {1.0: 2e-4, 2.0: 9e-4})}}})
    axes.figure.draw_without_rendering()
    texts = [text.get_text() for text in axes.get_yticklabels()]
    assert texts == ["0.0002", "0.0005"]
    assert (counted(20_000, 80_000), counted(0, 80_000), counted(800_000, 1e6)) == ("20k", "0", "0.8M")
    assert (counted(-800, 900), counted(0.005, 0.025)) == ("-800", "0.005")


def test_a_published_second_curve_without_runs_is_named_in_the_legend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(panels, "save", lambda figure, path: kept.append(figure) or path)
    claim_figure(load_claims("attentive_reader"), {}, tmp_path / "figure.png", "nothing")
    (legend,) = kept[0].legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["no norm", "batch norm", "batch norm, everywhere", "layer norm", "published"]
    plt.close(kept[0])


def test_a_long_axis_is_labelled_in_whole_numbers():
    axes = drawn(BOUND, runs_of(BOUND, FAR))  # 12 epochs
    assert [tick for tick in axes.get_xticks() if 1 <= tick <= 12] == [2, 4, 6, 8, 10, 12]


def test_a_legends_rows_are_of_one_length():
    labels = ["no norm", "batch norm", "weight norm", "layer norm", "random vectors", "published"]
    assert legend_columns(labels, 12.4) == 6
    assert legend_columns(labels, 8.0) == 3  # two rows of three, not five and one
    assert legend_columns(labels, 3.2) == 2


def test_what_a_panel_must_not_hold_is_one_sentence():
    document = {
        "title": "t", "figure_of_paper": "f", "metrics": {"test_bound": "lower"}, "claims": [],
        "runs": {"experiments": ["draw"], "norms": ["none"], "seeds": {"smoke": 1}},
    }  # fmt: skip
    for extra, sentence in (
        ({"paper": {"x": [0], "y": [0, 1]}}, "the paper's x and y must be two different ends each"),
        ({"paper": {"x": [0, 1]}}, "paper: y is missing"),
        ({"also": {"metric": "test_bound"}}, "also: label is missing"),
        ({"also": {"label": "l", "metric": "tset_bound"}}, "tset_bound is no metric"),
        ({"also": {"label": "l", "experiment": "drwa"}}, "drwa is no experiment"),
    ):
        figure = {"panels": [{"metric": "test_bound", **extra}]}
        with pytest.raises(Mistake, match=sentence.replace("'", ".")):
            claims_file({**document, "figure": figure}, "draw.yaml")

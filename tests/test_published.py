"""The published curves, and the ratios that the report quotes of them."""

import re

import pytest

from ln.suite.errors import Mistake
from ln.suite.judging.published import Curve, Key, published_curves, read_figure, read_folder

HEAD = """# source: a paper
# page: 1
# x: epochs
# axes: x 0 to 9
# resolution: exact
# between: linear
"""


def curve(*key: str) -> Curve:
    return published_curves()[Key(*key)]


def share(ours: Curve, theirs: Curve, lower: bool) -> float | None:
    """The part of the x that `theirs` needs for its best at which `ours` is first drawn as good."""
    sign = 1 if lower else -1
    best = min(sign * y for y in theirs.y)
    mine, other = ([x for x, y in zip(c.x, c.y, strict=True) if sign * y <= best] for c in (ours, theirs))
    return mine[0] / other[0] if mine else None


def norms(experiment: str, metric: str, ours: str = "layer", theirs: str = "none") -> tuple[Curve, Curve]:
    return curve(experiment, metric, ours), curve(experiment, metric, theirs)


def test_order_embeddings_reach_the_baselines_best_in_0_57_of_its_updates():
    ours, theirs = norms("order_embeddings", "valid_image_recall_sum")
    assert max(theirs.y) == pytest.approx(205.34)
    assert theirs.x[theirs.y.index(max(theirs.y))] == 130 * 300
    assert share(ours, theirs, lower=False) == pytest.approx(74 / 130)  # 0.569
    for metric, expected in (("valid_image_r1", 0.65), ("valid_image_r5", 0.52), ("valid_image_r10", 0.57)):
        assert share(*norms("order_embeddings", metric), lower=False) == pytest.approx(expected, abs=0.005)
    # Layer norm was trained for 61 % of the baseline's updates.
    assert ours.x[-1] / theirs.x[-1] == pytest.approx(165 / 270)


def test_layer_norms_reader_is_ahead_of_every_other_curve_of_figure_2():
    layer = curve("attentive_reader", "valid_error", "layer")
    assert min(layer.y) == pytest.approx(100 * 1865 / 3904, abs=1e-3)
    assert layer.x[layer.y.index(min(layer.y))] == 126e3
    others = [("attentive_reader", "none"), ("attentive_reader", "batch"), ("attentive_reader_bn_everywhere", "batch")]
    for (experiment, norm), expected in zip(others, (0.066, 0.241, 0.405), strict=True):
        assert share(layer, curve(experiment, "valid_error", norm), lower=True) == pytest.approx(expected, abs=5e-4)


def test_draw_is_not_almost_twice_as_fast_even_in_figure_4():
    ours, theirs = norms("draw", "test_bound")
    assert theirs.x[-1] == 100  # the drawing goes on beyond its axis
    assert share(ours, theirs, lower=True) == pytest.approx(0.74)


def test_handwriting_needs_a_ninth_of_the_baselines_updates():
    ours, theirs = norms("handwriting", "test_nll")
    assert share(ours, theirs, lower=True) == pytest.approx(76 / 838)  # 0.09
    ours, theirs = norms("handwriting", "train_loss")
    assert share(ours, theirs, lower=True) == pytest.approx(180 / 864)
    assert ours.x[-1] == 282 * 200
    assert theirs.x[-1] == 953 * 200


def test_mnist_at_batch_128_never_reaches_the_baselines_best():
    assert share(*norms("mnist_b128", "train_nll"), lower=True) is None
    assert min(curve("mnist_b128", "train_nll", "none").y) == pytest.approx(6.4e-11, rel=0.01)
    assert share(*norms("mnist_b128", "train_nll", theirs="batch"), lower=True) == pytest.approx(0.38, abs=0.005)
    # Within the first 6 or 10 points it does not reach batch norm's best either: points are two epochs.
    for points in (6, 10):
        ours, theirs = (c.until(2 * points + 1) for c in norms("mnist_b128", "train_nll", theirs="batch"))
        assert len(ours.x) == points
        assert share(ours, theirs, lower=True) is None
    ours, theirs = norms("mnist_b4", "test_error", theirs="batch")
    assert (min(ours.y), theirs.y[-1]) == (pytest.approx(0.01365), pytest.approx(0.02))


def test_skip_thoughts_is_above_the_baseline_at_119_of_120_checkpoints():
    above = []
    for task in ("sick_r", "sick_mse", "mr", "cr", "subj", "mpqa"):
        ours, theirs = norms("skip_thoughts", f"valid_{task}")
        assert ours.x == theirs.x
        assert ours.x[0] == 50_000
        assert ours.x[-1] == 1_000_000
        above += [(a - b) * (-1 if task == "sick_mse" else 1) > 0 for a, b in zip(ours.y, theirs.y, strict=True)]
    assert (sum(above), len(above)) == (119, 120)
    assert curve("skip_thoughts", "valid_sick_r", "original").y == pytest.approx([0.8477] * 20)
    assert curve("skip_thoughts", "valid_mr", "layer").high[-1] > curve("skip_thoughts", "valid_mr", "layer").y[-1]


def test_figure_6_is_130_evaluations_in_65_points():
    nll = curve("mnist_b128", "train_nll", "layer")
    assert len(nll.x) == 65
    assert nll.axis == "epoch"
    assert (nll.x[0], nll.x[-1]) == (1.5, 129.5)
    for y, low, high in zip(nll.y, nll.low, nll.high, strict=True):
        assert y == pytest.approx((low + high) / 2, rel=1e-5)


def test_what_the_plotting_program_left_out_is_put_back_and_said():
    layer = curve("order_embeddings", "valid_image_r1", "layer")
    assert [x / 300 for x in sorted(layer.interpolated)] == [87, 135, 146, 159]
    assert len(layer.x) == 153
    # Cooijmans' points were read one by one; nothing stands between them.
    lstm = curve("seq_mnist", "valid_accuracy", "none")
    assert not lstm.interpolated
    assert lstm.x[-2:] == (93e3, 99e3)
    assert lstm.y[0] == pytest.approx(11.1)


def test_on_a_logarithmic_axis_a_point_is_put_back_where_the_page_has_it(tmp_path):
    path = tmp_path / "f.csv"
    path.write_text(HEAD.replace("linear", "logarithmic") + "x,draw/test_bound/none\n1,0\n10,\n100,2\n")
    (read,) = read_figure(path).values()
    assert read.y == (0, pytest.approx(1), 2)
    assert read.interpolated == {10}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (HEAD.replace("epochs", "fortnights") + "x,draw/test_bound/none\n1,2\n", "fortnights is no unit of x"),
        (HEAD.replace("linear", "cubic") + "x,draw/test_bound/none\n1,2\n", "cubic is no way between points"),
        (HEAD + "# scale: 2\nx,draw/test_bound/none\n1,2\n", "scale is not a line of its head"),
        (HEAD.replace("# page: 1\n", "") + "x,draw/test_bound/none\n1,2\n", "its head lacks page"),
        (HEAD + "x,draw/test_bound\n1,2\n", "the column draw/test_bound is neither"),
        (HEAD + "x,draw/test_bound/none/low\n1,2\n", "the column draw/test_bound/none/low is neither"),
        (HEAD + "x,drwa/test_bound/none\n1,2\n", "drwa is no experiment"),
        (HEAD + "x,draw/tset_bound/none\n1,2\n", "tset_bound is no metric"),
        (HEAD + "x,draw/test_bound/lyer\n1,2\n", "lyer is no norm"),
        (HEAD + "x,draw/test_bound/none\n1,two\n", "'two' in the column draw/test_bound/none is not a number"),
        (HEAD + "x,draw/test_bound/none\n1,2,3\n", "has 2 columns, but the row of x = 1 has 3"),
        (HEAD + "x,draw/test_bound/none\n2,2\n1,3\n", "x must grow from row to row"),
        (HEAD + "x,draw/test_bound/none\n1,\n", "the column draw/test_bound/none is empty"),
        (HEAD + "x,draw/test_bound/none,draw/test_bound/none\n1,2,3\n", "two columns of one name"),
        (HEAD, "must have a row of column names"),
    ],
)
def test_what_a_file_must_not_hold_is_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "figure.csv"
    path.write_text(text)
    with pytest.raises(Mistake, match=re.escape(sentence)) as raised:
        read_figure(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_curve_in_two_files_is_one_sentence(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(HEAD + "x,draw/test_bound/none\n1,2\n")
    with pytest.raises(Mistake, match=r"b\.csv has the curve draw/test_bound/none, which a\.csv has too"):
        read_folder(tmp_path)

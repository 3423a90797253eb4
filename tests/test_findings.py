"""Where the paper and its figures disagree: the numbers, and the pages made of them."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from ln.suite.errors import Mistake
from ln.suite.judging import analysis
from ln.suite.judging.findings import FINDINGS, finding, findings
from ln.suite.judging.reading import curve, resampled_shares, share_to_best, smooth
from ln.suite.showing.findings import page, short_list
from scripts.findings import main

ROOT = Path(__file__).parents[1]


def test_eq13_doubling_the_weights_quarters_the_curvature_and_halves_the_distance():
    assert analysis.doubled_weights() == (pytest.approx(0.25, rel=1e-12), pytest.approx(0.5, rel=1e-12))


def test_eq13_leaves_out_what_a_units_weights_do_to_the_other_units_of_a_layer():
    few, many = analysis.layer_curvature(4), analysis.layer_curvature(64)
    assert few.least > 0.1
    assert many.largest < few.least  # each of many units moves the mean and deviation by less
    for layer in (few, many):  # Table 1's re-centering: no curvature, and as much as anywhere by the equation
        assert layer.common < 1e-20
        assert layer.common_by_13 > 0.5


def test_eq13_is_exact_where_the_units_share_nothing(monkeypatch):
    monkeypatch.setattr(analysis, "layer_norm", lambda a, gain, eps: a * gain)
    assert analysis.layer_curvature(3).largest < 1e-15


def test_eq32_lacks_the_normalized_input_that_eq13_has():
    exact, by_13, by_32 = analysis.gain_information()
    assert by_13 == pytest.approx(exact, rel=1e-12)
    assert by_32 > 1.5 * exact


def test_twice_the_data_doubles_a_weight_normalized_output_and_leaves_the_others():
    changes = analysis.doubled_data()
    assert changes.pop("weight") == pytest.approx(1, rel=1e-12)
    assert max(changes.values()) < 1e-12


def test_a_shift_of_the_features_changes_a_layer_normalized_output_and_a_common_one_of_the_sums_does_not():
    features, common = analysis.shifted_cases()
    assert features > 0.1
    assert common < 1e-12


def test_the_noise_of_single_validations_leaves_the_60_percent_open():
    pair = [curve("order_embeddings", "valid_image_recall_sum", norm) for norm in ("layer", "none")]
    low, high = np.quantile(resampled_shares(*pair, 9), (0.05, 0.95))
    assert low < 0.45 < share_to_best(*pair, lower=False) < 0.65 < high < 1


def test_a_moving_average_shortens_at_the_ends():
    assert smooth([1, 2, 3, 10], 3).tolist() == [1.5, 2, 5, 6.5]


def test_table_3_mixes_two_lengths():
    shown = " ".join(finding("table-3").shown)
    assert "5 of 6 numbers at checkpoint 16" in shown
    assert "CR +0.29" in shown


def test_what_figure_6_shows():
    bands, baseline = (" ".join(finding(f"figure-6-{name}").shown) for name in ("bands", "baseline"))
    assert "780 of 780" in bands
    assert "no norm 47 of 47, layer norm 55 of 55" in bands
    assert "at 16 of the first 22 points" in baseline
    assert "batch norm gets to 1e-4 at point 48 only" in baseline
    assert "0.22 points with layer norm, 0.91 with batch norm and 0.06 with none" in baseline


def test_both_curves_of_figure_1_get_worse_after_their_best():
    shown = " ".join(finding("figure-1").shown)
    assert "R@1 from 42.1 to 41.0 with layer norm, from 40.8 to 39.7 without" in shown


def test_every_number_is_one():
    for found in findings():
        for text in (found.short, *found.shown):
            assert str(math.nan) not in text.split()
            assert "inf" not in text.split()


def test_the_committed_page_and_the_readmes_list_are_those_of_the_curves():
    assert (ROOT / "results/FINDINGS.md").read_text() == page(findings()), "run `make findings`"
    assert short_list(findings()) in (ROOT / "README.md").read_text(), "run `make readme`"


def test_each_has_a_command_that_shows_it(monkeypatch, capsys):
    for name in FINDINGS:
        assert finding(name).command == f"make findings ONLY={name}"
    monkeypatch.setattr(sys, "argv", ["findings", "--only", "figure-4"])
    main()
    assert "1.33 to 1.58 times" in capsys.readouterr().out
    with pytest.raises(Mistake, match="figure-9 is not a finding; choose one of table-1, equation-13, factor-half"):
        finding("figure-9")

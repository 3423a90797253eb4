"""Table 1 and equation 13 against what is known of them."""

import pytest
import torch

from experiments.invariance.fisher import fisher_by_differentiation, fisher_by_equation, fisher_row, glm_inputs
from experiments.invariance.network import Settings
from experiments.invariance.recurrence import recurrence, through_time
from experiments.invariance.table import COLUMNS, beyond_the_table, table_row
from ln.reference import layer_norm

PAPER = {
    "batch": [True, False, True, True, True, False],
    "weight": [True, False, True, False, False, False],
    "layer": [True, True, False, True, False, True],
    "none": [False] * 6,
}


@pytest.fixture
def images() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(200, 30)


@pytest.mark.parametrize("norm", list(PAPER))
def test_table_1(norm: str, images: torch.Tensor) -> None:
    row = table_row(norm, images, Settings(hidden=16, draws=3, cases=20))
    assert [row[f"log10_change_{name}"] < -9 for name in COLUMNS] == PAPER[norm]
    assert all(value < -9 or value > -3 for value in row.values())


@pytest.mark.parametrize("norm", ["batch", "weight", "layer", "none"])
def test_eq13_blocks_are_what_differentiation_gives(norm: str, images: torch.Tensor) -> None:
    theta = torch.randn(4, 32).double()
    x = images[:20].double()
    equation = fisher_by_equation(norm, theta, x)
    assert torch.allclose(equation, fisher_by_differentiation(norm, theta, x, own=True), rtol=1e-9, atol=1e-12)
    own_is_all = torch.allclose(equation, fisher_by_differentiation(norm, theta, x, own=False), rtol=1e-6, atol=1e-9)
    assert own_is_all == (norm != "layer")  # only layer norm couples the units


@pytest.mark.parametrize("norm", ["batch", "weight", "layer", "none"])
def test_the_run_judges_eq13_by_the_fisher_matrix_itself(norm: str, images: torch.Tensor) -> None:
    row = fisher_row(norm, images, Settings(cases=32))
    assert row["fisher_own_log10_error"] < -12
    coupled = norm == "layer"  # a unit's weights move the others, in its own block and across blocks
    assert (row["fisher_block_log10_error"] > -1) == coupled
    assert (row["fisher_block_log10_error"] < -12) == (not coupled)
    for part in ("fisher_block_error_ww", "fisher_cross_terms"):
        assert (row[part] > 0.1) == coupled


@pytest.mark.parametrize("norm", ["weight", "layer"])
def test_eq8_the_fisher_matrix_is_the_curvature_of_the_divergence(norm: str, images: torch.Tensor) -> None:
    theta = torch.randn(3, 8).double()
    x = images[:10, :6].double()
    at = torch.log_softmax(glm_inputs(norm, theta, x), dim=1)

    def divergence(changed: torch.Tensor) -> torch.Tensor:
        there = torch.log_softmax(glm_inputs(norm, changed, x), dim=1)
        return (at.exp() * (at - there)).sum(1).mean()

    hessian = torch.func.hessian(divergence)(theta)
    assert torch.allclose(hessian, fisher_by_differentiation(norm, theta, x, own=False), atol=1e-10)


@pytest.mark.parametrize("norm", ["batch", "weight", "layer"])
def test_doubling_the_weights_quarters_the_curvature_and_halves_the_distance(norm: str, images: torch.Tensor) -> None:
    row = fisher_row(norm, images, Settings(cases=32))
    assert row["curvature_ratio_ww"] == pytest.approx(1 / 4)
    assert row["curvature_ratio_wb"] == pytest.approx(1 / 2)
    assert row["distance_ratio"] == pytest.approx(1 / 2)


def test_without_a_norm_doubling_the_weights_does_not(images: torch.Tensor) -> None:
    assert fisher_row("none", images, Settings(cases=32))["curvature_ratio_ww"] != pytest.approx(1 / 4, rel=0.05)


def test_what_the_paper_says_outside_its_table(images: torch.Tensor) -> None:
    rows = {norm: beyond_the_table(norm, images, Settings(hidden=16, draws=3, cases=20)) for norm in PAPER}
    exact = -12
    # The conclusion's shift of a case's features is no invariance; a shift of all its summed inputs is layer norm's.
    assert all(row["log10_change_case_shift"] > -3 for row in rows.values())
    assert {norm for norm, row in rows.items() if row["log10_change_sum_shift"] < exact} == {"layer"}
    assert {norm for norm, row in rows.items() if row["gain_metric_log10_change"] < exact} == {"batch", "layer"}


def test_section_3_1_what_a_recurrence_does_without_a_norm_it_does_not_do_with_layer_norm(images: torch.Tensor) -> None:
    none, layer = (recurrence(norm, images, Settings(hidden=48, draws=3, cases=8)) for norm in ("none", "layer"))
    for what in ("summed_inputs", "gradient"):
        assert none[f"{what}_rectified_half"] < -10
        assert none[f"{what}_rectified_twice"] > 10
        assert none[f"{what}_tanh_half"] < -10
    assert none["summed_inputs_tanh_twice"] < 1  # tanh bounds them,
    assert none["gradient_tanh_twice"] > 1  # and not what the gradient is multiplied by
    assert none["gradient_rectified_drift"] == max(none["gradient_rectified_twice"], -none["gradient_rectified_half"])
    for unit in ("rectified", "tanh"):  # no scale of the weights can matter
        for what in ("summed_inputs", "gradient"):
            half, twice = (layer[f"{what}_{unit}_{factor}"] for factor in ("half", "twice"))
            assert abs(half - twice) < 2
        assert abs(layer[f"summed_inputs_{unit}_twice"]) < 0.5


def test_a_layer_normalized_recurrence_is_the_same_for_any_scale_of_its_weights(images: torch.Tensor) -> None:
    measured = []
    for scale in (0.1, 10.0):
        torch.manual_seed(1)
        measured.append(through_time("layer", images[:8].double(), 32, torch.tanh, scale))
    assert measured[0] == pytest.approx(measured[1], abs=1e-6)


def test_section_5_1_normalizing_the_inputs_alone_is_invariant_to_no_change_of_the_weights() -> None:
    x = torch.randn(20, 12, dtype=torch.float64)
    weights = torch.randn(8, 12, dtype=torch.float64)
    normalized = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True, unbiased=False)
    before = normalized @ weights.T
    for changed in (3 * weights, weights + torch.randn(12, dtype=torch.float64)):
        assert (normalized @ changed.T - before).norm() > 0.1 * before.norm()


def test_section_3_weight_norm_is_another_parameterization_and_layer_norm_is_none() -> None:
    """Weight norm is a linear layer of other weights, whatever the input; no linear layer does what layer norm does."""
    torch.manual_seed(0)
    x = torch.randn(200, 6, dtype=torch.float64)  # (N, D)
    weights, gain = torch.randn(4, 6, dtype=torch.float64), torch.rand(4, dtype=torch.float64) + 0.5

    def misfit(outputs: torch.Tensor) -> float:
        """What the best linear layer of x leaves of them, as a share."""
        inputs = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
        fitted = inputs @ torch.linalg.lstsq(inputs, outputs).solution
        return float((outputs - fitted).norm() / outputs.norm())

    assert misfit(x @ (gain[:, None] * weights / weights.norm(dim=1, keepdim=True)).T) < 1e-12
    assert misfit(layer_norm(x @ weights.T, gain, eps=0.0)) > 0.1

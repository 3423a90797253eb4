"""The MLP's placements of each norm, as section 6.6 has them."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from experiments.mnist import Mnist, Settings, mlp
from ln.norms import UnbiasedBatchNorm1d
from ln.suite.config import Recipe


def kinds(norm: str, settings: Settings) -> list[str]:
    return [type(module).__name__.removeprefix("Parametrized") for module in mlp(6, norm, settings)]


def test_layer_norm_is_on_the_hidden_layers_and_not_on_the_softmax_layer() -> None:
    assert kinds("layer", Settings(8)) == ["Linear", "LayerNorm", "ReLU", "Linear", "LayerNorm", "ReLU", "Linear"]


def test_batch_norm_is_on_every_layer_including_the_logits() -> None:
    assert kinds("batch", Settings(8)) == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear", "BatchNorm1d"]
    assert kinds("batch", Settings(8, batch_norm_logits=False))[-1] == "Linear"


def test_batch_norm_at_the_small_batch_uses_the_unbiased_variance() -> None:
    model = mlp(6, "batch", Settings(8, unbiased_variance=True))
    normalizers = [m for m in model if isinstance(m, nn.BatchNorm1d)]
    assert len(normalizers) == 3
    assert all(isinstance(m, UnbiasedBatchNorm1d) for m in normalizers)
    a = torch.randn(4, 8, dtype=torch.float64)
    expected = (a - a.mean(0)) / (a.var(0, correction=1) + 1e-5).sqrt()
    assert torch.allclose(normalizers[0].double()(a), expected, atol=1e-12)


def test_weight_norm_reparameterizes_every_layer_and_starts_as_the_plain_network() -> None:
    torch.manual_seed(0)
    plain = mlp(6, "none", Settings(8))
    torch.manual_seed(0)
    weight = mlp(6, "weight", Settings(8))
    assert sum(hasattr(m, "parametrizations") for m in weight) == 3
    x = torch.randn(5, 6)
    assert torch.allclose(plain(x), weight(x), atol=1e-6)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_runs_of_one_seed_start_from_the_same_weights_whatever_the_norm(norm: str) -> None:
    def weights(name: str) -> list[torch.Tensor]:
        torch.manual_seed(3)
        return [m.weight for m in mlp(6, name, Settings(8)) if isinstance(m, nn.Linear)]

    assert all(torch.equal(a, b) for a, b in zip(weights("none"), weights(norm), strict=True))


def test_train_nll_is_of_the_first_training_digits_with_batch_norms_moving_averages(
    recipe: Callable[..., Recipe],
) -> None:
    made = recipe("experiment=mnist_b128", "norm=batch", "model.train_evaluated=50")
    task = Mnist(made, Mnist.find("embedded"), torch.device("cpu"))
    task.model(task.inputs["train"][:200])  # moves the averages
    task.model.eval()
    with torch.no_grad():
        logits = task.model(task.inputs["train"][:50])
        expected = F.cross_entropy(logits, task.labels["train"][:50])
        assert task.evaluate("train")["nll"] == pytest.approx(float(expected), rel=1e-5)
        made.model.train_evaluated = None
        assert task.evaluate("train")["nll"] != pytest.approx(float(expected), rel=1e-5)

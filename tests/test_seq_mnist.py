"""Sequential MNIST: what is read in which order, and how the reader starts."""

from collections.abc import Callable

import pytest
import torch

from experiments.seq_mnist import Reader, SeqMnist, Settings, norm_for_pixels, pixel_order, shrink
from ln import NormConfig
from ln.norms import NORMS
from ln.suite.config import Recipe
from ln.suite.errors import Mistake
from ln.suite.runs.train import carry_out


def test_images_are_averaged_down() -> None:
    image = torch.arange(16.0).view(1, 16)
    assert shrink(image, 2).tolist() == [[2.5, 4.5, 10.5, 12.5]]
    assert torch.equal(shrink(image, 4), image)
    with pytest.raises(Mistake, match="does not divide the 4 pixels"):
        shrink(image, 3)


def test_orders() -> None:
    steps = 784
    assert pixel_order(steps, "none").tolist() == list(range(steps))
    true = pixel_order(steps, "true")
    assert sorted(true.tolist()) == list(range(steps))
    assert torch.equal(true, pixel_order(steps, "true"))  # one order for all runs
    seen = len(set(pixel_order(steps, "replacement").tolist())) / steps
    assert 0.58 < seen < 0.68  # 1 - 1/e: a third of the pixels is never read
    with pytest.raises(Mistake, match=r"model\.permutation=shuffled is unknown"):
        pixel_order(steps, "shuffled")


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_starts_from_the_published_weights(norm: str) -> None:
    hidden = 8
    reader = Reader(norm_for_pixels(NormConfig(norm), 64, Settings()), hidden)
    p = reader.lstm.params("_l0", torch.float32)
    blocks = p.weight_hh.split(hidden)
    assert torch.allclose(blocks[2], torch.eye(hidden), atol=1e-6)
    gates = torch.cat([blocks[0], blocks[1], blocks[3]])  # (3H, H): one orthogonal block, its gates by themselves not
    assert torch.allclose(gates.T @ gates, torch.eye(hidden), atol=1e-5)
    assert not torch.allclose(blocks[0] @ blocks[0].T, torch.eye(hidden), atol=0.1)
    assert not torch.allclose(blocks[0], blocks[1])
    assert p.bias_ih is not None
    assert p.bias_ih[hidden : 2 * hidden].tolist() == [1.0] * hidden
    assert p.bias_ih.sum() == hidden


def test_layer_norm_tells_grey_levels_apart() -> None:
    reader = Reader(norm_for_pixels(NormConfig("layer"), 2, Settings()), 16)
    dark, bright = (torch.full((2, 1, 1), level) for level in (0.2, 0.9))
    assert (reader(dark, 0.0) - reader(bright, 0.0)).abs().max() > 1e-3


def test_batch_norm_keeps_statistics_of_every_step() -> None:
    assert norm_for_pixels(NormConfig("batch"), 784, Settings()).max_steps == 784


@pytest.mark.parametrize(
    ("norm", "experiment", "noise"),
    [("batch", "seq_mnist", 0.1), ("batch", "seq_mnist_permuted", 0.0), ("layer", "seq_mnist", 0.0)],
)
def test_noise_is_added_where_it_was_published(
    recipe: Callable[..., Recipe], norm: str, experiment: str, noise: float
) -> None:
    made = recipe(f"experiment={experiment}", f"norm={norm}")
    assert SeqMnist(made, SeqMnist.find("embedded"), torch.device("cpu")).noise == noise


def test_it_learns(recipe: Callable[..., Recipe]) -> None:
    quick = ["train.steps=250", "train.evaluate_every=125", "train.optimizer.lr=0.01"]
    run = carry_out(recipe("experiment=seq_mnist_permuted", "norm=layer", *quick))
    assert run.info["final"]["test_accuracy"] > 25  # chance is 10

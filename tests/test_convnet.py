"""The convolutional network: its layers, its norms, weight norm's initialization, its schedule and its maps."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ln.suite.runs.train
from experiments.convnet import pictures as convnet_pictures
from experiments.convnet.network import ConvPool, Layer, MeanOnlyBatchNorm, Settings
from experiments.convnet.task import ConvNet, prepared
from ln.norms import NORMS, NormConfig
from ln.suite.config import Recipe
from ln.suite.errors import Mistake
from ln.suite.runs.read import read_metrics
from ln.suite.runs.train import carry_out

Make = Callable[..., Recipe]
SMALL = Settings(first=4, second=6)


def network(norm: str, settings: Settings = SMALL, side: int = 12) -> ConvPool:
    torch.manual_seed(0)
    return ConvPool(1, side, 10, NormConfig(norm, eps=1e-6), settings)


def task_of(recipe: Recipe) -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(recipe, ConvNet.find("embedded"), torch.device("cpu"))


# --- the network


def test_the_full_network_is_convpool_cnn_c() -> None:
    model = ConvPool(3, 32, 10, NormConfig("none"), Settings()).eval()
    sizes = [(tuple(layer.linear.weight.shape), tuple(getattr(layer.linear, "padding", ()))) for layer in model.layers]
    assert sizes == [
        ((96, 3, 3, 3), (1, 1)),
        ((96, 96, 3, 3), (1, 1)),
        ((96, 96, 3, 3), (1, 1)),
        ((192, 96, 3, 3), (1, 1)),
        ((192, 192, 3, 3), (1, 1)),
        ((192, 192, 3, 3), (1, 1)),
        ((192, 192, 3, 3), (0, 0)),
        ((192, 192, 1, 1), (0, 0)),
        ((192, 192, 1, 1), (0, 0)),
        ((10, 192), ()),
    ]
    kinds = [type(module).__name__ for module in model]
    stage = ["Layer"] * 3 + ["MaxPool2d", "Dropout"]
    assert kinds == ["GaussianNoise", *stage, *stage, *["Layer"] * 3, "GlobalAverage", "Layer"]
    assert [module.p for module in model if isinstance(module, nn.Dropout)] == [0.5, 0.5]
    slopes = [getattr(layer.activation, "negative_slope", None) for layer in model.layers]
    assert slopes == [0.1] * 9 + [None]
    assert nn.Sequential(*list(model)[:-2])(torch.randn(2, 3, 32, 32)).shape == (2, 192, 6, 6)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    weights = model.layers[1].linear.weight
    assert float(weights.detach().std()) == pytest.approx(0.05, rel=0.02)


def test_noise_is_added_in_training_only() -> None:
    noise, x = network("none")[0], torch.zeros(40, 1, 30, 30)
    assert float(noise.train()(x).std()) == pytest.approx(0.15, rel=0.02)
    assert torch.equal(noise.eval()(x), x)


def test_every_layer_has_the_norm_and_none_has_two_biases() -> None:
    for norm in NORMS:
        for layer in network(norm).layers:
            assert (layer.linear.bias is None) == (norm in ("batch", "layer", "rms"))
            assert isinstance(layer.norm, nn.Identity) == (norm in ("none", "weight"))
            assert hasattr(layer.linear, "parametrizations") == (norm == "weight")
    batch = [layer.norm for layer in network("batch").layers]
    assert {(norm.eps, norm.momentum) for norm in batch} == {(1e-6, 0.1)}
    assert [type(norm) for norm in batch] == [nn.BatchNorm2d] * 9 + [nn.BatchNorm1d]


def test_layer_norm_leaves_the_logits_alone_where_the_recipe_says_so() -> None:
    layers = network("layer", Settings(4, 6, layer_norm_logits=False)).layers
    assert isinstance(layers[-1].norm, nn.Identity)
    assert layers[-1].linear.bias is not None
    assert not any(isinstance(layer.norm, nn.Identity) for layer in layers[:-1])


@pytest.mark.parametrize("norm", ["batch", "weight", "layer"])
def test_runs_of_one_seed_start_from_the_same_weights_whatever_the_norm(norm: str) -> None:
    pairs = zip(network("none").layers, network(norm).layers, strict=True)
    assert all(torch.allclose(one.linear.weight, two.linear.weight, rtol=1e-6) for one, two in pairs)


def test_unknown_layer_norm_and_small_images_are_one_sentence() -> None:
    with pytest.raises(Mistake, match=r"model.layer_norm=channel is unknown; choose one of image, position, element"):
        network("layer", Settings(layer_norm="channel"))
    with pytest.raises(Mistake, match=r"images of 11 x 11 pixels are too small"):
        network("none", side=11)
    with pytest.raises(Mistake, match=r"model.shrink=5 does not divide the 24 pixels"):
        prepared(torch.zeros(2, 1, 24, 24, dtype=torch.uint8), 0, 5)


# --- the readings of layer norm


def normalized(a: Tensor, dimensions: tuple[int, ...], gain: Tensor, bias: Tensor) -> Tensor:
    """Equation 3, with the statistics over these dimensions of (B, C, A, A)."""
    mean = a.mean(dimensions, keepdim=True)
    deviation = ((a - mean).square().mean(dimensions, keepdim=True) + 1e-6).sqrt()
    return gain * (a - mean) / deviation + bias


@pytest.mark.parametrize(
    ("reading", "dimensions", "shape"),
    [("image", (1, 2, 3), (4,)), ("position", (1,), (4,)), ("element", (1, 2, 3), (4, 12, 12))],
)
def test_eq3_layer_norm_of_a_map(reading: str, dimensions: tuple[int, ...], shape: tuple[int, ...]) -> None:
    norm = network("layer", Settings(4, 6, layer_norm=reading)).layers[0].norm.double()
    assert norm.weight.shape == norm.bias.shape == shape
    assert torch.equal(norm.weight, torch.ones(shape).double())
    assert not norm.bias.any()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    a = 3 * torch.randn(5, 4, 12, 12, dtype=torch.float64) + torch.arange(4.0).view(4, 1, 1)
    per_map = (4, 1, 1) if len(shape) == 1 else shape
    expected = normalized(a, dimensions, norm.weight.view(per_map), norm.bias.view(per_map))
    torch.testing.assert_close(norm(a), expected)
    others = [d for d in ((1, 2, 3), (1,), (2, 3)) if d != dimensions]
    for wrong in others:
        assert not torch.allclose(norm(a), normalized(a, wrong, norm.weight.view(per_map), norm.bias.view(per_map)))


def test_the_last_layers_reading_is_over_the_logits() -> None:
    last = network("layer", Settings(4, 6, layer_norm="element")).layers[-1].norm
    assert isinstance(last, nn.LayerNorm)
    assert last.normalized_shape == (10,)


# --- mean-only batch norm


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4, 5)])
def test_mean_only_batch_norm_against_its_definition(shape: tuple[int, ...]) -> None:
    layer = MeanOnlyBatchNorm(3).double()
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([1.0, -2.0, 0.5]))
    running = [0.0, 0.0, 0.0]
    for _ in range(3):
        t = torch.randn(shape, dtype=torch.float64) + 4
        out = layer(t)
        for unit in range(3):
            mean = sum(t[:, unit].flatten().tolist()) / t[:, unit].numel()
            torch.testing.assert_close(out[:, unit], t[:, unit] - mean + layer.bias[unit])
            running[unit] = 0.9 * running[unit] + 0.1 * mean
        assert layer.running_mean.tolist() == pytest.approx(running)
    t = torch.randn(shape, dtype=torch.float64)
    for unit in range(3):
        expected = t[:, unit] - running[unit] + layer.bias[unit]
        torch.testing.assert_close(layer.eval()(t)[:, unit], expected)
    assert layer.running_mean.tolist() == pytest.approx(running)


def test_mean_only_batch_norm_centres_the_gradient() -> None:
    layer = MeanOnlyBatchNorm(3).double()
    t = torch.randn(5, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    layer(t).backward(upstream)
    torch.testing.assert_close(t.grad, upstream - upstream.mean((0, 2, 3), keepdim=True))
    torch.testing.assert_close(layer.bias.grad, upstream.sum((0, 2, 3)))


def test_mean_only_goes_with_weight_norm_only() -> None:
    settings = Settings(4, 6, mean_only=True)
    for norm in NORMS:
        layers = network(norm, settings).layers
        assert all(isinstance(layer.norm, MeanOnlyBatchNorm) for layer in layers) == (norm == "weight")
    assert all(layer.linear.bias is None for layer in network("weight", settings).layers)


# --- weight norm's initialization


def summed_inputs(task: ConvNet, seed: int, images: Tensor) -> list[Tensor]:
    """What each layer hands to its nonlinearity in training, with the noise and dropout of this seed."""
    found: list[Tensor] = []
    hooks = [layer.norm.register_forward_hook(lambda m, i, output: found.append(output)) for layer in task.model.layers]
    torch.manual_seed(seed)
    with torch.no_grad():
        task.model.train()(images)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(
    ("experiment", "norm"), [("convnet", "weight"), ("convnet_mean_only", "weight"), ("convnet", "none")]
)
def test_data_dependent_initialization_gives_zero_mean_and_unit_variance(
    recipe: Make, monkeypatch: pytest.MonkeyPatch, experiment: str, norm: str
) -> None:
    task = task_of(recipe(f"experiment={experiment}", f"norm={norm}", "model.train_examples=700"))
    before = [layer.linear.weight.detach().clone() for layer in task.model.layers]
    used: list[tuple[int, Tensor]] = []
    genuine = task.model.initialize
    monkeypatch.setattr(
        task.model, "initialize", lambda images: (used.append((torch.initial_seed(), images)), genuine(images))
    )
    state = torch.get_rng_state()
    task.initialize()
    assert torch.equal(torch.get_rng_state(), state)
    ((seed, images),) = used
    assert len(images) == 500
    for summed in summed_inputs(task, seed, images):
        units = summed.transpose(0, 1).flatten(1).double()
        torch.testing.assert_close(units.mean(1), torch.zeros(len(units)).double(), rtol=0, atol=1e-4)
        torch.testing.assert_close(units.var(1, correction=0), torch.ones(len(units)).double(), rtol=0, atol=1e-3)
    # Only g and b are set: the directions of the weights are those that were drawn.
    for layer, weight in zip(task.model.layers, before, strict=True):
        cosine = torch.cosine_similarity(layer.linear.weight.flatten(1), weight.flatten(1))
        torch.testing.assert_close(cosine, torch.ones(len(weight)))


def test_data_dependent_initialization_is_a_function_of_the_seed(recipe: Make) -> None:
    def gains(seed: int) -> Tensor:
        task = task_of(recipe("experiment=convnet", "norm=weight", f"seed={seed}"))
        torch.manual_seed(123 + torch.randint(100, ()).item())
        task.initialize()
        return task.model.layers[2].linear.parametrizations.weight.original0.detach()  # type: ignore[union-attr,return-value]

    assert torch.equal(gains(0), gains(0))
    assert not torch.equal(gains(0), gains(1))


def test_a_run_that_goes_on_does_not_repeat_the_initialization(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    genuine, batch = ConvNet.initialize, ConvNet.batch
    monkeypatch.setattr(ConvNet, "initialize", lambda task: (calls.append("initialize"), genuine(task))[1])
    overrides = ["experiment=convnet_mean_only", "norm=weight"]
    undisturbed = carry_out(recipe(*overrides))
    assert calls == ["initialize"]

    def fails_once(task: ConvNet, step: int) -> tuple[Tensor, ...]:
        if step == 5 and "failed" not in calls:
            calls.append("failed")
            raise RuntimeError("power cut")
        return batch(task, step)

    monkeypatch.setattr(ConvNet, "batch", fails_once)
    monkeypatch.setattr(ln.suite.runs.train, "CHECKPOINT_SECONDS", 0.0)
    again = recipe(*overrides, f"results={tmp_path}/again")
    with pytest.raises(RuntimeError):
        carry_out(again)
    run = carry_out(again)
    assert calls == ["initialize", "initialize", "failed"]

    def timeless(folder: Path) -> list[dict]:
        return [{k: v for k, v in r.items() if k != "seconds"} for r in read_metrics(folder / "metrics.jsonl")]

    assert timeless(run.folder) == timeless(undisturbed.folder)


# --- schedule, data and maps


def test_learning_rate_and_beta1_change_in_the_second_half(recipe: Make) -> None:
    task = task_of(recipe("experiment=convnet", "norm=none", "train.epochs=200"))
    optimizer = torch.optim.Adam(task.model.parameters(), lr=1e-3, betas=(0.9, 0.999))
    seen = {}
    for epoch in (0, 99, 100, 150, 199, 50):  # in any order: it is a function of the step
        task.schedule(epoch * task.steps_per_epoch + 1, optimizer)
        seen[epoch] = (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"])
    late = (0.5, 0.999)
    assert seen[0] == seen[99] == seen[50] == (1e-3, (0.9, 0.999))
    assert seen[100] == (pytest.approx(1e-3), late)
    assert seen[150] == (pytest.approx(5e-4), late)
    assert seen[199] == (pytest.approx(1e-5), late)
    # The same for a run whose length is given in steps.
    steps = 8 * task.steps_per_epoch
    task = task_of(recipe("experiment=convnet", "norm=none", "train.epochs=null", f"train.steps={steps}"))
    task.schedule(steps - 2 * task.steps_per_epoch, optimizer)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(5e-4)


def test_the_whitening_sees_only_the_training_images(recipe: Make) -> None:
    make = recipe("experiment=convnet", "norm=none", "model.train_examples=256")
    source = ConvNet.find("embedded")
    pictures = source.load()
    plain = ConvNet(make, source, torch.device("cpu"))
    torch.testing.assert_close(
        plain.inputs["train"].double().mean(0), torch.zeros(1, 24, 24).double(), rtol=0, atol=1e-5
    )
    for split in ("valid", "test"):
        pictures.images[split] = 255 - pictures.images[split]
    other = ConvNet(make, type(source)("altered", "embedded", "0", lambda: pictures), torch.device("cpu"))
    assert torch.equal(plain.inputs["train"], other.inputs["train"])
    assert not torch.equal(plain.inputs["valid"], other.inputs["valid"])


def test_shrinking_averages_patches_and_takes_the_first_images() -> None:
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    small = prepared(images, 2, 2)
    assert small.shape == (2, 3, 4, 4)
    patch = (images[1, 2, 2:4, 4:6].double().mean() - 127.5) / 128
    assert float(small[1, 2, 1, 2]) == pytest.approx(float(patch), rel=1e-5)
    assert len(prepared(images, 0, 2)) == 5


def test_boundary_share_is_the_outer_ring_over_the_centre() -> None:
    values = torch.full((8, 8), 2.0)
    values[2:6, 2:6] = 4
    values[0] = values[-1] = values[:, 0] = values[:, -1] = 1
    assert convnet_pictures.boundary_share(values) == 0.25


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_activation_maps_against_a_slow_count(monkeypatch: pytest.MonkeyPatch, norm: str) -> None:
    model = network(norm).eval().double()
    with torch.no_grad():
        for layer in model.layers:  # biases that are not all zero
            nn.init.normal_(layer.linear.bias if norm == "none" else layer.norm.bias, std=0.5)
    images = torch.randn(7, 1, 12, 12, dtype=torch.float64)
    monkeypatch.setattr(convnet_pictures, "BATCH", 3)
    on, variances = convnet_pictures.activations(model, images)
    assert [tuple(m.shape) for m in on] == [(12, 12)] * 3 + [(6, 6)] * 3
    first: Layer = model.layers[0]
    with torch.no_grad():
        summed = first.linear(images)
        positive = (first.norm(summed) > 0).double()
    torch.testing.assert_close(on[0], positive.mean((0, 1)))
    torch.testing.assert_close(variances[0], summed.var(0, correction=0).mean(0))
    assert not any(layer.norm._forward_hooks or layer.linear._forward_hooks for layer in model.layers)


def test_a_run_measures_the_boundary_and_draws_it(recipe: Make) -> None:
    run = carry_out(recipe("experiment=convnet_position", "norm=layer", "model.test_examples=40"))
    final = json.loads((run.folder / "run.json").read_text())["final"]
    assert final["test_boundary_on"] > 0
    assert final["test_boundary_variance"] > 0
    assert (run.folder / "boundary.png").stat().st_size > 10000

"""DRAW: its filters in closed form, its bound against a slow transcription of the equations, its data and its runs."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import ln.suite.runs.train
from experiments.draw.cost import step_cost
from experiments.draw.network import Draw, Filterbanks, Gaussians, Sample, Settings
from experiments.draw.task import DrawTask, spread
from ln import NormConfig
from ln.norms import NORMS
from ln.suite.config import Recipe
from ln.suite.data import Missing, binarized_mnist, fetching
from ln.suite.errors import Mistake
from ln.suite.runs.read import read_metrics
from ln.suite.runs.train import carry_out

Make = Callable[..., Recipe]
SMALL = Settings(glimpses=3, hidden=7, latents=4, read=2, write=3)


def gaussians(side: int, n: int, centre: float, share: float, sigma: float) -> Tensor:
    """(N, A) filters as Gregor et al. write them, pixels and filters counted from 1."""
    g, stride = (side + 1) / 2 * (centre + 1), (side - 1) / (n - 1) * share
    rows = []
    for i in range(1, n + 1):
        mean = g + (i - n / 2 - 0.5) * stride
        weights = [math.exp(-((a - mean) ** 2) / (2 * sigma**2)) for a in range(1, side + 1)]
        rows.append([weight / sum(weights) for weight in weights])
    return torch.tensor(rows, dtype=torch.float64)


def small_model(norm: str, dtype: torch.dtype = torch.float64, side: int = 6, seed: int = 5) -> Draw:
    """A model whose every parameter is random, so that none hides at zero."""
    torch.manual_seed(seed)
    model = Draw(torch.rand(side, side), SMALL, NormConfig(norm))
    for name, parameter in model.named_parameters():
        if not name.endswith(("_g", "original0")):  # weight norm's gains stay positive
            torch.nn.init.normal_(parameter, std=0.3)
    return model.to(dtype)


def inputs(dtype: torch.dtype = torch.float64, cases: int = 5, side: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.bernoulli(torch.full((cases, side, side), 0.4), generator=generator)
    return images.to(dtype), torch.randn(SMALL.glimpses, cases, SMALL.latents, generator=generator).to(dtype)


# --- attention


@pytest.mark.parametrize(("side", "read", "write"), [(28, 2, 5), (13, 3, 4)])
def test_filterbanks_at_known_centres_and_widths(side: int, read: int, write: int) -> None:
    places = {"centre": (-0.7, 0.25, 0.0, 1.4), "share": (0.6, 0.2), "sigma": (3.0, 0.8)}  # y, x to read; y, x to write
    banks = Filterbanks(side, read, write).double()
    scales = [*places["share"], *(1 / sigma**2 for sigma in places["sigma"])]
    found = banks(*(torch.tensor([row], dtype=torch.float64) for row in (places["centre"], scales)))[0]
    sizes = (read, read, write, write)
    expected = [
        gaussians(side, n, places["centre"][k], places["share"][k // 2], places["sigma"][k // 2])
        for k, n in enumerate(sizes)
    ]
    assert (found - torch.cat(expected)).abs().max() < 1e-12


def test_a_narrow_filter_on_a_pixel_picks_that_pixel_and_a_wide_one_the_mean() -> None:
    banks = Filterbanks(9, 3, 3).double()
    rows = banks(torch.zeros(1, 4).double(), torch.tensor([[0.5, 1.0, 1e4, 1e-8]]).double())[0]
    assert rows[:3].argmax(1).tolist() == [2, 4, 6]  # stride 1/2 * (9 - 1) / (3 - 1) around pixel 4
    assert (rows[:3].amax(1) - 1).abs().max() < 1e-12
    assert (rows[6:] - 1 / 9).abs().max() < 1e-6


def test_filters_far_outside_the_image_stay_finite_with_finite_gradients() -> None:
    banks = Filterbanks(28, 2, 5)
    centres = torch.tensor([[-50.0, 50.0, 1e3, -1e3]]).requires_grad_()
    scales = torch.tensor([[1.0, 3.0, 1e3, 1e-6]]).requires_grad_()
    rows = banks(centres, scales)
    assert (rows.sum(-1) - 1).abs().max() < 1e-5
    rows.square().sum().backward()
    assert centres.grad is not None
    assert scales.grad is not None
    assert bool(centres.grad.isfinite().all() and scales.grad.isfinite().all())


def test_gradients_of_the_filters() -> None:
    torch.manual_seed(0)
    mean, precision = torch.randn(2, 3).double().requires_grad_(), (torch.rand(2, 3).double() + 0.2).requires_grad_()
    a = torch.arange(5).double() - 2
    grid = torch.stack([a, -a * a / 2])
    assert torch.autograd.gradcheck(lambda m, p: Gaussians.apply(m, p, grid), (mean, precision))


# --- the bound


def transcribed(model: Draw, norm: str, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruction and KL case by case and glimpse by glimpse, equation after equation of Gregor et al. (2015)."""
    A, R, W = model.side, SMALL.read, SMALL.write
    dtype = images.dtype

    def cell(module: Any, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        p = module.params("", dtype)
        i, f, g, o = (p.weight_ih @ x + p.bias_ih + p.weight_hh @ h + p.bias_hh).chunk(4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        y = F.layer_norm(c, c.shape, p.gain_c, p.bias_c, 1e-5) if norm == "layer" else c
        return torch.sigmoid(o) * torch.tanh(y), c

    def filters(y: Tensor, x: Tensor, log_share: Tensor, log_precision: Tensor, n: int) -> list[Tensor]:
        both = []
        for centre in (y, x):
            g, stride = (A + 1) / 2 * (centre + 1), (A - 1) / (n - 1) * log_share.exp()
            means = [g + (i - n / 2 - 0.5) * stride for i in range(1, n + 1)]
            a = torch.arange(1, A + 1, dtype=dtype)
            rows = [torch.exp(-((a - mean) ** 2) * log_precision.exp() / 2) for mean in means]
            both.append(torch.stack([row / row.sum() for row in rows]))
        return both

    reconstruction, kl = torch.zeros((), dtype=dtype), torch.zeros((), dtype=dtype)
    for n, x in enumerate(images):
        h_enc, c_enc, h, c = model.states
        canvas: Tensor = model.canvas
        for eps in noise[:, n]:
            out = model.brush.weight @ h + model.brush.bias
            f_y, f_x = filters(out[0], out[1], out[4], out[6], R)
            error = x - torch.sigmoid(canvas)
            read = out[8].exp() * torch.cat([(f_y @ x @ f_x.T).flatten(), (f_y @ error @ f_x.T).flatten()])
            h_enc, c_enc = cell(model.encoder, torch.cat([read, h]), h_enc, c_enc)
            mean, log_std = (model.latent.weight @ h_enc + model.latent.bias).chunk(2)
            kl = kl + 0.5 * (mean**2 + (2 * log_std).exp() - 2 * log_std - 1).sum()
            h, c = cell(model.decoder, mean + log_std.exp() * eps, h, c)
            out = model.brush.weight @ h + model.brush.bias
            f_y, f_x = filters(out[2], out[3], out[5], out[7], W)
            canvas = canvas + f_y.T @ out[10:].view(W, W) @ f_x * out[9].exp()
        p = torch.sigmoid(canvas)
        reconstruction = reconstruction - (x * p.log() + (1 - x) * (1 - p).log()).sum()
    return reconstruction, kl


def with_gradients(terms: tuple[Tensor, Tensor], model: Draw) -> Tensor:
    """Both terms and the gradient of their sum, as one vector in float64."""
    gradients = torch.autograd.grad(terms[0] + terms[1], list(model.parameters()))
    return torch.cat([torch.stack(terms), *(g.flatten() for g in gradients)]).double()


@pytest.mark.parametrize("norm", ["none", "weight", "layer"])
def test_bound_and_gradients_are_those_of_a_slow_transcription(norm: str) -> None:
    model, (images, noise) = small_model(norm), inputs()
    exact = with_gradients(transcribed(model, norm, images, noise), model)
    assert (with_gradients(model(images, noise), model) - exact).norm() < 1e-13 * exact.norm()
    # float32, on the fast path: judged by what the transcription itself loses there, over a few models.
    lost = torch.zeros(2, dtype=torch.float64)
    for seed in range(5, 10):
        double, single = small_model(norm, seed=seed), small_model(norm, torch.float32, seed=seed)
        exact = with_gradients(transcribed(double, norm, *inputs()), double)
        few = inputs(torch.float32)
        ours, theirs = single(*few), transcribed(single, norm, *few)
        lost += torch.stack([(with_gradients(terms, single) - exact).norm() for terms in (ours, theirs)]).square()
    assert lost[0].sqrt() <= 2 * lost[1].sqrt()


def test_the_parameters_of_every_norm_and_where_they_sit() -> None:
    gains = {n: [k for k, _ in small_model(n).named_parameters() if "gain" in k] for n in NORMS}
    assert gains == {
        "none": [],
        "weight": [],
        **{n: ["encoder.gain_c", "decoder.gain_c"] for n in ("layer", "rms", "batch")},
    }
    linear = [k for k, _ in small_model("weight").named_parameters() if "parametrizations.weight" in k]
    assert len(linear) == 4  # gain and direction of the latent layer and of the brush


def test_kl_is_that_of_a_sampled_estimate() -> None:
    torch.manual_seed(0)
    latent, draws = torch.randn(1, 8).double() * 0.7, 200_000
    mean, log_std = latent.chunk(2, 1)
    eps = torch.randn(draws, 4).double()
    z, kl = Sample.apply(latent.expand(draws, -1), eps)
    assert (z - (mean + log_std.exp() * eps)).abs().max() < 1e-12
    log_ratio = ((z**2 - eps**2) / 2 - log_std).sum(1)  # log q(z) - log p(z)
    assert (log_ratio.mean() - kl / draws).abs() < 4 * log_ratio.std() / draws**0.5


def test_gradients_of_sample_and_kl() -> None:
    torch.manual_seed(0)
    latent, eps = torch.randn(3, 8).double().requires_grad_(), torch.randn(3, 4).double()
    assert torch.autograd.gradcheck(lambda latent: Sample.apply(latent, eps), latent)


def test_importance_weights_average_to_the_bound_and_their_estimate_lies_below_it() -> None:
    model, (images, _) = small_model("layer"), inputs(cases=1)
    torch.manual_seed(0)
    draws = 4000
    with torch.no_grad():
        noise = torch.randn(SMALL.glimpses, draws, SMALL.latents).double()
        many = images.expand(draws, -1, -1)
        weights, terms = model.log_weights(many, noise), model(many, noise)
    # Where KL is exact the weights sample it: equal in the mean, up to what sampling leaves.
    assert (weights.mean() + (terms[0] + terms[1]) / draws).abs() < 4 * weights.std() / draws**0.5
    assert weights.logsumexp(0) - math.log(draws) > weights.mean()


class NoHostSync(TorchDispatchMode):
    """Refuses what makes a GPU's host wait, and so cannot be captured in a CUDA graph."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero"), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("norm", NORMS)
def test_a_training_step_never_waits_for_the_device(norm: str) -> None:
    model, (images, noise) = small_model(norm, torch.float32), inputs(torch.float32)
    for cell in (model.encoder, model.decoder):
        cell.backend = "torch"
    model(images, noise)  # batch norm makes room for the statistics of each step when it first meets it
    with NoHostSync():
        reconstruction, kl = model(images, noise)
        (reconstruction + kl).backward()


def test_the_cost_of_a_step_is_compared_with_its_parts() -> None:
    cost = step_cost("weight", rounds=1, settings=SMALL)
    assert cost["ratio"] == pytest.approx(cost["step"] / (cost["cells"] + cost["products"]))


# --- data


@pytest.fixture
def amat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three small .amat files under $LN_DATA, with their checksums made the expected ones."""
    folder = tmp_path / "binarized_mnist"
    folder.mkdir()
    rng, sums = np.random.default_rng(0), {}
    for name, rows in zip(binarized_mnist.AMAT, (6, 3, 4), strict=True):
        text = "".join(" ".join(map(str, row)) + "\n" for row in rng.integers(0, 2, (rows, 784)))
        (folder / name).write_text(text)
        sums[name] = hashlib.sha256(text.encode()).hexdigest()
    monkeypatch.setattr(binarized_mnist, "AMAT", sums)
    monkeypatch.setenv("LN_DATA", str(tmp_path))
    return folder


def test_amat_files_are_read_pixel_by_pixel(amat: Path) -> None:
    source = binarized_mnist.original()
    data = source.load()
    assert (source.status, data.side) == ("original", 28)
    assert {split: len(images) for split, images in data.images.items()} == {"train": 6, "valid": 3, "test": 4}
    text = (amat / "binarized_mnist_valid.amat").read_text()
    assert "".join(str(int(pixel)) for pixel in data.images["valid"].flatten()) == "".join(text.split())


def test_packed_and_text_files_are_the_same_data(amat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = binarized_mnist.original()
    images = text.load().images
    packed = {split: np.packbits(rows.numpy().astype(np.uint8), axis=1) for split, rows in images.items()}
    path = amat / "binarized_mnist_packed.npz"
    np.savez(path, **packed)  # type: ignore[arg-type]
    monkeypatch.setitem(binarized_mnist.PACKED, path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    found = binarized_mnist.original()
    assert found.identity == text.identity
    assert all(torch.equal(found.load().images[split], images[split]) for split in images)


def test_a_damaged_file_is_an_error_and_nothing_is_taken_in_its_place(amat: Path) -> None:
    path = amat / "binarized_mnist_train.amat"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Mistake, match=r"binarized_mnist_train.amat is cut short or altered"):
        DrawTask.find("auto")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 0 1\n0 1\n", "line 2: 2 values where 3 are expected"),
        ("1 0 1\n0 1 0 1\n", "line 2: 4 values where 3"),
        ("1 0 1\n\n0 1 0\n", "line 2: 0 values"),
        ("1 0 2\n", "line 1: a pixel is '2' where 0 or 1"),
        ("1 0 0.5\n", r"line 1: a pixel is '0.5'"),
        ("1 0 \xff\n", "line 1: a pixel is"),
        ("", "is empty"),
    ],
)
def test_a_broken_amat_file_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "broken.amat"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(Mistake, match=message):
        binarized_mnist.read_amat(path, 3)


def test_data_that_is_nowhere_is_named_with_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: Any, **more: Any) -> None:
        raise OSError("no network")

    monkeypatch.setenv("LN_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fetching.urllib.request, "urlopen", unreachable)
    with pytest.raises(Missing, match=r"binarized_mnist_train.amat.*is not in .*no network.*put them there"):
        binarized_mnist.original()


def test_binarizing_is_done_once_with_the_grey_level_as_the_probability() -> None:
    one, two = (binarized_mnist.embedded().load().images["train"] for _ in range(2))
    grey = binarized_mnist.mnist.embedded().load().images["train"]
    assert torch.equal(one, two)
    assert set(one.unique().tolist()) == {0.0, 1.0}
    deviation = (one - grey).mean() / ((grey * (1 - grey)).mean() / grey.numel()).sqrt()
    assert abs(float(deviation)) < 4


def test_a_subset_is_spread_over_the_split() -> None:
    assert spread(torch.arange(10)[:, None], 4).flatten().tolist() == [0, 2, 5, 7]
    assert len(spread(torch.zeros(10, 1), 20)) == 10


# --- runs


def timeless(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k != "seconds"} for r in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_learns_and_leaves_its_pictures(recipe: Make, norm: str) -> None:
    run = carry_out(recipe("experiment=draw", f"norm={norm}"))
    first, *_, last = read_metrics(run.folder / "metrics.jsonl")
    assert last["test_bound"] < first["train_loss"]
    # Lower in the mean; after so few updates the latents say little and the samples' noise is as large.
    assert last["test_nll"] < last["test_bound"] + 0.05
    assert last["test_bound"] == pytest.approx(last["test_reconstruction"] + last["test_kl"])
    assert "test_nll" not in first
    for name in ("samples.png", "reconstructions.png", "glimpses.gif", "glimpses.png"):
        assert 0 < (run.folder / name).stat().st_size < 300_000


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("experiment=draw", "norm=batch", "seed=1")
    whole = timeless(carry_out(recipe(*options)).folder)
    monkeypatch.setattr(ln.suite.runs.train, "CHECKPOINT_SECONDS", 0.0)
    again, batch = recipe(*options, f"results={tmp_path}/again"), DrawTask.batch

    def failing(task: DrawTask, step: int) -> tuple[Tensor, ...]:
        if step == 11:
            raise RuntimeError("the machine went away")
        return batch(task, step)

    monkeypatch.setattr(DrawTask, "batch", failing)
    with pytest.raises(RuntimeError, match="went away"):
        carry_out(again)
    monkeypatch.setattr(DrawTask, "batch", batch)
    assert timeless(carry_out(again).folder) == whole


def test_a_checkpoint_of_another_norm_is_refused(recipe: Make) -> None:
    layer = carry_out(recipe("experiment=draw", "norm=layer")).folder
    none = layer.parent.parent / "none" / "0"
    shutil.copytree(layer, none)
    with pytest.raises(Mistake, match=r"another recipe .*norm.name: layer -> none"):
        carry_out(recipe("experiment=draw", "norm=none"))
    assert json.loads((none / "run.json").read_text())["identity"]["norm"]["name"] == "layer"


def test_a_patch_without_a_stride_is_refused(recipe: Make) -> None:
    with pytest.raises(Mistake, match=r"model.read, model.write: .* at least 2"):
        carry_out(recipe("experiment=draw", "norm=none", "model.write=1"))


@pytest.mark.parametrize("norm", NORMS)
def test_every_weight_starts_small_and_every_bias_at_zero_but_the_windows(norm: str) -> None:
    model = Draw(
        torch.full((8, 8), 0.3), Settings(glimpses=1, hidden=64, latents=16, read=2, write=3), NormConfig(norm)
    )
    for cell in (model.encoder, model.decoder):
        for name in ("weight_ih", "weight_hh"):
            assert float(cell.weight(name).detach().std()) == pytest.approx(0.01, rel=0.1)
        biases = [p for name, p in cell.named_parameters() if name.startswith("bias_")]
        assert biases
        assert not any(bool(bias.any()) for bias in biases)
    bias = model.brush.bias
    assert not bias[:4].any()
    assert not bias[8:].any()
    assert bias[4:6].exp().tolist() == pytest.approx([0.5, 0.5])

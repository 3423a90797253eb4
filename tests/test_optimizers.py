"""AdamAsPublished against a transcription of the published update, and against torch's Adam where they must part."""

import copy

import numpy as np
import pytest
import torch

from ln.suite.config import Train
from ln.suite.errors import Mistake
from ln.suite.optimizers import AdamAsPublished
from ln.suite.runs.step import optimizer_of


def transcribed(start: np.ndarray, gradients: list[np.ndarray], lr: float) -> np.ndarray:
    """The published update, names kept: b1 and b2 weigh the new gradient, and the corrections take them as rates."""
    b1, b2, e = 0.1, 0.001, 1e-8
    p, m, v = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for i, g in enumerate(gradients, start=1):
        fix1, fix2 = 1 - b1**i, 1 - b2**i
        m = b1 * g + (1 - b1) * m
        v = b2 * g * g + (1 - b2) * v
        p = p - lr * np.sqrt(fix2) / fix1 * m / (np.sqrt(v) + e)
    return p


def updated(optimizer: type[torch.optim.Optimizer], start: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    steps = optimizer([parameter], lr=0.01)  # type: ignore[call-arg]
    for gradient in gradients:
        parameter.grad = torch.from_numpy(gradient.copy())
        steps.step()
    return parameter.detach().numpy()


def test_updates_are_the_published_ones() -> None:
    generator = np.random.default_rng(0)
    start = generator.normal(size=(3, 4))
    gradients = [generator.normal(size=(3, 4)) * 10.0 ** generator.integers(-6, 3) for _ in range(40)]
    np.testing.assert_allclose(
        updated(AdamAsPublished, start, gradients), transcribed(start, gradients, 0.01), rtol=1e-12
    )
    assert np.abs(updated(torch.optim.Adam, start, gradients) - transcribed(start, gradients, 0.01)).max() > 0.01


@pytest.mark.parametrize(
    ("step", "ratio"), [(1, 3.5), (5, 5.8), (12, 6.6), (50, 4.5), (100, 3.2), (300, 2.0), (1000, 1.26), (3000, 1.03)]
)
def test_steps_against_adams_for_a_steady_gradient(step: int, ratio: float) -> None:
    moved = []
    for kind in (AdamAsPublished, torch.optim.Adam):
        parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer = kind([parameter], lr=1.0)
        for _ in range(step):
            before = parameter.item()
            parameter.grad = torch.ones(1, dtype=torch.float64)
            optimizer.step()
        moved.append(before - parameter.item())
    assert moved[0] / moved[1] == pytest.approx(ratio, rel=0.02)


def test_its_state_goes_through_a_checkpoint() -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(5) for _ in range(6)]

    def run(parameter: torch.nn.Parameter, optimizer: AdamAsPublished, some: list[torch.Tensor]) -> None:
        for gradient in some:
            parameter.grad = gradient.clone()
            optimizer.step()

    whole = torch.nn.Parameter(torch.zeros(5))
    run(whole, AdamAsPublished([whole]), gradients)
    first = torch.nn.Parameter(torch.zeros(5))
    before = AdamAsPublished([first])
    run(first, before, gradients[:3])
    second = torch.nn.Parameter(first.detach().clone())
    after = AdamAsPublished([second])
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    run(second, after, gradients[3:])
    assert torch.equal(whole, second)


def test_with_its_count_on_the_device_the_updates_are_the_same() -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(5) for _ in range(20)]
    found = []
    for capturable in (False, True):
        parameter = torch.nn.Parameter(torch.zeros(5))
        optimizer = AdamAsPublished([parameter], lr=0.01, capturable=capturable)
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimizer.step()
        found.append(parameter.detach())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-7)


def test_a_checkpoint_from_before_the_count_was_a_tensor() -> None:
    whole, resumed = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    before, after = AdamAsPublished([whole]), AdamAsPublished([resumed])
    whole.grad = torch.ones(3)
    before.step()
    state = copy.deepcopy(before.state_dict())
    state["state"][0]["step"] = 1
    del state["param_groups"][0]["capturable"]
    resumed.data.copy_(whole.data)
    after.load_state_dict(state)
    for parameter, optimizer in ((whole, before), (resumed, after)):
        parameter.grad = torch.full((3,), 2.0)
        optimizer.step()
    assert torch.equal(whole, resumed)


def test_a_recipe_can_name_it_and_a_wrong_rate_is_refused() -> None:
    model = torch.nn.Linear(2, 2)
    asked = Train(
        batch_size=1, evaluate_every=1, optimizer={"_target_": "ln.suite.optimizers.AdamAsPublished", "lr": 0.5}
    )
    optimizer = optimizer_of(asked, model, torch.device("cpu"))
    assert isinstance(optimizer, AdamAsPublished)
    assert optimizer.param_groups[0]["lr"] == 0.5
    asked.optimizer["lr"] = 0
    with pytest.raises(Mistake, match=r"train.optimizer: lr=0 must be positive"):
        optimizer_of(asked, model, torch.device("cpu"))


def test_a_parameter_without_a_gradient_stays() -> None:
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = AdamAsPublished([used, unused])
    used.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(unused, torch.ones(2))
    assert bool((used < 1).all())

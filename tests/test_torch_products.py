"""Which library multiplies in the torch backend."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ln.kernels.torch import sites


@pytest.mark.parametrize(("rows", "width", "trial"), [(32, 64, None), (32, 128, False), (2048, 128, True)])
def test_a_product_is_multiplied_by_the_library_for_its_size(
    rows: int, width: int, trial: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of a small layer never by oneDNN, whose call costs more than the product."""
    asked: list[bool] = []
    real = sites._cpu_product

    def choose(large: bool) -> Callable[[Tensor, Tensor], Tensor]:
        asked.append(large)
        return real(large)

    monkeypatch.setattr(sites, "_cpu_product", choose)
    torch.manual_seed(0)
    a, weight = torch.randn(rows, width), torch.randn(4 * width, width)
    exact = a.double() @ weight.double().t()
    torch.testing.assert_close(sites.product(a, weight.t()).double(), exact, rtol=1e-5, atol=1e-4)
    assert asked == ([] if trial is None else [trial])
    assert torch.equal(sites.product(a.double(), weight.double().t()), exact)
    assert len(asked) == (trial is not None)  # in float64 there is no choice

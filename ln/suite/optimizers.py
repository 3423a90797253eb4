"""Optimizers of published code that differ from torch's and so change results."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

DECAYS = (0.9, 0.999)


class AdamAsPublished(torch.optim.Optimizer):
    """Adam as in the published code of order embeddings and of skip-thought vectors.

    Its decay rates are 0.9 and 0.999, but the bias correction takes 0.1^t and 0.001^t, so that there is nearly none:
    for a steady gradient the first steps are 3.5 to 6.6 times torch.optim.Adam's, those past 3,000 the same.

    capturable: as in torch's optimizers the step count lives on the parameters' device, so that a CUDA graph can hold
    the update.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 0.001, eps: float = 1e-8, *, capturable: bool = False
    ) -> None:
        if lr <= 0:
            raise ValueError(f"lr={lr} must be positive")
        super().__init__(params, {"lr": lr, "eps": eps, "capturable": capturable})

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("capturable", False)  # a checkpoint from before the setting

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            for p in parameters:
                state = self.state[p]
                if not state:
                    count = torch.zeros((), device=p.device if group["capturable"] else "cpu")
                    state |= {"step": count, "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
                state["step"] += 1
                t = state["step"].double() if group["capturable"] else float(state["step"])
                rate = group["lr"] * (1 - (1 - DECAYS[1]) ** t) ** 0.5 / (1 - (1 - DECAYS[0]) ** t)
                mean, square = state["mean"], state["square"]
                mean.lerp_(p.grad, 1 - DECAYS[0])
                square.mul_(DECAYS[1]).addcmul_(p.grad, p.grad, value=1 - DECAYS[1])
                deviation = square.sqrt().add_(group["eps"])
                if group["capturable"]:
                    p.sub_(mean / deviation * rate)
                else:
                    p.addcdiv_(mean, deviation, value=-rate)
        return loss

"""Runs as the verdicts' tests have them: made up, without files."""

from typing import Any

from ln.suite.judging.claims import Check
from ln.suite.runs.read import Measured


def run(*values: float, seed: int = 0, status: str = "complete", **info: Any) -> Measured:
    """A run evaluated every 10 steps, whose last value is its final one."""
    records: list[dict[str, Any]] = [
        {"step": 10 * (i + 1), "epoch": i + 1, "valid_loss": v, "valid_image_r1": v} for i, v in enumerate(values)
    ]
    if status == "complete":
        records.append(
            {
                "step": 10 * len(values),
                "final": True,
                "test_loss": values[-1],
                "test_error": values[-1],
                "test_floor": 0.9,
            }
        )
    base = {"status": status, "identity": {"seed": seed}, "data": {"status": "original", "name": "MNIST"}}
    return Measured({**base, "examples": {"test": 100, "valid": 100}, **info}, records)


def seeds(*runs: Measured) -> dict[int, Measured]:
    return dict(enumerate(runs))


def check(kind: str, metric: str = "valid_loss", at: str = "best", **fields: Any) -> Check:
    """A check of layer norm, against no norm where it compares two."""
    baseline = {} if kind in ("value", "curve") else {"baseline": "none"}
    return Check(
        **{"kind": kind, "norm": "layer", "metric": metric, "at": at, "experiment": "mnist_b128"} | baseline | fields
    )

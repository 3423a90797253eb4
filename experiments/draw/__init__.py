"""DRAW (section 6.4, Figure 4)."""

from experiments.draw.task import DrawTask

__all__ = ["DrawTask"]

"""Handwriting generation (section 6.5, Figure 5)."""

from experiments.handwriting.task import Handwriting

__all__ = ["Handwriting"]

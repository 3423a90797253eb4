"""The paper's analysis measured (Table 1, section 5, section 3.1)."""

from experiments.invariance.table import draw_table
from experiments.invariance.task import Invariance

__all__ = ["Invariance", "draw_table"]

"""Skip-thoughts (section 6.3, Figure 3 and Table 3)."""

from experiments.skip_thoughts.cost import StepCost
from experiments.skip_thoughts.task import SkipThoughtsTask

__all__ = ["SkipThoughtsTask", "StepCost"]

"""`UNTIL=0.1`, `20epochs`, `5000steps`: carry out the first part of a recipe; its run is `partial` and can go on."""

import re
from dataclasses import dataclass
from typing import Any

from ln.suite.errors import Mistake


@dataclass(frozen=True)
class Until:
    """How far a run is carried out. It ends with the first evaluation from there on, so that its curve is the beginning
    of the whole run's."""

    amount: float
    unit: str  # share | epochs | steps

    @classmethod
    def of(cls, text: str | None) -> "Until":
        """None: the whole.

        Raises:
            Mistake: neither a share between 0 and 1 nor a number of epochs or steps.
        """
        if text is None:
            return cls(1.0, "share")
        found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(epochs?|steps?)?", text)
        amount = float(found[1]) if found else 0.0
        unit = ((found[2] or "share") if found else "").rstrip("s")
        if amount <= 0 or (unit == "share" and amount > 1) or (unit == "step" and amount % 1):
            raise Mistake(
                f"UNTIL={text} (until={text}) is no part of a run; "
                "give a share such as 0.1, epochs such as 20epochs, or steps such as 5000steps"
            )
        return cls(amount, unit if unit == "share" else f"{unit}s")

    def step(self, last_step: int, steps_per_epoch: int) -> int:
        """The step from which on the run may end."""
        unit = {"share": last_step, "epochs": steps_per_epoch, "steps": 1}[self.unit]
        return min(last_step, max(1, round(self.amount * unit)))

    def reached(self, info: dict[str, Any]) -> bool:
        """Whether a partial run, from its run.json, is already that far."""
        done = {"share": info["step"] / info["last_step"], "epochs": info["epoch"], "steps": info["step"]}
        return bool(done[self.unit] >= self.amount)

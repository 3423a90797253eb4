"""What a training step of skip-thoughts costs with a norm, beside one without (section 6.3)."""

import copy
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.skip_thoughts.task import Settings, SkipThoughts, SkipThoughtsTask
from ln import NormConfig
from ln.suite.runs.step import Step, optimizer_of

WARMUP = 1


@dataclass
class CostSettings(Settings):
    rounds: int = 2  # timed steps of each network


class StepCost(SkipThoughtsTask):
    """Training steps of the recipe's network and of one without a norm, in turns on the same minibatches.

    The run itself is one update long: what is asked is measured at its end.
    """

    Settings = CostSettings
    settings: CostSettings

    def evaluate(self, split: str) -> dict[str, float]:
        """Nats per word; sentence vectors after one update are nobody's question."""
        return {"nll": self.held_out_nll(split)}

    @torch.enable_grad()
    def evaluate_once(self) -> dict[str, float]:
        """Mean seconds of a step, with the norm and without, and their ratio. On a CPU processor seconds, which other
        work on the machine does not lengthen; on one thread an idle machine takes as long."""
        plain = copy.copy(self)
        sizes = (len(self.vocabulary), self.settings.words, self.settings.hidden)
        plain.model = SkipThoughts(*sizes, NormConfig("none")).to(self.device)
        train, seconds = self.recipe.train, [0.0, 0.0]
        steps = [Step(each, optimizer_of(train, each.model, self.device), train) for each in (self, plain)]
        for each in (self, plain):
            each.model.train()
        for number in range(WARMUP + self.settings.rounds):
            batch = self.batch(number)
            for which, step in enumerate(steps):
                spent = self._seconds(step, batch)
                seconds[which] += spent * (number >= WARMUP)
        own, none = (spent / self.settings.rounds for spent in seconds)
        return {"step_seconds": own, "step_seconds_none": none, "step_ratio": own / none}

    def _seconds(self, step: Step, batch: tuple[Tensor, ...]) -> float:
        cuda = self.device.type == "cuda"
        clock = time.perf_counter if cuda else time.process_time
        if cuda:
            torch.cuda.synchronize()
        begun = clock()
        step(batch)
        if cuda:
            torch.cuda.synchronize()
        return clock() - begun

    def draw(self, folder: object) -> None:
        """No picture."""

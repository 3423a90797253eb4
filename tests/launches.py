"""Kernel launches of a training step, counted on the simulated device: `python -m tests.launches [experiment ...]`.

An operation of torch counts as one launch, and so does a kernel of Triton. A step is counted at two numbers of time
steps, of which its launches are a linear function; sizes change nothing about them.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import torch

SMALL = ["profile=smoke", "tracking=disabled", "threads=1", "device=cuda", "norm=layer", "train.batch_size=2"]
DIGITS = [f"model.{split}_examples=8" for split in ("train", "valid", "test")]
# What sets the number of time steps, how many the paper has of them, two small numbers, and what else makes it quick.
LENGTHS: dict[str, tuple[str, int, tuple[int, int], list[str]]] = {
    "draw": ("model.glimpses", 64, (2, 3), DIGITS),
    "handwriting": ("model.length", 500, (2, 3), ["model.evaluate_lines=2"]),
    "seq_mnist": ("model.side", 784, (2, 4), ["model.hidden=8", "model.evaluation_examples=16"]),
}
LOOPLESS = ("mnist_b128", "invariance", "convnet")


class Launches(NamedTuple):
    fixed: int
    per_step: int  # of time
    steps: int  # of time, at the paper's size

    @property
    def total(self) -> int:
        return self.fixed + self.per_step * self.steps


def start() -> None:
    from tests import simulated_cuda

    torch.set_num_threads(1)
    simulated_cuda.install()


def counted(experiment: str, *overrides: str) -> Counter[str]:
    """The launches of the second training step, by name. Needs a process of its own, begun by `start`."""
    from hydra import compose, initialize_config_dir

    from ln.kernels import use_graphs
    from ln.suite.config import CONFIGS, imported, recipe_of
    from ln.suite.runs.step import Step, optimizer_of
    from tests import simulated_cuda

    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        recipe = recipe_of(compose("config", [f"experiment={experiment}", *SMALL, *overrides]))
    use_graphs(False)  # what a graph replays would not be counted
    kind = imported(recipe.task)
    task = kind(recipe, kind.find(recipe.data), torch.device("cuda"))
    task.model.to("cuda")
    task.model.train()
    step = Step(task, optimizer_of(recipe.train, task.model, task.device), recipe.train, "off")
    step(task.batch(0))
    batch = task.batch(1)
    simulated_cuda.launches.clear()
    step(batch)
    return simulated_cuda.launches.copy()


def launches_of(experiment: str) -> tuple[Launches, Counter[str]]:
    """The launches of a step, and by name those of each step of time, or without a loop all of them."""
    if experiment not in LENGTHS:
        found = counted(experiment)
        return Launches(found.total(), 0, 0), found
    key, full, (few, more), overrides = LENGTHS[experiment]
    short, longer = (counted(experiment, f"{key}={length}", *overrides) for length in (few, more))
    # The side of an image is the root of its number of pixels.
    between = more * more - few * few if key == "model.side" else more - few
    longer.subtract(short)
    per_step = Counter({name: number // between for name, number in longer.items() if number})
    assert per_step.total() * between == longer.total(), f"{experiment}: the launches do not grow evenly: {longer}"
    first = few * few if key == "model.side" else few
    return Launches(short.total() - per_step.total() * first, per_step.total(), full), per_step


def main(experiments: list[str]) -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print("| experiment | launches a training step | of them outside the loop | each step of time | steps of time |")
    print("|" + "---|" * 5)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=start) as pool:
        for experiment in experiments or [*LENGTHS, *LOOPLESS]:
            found, names = pool.submit(launches_of, experiment).result()
            print(f"| {experiment} | {found.total:,} | {found.fixed} | {found.per_step} | {found.steps} |", flush=True)
            if experiments:
                print("", *(f"{number:4} {name}" for name, number in names.most_common()), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])

"""`make bench-train`: steps per second of the training loop against a bare PyTorch loop, interleaved in one process."""

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir

from experiments.mnist import Mnist, mlp
from ln.suite.config import CONFIGS, Recipe, recipe_of
from ln.suite.files import write_text
from ln.suite.runs.folder import Run, cpu_name
from ln.suite.runs.train import train
from ln.suite.showing.onward import onward

ROUNDS = 7
STEPS = {"mnist_b128": 60, "mnist_b4": 400}


def bare_loop(recipe: Recipe, task: Mnist, steps: int) -> float:
    """What anyone would write: the same model, data and optimizer, and nothing else. Returns steps per second."""
    model = mlp(task.inputs["train"].shape[1], recipe.norm.name, recipe.model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001, fused=True)
    images, labels, size = task.inputs["train"], task.labels["train"], recipe.train.batch_size
    order = torch.randperm(len(images)).repeat(1 + steps * size // len(images))
    begun = time.perf_counter()
    for step in range(steps):
        chosen = order[step * size : (step + 1) * size]
        loss = F.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    loss.item()
    return steps / (time.perf_counter() - begun)


def our_loop(recipe: Recipe, task: Mnist, source: dict[str, str]) -> float:
    """Steps per second of a whole run, its evaluations left out, as run.json records them."""
    with tempfile.TemporaryDirectory() as folder:
        recipe.results = folder
        run = Run.open(recipe, source)
        train(recipe, run, task)
        run.close()
        return run.info["steps_per_second"]


def measure(experiment: str) -> dict[str, float]:
    steps, ours, bare = STEPS[experiment], [], []
    overrides = [
        f"experiment={experiment}",
        "tracking=disabled",
        "train.epochs=null",
        f"train.steps={steps}",
        f"train.evaluate_every={steps}",
    ]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        recipe = recipe_of(compose("config", overrides))
    source = Mnist.find(recipe.data)
    for _ in range(ROUNDS):
        task = Mnist(recipe, source, torch.device("cpu"))
        bare.append(bare_loop(recipe, task, steps))
        ours.append(our_loop(recipe, task, source.identity))
    return {
        "ours": statistics.median(ours),
        "bare": statistics.median(bare),
        "ratio": statistics.median(a / b for a, b in zip(ours, bare, strict=True)),
    }


def main() -> None:
    found = {experiment: measure(experiment) for experiment in STEPS}
    report = {"cpu": cpu_name(), "threads": torch.get_num_threads(), "steps_per_second": found}
    path = Path("results/bench/train.json")
    write_text(path, json.dumps(report, indent=2) + "\n")
    for experiment, rates in found.items():
        print(
            f"{experiment}: ln.suite.runs.train {rates['ours']:.1f} steps/s, bare loop {rates['bare']:.1f}, "
            f"ratio {rates['ratio']:.3f} (at least 0.9 is wanted)"
        )
    print(f"{path} ({report['cpu']}, {report['threads']} threads)\n{onward('bench-train')}")


if __name__ == "__main__":
    main()

"""Results folders as the training loop and the verdicts would have written them, for the report page's tests."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ln.suite.judging.claims import load_claims
from ln.suite.showing.page import curves
from ln.suite.showing.report import conclude, groups


def metrics_of(group: str) -> list[str]:
    """Everything a group's claims and figure look at."""
    document = load_claims(group)
    return sorted({entry.metric for entry in (*document.checks, *document.figure.panels)})


def write_run(
    results: Path, experiment: str, norm: str, seed: int, metrics: list[str], status: str = "complete",
    profile: str = "laptop", data: str = "embedded", evaluations: int = 20,
) -> Path:  # fmt: skip
    """A run's three files: noisy curves that fall, as the training loop would have written them."""
    folder = results / profile / experiment / norm / str(seed)
    folder.mkdir(parents=True)
    noise = random.Random(f"{experiment} {norm} {seed}")
    lines = []
    for i in range(1, evaluations + 1):
        record = {"step": 50 * i, "epoch": round(i / 8, 6)}
        record |= {metric: 0.8 * 0.98**i + 0.05 * noise.random() for metric in metrics}
        lines.append({**record, "seconds": round(i * (1 + 0.1 * seed), 3)})
    last = lines[-1]
    info: dict[str, Any] = {
        "status": status, "identity": {"seed": seed}, "data": {"name": "MNIST", "status": data, "sha256": "0"},
        "commit": "0123456789abcdef", "dirty": False, "hardware": "a CPU", "device": "cpu", "threads": 2,
        "packages": {"torch": "2.11.0"}, "python": "3.11.9", "seconds": last["seconds"], "backend": "torch",
    }  # fmt: skip
    if status == "complete":
        lines.append({**last, "final": True})
        final = {metric: last[metric] for metric in metrics}
        info |= {"final": final, "steps_per_second": 50.0, "steps": 50 * evaluations}
        info["examples"] = {"train": 1000, "valid": 500, "test": 500}
    if status == "diverged":
        lines.append({"step": 50 * evaluations + 7, "epoch": 3.0, "diverged": True, "seconds": 9.0})
        info["diverged_at"] = 50 * evaluations + 7
    (folder / "run.json").write_text(json.dumps(info))
    (folder / "config.yaml").write_text(f"seed: {seed}\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def small_results(results: Path) -> Path:
    """MNIST at laptop with runs that diverged, are unfinished, torn, unreadable; some at full; a smoke run."""
    metrics = metrics_of("mnist")
    for experiment in ("mnist_b128", "mnist_b4"):
        for norm in ("none", "batch", "layer"):
            for seed in range(3):
                status = "diverged" if (experiment, norm, seed) == ("mnist_b4", "none", 2) else "complete"
                folder = write_run(results, experiment, norm, seed, metrics, status)
                Image.new("L", (90, 60), 40 * seed).save(folder / "samples.png")
    write_run(results, "mnist_b4", "weight", 0, metrics, "running")
    (results / "laptop/mnist_b4/weight/0/metrics.jsonl").unlink()  # stopped before its first evaluation
    torn = write_run(results, "mnist_b4", "weight", 1, metrics, "interrupted") / "metrics.jsonl"
    torn.write_text(torn.read_text()[:-25])
    (write_run(results, "mnist_b4", "weight", 2, metrics) / "run.json").write_text('{"status": "comp')
    for seed in range(3):
        write_run(results, "mnist_b128", "layer", seed, metrics, profile="full", data="original")
    write_run(results, "mnist_b128", "layer", 0, metrics, profile="smoke")
    conclude_without_the_unreadable(results)
    for picture in ("sweeps/learning_rate/figure-laptop.png", "bench/cpu-2-threads-bars.png"):
        (results / picture).parent.mkdir(parents=True)
        Image.new("RGB", (90, 60), "white").save(results / picture)
    moving = [Image.new("P", (80, 80), shade) for shade in (10, 200)]
    moving[0].save(results / "laptop/mnist_b128/layer/0/canvas.gif", save_all=True, append_images=moving[1:])
    return results


def conclude_without_the_unreadable(results: Path) -> None:
    hidden = results / "laptop/mnist_b4/weight/2/run.json"
    aside = hidden.rename(hidden.with_suffix(".aside"))
    conclude("mnist", "laptop", results)
    conclude("mnist", "full", results)
    aside.rename(hidden)


def large_results(results: Path, evaluations: int = 150) -> Path:
    """300 runs, with a figure for each experiment and pictures in every tenth run."""
    experiments = [(group, name) for group in groups() for name in load_claims(group).runs.experiments]
    cells = [(*pair, norm, seed) for seed in range(99) for pair in experiments for norm in curves.palette()][:300]
    noise = np.random.default_rng(0).integers(0, 255, (200, 150), dtype=np.uint8)  # 30 kB whatever the compression
    for number, (group, experiment, norm, seed) in enumerate(cells):
        metrics = [*metrics_of(group), "valid_extra", "train_extra"]
        folder = write_run(results, experiment, norm, seed, metrics, evaluations=evaluations)
        if number % 10 == 0 or seed == 0:
            Image.fromarray(noise).save(folder / "samples.png")
    for group in groups():
        place = results / "laptop" / group
        place.mkdir(exist_ok=True)
        Image.fromarray(np.tile(noise, (2, 2))[:, :250]).save(place / "figure.png")  # 100 kB
    return results

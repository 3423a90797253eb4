"""Where one training step's time goes: `python -m scripts.profile_step <experiment> [overrides]`.

The step is the one that training takes, by default at the paper's sizes (`full`) with layer norm; overrides are those
of ln.train (norm=none, model.hidden=256, threads=1). Time is shared out between the batch (data), the recurrent layers,
what the experiment marks with `record_function` inside its loss (such as softmax), the optimizer with the clipping of
gradients, and the rest. A backward pass belongs to the part whose forward pass it is of. Beside them stands the time of
the same recurrent layers alone, as `make bench` measures it. Writes <results>/bench/profile_<experiment>.json, .png and
.svg.

On a GPU the parts are the time of the kernels they launch, and data is what the host takes to make the batch. A step
that training captures has no parts to tell apart; its time and its longest kernels stand beside them.
"""

import argparse
import json
import os
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from torch import nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from ln.kernels import BACKENDS
from ln.norms import NORMS
from ln.parameters import NormalizedRecurrence
from ln.suite.config import CONFIGS, Recipe, imported, recipe_of
from ln.suite.errors import Mistake, fail, results_folder
from ln.suite.files import write_text
from ln.suite.overrides import check_choices, for_hydra, not_composed, quoted, words
from ln.suite.runs.device import ask_for, backends_of, device_of
from ln.suite.runs.folder import cpu_name
from ln.suite.runs.step import GRAPH_WARMUP_STEPS, Step, optimizer_of
from ln.suite.showing import figures
from ln.suite.showing.onward import onward
from ln.suite.showing.panels import legend_columns
from ln.suite.task import Task, stream_seed
from scripts.bench_peers import Shape, ours, torch_nn

WARMUP, STEPS, BENCH_ROUNDS = 2, 4, 3
WIDTH = 7.5  # of the figure, in inches
LONGEST = 12  # kernels that are named
STEP, DATA, RECURRENT, OPTIMIZER, REST = "training step", "data", "recurrent layers", "optimizer", "rest"
BACKWARD = "autograd::engine::evaluate_function: "
# Scopes of torch's own within a step, which are no parts.
OWN = ("Optimizer.", "ProfilerStep", "autograd::", "aten::", "## ", "torch::")


class MarkedStep(Step):
    """The loop's step with its clipping marked."""

    def _clip(self) -> None:
        with record_function(OPTIMIZER):
            super()._clip()


def mark_recurrent(model: nn.Module) -> dict[nn.Module, list[tuple[int, ...]]]:
    """Mark every recurrent layer's forward pass; returns the shapes of their inputs, which grow with each call."""
    seen: dict[nn.Module, list[tuple[int, ...]]] = {}
    open_scopes: list[Any] = []

    def enter(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen[module].append(tuple(arguments[0].shape))
        open_scopes.append(record_function(RECURRENT))
        open_scopes[-1].__enter__()

    def leave(module: nn.Module, arguments: tuple[Any, ...], result: Any) -> None:
        open_scopes.pop().__exit__(None, None, None)

    for module in model.modules():
        if isinstance(module, NormalizedRecurrence):
            seen[module] = []
            module.register_forward_pre_hook(enter)
            module.register_forward_hook(leave)
    return seen


def measure(task: Task, recipe: Recipe, first: int, steps: int) -> tuple[Any, list[float]]:
    """The profile of `steps` training steps after WARMUP others, and each one's wall seconds."""
    step = MarkedStep(task, optimizer_of(recipe.train, task.model, task.device), recipe.train)
    step.can_graph = False  # a replayed graph has no parts to tell apart
    cuda = task.device.type == "cuda"
    task.model.train()
    seconds: list[float] = []

    def one(number: int) -> None:
        with record_function(STEP):
            with record_function(DATA):
                batch = task.batch(number)
            step(batch)
            if cuda:
                torch.cuda.synchronize()

    for number in range(first, first + WARMUP):
        one(number)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as found:
        for number in range(first + WARMUP, first + WARMUP + steps):
            begun = time.perf_counter()
            one(number)
            seconds.append(time.perf_counter() - begun)
    return found, seconds


def captured(task: Task, recipe: Recipe, steps: int) -> dict[str, Any] | None:
    """Steps as training takes them on CUDA, replayed from a graph: milliseconds, kernels, and the longest of these by
    name with their launches and share of all kernels' time. None where the step is not captured."""
    step = Step(task, optimizer_of(recipe.train, task.model, task.device), recipe.train, recipe.graph)
    if not step.can_graph:
        return None
    for number in range(GRAPH_WARMUP_STEPS + 1):
        step(task.batch(number))
    if step.graph is None:
        return None
    batch, seconds = task.batch(GRAPH_WARMUP_STEPS + 1), []
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        for _ in range(steps):
            begun = time.perf_counter()
            step(batch)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begun)
    return {"milliseconds_per_step": 1e3 * median(seconds), **kernels_of(list(found.events()), steps)}


def kernels_of(events: list[FunctionEvent], steps: int) -> dict[str, Any]:
    """Kernels a step, and the longest by name."""
    time_of: dict[str, float] = defaultdict(float)
    launches: dict[str, int] = defaultdict(int)
    for event in events:
        if event.device_type == DeviceType.CUDA:
            time_of[event.name] += event.device_time_total
            launches[event.name] += 1
    order, whole = sorted(time_of, key=lambda name: -time_of[name]), sum(time_of.values())
    longest = [{"name": n, "a_step": launches[n] / steps, "share": time_of[n] / whole} for n in order[:LONGEST]]
    return {"kernels_per_step": sum(launches.values()) / steps, "longest_kernels": longest}


def parts_of(events: list[FunctionEvent], cuda: bool) -> dict[str, float]:
    """Seconds of each part over all profiled steps, and of `training step` as a whole.

    A backward function carries the sequence number of the forward operation that made it. That operation is the last to
    begin with this number, since making the function raises it.
    """
    host = [event for event in events if event.device_type == DeviceType.CPU and not event.is_async]
    host.sort(key=lambda event: (event.time_range.start, -event.time_range.end))
    seconds: dict[str, float] = defaultdict(float)
    owner: dict[int, str | None] = {}
    # By thread: when the outermost part that is open ends, and its name.
    scope: dict[int, tuple[float, str | None]] = {}
    backward_ends: dict[int, float] = {}
    for event in host:
        begins, ends, thread = event.time_range.start, event.time_range.end, event.thread
        if begins >= scope.get(thread, (0.0, None))[0]:
            scope[thread] = (0.0, None)
        name = _part(event)
        if event.name == STEP:
            seconds[STEP] += event.time_range.elapsed_us() / 1e6
        elif name is not None and scope[thread][1] is None:
            scope[thread] = (ends, name)
            seconds[name] += _seconds(event, cuda and name != DATA)
        elif event.name.startswith(BACKWARD):
            backward_ends[thread] = ends
            number = max((child.sequence_nr for child in event.cpu_children), default=-1)
            part = owner.get(number) if number >= 0 else None
            if part is not None:
                seconds[part] += _seconds(event, cuda)
        elif event.sequence_nr >= 0 and begins >= backward_ends.get(thread, 0.0):
            owner[event.sequence_nr] = scope[thread][1]
    seconds[REST] = max(0.0, seconds[STEP] - sum(value for name, value in seconds.items() if name != STEP))
    return dict(seconds)


def _part(event: FunctionEvent) -> str | None:
    """The part that a marked scope stands for; None of anything else."""
    if event.name.startswith("Optimizer.step#"):
        return OPTIMIZER
    marked = event.is_user_annotation and event.name != STEP and not event.name.startswith(OWN)
    return event.name if marked else None


def _seconds(event: FunctionEvent, cuda: bool) -> float:
    return (event.device_time_total if cuda else event.time_range.elapsed_us()) / 1e6


def alone(seen: dict[nn.Module, list[tuple[int, ...]]], device: torch.device) -> float | None:
    """Seconds of the recurrent layers of the profiled steps by themselves, forward and backward, as `make bench` times
    them: all rows at full length. None where a layer is a cell, stacked, or of a backend that the bench has not."""
    total = 0.0
    for module, shapes in seen.items():
        cell, used = getattr(module, "cell", ""), getattr(module, "backend_used", None)
        several = getattr(module, "num_layers", 0) * getattr(module, "num_directions", 0) != 1
        if several or cell not in ("lstm", "gru") or used not in (*BACKENDS, "torch.nn"):
            return None
        assert isinstance(module, NormalizedRecurrence)
        times: dict[tuple[int, ...], float] = {}
        for shape in shapes:
            if shape not in times:
                T, B, D = (shape[1], shape[0], shape[2]) if getattr(module, "batch_first", False) else shape
                make = torch_nn if used == "torch.nn" else ours(str(used), module.norm.name)
                times[shape] = _timed(make(Shape("alone", cell, T, B, D, module.hidden_size), device.type), device)
            total += times[shape]
    return total if total else None


def _timed(run: Any, device: torch.device) -> float:
    run()
    found = []
    for _ in range(BENCH_ROUNDS):
        begun = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begun)
    return median(found)


def report(recipe: Recipe, steps: int = STEPS) -> dict[str, Any]:
    """Profile `steps` steps of a recipe: shares of the step, its seconds, and the recurrent layers alone."""
    device = device_of(recipe.device)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_num_threads(recipe.threads or os.cpu_count() or 1)
    kind: type[Task] = imported(recipe.task)
    source = kind.find(recipe.data)
    torch.manual_seed(stream_seed(recipe.seed, "init"))
    task = kind(recipe, source, device)
    task.model.to(device)
    ask_for(recipe.backend, task.model, device)
    seen = mark_recurrent(task.model)
    found, walls = measure(task, recipe, 0, steps)
    parts = parts_of(list(found.events()), device.type == "cuda")
    whole = parts.pop(STEP)
    shares = {name: seconds / whole for name, seconds in parts.items()}
    # What warmed up is not what was profiled.
    calls = {module: shapes[len(shapes) * WARMUP // (WARMUP + steps) :] for module, shapes in seen.items()}
    by_itself = alone(calls, device)
    return {
        "experiment": recipe.experiment,
        "norm": recipe.norm.name,
        "profile": recipe.profile,
        "data": source.identity,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "backend": backends_of(task.model),
        "steps": steps,
        "milliseconds_per_step": 1e3 * median(walls),
        "shares": dict(sorted(shares.items(), key=lambda item: -item[1])),
        "recurrent_shapes": sorted({" x ".join(map(str, shape)) for shapes in calls.values() for shape in shapes}),
        "recurrent_against_bench": parts.get(RECURRENT, 0.0) / by_itself if by_itself else None,
        "captured": captured(task, recipe, steps) if device.type == "cuda" else None,
    }


def draw(found: dict[str, Any], path: Path) -> Path:
    """One bar whose parts are the shares of a step."""
    figure, axes = figures.new_figure(1, width=WIDTH, height=1.9)
    axis = axes[0, 0]
    colours = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442"]
    order = sorted(found["shares"], key=lambda name: (name == REST, -found["shares"][name]))
    left = 0.0
    for place, name in enumerate(order):
        share = 100 * found["shares"][name]
        colour = "#999999" if name == REST else colours[place % len(colours)]
        axis.barh(0, share, left=left, color=colour, edgecolor="white", label=f"{name} {share:.1f} %")
        left += share
    axis.set(xlim=(0, max(left, 1)), yticks=[], xlabel="share of a training step (%)")
    axis.grid(visible=False)
    labels = axis.get_legend_handles_labels()[1]
    figure.legend(loc="outside lower center", ncols=legend_columns(labels, WIDTH), fontsize=8)
    where = (
        f"{found['device']}, {found['threads']} threads" if "cpu" not in found["device"].lower() else found["device"]
    )
    title = f"{found['experiment']}, {NORMS[found['norm']].label}, {found['profile']}"
    figure.suptitle(f"{title}: {found['milliseconds_per_step']:.0f} ms a step ({where})", fontsize=9)
    return figures.save(figure, path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", nargs="?", default="=", help="such as order_embeddings")
    parser.add_argument("--results", default="results", type=results_folder)
    parser.add_argument("words", nargs="*", metavar="overrides", help="Hydra overrides, such as norm=none device=cuda")
    parser.add_argument("--overrides", default="", help="the same, as one text of words")
    given = parser.parse_intermixed_args(arguments)
    try:
        if "=" in given.experiment:
            raise Mistake("name an experiment first: python -m scripts.profile_step order_embeddings norm=none")
        chosen = [f"experiment={given.experiment.replace('-', '_')}", f"results={quoted(given.results)}"]
        overrides = [*chosen, "profile=full", "tracking=disabled", *given.words, *words(given.overrides)]
        check_choices(overrides)
        try:
            with initialize_config_dir(str(CONFIGS), version_base="1.3"):
                recipe = recipe_of(compose("config", for_hydra(overrides)))
        except HydraException as error:
            raise not_composed(error) from error
        found = report(recipe)
    except Mistake as mistake:
        fail(mistake)
    path = Path(recipe.results) / "bench" / f"profile_{recipe.experiment}.json"
    write_text(path, json.dumps(found, indent=2) + "\n")
    picture = draw(found, path.with_suffix(".png"))
    for name, share in found["shares"].items():
        print(f"{name:>18} {100 * share:5.1f} %")
    ratio = found["recurrent_against_bench"]
    beside = (
        "" if ratio is None else f"; recurrent layers {ratio:.2f} of their time in the bench (at most 1.15 is wanted)"
    )
    print(f"{found['milliseconds_per_step']:.0f} ms a step{beside}")
    if graph := found["captured"]:
        milliseconds, kernels = graph["milliseconds_per_step"], graph["kernels_per_step"]
        print(f"captured: {milliseconds:.1f} ms a step, {kernels:.0f} kernels; the longest:")
        for kernel in graph["longest_kernels"]:
            print(f"{100 * kernel['share']:18.1f} % {kernel['a_step']:6.0f} {kernel['name'][:90]}")
    print(f"{path}\n{picture}\n{onward('profiled')}")


if __name__ == "__main__":
    main()

"""The one training loop, and the command `python -m ln.train experiment=... norm=... seed=...`.

A run goes on from its checkpoint with the same random numbers and the same data, so that a run killed anywhere and
started again writes the metrics.jsonl of an undisturbed one.
"""

import copy
import gc
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from tqdm import tqdm

from ln.kernels import use_graphs
from ln.suite.config import CONFIGS, Recipe, as_yaml, imported, recipe_of
from ln.suite.data import Source
from ln.suite.errors import Mistake, fail, one_sentence
from ln.suite.files import replacing, write_text
from ln.suite.overrides import check_choices, command_line, for_hydra, not_composed
from ln.suite.runs import tracking
from ln.suite.runs.checkpoint import load_optimizer
from ln.suite.runs.device import ask_for, backends_of, device_of, take_gpu
from ln.suite.runs.folder import FAILED, INTERRUPTED, RUNNING, Run, going_back, peak_memory_bytes, provenance
from ln.suite.runs.pictures import draw, draw_again
from ln.suite.runs.read import COMPLETE, DIVERGED, PARTIAL
from ln.suite.runs.step import Means, Step, length, optimizer_of
from ln.suite.task import Task, evaluation, stream_seed
from ln.suite.until import Until

FLUSH_STEPS = 100  # losses are looked at this often, so that a GPU is not made to wait at every step
CHECKPOINT_SECONDS = 60.0
CHECKPOINT_COST = 3.0  # seconds; one that takes longer, for its gigabytes, is made as much more rarely

BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"  # runs of a sweep in this process


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after the state was saved."""


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """Collects Ctrl-C and SIGTERM so that the loop can stop between two steps; a second Ctrl-C stops at once."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, signal.default_int_handler)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever started it decides
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Loop:
    """State of one run being trained: what a checkpoint holds."""

    def __init__(self, recipe: Recipe, run: Run, task: Task, optimizer: torch.optim.Optimizer):
        self.recipe, self.run, self.task, self.optimizer = recipe, run, task, optimizer
        self.last_step, self.every = length(recipe.train, task.steps_per_epoch)
        self.stop_step = Until.of(recipe.until).step(self.last_step, task.steps_per_epoch)
        self.step = 0
        self.means = Means()
        self.best: dict[str, Any] = {"value": None, "step": 0, "model": None}
        self.seconds = 0.0
        self.one = Step(task, optimizer, recipe.train, recipe.graph)

    def evaluation_due(self) -> bool:
        return self.step == self.last_step or math.floor(self.step / self.every) > math.floor(
            (self.step - 1) / self.every
        )

    def state(self) -> dict[str, Any]:
        cuda = self.task.device.type == "cuda"
        return {
            "step": self.step,
            "model": self.task.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.task.device) if cuda else None,
            "means": self.means.state(),
            "names": self.one.names,
            "best": self.best,
            "seconds": self.seconds,
        }

    def take(self, state: dict[str, Any]) -> None:
        """Go on from a state, on whatever device it was saved.

        Raises:
            Exception: of many kinds, where it is not one of this run's.
        """
        step, best, means, names = state["step"], state["best"], state["means"], state["names"]
        if not all(type(count) is int for count in (step, best["step"], means["count"])):
            raise TypeError("its counts are no whole numbers")
        if not 0 <= step <= self.last_step:
            raise ValueError(f"step {step} is not one of the run's {self.last_step}")
        summed = [*means["pending"], *([] if means["sums"] is None else [means["sums"]])]
        if any(losses.shape != (len(names),) for losses in summed):
            raise ValueError(f"means that are not of {len(names)} losses")
        if not math.isfinite(state["seconds"]) or not (best["value"] is None or math.isfinite(best["value"])):
            raise ValueError("its seconds or its best value is not finite")
        if best["model"] is not None:
            self.task.model.load_state_dict(best["model"])
        self.task.model.load_state_dict(state["model"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.means.load(means)
        self.step, self.best, self.one.names, self.seconds = step, best, names, float(state["seconds"])
        torch.set_rng_state(state["rng"].cpu())
        if state["cuda_rng"] is not None and self.task.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.task.device)

    def checkpoint(self) -> None:
        self.run.save_checkpoint(self.state())

    def resume(self) -> None:
        """Go on from the newest checkpoint that is whole and fits, else from the start."""
        untrained = None
        for path, state in self.run.checkpoints(self.task.device):
            untrained = untrained or copy.deepcopy(self.state())
            try:
                self.take(state)
            except Exception as error:  # what is missing or of another shape shows itself in many ways
                self.take(untrained)
                going_back(path, Mistake(f"{path} does not fit this run ({one_sentence(error)})"))
                continue
            self.run.cut_metrics(state["metrics_bytes"])
            print(f"{self.run.folder}: going on from step {self.step} of {self.last_step}", flush=True)
            return
        self.run.cut_metrics(0)

    def finite(self) -> bool:
        """Whether every weight and statistic of the model is."""
        floats = [tensor for tensor in self.task.model.state_dict().values() if tensor.is_floating_point()]
        return bool(torch.stack([tensor.isfinite().all() for tensor in floats]).all())

    def evaluate(self, splits: tuple[str, ...]) -> dict[str, float]:
        with evaluation(self.task, stream_seed(self.recipe.seed, "evaluate", self.step)):
            return {f"{split}_{name}": value for split in splits for name, value in self.task.evaluate(split).items()}

    def evaluate_once(self) -> dict[str, float]:
        with evaluation(self.task, stream_seed(self.recipe.seed, "evaluate once")):
            return {f"test_{name}": value for name, value in self.task.evaluate_once().items()}

    def record(self, metrics: dict[str, float], **more: Any) -> dict[str, Any]:
        record = {"step": self.step, "epoch": round(self.step / self.task.steps_per_epoch, 6), **more}
        record |= {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        record["seconds"] = round(self.seconds, 3)
        self.run.append(record)
        return record

    def keep_if_best(self, metrics: dict[str, float]) -> None:
        select = self.recipe.train.select
        if select.metric not in metrics:
            raise Mistake(f"train.select.metric={select.metric} is not measured; choose one of {', '.join(metrics)}")
        value, best = metrics[select.metric], self.best["value"]
        if best is None or (value < best if select.direction == "lower" else value > best):
            model = {name: tensor.detach().clone() for name, tensor in self.task.model.state_dict().items()}
            self.best = {"value": value, "step": self.step, "model": model}


def train(recipe: Recipe, run: Run, task: Task) -> None:
    """Train to the end, evaluating on the way, and evaluate the test split once on the checkpoint that validation
    chose; or up to the recipe's `until`, from where the run can go on."""
    loop = Loop(recipe, run, task, optimizer_of(recipe.train, task.model, task.device))
    torch.manual_seed(stream_seed(recipe.seed, "train"))
    loop.resume()
    run.write(RUNNING, last_step=loop.last_step, stop_step=loop.stop_step)
    tracking.begin(run)
    select = recipe.train.select.metric
    task.model.train()
    bar = tqdm(
        total=loop.last_step, initial=loop.step, desc=f"{recipe.experiment} {recipe.norm.name} seed {recipe.seed}",
        disable=not sys.stderr.isatty(), unit="step", dynamic_ncols=True,
    )  # fmt: skip
    begun, first_step = time.perf_counter() - loop.seconds, loop.step
    trained_seconds, checkpointed, wait = 0.0, time.perf_counter(), CHECKPOINT_SECONDS
    with bar, stop_requests() as stop:
        while loop.step < loop.last_step:
            started = time.perf_counter()
            task.schedule(loop.step, loop.optimizer)
            loop.means.add(loop.one(task.batch(loop.step)))
            loop.step += 1
            bar.update()
            due = loop.evaluation_due()
            if due or loop.step % FLUSH_STEPS == 0:
                bad = loop.means.flush(loop.step)
                if bad is not None:
                    diverged(loop, bad, bar)
                    return
            now = time.perf_counter()
            loop.seconds, trained_seconds = now - begun, trained_seconds + now - started
            if due:
                means = {f"train_{name}": value for name, value in loop.means.take(loop.one.names).items()}
                metrics = means | loop.evaluate(task.curve_splits)
                if not (all(map(math.isfinite, metrics.values())) and loop.finite()):
                    diverged(loop, loop.step, bar)
                    return
                loop.keep_if_best(metrics)
                loop.record(metrics)
                bar.set_postfix_str(f"{select} {metrics[select]:.4g}")
                if bar.disable:
                    report(loop, metrics, first_step, trained_seconds)
            if due and loop.stop_step <= loop.step < loop.last_step:
                part(loop, first_step, trained_seconds, bar)
                return
            if stop or time.perf_counter() - checkpointed > wait:
                began = time.perf_counter()
                loop.checkpoint()
                checkpointed = time.perf_counter()
                wait = CHECKPOINT_SECONDS * max(1.0, (checkpointed - began) / CHECKPOINT_COST)
                if stop:
                    raise Interrupted(f"{run.folder}: stopped at step {loop.step}; the same command goes on from there")
    loop.checkpoint()  # the last evaluation may take minutes; a stop during it loses no training
    task.model.load_state_dict(loop.best["model"])
    with replacing(run.folder / "best.pt") as file:
        torch.save(loop.best["model"], file)
    final = loop.evaluate(("test",)) | loop.evaluate_once() | {select: loop.best["value"]}
    if not all(map(math.isfinite, final.values())):
        diverged(loop, loop.step, bar)
        return
    loop.record(final, final=True, best_step=loop.best["step"])
    run.finish(
        COMPLETE,
        final=final,
        steps=loop.last_step,
        **measured(loop, first_step, trained_seconds),
    )
    draw(run, task)


def measured(loop: Loop, first_step: int, trained_seconds: float) -> dict[str, Any]:
    """What run.json says of the steps that were taken."""
    return {
        "best_step": loop.best["step"],
        "seconds": round(loop.seconds, 3),
        "steps_per_second": round((loop.step - first_step) / max(trained_seconds, 1e-9), 3),
        "peak_memory_bytes": peak_memory_bytes(loop.task.device),
        "backend": backends_of(loop.task.model),
        "examples": loop.task.examples,
    }


def part(loop: Loop, first_step: int, trained_seconds: float, bar: tqdm) -> None:
    """The run has come as far as it was to come: it keeps its checkpoint and goes on when more is asked for."""
    loop.checkpoint()
    epoch = round(loop.step / loop.task.steps_per_epoch, 6)
    loop.run.write(PARTIAL, step=loop.step, epoch=epoch, **measured(loop, first_step, trained_seconds))
    bar.write(
        f"{loop.run.folder}: the first {loop.step} of {loop.last_step} steps are done; "
        "a larger UNTIL (until=), or none, goes on from there"
    )


def diverged(loop: Loop, step: int, bar: tqdm) -> None:
    """A loss that is not finite ends the run; it is a result that the verdicts count."""
    loop.step = step
    loop.record({}, diverged=True)
    loop.run.finish(DIVERGED, diverged_at=step, seconds=round(loop.seconds, 3), backend=backends_of(loop.task.model))
    bar.write(f"{loop.run.folder}: diverged, the loss is not finite at step {step}")


def report(loop: Loop, metrics: dict[str, float], first_step: int, seconds: float) -> None:
    """A plain line for an evaluation, where there is no terminal to draw a bar on."""
    recipe, speed = loop.recipe, (loop.step - first_step) / max(seconds, 1e-9)
    left = (loop.last_step - loop.step) / speed
    values = " ".join(f"{name}={value:.4g}" for name, value in metrics.items())
    print(
        f"{recipe.experiment} {recipe.norm.name} seed {recipe.seed}: step {loop.step}/{loop.last_step} {values} "
        f"({speed:.3g} steps/s, {left:.0f} s left)",
        flush=True,
    )


def carry_out(recipe: Recipe) -> Run:
    """Carry out one recipe: train it, go on with it, or see that it is done.

    Raises:
        Mistake: the recipe cannot be carried out; nothing already measured is lost.
    """
    device = device_of(recipe.device, recipe.profile)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_num_threads(recipe.threads or os.cpu_count() or 1)
    kind: type[Task] = imported(recipe.task)
    source = kind.find(recipe.data)
    run = Run.open(recipe, source.identity)
    try:
        if run.done:
            print(f"{run.folder}: already {run.info['status']}, skipped (RESULTS=<folder> runs it afresh elsewhere)")
            tracking.begin_done(run)
            if kind.draw is not Task.draw:
                draw_again(run, lambda: built(kind, recipe, source, device))
            return run
        run.write(
            RUNNING, data=source.identity, device=device.type, threads=torch.get_num_threads(), **provenance(device)
        )
        write_text(run.folder / "config.yaml", as_yaml(recipe))
        run.keep_diff()
        train(recipe, run, built(kind, recipe, source, device))
    except KeyboardInterrupt:
        run.stop(INTERRUPTED)
        raise
    except Exception as error:
        if not isinstance(error, Mistake):
            with suppress(OSError):
                path = run.folder / "error.log"
                path.write_text(traceback.format_exc())
                error.log = path  # type: ignore[attr-defined]
        run.stop(FAILED, error=one_sentence(error))
        raise
    finally:
        run.close()
        tracking.end()
    return run


def built(kind: type[Task], recipe: Recipe, source: Source, device: torch.device) -> Task:
    if device.type == "cuda":
        # An earlier run of this process leaves neither its memory nor its peak.
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    torch.manual_seed(stream_seed(recipe.seed, "init"))
    task = kind(recipe, source, device)
    task.model.to(device)
    ask_for(recipe.backend, task.model, device)
    use_graphs(recipe.graph == "auto")
    return task


class Said(Exception):
    """A run of this command failed, and the reason has been said."""


def run(arguments: Sequence[str]) -> int:
    """Compose the arguments with Hydra and carry out what they ask for; the exit status.

    Raises:
        Mistake: they cannot be composed.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hands exceptions to us instead of printing tracebacks
    check_choices(arguments)
    failed = False

    @hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")
    def job(composed: DictConfig) -> str:
        nonlocal failed
        try:
            if composed.device != "cpu":
                take_gpu()
            return str(carry_out(recipe_of(composed)).folder)
        except Exception as error:
            sentence = one_sentence(error)
        print(f"error: {sentence}", file=sys.stderr, flush=True)
        if HydraConfig.get().launcher._target_ != BASIC_LAUNCHER:
            raise Said(sentence)  # in another process: Hydra carries it home, with a line of its own
        failed = True
        return ""

    try:
        with command_line(for_hydra(arguments)):
            job()
    except Said:
        return 1
    except HydraException as error:
        raise not_composed(error) from error
    except KeyboardInterrupt as interrupt:
        print(
            f"\n{str(interrupt) or 'interrupted; the same command goes on from the last checkpoint'}", file=sys.stderr
        )
        return 130
    return int(failed)


def main() -> None:
    try:
        sys.exit(run(sys.argv[1:]))
    except Mistake as mistake:
        fail(mistake)


if __name__ == "__main__":
    main()

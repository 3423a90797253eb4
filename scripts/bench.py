"""Time and memory of the recurrent layers beside their peers: `make bench`, or `python -m scripts.bench --help`.

Each implementation runs in a process of its own; rounds go through all of them in turn, so that a busy moment of the
machine hits all alike. A time is the median over rounds, a ratio the median of the ratios within a round. On one thread
the processor time counts, on more the wall time. Writes table, JSON and charts to results/bench.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import select
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

from ln.suite.showing.onward import onward
from ln.suite.showing.speeds import BASELINE, JAX, LOOP, NATIVE, ratio
from scripts.bench_peers import ALONE, IMPLEMENTATIONS, Shape, products

SHAPES = {
    "lstm28": Shape("lstm28", "lstm", 28, 128, 28, 128),
    "lstm784": Shape("lstm784", "lstm", 784, 100, 1, 100),
    "lstm64": Shape("lstm64", "lstm", 64, 128, 900, 256),
    "gru20": Shape("gru20", "gru", 20, 128, 300, 1024),
    "ragged": Shape("ragged", "lstm", 64, 128, 900, 256, ragged=True),
}
QUICK = {"quick": Shape("quick", "gru", 6, 8, 4, 16)}
COMPILE = "torch.compile"
FASTEST = {"cpu": NATIVE, "cuda": "ln triton"}
# What is aimed at on two threads: the longest time of an implementation, in units of another's.
TARGETS: dict[str, list[tuple[str, str, float]]] = {
    "lstm28": [(NATIVE, BASELINE, 1.25), (NATIVE, LOOP, 1 / 3)],
    "lstm784": [(NATIVE, BASELINE, 0.6), (NATIVE, LOOP, 1 / 3.5), ("ln native, batch norm", BASELINE, 1.5)],
    "lstm64": [(NATIVE, BASELINE, 0.9), (NATIVE, LOOP, 1 / 3.2), ("ln torch", BASELINE, 1.3)],
    "gru20": [(NATIVE, BASELINE, 0.5), (NATIVE, LOOP, 1 / 2.3), ("ln torch", BASELINE, 0.7)],
}
for _wanted in TARGETS.values():
    _wanted += [(NATIVE, JAX, 1 / 1.6), ("ln native, weight norm", BASELINE, 1.1)]
COMPILE_LIMIT, START_LIMIT = 300, 120  # seconds


# ------------------------------------------------------------------------------------------------- one process per peer


def worker(shape: Shape, name: str, device: str, threads: int) -> None:
    """Makes the layer, then runs one pass for each line of stdin and answers its times as JSON."""
    import torch

    answers, sys.stdout = sys.stdout, sys.stderr
    torch.set_num_threads(threads)

    def say(**what: Any) -> None:
        print(json.dumps(what), file=answers, flush=True)

    try:
        if name not in (COMPILE, JAX):
            IMPLEMENTATIONS[name](
                replace(shape, T=2), device
            )()  # libraries load what they need before memory is counted
        run = IMPLEMENTATIONS[name](shape, device)
        before = resident()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        run()
        run()
    except Exception as error:
        say(skipped=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}")
        return
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device == "cuda":
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
    say(ready=True, memory=max(0, peak - before))
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        say(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu)


def resident() -> int:
    """Bytes of memory this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Peer:
    """A worker process and its conversation."""

    def __init__(self, shape: Shape, name: str, device: str, threads: int) -> None:
        command = [
            sys.executable,
            "-m",
            "scripts.bench",
            "--worker",
            json.dumps([asdict(shape), name, device, threads]),
        ]
        counts = {key: str(threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | counts
        )
        self.limit = COMPILE_LIMIT if name == COMPILE else START_LIMIT
        self.skipped: str | None = None
        self.memory = 0

    def wait(self) -> None:
        """Until the worker has made its layer and warmed up, or has said why it cannot."""
        answer = self._answer(self.limit)
        self.skipped, self.memory = answer.get("skipped"), answer.get("memory", 0)

    def _answer(self, limit: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], limit)[0]:
            self.process.kill()
            return {"skipped": f"no answer within {limit:.0f} s"}
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"skipped": f"the process ended with status {self.process.wait()}"}

    def run(self) -> dict[str, float]:
        assert self.process.stdin is not None
        print("run", file=self.process.stdin, flush=True)
        answer = self._answer(START_LIMIT)
        if "wall" not in answer:
            raise RuntimeError(answer["skipped"])
        return answer

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate()


def measure(shape: Shape, names: list[str], device: str, threads: int, rounds: int) -> dict[str, dict[str, Any]]:
    """By implementation: {ms, cpu_ms, times, memory} or {skipped}; times are what counts at this number of threads."""
    peers = {}
    for name in names:  # one after the other, so that the limit on starting is each one's own
        peers[name] = Peer(shape, name, device, threads)
        peers[name].wait()
    found: dict[str, list[dict[str, float]]] = {name: [] for name, peer in peers.items() if not peer.skipped}
    for _ in range(rounds):
        for name in found:
            found[name].append(peers[name].run())
    for peer in peers.values():
        peer.close()
    clock = "cpu" if threads == 1 and device == "cpu" else "wall"
    return {
        name: {"skipped": peer.skipped}
        if peer.skipped
        else {
            "ms": 1e3 * median(t["wall"] for t in found[name]),
            "cpu_ms": 1e3 * median(t["cpu"] for t in found[name]),
            "times": [1e3 * t[clock] for t in found[name]],
            "memory": peer.memory,
        }
        for name, peer in peers.items()
    }


# -------------------------------------------------------------------------------------------------- the machine's rates


def product_rates(threads: int) -> list[dict[str, Any]]:
    """GFLOP/s of products, see `products`, by the clock that counts for the layers at this number of threads."""
    import torch

    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    rates = []
    for M, N, K in ((128, 512, 128), (4096, 1024, 900), (128, 3072, 1024)):
        contenders = products(M, N, K)
        best = {name: float("inf") for name in contenders}
        for _ in range(12):
            for name, run in contenders.items():
                start = clock()
                run()
                best[name] = min(best[name], clock() - start)
        rates.append({"M": M, "N": N, "K": K} | {name: 2e-9 * M * N * K / s for name, s in best.items()})
    return rates


def best_rate(rates: list[dict[str, Any]], threads: int) -> float:
    """The most GFLOP/s that any product reached on a thread; 0 where none was measured."""
    per_thread = [v / (1 if ALONE in k else threads) for r in rates for k, v in r.items() if k not in "MNK"]
    return max(per_thread, default=0)


def machine(device: str) -> str:
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError):
        info = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in fields.items()}
        if "model name" in fields:
            where = "AVX-512" if "avx512f" in fields["flags"] else "AVX2" if "avx2" in fields["flags"] else "no AVX2"
            model = f"family {fields['cpu family']} model {fields['model']}"
            return f"{fields['model name']} ({model}, {where}, {os.cpu_count()} CPUs)"
    return platform.processor() or platform.machine()


# --------------------------------------------------------------------------------------------------------------- report


def table(shape: Shape, results: dict[str, dict[str, Any]], threads: int, best_rate: float) -> str:
    limit = 1e3 * shape.gflop / (best_rate * threads) if best_rate else 0
    lines = [f"\n{shape}, {threads} thread{'s' * (threads > 1)}: {shape.gflop:.2f} GFLOP in products"]
    if limit:
        lines[0] += f", at least {limit:.1f} ms at the best rate any product reached here"
    lines.append(f"{'':26}{'wall ms':>9}{'CPU ms':>9}{'/torch.nn':>11}{'loop/this':>11}{'of limit':>10}{'peak MB':>9}")
    for name, r in results.items():
        if "skipped" in r:
            lines.append(f"{name:26}  skipped: {r['skipped']}")
            continue
        ratios = [ratio(results, name, BASELINE), ratio(results, LOOP, name)]
        shown = "".join(f"{'-' if v is None else f'{v:.2f}x':>11}" for v in ratios)
        share = f"{limit / (r['cpu_ms'] if threads == 1 else r['ms']):.0%}" if limit else "-"
        lines.append(f"{name:26}{r['ms']:9.1f}{r['cpu_ms']:9.1f}{shown}{share:>10}{r['memory'] / 1e6:9.0f}")
    if shape.name in TARGETS and threads == 2:
        for name, to, most in TARGETS[shape.name]:
            found = ratio(results, name, to)
            if found is not None:
                met = "met" if found <= most else "not met"
                lines.append(f"  target: {name} in at most {most:.2f} of the time of {to}: {found:.2f}, {met}")
    return "\n".join(lines)


def draw_step() -> dict[str, dict[str, float]]:
    """What a training step of DRAW at the paper's sizes costs beside its parts, one thread."""
    import torch

    from experiments.draw.cost import step_cost

    torch.set_num_threads(1)
    costs = {norm: step_cost(norm) for norm in ("none", "layer")}
    for norm, cost in costs.items():
        print(
            f"DRAW step, norm {norm}, 1 thread: {cost['step']:.0f} ms; cells {cost['cells']:.0f} and other products "
            f"{cost['products']:.0f} ms; ratio {cost['ratio']:.2f} (at most 1.2 is wanted)"
        )
    return costs


def draw(report: dict[str, Any], folder: Path, name: str) -> None:
    """Bar charts of time relative to torch.nn for every shape, and the growth of time with T, B and H."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MultipleLocator

    from ln.suite.showing.ticks import plain_axis

    shapes = report["shapes"]
    names = [n for n in IMPLEMENTATIONS if any(ratio(s["results"], n, BASELINE) for s in shapes)]
    if names:
        columns = min(3, len(shapes))
        rows = -(-len(shapes) // columns)
        size = (3.3 * columns + 1.5, (0.26 * len(names) + 0.6) * rows + 0.9)
        figure, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
        for axis in axes.flat[len(shapes) :]:
            axis.remove()
        for axis, s in zip(axes.flat, shapes, strict=False):
            values = [ratio(s["results"], n, BASELINE) or 0 for n in names]
            axis.barh(names, values, color=["#c25b12" if n.startswith("ln ") else "#8a97a6" for n in names])
            axis.axvline(1, color="black", linewidth=0.8, linestyle=":")
            for i, v in enumerate(values):
                white = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # the line at 1 runs behind a number
                offset = 0.02 * max(values)
                axis.text(v + offset, i, f"{v:.2f}" if v else "skipped", va="center", fontsize=8, bbox=white)
            axis.set_title(s["title"], fontsize=9)
            axis.set_xlim(0, 1.22 * max(values))
            axis.xaxis.set_major_locator(MultipleLocator(0.5))
            axis.spines[["top", "right"]].set_visible(False)
        axes[0][0].invert_yaxis()
        figure.supxlabel("time / time of torch.nn without norm, forward + backward", fontsize=9)
        figure.suptitle(f"{report['machine']}, {report['threads']} thread(s), float32", fontsize=9)
        save(figure, folder / f"{name}-bars")
    if report["scaling"]:
        figure, axes = plt.subplots(1, len(report["scaling"]), figsize=(5 * len(report["scaling"]), 3.8), squeeze=False)
        for axis, (variable, points) in zip(axes[0], report["scaling"].items(), strict=True):
            for peer in next(iter(points.values())):
                xs = [int(x) for x, r in points.items() if "ms" in r[peer]]
                axis.plot(xs, [points[str(x)][peer]["ms"] for x in xs], marker="o", label=peer)
            axis.set(xscale="log", yscale="log", xlabel=variable, ylabel="forward + backward, ms")
            axis.set_xticks([int(x) for x in points], labels=list(points))
            axis.xaxis.minorticks_off()
            plain_axis(axis.yaxis, *axis.get_ylim())
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8)
        figure.suptitle(f"{report['machine']}, {report['threads']} thread(s), float32", fontsize=9)
        save(figure, folder / f"{name}-scaling")


def save(figure: Any, path: Path) -> None:
    from ln.suite.files import replacing

    figure.tight_layout()
    for kind in ("png", "svg"):
        with replacing(path.with_suffix(f".{kind}")) as file:
            figure.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)


def scaling(device: str, threads: int, rounds: int, quick: bool) -> dict[str, dict[str, Any]]:
    """Times of torch.nn, the loop and the device's own layer against T, B and H."""
    steps, batches, widths = [28, 98, 392, 784, 1568, 3136], [16, 32, 64, 128, 256, 512], [64, 128, 256, 512, 1024]
    if quick:
        steps, batches, widths = [4], [4], [16]

    def times(T: int, B: int, D: int, H: int) -> dict[str, Any]:
        return measure(Shape("", "lstm", T, B, D, H), [BASELINE, LOOP, FASTEST[device]], device, threads, rounds)

    return {
        "T (LSTM, B 100, D 1, H 100)": {str(T): times(T, 100, 1, 100) for T in steps},
        "B (LSTM, T 28, D 28, H 128)": {str(B): times(28, B, 28, 128) for B in batches},
        "H (LSTM, T 28, B 100, D 28)": {str(H): times(28, 100, 28, H) for H in widths},
    }


def user(folder: Path, rounds: int) -> None:
    """The layers at the sizes of public models, on the CPU: user.txt and user.json in the folder."""
    from ln.suite.files import write_text
    from scripts import bench_user

    title = f"{machine('cpu')}, float32, load average before: {os.getloadavg()[0]:.1f}, {rounds} rounds"
    print(title)
    tables, measured = bench_user.run(rounds)
    write_text(folder / "user.txt", "\n".join([title, *tables]) + "\n")
    write_text(folder / "user.json", json.dumps({"machine": title, "cases": measured}, indent=1) + "\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="all", help=f"comma-separated from {', '.join(SHAPES)}, or all; or user")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which compiles for minutes")
    parser.add_argument("--no-scaling", action="store_true", help="leave out the curves against T, B and H")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny shape, three implementations, two rounds: to see that it works"
    )
    parser.add_argument("--out", type=Path, default=Path("results/bench"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        shape, name, device, threads = json.loads(options.worker)
        worker(Shape(**shape), name, device, threads)
        return
    if options.shapes == "user":
        user(options.out, options.rounds)
        return
    known = QUICK if options.quick else SHAPES
    chosen = list(known) if options.shapes == "all" else options.shapes.split(",")
    if unknown := set(chosen) - set(known):
        parser.error(f"no shape {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    names = [n for n in IMPLEMENTATIONS if n != COMPILE or not options.no_compile]
    names = [n for n in names if ("native" not in n) or options.device == "cpu"]
    if options.quick:
        names = [BASELINE, LOOP, FASTEST[options.device]]
    rounds = 2 if options.quick else options.rounds
    rates = product_rates(options.threads) if options.device == "cpu" else []
    load = os.getloadavg()[0]
    tables = [f"{machine(options.device)}, {options.threads} thread(s), float32, load average before: {load:.1f}"]
    tables += [
        f"product M{r['M']} N{r['N']} K{r['K']}: "
        + ", ".join(f"{k} {v:.0f} GFLOP/s" for k, v in r.items() if k not in "MNK")
        for r in rates
    ]
    print("\n".join(tables))
    report: dict[str, Any] = {
        "machine": machine(options.device),
        "threads": options.threads,
        "load": load,
        "rates": rates,
    }
    report |= {"shapes": [], "scaling": {}}
    for key in chosen:
        results = measure(known[key], names, options.device, options.threads, rounds)
        # Again beside each shape: what a busy machine reaches changes from one minute to the next.
        near = product_rates(options.threads) if rates and not options.quick else []
        tables.append(table(known[key], results, options.threads, best_rate(rates + near, options.threads)))
        print(tables[-1], flush=True)
        report["shapes"].append({"title": str(known[key]), "shape": asdict(known[key]), "results": results})
    if not options.no_scaling:
        report["scaling"] = scaling(options.device, options.threads, 2 if options.quick else 3, options.quick)
    if options.device == "cpu" and not options.quick:
        report["draw"] = draw_step()
    from ln.suite.files import write_text

    name = f"{options.device}-{options.threads}-threads"
    write_text(options.out / f"{name}.json", json.dumps(report, indent=1) + "\n")
    write_text(options.out / f"{name}.txt", "\n".join(tables) + "\n")
    draw(report, options.out, name)
    print(f"\nwritten to {options.out}\n{onward('bench')}")


if __name__ == "__main__":
    main()

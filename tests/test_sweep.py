"""Sweeps: every cell once, whatever becomes of the others; and W&B's definitions, which are the same recipes."""

import fcntl
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir

import ln.suite.sweeps.cells
import ln.suite.sweeps.launch
import scripts.plan
import scripts.reproduce
import scripts.sweep
from ln.suite.config import CONFIGS, Recipe, names, recipe_of
from ln.suite.errors import Mistake
from ln.suite.runs.device import take_gpu
from ln.suite.runs.folder import run_folder
from ln.suite.runs.train import carry_out
from ln.suite.sweeps.cells import Definition, SweepCell, SweepPlan, definitions, plan
from ln.suite.sweeps.conclude import closing_lines, sensitivity_figure
from ln.suite.sweeps.launch import (
    Notes,
    Outcome,
    launcher_arguments,
    notes_for,
    run_alone,
    run_cells,
    stop_requests,
    usual_jobs,
)
from ln.suite.sweeps.table import State, Watch, seconds_left, table
from tests.wandb_here import inspected, sweep_server

Make = Callable[..., Recipe]
FRAGILE = "task=tests.fragile.Fragile"
SHORT = ["tracking=disabled", "threads=1"]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """sweep("0,1", jobs=1): one experiment, norm none, these seeds; (statuses by seed, closing lines, failed)."""
    monkeypatch.setattr(sys, "argv", ["sweep"])
    results = str(tmp_path / "results")

    def run(seeds: str, *overrides: str, jobs: int = 1, launcher: str = "local") -> Any:
        whole = plan("mnist", "smoke", results, "none", seeds)
        cells = [cell for cell in whole.cells if cell.experiment == "mnist_b128"]
        arguments = ["experiment=mnist_b128", *(a for a in whole.multiruns[0] if not a.startswith("experiment="))]
        swept = SweepPlan(cells, [arguments])
        with notes_for(results) as notes, stop_requests(notes, cells):
            run_cells(swept, [*launcher_arguments(launcher, jobs, SHORT), *SHORT, *overrides], notes)
            outcomes = {cell.seed: notes.outcome(cell.folder) for cell in cells}
            return {s: o and o.status for s, o in outcomes.items()}, *closing_lines(cells, notes.outcomes(cells))

    return run


def test_cells_run_in_parallel_and_a_failure_stops_no_other(sweep: Callable[..., Any], tmp_path: Path) -> None:
    held = run_folder(tmp_path / "results", "smoke", "mnist_b128", "none", 4)
    held.mkdir(parents=True)
    with (held / ".lock").open("w") as lock:  # another sweep is at this cell
        lock.write("process 1 on elsewhere")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        statuses, lines, failed = sweep("0,1,4,5", FRAGILE, jobs=2)
    assert statuses == {0: "complete", 1: "failed", 4: "busy", 5: "complete"}
    assert failed
    error = held.with_name("1") / "error.log"
    assert "the disk is on fire" in error.read_text()
    assert any("the disk is on fire" in line and str(error) in line for line in lines)
    assert any("left to its owner" in line and "process 1 on elsewhere" in line for line in lines)
    assert not (held / "run.json").exists()
    assert not list((tmp_path / "results").glob(".sweep-*"))


@pytest.mark.parametrize("table", [True, False])
def test_a_held_cell_ends_alike_however_many_go_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], table: bool
) -> None:
    held = run_folder(tmp_path, "smoke", "mnist_b128", "none", 0)
    held.mkdir(parents=True)
    fixed = ["mnist", "--profile=smoke", "--norms=none", "--seeds=0", f"--results={tmp_path}", *SHORT, f"++{FRAGILE}"]
    monkeypatch.setattr(scripts.sweep, "conclude_sweep", lambda *_: "")
    with (held / ".lock").open("w") as lock:
        lock.write("process 1 on elsewhere")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        status = scripts.sweep.sweep(scripts.sweep.parser("").parse_intermixed_args(fixed), 1, table=table)
    said = capsys.readouterr().err.splitlines()
    assert status == 1
    assert f"left to its owner: {held} is being worked on by process 1 on elsewhere" in said
    assert json.loads((tmp_path / "smoke/mnist_b4/none/0/run.json").read_text())["status"] == "complete"


def test_a_clones_published_runs_are_said_and_nothing_is_trained(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs that are committed count, those of more seeds too, as they do in the verdict; changed ones do not."""
    monkeypatch.chdir(tmp_path)
    for experiment, seed in itertools.product(("mnist_b128", "mnist_b4"), (0, 1, 4)):
        carry_out(recipe(f"experiment={experiment}", "norm=none", f"seed={seed}", "results=results"))
    for words in (["init", "-q"], ["add", "results"]):
        subprocess.run(["git", *words], check=True)
    asked = ["mnist", "--profile=smoke", "--norms=none", "--results=results", *SHORT]
    sweep = partial(scripts.sweep.sweep, jobs=1, table=False)
    parse = scripts.sweep.parser("").parse_intermixed_args
    with monkeypatch.context() as patch:
        patch.setattr(ln.suite.sweeps.launch, "carry_out", lambda _: pytest.fail("it trains"))
        assert sweep(parse(asked)) == 0
    said = capsys.readouterr().out
    assert "6 of 6 runs are published ones; `make reproduce-mnist PROFILE=smoke RESULTS=mine` trains your own" in said
    assert "figure: results/smoke/mnist/figure.png" in said
    assert "next: `make reproduce-mnist PROFILE=smoke RESULTS=mine QUICK=1` trains your own" in said
    # Runs that the claims ask for and that are not there are carried out only where they are named.
    with monkeypatch.context() as patch:
        patch.setattr(ln.suite.sweeps.launch, "carry_out", lambda _: pytest.fail("it trains"))
        patch.setattr("sys.argv", ["reproduce", "mnist", "--profile=smoke", "--jobs=1"])
        with pytest.raises(SystemExit) as ended:
            scripts.reproduce.main()
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert re.search(r"6 of \d+ runs are published ones, and `make sweep-mnist PROFILE=smoke` adds the other \d+", said)
    assert "figure: results/smoke/mnist/figure.png" in said
    # The plan names the command that carries out what is missing.
    with monkeypatch.context() as patch:
        patch.setattr(scripts.plan, "estimated", lambda _: None)
        for asked_for, command in (
            ((), "sweep-mnist PROFILE=smoke"),
            (("--norms=layer",), "reproduce-mnist PROFILE=smoke NORMS=layer"),
        ):
            patch.setattr("sys.argv", ["plan", "mnist", "--profile=smoke", *asked_for])
            scripts.plan.main()
            assert f"next: `make {command}` carries them out" in capsys.readouterr().out
    # Another recipe's are not taken for the ones that are asked for, but refused.
    assert sweep(parse([*asked, "train.optimizer.lr=0.5"])) == 1
    said_of_others = capsys.readouterr()
    assert "runs are published ones" not in said_of_others.out
    assert said_of_others.err.count("holds a run of another recipe (train.optimizer.lr: 0.001 -> 0.5)") == 4
    path = Path("results/smoke/mnist_b4/none/0/run.json")
    path.write_text(path.read_text() + "\n")
    assert sweep(parse(asked)) == 0
    assert "5 of 6 runs are published ones, 1 to be carried out" in capsys.readouterr().out


def test_a_stopped_sweep_goes_on_and_what_is_done_stays(sweep: Callable[..., Any], tmp_path: Path) -> None:
    statuses, lines, failed = sweep("0,3,4", FRAGILE)
    assert statuses == {0: "complete", 3: "interrupted", 4: None}
    assert "not begun: 1 runs; the same command goes on with them" in lines
    assert not failed
    done = run_folder(tmp_path / "results", "smoke", "mnist_b128", "none", 0)
    before = (done / "run.json").read_bytes()
    statuses, lines, _ = sweep("0,3,4", FRAGILE)
    assert statuses == {0: "complete", 3: "complete", 4: "complete"}
    assert lines == []
    assert (done / "run.json").read_bytes() == before
    assert "going on from step 6" in (done.with_name("3") / "output.log").read_text()


def test_a_swept_number_may_be_written_in_any_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """YAML takes 1e-3 for text; the run's folder is named after the number, and is looked for there."""
    monkeypatch.setattr(sys, "argv", ["sweep"])
    document = yaml.safe_load((CONFIGS / "sweep" / "learning_rate.yaml").read_text())
    document["parameters"]["train.optimizer.lr"]["values"] = ["1e-3", "1.50e-5"]
    shutil.copytree(CONFIGS / "sweep", tmp_path / "sweep")
    (tmp_path / "sweep" / "learning_rate.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setattr(ln.suite.sweeps.cells, "CONFIGS", tmp_path)
    swept = plan("learning_rate", "smoke", str(tmp_path), "none", "0")
    with notes_for(str(tmp_path)) as notes:
        run_cells(swept, [*launcher_arguments("local", 1, SHORT), FRAGILE, *SHORT], notes)
        lines, failed = closing_lines(swept.cells, notes.outcomes(swept.cells))
    assert (lines, failed) == ([], False)
    assert [cell.folder.parents[3].name for cell in swept.cells] == ["0.001", "1.5e-05"]
    assert all((cell.folder / "run.json").exists() for cell in swept.cells)


def test_a_cell_of_another_recipe_is_refused_not_overwritten(sweep: Callable[..., Any]) -> None:
    assert sweep("0", FRAGILE)[0] == {0: "complete"}
    statuses, lines, failed = sweep("0", FRAGILE, "train.optimizer.lr=0.02")
    assert statuses == {0: "failed"}
    assert failed
    assert "train.optimizer.lr: 0.001 -> 0.02" in lines[0]


def test_a_cell_whose_process_dies_is_found_out_alone(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "smoke", "mnist_b128", "none", 2)
    folder.mkdir(parents=True)
    notes = Notes(tmp_path)
    fixed = ["experiment=mnist_b128", "norm=none", "seed=2", "profile=smoke", f"results={tmp_path}", *SHORT]
    notes.begin(folder, [*fixed, FRAGILE, "+hydra.job.env_set.LN_SWEEP_NOTES=x"])
    run_alone(SweepCell("", "mnist_b128", "none", 2, folder), notes)
    outcome = notes.outcome(folder)
    assert outcome is not None
    assert outcome.status == "failed"
    assert "its process died (SIGKILL)" in outcome.sentence
    assert str(folder / "output.log") in outcome.sentence


def test_after_a_death_the_rest_is_launched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sweep"])
    cells = plan("mnist", "smoke", str(tmp_path), "none", "0,1").cells
    notes, launched, alone = Notes(tmp_path), [], []

    def dying() -> None:
        launched.append(list(sys.argv))
        if len(launched) == 1:
            notes.end(cells[0].folder, Outcome("complete"))
            notes.begin(cells[1].folder, [])
            raise BrokenProcessPool

    def note(cell: SweepCell, notes: Notes) -> None:
        alone.append(cell)
        notes.end(cell.folder, Outcome("failed", "died"))

    monkeypatch.setattr(ln.suite.sweeps.launch, "_job", dying)
    monkeypatch.setattr(ln.suite.sweeps.launch, "run_alone", note)
    run_cells(SweepPlan(cells, [[]]), [], notes)
    assert len(launched) == 2
    assert alone == [cells[1]]  # not the one that was done, nor those never begun


def test_the_path_of_a_cluster_with_submitits_local_executor(sweep: Callable[..., Any], tmp_path: Path) -> None:
    statuses, lines, _ = sweep("0", FRAGILE, launcher="slurm_here")
    assert (statuses, lines) == ({0: "complete"}, [])


def test_slurm_jobs_resume_and_share_out_the_cores_they_asked_for() -> None:
    assert "hydra.launcher.array_parallelism=3" in launcher_arguments("slurm", 3, [])
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        launcher = compose(
            "config", ["experiment=mnist_b128", "hydra/launcher=slurm"], return_hydra_config=True
        ).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert launcher.gpus_per_node == 1
    assert launcher.max_num_timeout > 0


def test_cores_are_shared_out_unless_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ln.suite.sweeps.launch, "cores", lambda: 5)
    assert "threads=2" in launcher_arguments("local", 2, [])
    assert "threads=1" in launcher_arguments("local", 8, [])
    assert not any(a.startswith("threads=") for a in launcher_arguments("local", 2, ["threads=4"]))


def test_small_runs_go_side_by_side_and_a_gpu_is_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ln.suite.sweeps.launch, "cores", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert usual_jobs("laptop", []) == 2
    assert usual_jobs("smoke", []) == usual_jobs("full", []) == usual_jobs("laptop", ["device=cuda"]) == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert usual_jobs("laptop", []) == 1
    assert usual_jobs("laptop", ["device=cuda", "device=cpu"]) == 2
    monkeypatch.setattr(ln.suite.sweeps.launch, "cores", lambda: 64)
    assert usual_jobs("laptop", ["device=cpu"]) == 4


def test_every_process_takes_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(ln.suite.runs.device.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(ln.suite.runs.device, "_gpu_lock", None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    with (tmp_path / f"ln-gpu-{os.getuid()}-4-0.lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        take_gpu()
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "6"
        take_gpu()  # the process's next cell stays there
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "6"
        held = ln.suite.runs.device._gpu_lock
        monkeypatch.setattr(ln.suite.runs.device, "_gpu_lock", None)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
        take_gpu()  # both are held: a second run on the first
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "4"
        assert held is not None
    monkeypatch.setattr(ln.suite.runs.device, "_gpu_lock", None)


@pytest.mark.parametrize(
    ("group", "norms", "seeds", "said"),
    [
        ("mnist", "lyer", None, "norm=lyer is not a normalization"),
        ("mnist", "", None, "norm= is not"),
        ("mnist", "Layer", None, r"norm=Layer is not a normalization; .*; did you mean layer\?"),
        ("mnits", None, None, r"mnits is not an experiment .*; did you mean mnist\?"),
        ("learning_rate", "lyer", None, "norm=lyer is not a normalization"),
        ("learning_rate", None, "", "seeds= is not a comma list"),
        ("nope", None, None, "nope is not an experiment or a sweep"),
        ("learning_rate_search", None, None, "search for W&B agents"),
    ],
)
def test_a_sweep_of_nonsense_is_one_sentence(group: str, norms: str | None, seeds: str | None, said: str) -> None:
    with pytest.raises(Mistake, match=said) as caught:
        plan(group, "smoke", "results", norms, seeds)
    assert "\n" not in str(caught.value)


def test_a_cell_that_is_asked_for_twice_is_run_once() -> None:
    swept = plan("mnist", "smoke", "results", "layer,none,layer", "1,0,1")
    asked = [(norm, seed) for norm in ("layer", "none") for seed in (1, 0)]
    assert [(cell.norm, cell.seed) for cell in swept.cells] == asked * 2
    assert swept.multiruns[0][1:3] == ["norm=layer,none", "seed=1,0"]


@pytest.mark.parametrize(("launcher", "jobs", "said"), [("local", 0, "JOBS=0"), ("pbs", 1, "LAUNCHER=pbs")])
def test_a_launch_of_nonsense_is_one_sentence(launcher: str, jobs: int, said: str) -> None:
    with pytest.raises(Mistake, match=said):
        launcher_arguments(launcher, jobs, [])


# --- the table


def states(*statuses: str) -> list[State]:
    folder = Path("results/smoke/mnist_b128/none")
    cells = [SweepCell("mnist_b128 none", "mnist_b128", "none", seed, folder / str(seed)) for seed in range(9)]
    shares = {"complete": 1.0, "running": 0.5, "waiting": 0.0}
    return [
        State(cell, status, "valid_error", 0.25 * shares[status] or None, 100.0, shares[status], 60 * shares[status])
        for cell, status in zip(cells, statuses, strict=False)
    ]


def test_time_left_is_shared_out_but_no_run_is_shorter_than_itself() -> None:
    assert seconds_left(states("complete", "running", "waiting", "waiting"), jobs=1) == pytest.approx(30 + 60 + 60)
    assert seconds_left(states("complete", "running", "waiting", "waiting"), jobs=8) == pytest.approx(60)
    assert seconds_left(states("waiting"), jobs=1) is None


def test_the_table_fits_the_terminal_and_tells_states_speed_best_and_time_left() -> None:
    lines = table(states("complete", "running", "waiting", *["waiting"] * 6), 2, False, (60, 20))
    assert all(len(line) <= 60 for line in lines[:-1])
    assert "✓ 0.25" in lines[1]
    assert "▶ 50% 0.125" in lines[1]
    assert lines[-1].startswith("valid_error: 1 of 9 complete, 1 running, 7 waiting, 100 steps/s, about")
    many = [State(SweepCell(f"row {i}", "e", "n", 0, Path(str(i))), "waiting") for i in range(50)]
    assert len(table(many, 1, False, (60, 20))) <= 20


def test_without_a_terminal_there_is_a_line_per_event(tmp_path: Path, recipe: Make) -> None:
    done = carry_out(recipe("experiment=mnist_b128", "norm=none")).folder
    cells = [SweepCell("mnist_b128 none", "mnist_b128", "none", s, done.with_name(str(s))) for s in (0, 1)]
    notes, out = Notes(tmp_path), io.StringIO()
    watch = Watch(cells, notes, 1, out)
    watch.look()
    assert out.getvalue() == ""  # done before, and not begun
    notes.begin(cells[1].folder, [])
    watch.look()
    watch.look()
    notes.end(cells[1].folder, Outcome("failed", "why"))
    watch.look()
    said = [line.split(maxsplit=1)[1] for line in out.getvalue().splitlines()]
    assert [line.split(" (")[0] for line in said] == [f"mnist_b128 none seed 1: {s}" for s in ("running", "failed")]
    assert "\033" not in out.getvalue()


# --- W&B's definitions


def agent_arguments(document: dict[str, Any], values: dict[str, Any]) -> list[str]:
    """The words that `wandb agent` would run, made by W&B's own code."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    filled = create_sweep_command_args({"args": {key: {"value": value} for key, value in values.items()}})
    words = []
    for word in create_sweep_command(list(document["command"])):
        macro = word[2:-1] if word.startswith("${") and word.endswith("}") else None
        words += filled[macro] if macro else [word]
    return words


@pytest.mark.parametrize("name", names("sweep"))
def test_a_wandb_agent_runs_recipes_that_exist(name: str) -> None:
    document = yaml.safe_load((CONFIGS / "sweep" / f"{name}.yaml").read_text())
    assert document["name"] == name
    assert (CONFIGS.parent / document["program"]).exists()
    discrete = {key: entry["values"] for key, entry in document["parameters"].items() if "values" in entry}
    drawn = {key: [entry["min"], entry["max"]] for key, entry in document["parameters"].items() if "min" in entry}
    folders = set()
    corners = {key: [values[0], values[-1]] for key, values in (discrete | drawn).items()}
    for chosen in itertools.product(*corners.values()):
        words = agent_arguments(document, dict(zip(corners, chosen, strict=True)))
        assert words[:3] == [".venv/bin/python", "-m", "ln.train"]
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            recipe = recipe_of(compose("config", words[3:]))
        metric = document["metric"]["name"].removeprefix("final/test_")
        assert metric == "error"  # mnist's
        assert document["metric"]["goal"] == "minimize"
        assert recipe.train.select.direction == "lower"
        folders.add(run_folder(recipe.results, recipe.profile, recipe.experiment, recipe.norm.name, recipe.seed))
    assert len(folders) == 2 ** len(corners)  # no two draws share a folder
    if name in definitions():  # and a sweep on this machine uses the same ones
        assert folders <= {cell.folder for cell in plan(name, "laptop", "results", None, None).cells}


@pytest.mark.parametrize("name", names("sweep"))
def test_definitions_have_the_form_that_wandb_documents(name: str) -> None:
    document = yaml.safe_load((CONFIGS / "sweep" / f"{name}.yaml").read_text())
    known = {"name", "description", "project", "program", "method", "metric", "parameters", "command", "run_cap"}
    assert document.keys() <= known
    assert document["method"] in ("grid", "random", "bayes")
    for entry in document["parameters"].values():
        if entry.keys() != {"values"}:
            assert document["method"] != "grid"
            assert entry["distribution"] == "log_uniform_values"
            assert entry.keys() == {"distribution", "min", "max"}
            assert 0 < entry["min"] < entry["max"]


@pytest.mark.parametrize("name", names("sweep"))
def test_definitions_satisfy_wandbs_own_schema(name: str) -> None:
    sweeps = pytest.importorskip("sweeps", reason="W&B's schema is in its package sweeps, which needs numpy < 2")
    document = yaml.safe_load((CONFIGS / "sweep" / f"{name}.yaml").read_text())
    assert sweeps.schema_violations_from_proposed_config(document) == []


def test_a_sensitivity_sweep_draws_each_norm_and_marks_what_diverged(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    definition = Definition.load("learning_rate")
    assert sensitivity_figure(definition, "smoke", tmp_path) is None
    overrides = [word for word in definition.fixed if word.startswith(("experiment=", "train."))]
    for value, norm in itertools.product((0.0001, 0.01), ("none", "layer")):
        place = f"results={tmp_path}/sweeps/learning_rate/{value}"
        run = carry_out(recipe(*overrides, f"norm={norm}", f"train.optimizer.lr={value}", place))
        if (value, norm) == (0.01, "none"):
            path = run.folder / "run.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "status": "diverged"}))
    drawn: list[Any] = []
    monkeypatch.setattr("ln.suite.sweeps.conclude.save", lambda figure, path: drawn.append(figure) or path)
    path = sensitivity_figure(definition, "smoke", tmp_path)
    assert path == tmp_path / "sweeps/learning_rate/figure-smoke.png"
    axis = drawn[0].axes[0]
    assert axis.get_xscale() == "log"
    lines = {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}
    assert set(lines) == {"no norm", "layer norm"}
    assert [bool(y == y) for y in lines["no norm"].get_ydata()] == [True, False]  # no mean where a seed diverged
    assert sum(line.get_marker() == "x" for line in axis.lines) == 1
    assert axis.get_yscale() == "linear"
    monkeypatch.setattr("ln.suite.sweeps.conclude.WIDE", 1.0)
    sensitivity_figure(definition, "smoke", tmp_path)
    assert drawn[1].axes[0].get_yscale() == "log"


def test_a_sweep_from_its_definition_to_the_agents_run_in_wandb(tmp_path: Path) -> None:
    """`wandb sweep` and `wandb agent` as they are, with a server that hands out the grid: the run is on disk where this
    machine's own sweep would put it, and in W&B under the agent's name."""
    document = yaml.safe_load((CONFIGS / "sweep" / "learning_rate.yaml").read_text())
    document["command"][-1:-1] = ["profile=smoke", "threads=1", "tracking=offline"]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(document))
    (tmp_path / ".venv").symlink_to(sys.prefix)
    with sweep_server(runs=1) as server:
        theirs = {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": "a" * 40, "HOME": str(tmp_path)}
        environment = {**os.environ, **theirs, "PYTHONPATH": str(CONFIGS.parent)}
        for words in (["sweep", "-e", "us", "-p", "mine", "sweep.yaml"], ["agent", "us/mine/sweep1"]):
            wandb = [sys.executable, "-m", "wandb", *words]
            subprocess.run(wandb, cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=240)
    run = tmp_path / "results/sweeps/learning_rate/0.0001/smoke/mnist_b128/none/0/run.json"
    assert json.loads(run.read_text())["status"] == "complete"
    (mirrored,) = (tmp_path / "results" / "wandb").glob("offline-run-*-agents-0")
    deadline = time.monotonic() + 120
    while (records := inspected(mirrored))[-1]["type"] != "exit" and time.monotonic() < deadline:
        time.sleep(0.5)  # the mirror is left to end by itself
    started = next(r["run"] for r in records if r["type"] == "run")
    assert (started["run_id"], started["sweep_id"], started["entity"]) == ("agents-0", "sweep1", "us")
    assert started["display_name"] == "mnist_b128 none learning_rate 0.0001 seed 0"
    assert '"final/test_error"' in json.dumps(records)  # what the sweep's metric is
    assert records[-1]["exit"]["exit_code"] == 0

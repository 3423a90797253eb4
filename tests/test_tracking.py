"""The mirror in W&B: derived from the files, whole in the end, and never in the way of a run."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from ln.suite.config import Recipe
from ln.suite.errors import Mistake
from ln.suite.judging.published import Key, published_curves
from ln.suite.runs import folder, mirror, tracking
from ln.suite.runs.mirror import Follower, Mirrored, Place
from ln.suite.runs.tracking import Mirror, mode_of, unmirrored
from ln.suite.runs.train import carry_out
from ln.suite.showing.published_runs import published_runs, upload
from ln.suite.showing.report import conclude
from scripts import wandb_sync
from tests.wandb_here import inspected

Make = Callable[..., Recipe]
RUN = "experiment=mnist_b128"


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("API_KEY", "MODE", "BASE_URL", "PROJECT", "ENTITY", "LOG_MODEL", "RUN_ID", "SWEEP_ID"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.netrc


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Mirror:
    """A mirror process of this test's own."""
    mirror = Mirror()
    monkeypatch.setattr(tracking, "_beside", mirror)
    monkeypatch.setattr(tracking.atexit, "register", lambda function: None)
    return mirror


def ended(beside: Mirror) -> int:
    assert beside.process is not None
    assert beside.process.stdin is not None
    beside.process.stdin.close()
    return beside.process.wait(240)


def test_wandbs_environment_is_the_users_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "key")
    for mode in ("offline", "disabled", "online"):
        monkeypatch.setenv("WANDB_MODE", mode)
        assert mode_of("auto") == mode
        assert mode_of("offline") == "offline"  # what the command says comes first
    for said, mode in (("dryrun", "offline"), ("run", "online"), ("", "online")):
        monkeypatch.setenv("WANDB_MODE", said)
        assert mode_of("auto") == mode
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(Mistake, match=r"WANDB_MODE=ofline is not a mode of W&B's; .*; did you mean offline\?"):
        mode_of("auto")
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.delenv("WANDB_MODE")
    # A key counts for the host that it is for, and $NETRC names the file.
    (tmp_path / "keys").write_text("machine wandb.example.org login user password key\n")
    (tmp_path / "keys").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "keys"))
    assert mode_of("auto") == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org:8080/")
    assert mode_of("auto") == "online"
    (tmp_path / "keys").write_bytes(b"\xff machine")
    assert mode_of("auto") == "offline"
    monkeypatch.delenv("NETRC")
    (tmp_path / "_netrc").write_text("machine wandb.example.org login user password key\n")
    assert mode_of("auto") == "online"


def test_auto_is_online_with_a_key_and_offline_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert mode_of("auto") == "offline"
    assert [mode_of(mode) for mode in ("online", "offline", "disabled")] == ["online", "offline", "disabled"]
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password key\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert mode_of("auto") == "online"
    (tmp_path / ".netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert mode_of("auto") == "online"


def test_disabled_starts_nothing(recipe: Make, beside: Mirror) -> None:
    carry_out(recipe(RUN))
    assert beside.process is None


def test_a_run_and_its_verdicts_are_in_wandbs_files(
    recipe: Make, beside: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What W&B's own reader finds: every evaluation once, whose it is, what it was made of, how it ended, the picture,
    the verdicts."""
    monkeypatch.setattr(folder, "_git", lambda *asked, git=folder._git: "+changed" if "diff" in asked else git(*asked))
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_ENTITY", "us")
    monkeypatch.setenv("WANDB_LOG_MODEL", "end")
    results = tmp_path / "results"
    run = carry_out(recipe(RUN, "norm=layer", "tracking=offline"))
    conclude("mnist", "smoke", results)
    tracking.mirror_verdicts(results / "smoke" / "mnist", ["tracking=offline"])
    assert ended(beside) == 0
    one, verdicts = (next((results / "wandb").glob(f"offline-run-*{end}")) for end in (run.info["hash"], "verdicts"))
    records = inspected(one)
    history = [r["history"]["item"] for r in records if r["type"] == "history"]
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [h["step"] for h in history] == [line["step"] for line in lines if not line.get("final")]
    for logged, line in zip(history, lines, strict=False):
        assert {key: logged[key] for key in line} == line
    metrics = {r["metric"]["name"]: r["metric"] for r in records if r["type"] == "metric"}
    assert all(metrics[axis]["options"]["hidden"] for axis in ("step", "epoch", "seconds"))  # an axis, not a curve
    assert metrics.keys() == lines[0].keys()
    assert {metrics[key]["step_metric"] for key in lines[0].keys() - {"step", "epoch", "seconds"}} == {"step"}
    assert metrics["valid_error"]["summary"] == {"last": True, "min": True}  # what validation chooses by
    started = next(r["run"] for r in records if r["type"] == "run")
    assert started["display_name"] == "mnist_b128 layer seed 0"
    assert started["run_group"] == "mnist_b128/smoke"
    assert started["job_type"] == "layer"
    assert (started["entity"], started["project"]) == ("us", "mine")
    assert set(started["tags"]) == {"mnist_b128", "layer", "smoke", "data embedded"}
    assert started["git"]["commit"] == run.info["commit"]
    kept = {r["artifact"]["type"]: r["artifact"] for r in records if r["type"] == "artifact"}
    assert kept.keys() == {"dataset", "code", "run"}
    data = kept["dataset"]
    assert data["use_after_commit"]  # the run used it: what W&B draws lineage from
    assert json.loads(data["metadata"]) == run.info["data"]
    files = {kind: {entry["path"] for entry in artifact["manifest"]["contents"]} for kind, artifact in kept.items()}
    assert files["run"] == {"run.json", "config.yaml", "metrics.jsonl", "diff.patch", "best.pt"}
    assert {"ln/rnn.py", "experiments/mnist.py", "configs/experiment/mnist_b128.yaml"} <= files["code"]
    assert (one / "files" / "diff.patch").read_text() == (run.folder / "diff.patch").read_text()
    assert records[-1]["type"] == "exit"
    assert records[-1]["exit"]["exit_code"] == 0
    text = json.dumps(records)
    assert f'"final/test_error": {run.info["final"]["test_error"]}' in text
    assert '"pictures/figure.path"' in json.dumps(inspected(verdicts))
    assert '"verdicts.path"' in json.dumps(inspected(verdicts))
    assert unmirrored(results, everything=False) == []  # both have their copy
    assert len(unmirrored(results, everything=True)) == 2


@pytest.fixture
def silence() -> Iterator[str]:
    """The address of a server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_never_answers_costs_the_run_nothing(
    recipe: Make, beside: Mirror, silence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", silence)
    # Patient with the network for a second in place of half a minute, and not nice to the tests beside it.
    program = (
        f"import os; os.nice = int; m = {{'__file__': {mirror.__file__!r}}}; exec(open(m['__file__']).read(), m); "
    )
    impatient = program + "m['INIT_SECONDS'] = 1; m['main']()"
    errors = (tmp_path / "said").open("w+")
    beside.process = subprocess.Popen(
        [sys.executable, "-P", "-c", impatient], stdin=subprocess.PIPE, stderr=errors, text=True
    )
    spent = []
    for name in ("begin", "end"):
        monkeypatch.setattr(tracking, name, timed(getattr(tracking, name), spent))
    run = carry_out(recipe(RUN, "tracking=auto"))
    assert run.info["status"] == "complete"
    assert len(spent) == 2
    assert sum(spent) < 0.1  # a laptop run takes 30 s, of which this is less than 1 %
    assert ended(beside) == 0
    errors.seek(0)
    assert "going on offline, `make wandb-sync` uploads later" in errors.read()
    assert list((tmp_path / "results" / "wandb").glob(f"offline-run-*{run.info['hash']}"))


def timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def call(*arguments: Any) -> None:
        begun = time.perf_counter()
        function(*arguments)
        spent.append(time.perf_counter() - begun)

    return call


def test_a_mirror_that_died_fails_no_run(recipe: Make, beside: Mirror) -> None:
    beside.process = subprocess.Popen(["true"], stdin=subprocess.PIPE, text=True)
    beside.process.wait()
    assert carry_out(recipe(RUN, "tracking=offline")).info["status"] == "complete"


def test_the_command_waits_a_hundredth_of_the_training_for_wandb(beside: Mirror) -> None:
    beside.process = subprocess.Popen(["sleep", "60"], stdin=subprocess.PIPE, text=True)
    pid, beside.started = beside.process.pid, time.monotonic() - 20
    begun = time.monotonic()
    beside.leave()
    assert 0.15 < time.monotonic() - begun < 5
    os.kill(pid, signal.SIGKILL)  # it was left alive
    os.waitpid(pid, 0)


# --- what is logged, without wandb


class FakeRun:
    def __init__(self, **settings: Any):
        self.settings, self.summary = settings, {}
        self.logged: list[dict[str, Any]] = []
        self.exit_code: int | None = None

    def define_metric(self, name: str, **options: Any) -> None: ...

    def log_artifact(self, artifact: Any, **options: Any) -> None: ...

    _log_artifact = save = log_artifact

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self, exit_code: int = 0) -> None:
        self.exit_code = exit_code


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    made: list[FakeRun] = []

    def init(**settings: Any) -> FakeRun:
        if settings["mode"] == "online":
            raise OSError("no route to host")
        made.append(FakeRun(**settings))
        return made[-1]

    wandb = SimpleNamespace(
        init=init, Settings=dict, teardown=lambda: None, Image=Path, Artifact=lambda *_, **__: MagicMock()
    )
    monkeypatch.setattr(mirror, "quiet_wandb", lambda: wandb)
    return made


def test_a_run_followed_line_by_line_is_the_run_rebuilt_at_once(
    recipe: Make, fake: list[FakeRun], tmp_path: Path
) -> None:
    folder = carry_out(recipe(RUN)).folder
    (folder / "samples.png").write_bytes(b"")
    whole = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(b"")
    live = Mirrored(folder, "offline")
    for cut in range(0, len(whole), 37):  # torn lines on the way
        (folder / "metrics.jsonl").write_bytes(whole[:cut])
        live.catch_up()
    (folder / "metrics.jsonl").write_bytes(whole)
    live.finish()
    Mirrored(folder, "offline").finish()
    followed, rebuilt = fake
    assert followed.logged == rebuilt.logged
    assert followed.summary == rebuilt.summary
    assert len(followed.logged) == 3  # two evaluations and the picture
    assert followed.logged[-1] == {"pictures/samples": Path(folder / "samples.png")}
    assert followed.exit_code == 0


def test_a_run_that_was_interrupted_or_diverged_ends_as_what_it_is(recipe: Make, fake: list[FakeRun]) -> None:
    folder = carry_out(recipe(RUN)).folder
    info = json.loads((folder / "run.json").read_text())
    for status, code in (("interrupted", 1), ("failed", 1), ("diverged", 0)):
        (folder / "run.json").write_text(json.dumps({**info, "status": status}))
        Mirrored(folder, "offline").finish()
        assert fake[-1].exit_code == code
        assert fake[-1].summary["status"] == status


def test_without_a_network_it_goes_on_offline_and_says_so_once(
    recipe: Make, fake: list[FakeRun], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = carry_out(recipe(RUN)).folder
    follower = Follower()
    for _ in range(2):
        follower.begin({"folder": str(folder), "mode": "online"})
        follower.end()
    assert [run.settings["mode"] for run in fake] == ["offline", "offline"]
    assert [run.exit_code for run in fake] == [0, 0]
    assert capsys.readouterr().err.count("cannot be reached (OSError: no route to host)") == 1


def test_a_sweeps_runs_are_named_after_their_setting_and_kept_together() -> None:
    identity = {"experiment": "mnist_b128", "profile": "smoke", "norm": {"name": "layer"}, "seed": 2}
    plain = Place(Path("results/smoke/mnist_b128/layer/2"))
    swept = Place(Path("results/sweeps/learning_rate/0.01/smoke/mnist_b128/layer/2"))
    assert plain.name(identity) == "mnist_b128 layer seed 2"
    assert swept.name(identity) == "mnist_b128 layer learning_rate 0.01 seed 2"
    assert [place.group(identity) for place in (plain, swept)] == ["mnist_b128/smoke", "learning_rate/smoke"]
    assert plain.top == swept.top == Path("results")


def test_an_agents_run_has_the_agents_name(recipe: Make, fake: list[FakeRun], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "agent-7")
    Mirrored(carry_out(recipe(RUN)).folder, "offline")
    assert fake[0].settings["id"] == "agent-7"


def test_leet_opens_on_what_validation_chooses_by(recipe: Make, tmp_path: Path) -> None:
    results = tmp_path / "results"
    run = carry_out(recipe(RUN))
    tracking.open_leet(results)
    assert not (results / "wandb").exists()  # nothing is mirrored here
    copy = f"offline-run-20260102_030405-{Place.id(run.info)}"
    for name in (copy, "offline-run-20260102_030406-published-mnist_b128-none"):
        (results / "wandb" / name).mkdir(parents=True)
    for _ in range(2):
        tracking.open_leet(results)
        state = json.loads((results / "wandb" / ".wandb-leet.json").read_text())
        assert state["metrics_filter"] == {"query": "^(valid_error)$"}
        assert state["selected_runs"] == [state["pinned_run"]] == [copy]
        assert state["latest_run"].endswith("published-mnist_b128-none")  # else leet would select it, as new
    mine = {"metrics_filter": {"query": "train"}, "selected_runs": ["a"]}
    (results / "wandb" / ".wandb-leet.json").write_text(json.dumps(mine))
    tracking.open_leet(results)
    assert json.loads((results / "wandb" / ".wandb-leet.json").read_text()) == mine


# --- make wandb-sync


def test_wandb_sync_without_a_key_says_so_in_one_sentence(
    recipe: Make, fake: list[FakeRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    carry_out(recipe(RUN))
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["wandb_sync", "--results", str(tmp_path / "results")])
    wandb_sync.main()
    said = capsys.readouterr().out
    assert said == "no W&B key is set (WANDB_API_KEY, or `wandb login`): 1 runs and verdict tables stay here\n"
    monkeypatch.setenv("WANDB_API_KEY", "key")
    with pytest.raises(SystemExit):
        wandb_sync.main()  # and with one, but no network
    assert "is not in W&B: OSError: no route to host" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--offline"])
    wandb_sync.main()
    ours, *published = fake
    assert ours.settings["name"] == "mnist_b128 layer seed 0"
    assert [run.settings["name"] for run in published] == [
        f"published/mnist_b128 {n}" for n in ("batch", "none", "layer")
    ]


def test_published_curves_are_runs_of_their_own(recipe: Make, tmp_path: Path) -> None:
    """What W&B's own reader finds: the figure's points and where they were read, in a group and job type of their
    own."""
    results = tmp_path / "results"
    carry_out(recipe(RUN, "norm=layer"))
    assert {run.experiment for run in published_runs(results, everything=True)} == {"mnist_b128"}
    run = next(run for run in published_runs(results, everything=False) if run.norm == "layer")
    upload(run, results, "offline")
    assert run not in published_runs(results, everything=False)
    assert run in published_runs(results, everything=True)
    records = inspected(next((results / "wandb").glob(f"offline-run-*{run.id}")))
    history = [r["history"]["item"] for r in records if r["type"] == "history"]
    nll = published_curves()[Key("mnist_b128", "train_nll", "layer")]
    assert [h["epoch"] for h in history] == list(nll.x)
    assert [h["train_nll"] for h in history] == list(nll.y)
    assert all("test_error" in h for h in history)
    started = next(r["run"] for r in records if r["type"] == "run")
    assert started["display_name"] == "published/mnist_b128 layer"
    assert started["run_group"] == "published/mnist_b128"
    assert started["job_type"] == "published layer"
    assert "arXiv 1607.06450v1, Figure 6" in json.dumps(started["config"])
    axes = {r["metric"]["name"]: r["metric"]["step_metric"] for r in records if r["type"] == "metric"}
    assert axes["train_nll"] == "epoch"


def test_dashboards_without_a_key_are_one_sentence() -> None:
    with pytest.raises(Mistake, match="no W&B key is set"):
        tracking.entity()

"""What a user types: paths that are paths, overrides that are read as meant, and refusals that name their key."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from ln.suite.config import CONFIGS, Recipe, as_yaml, names, recipe_of, settings_of_every_recipe
from ln.suite.errors import Mistake
from ln.suite.overrides import check_choices, check_overrides, for_hydra, not_composed, parsed, quoted, words
from ln.suite.runs.folder import run_folder
from tests.conftest import ROOT

ODD_NAMES = [
    "my results", "ends with a blank ", "ünïcode", "日本", "a,b", "a=b", "a(b)", "[a]", "{a}", "${a}", "$HOME",
    "it's", 'say "x"', "a#b", "~a", "a;touch y", "a&b", "a|b", "a`touch y`", "$(touch y)", "a*b?", "a<b>c", "a\\b",
    "a:b", "a%b", "!a^b",
]  # fmt: skip


@pytest.fixture
def stub(tmp_path: Path) -> Callable[..., Any]:
    """stub(folder, "reproduce-mnist", "RESULTS=x"): the arguments with which make starts Python in a folder that holds
    this Makefile, and what it tells it by the environment."""

    def run(folder: Path, *arguments: str, **environment: str) -> tuple[list[str], dict[str, str]]:
        python = folder / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True, exist_ok=True)
        (folder / "requirements.lock").touch()
        (folder / ".venv" / ".ready").touch()
        (folder / "Makefile").write_text((ROOT / "Makefile").read_text())
        told = tmp_path / "told.json"
        python.write_text(
            f"#!{sys.executable} -S\nimport json, os, sys\n"
            f"json.dump([sys.argv[1:], dict(os.environ)], open({str(told)!r}, 'w'))\n"
        )
        python.chmod(0o755)
        clean = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
        done = subprocess.run(["make", "-s", *arguments], cwd=folder, env=clean | environment, capture_output=True,
                              text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return tuple(json.loads(told.read_text()))

    return run


@pytest.mark.parametrize("name", ODD_NAMES)
def test_make_hands_on_a_path_as_it_was_typed(stub: Callable[..., Any], tmp_path: Path, name: str) -> None:
    clone = tmp_path / f"clone {name}"
    for command in ("reproduce", "sweep", "plan", "verdict", "profile"):
        arguments, told = stub(clone, f"{command}-mnist", f"RESULTS={name}", f"LN_DATA={name}")
        assert f"--results={name}" in arguments
        assert told["LN_DATA"] == name
        assert told["PYTHONPATH"] == str(clone)
    assert f"--results={name}" in stub(clone, "report", RESULTS=name)[0]
    assert stub(clone, "data", f"RESULTS={name}")[0] == ["-m", "scripts.data", f"--results={name}"]
    assert f"--dry-run={name}" in stub(clone, "dashboards", f"DRY_RUN={name}")[0]
    assert sorted(path.name for path in clone.iterdir()) == [".venv", "Makefile", "requirements.lock"]


def test_quick_is_one_seed_unless_seeds_are_named(stub: Callable[..., Any], tmp_path: Path) -> None:
    asked = {"QUICK=1": ["--seeds=0"], "QUICK=0": [], "QUICK=1 SEEDS=1,2": ["--seeds=1,2"], "": []}
    for place, (typed, seeds) in enumerate(asked.items()):
        given = stub(tmp_path / str(place), "reproduce-mnist", *typed.split())[0]
        assert [word for word in given if word.startswith("--seeds")] == seeds, typed


def test_make_hands_on_no_more_than_was_typed(stub: Callable[..., Any], tmp_path: Path) -> None:
    bare = ["-m", "scripts.reproduce", "order_embeddings", "--profile=laptop", "--overrides="]
    assert stub(tmp_path / "clone", "reproduce-order-embeddings")[0] == bare
    data = ["-m", "scripts.data", "seq_mnist", "--data=substitute"]
    assert stub(tmp_path / "clone", "data-seq-mnist", "DATA=substitute")[0] == data
    all_of_it = ["PROFILE=full", "NORMS=", "SEEDS=0,1", "JOBS=2", "DEVICE=cpu", "DATA=original", "TRACKING=offline"]
    assert stub(tmp_path / "clone", "reproduce-mnist", *all_of_it, "OVERRIDES=a=1 'b=[1, 2]'; x=$y")[0] == [
        "-m", "scripts.reproduce", "mnist", "--profile=full", "--norms=", "--seeds=0,1", "--jobs=2", "device=cpu",
        "data=original", "tracking=offline", "--overrides=a=1 'b=[1, 2]'; x=$y",
    ]  # fmt: skip


def test_overrides_are_words() -> None:
    assert words("a=1  'b=[1, 2]'\tc=\"x y\"") == ["a=1", "b=[1, 2]", "c=x y"]
    with pytest.raises(Mistake, match="OVERRIDES=a='1 cannot be told apart into words"):
        words("a='1")


@pytest.mark.parametrize("name", [*ODD_NAMES, "\\", "'", "\\'", "\\${a}", "\\\\${", "${a\\", "''", "null", "1e3"])
def test_hydra_takes_a_quoted_path_for_itself(name: str) -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        composed = compose("config", ["experiment=mnist_b128", f"results={quoted(name)}"])
        below = compose("config", ["experiment=mnist_b128", f"results={quoted(name, '/${seed}')}"])
    recipe = recipe_of(composed)
    assert recipe.results == name
    assert recipe_of(below).results == f"{name}/0"
    assert OmegaConf.to_container(OmegaConf.create(as_yaml(recipe).replace("${", "")))  # it is YAML


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_runs_land_in_a_folder_of_any_name(tmp_path: Path, jobs: str) -> None:
    results = tmp_path / "a,b=${x} 'ü\"#~;&()[]{} "
    command = [sys.executable, "-m", "scripts.reproduce", "invariance", "--profile=smoke", "--norms=none", "--seeds=0",
               f"--results={results}", f"--jobs={jobs}", "tracking=disabled", "--overrides=model.draws=1"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    info = json.loads((run_folder(results, "smoke", "invariance", "none", 0) / "run.json").read_text())
    assert info["status"] == "complete"
    assert [path.name for path in tmp_path.iterdir()] == [results.name]


@pytest.mark.parametrize(
    ("override", "instead"),
    [
        ("seed=3", "use SEEDS="), ("norm=none", "use NORMS="), ("+norm=none", "use NORMS="), ("norm.name=none", "N"),
        ("++results=x", "use RESULTS="), ("profile=full", "use PROFILE="), ("experiment=draw", "make reproduce-mnist"),
        ("task=experiments.mnist.Mnist", "another task is another experiment"), ("++task=a.B", "another task is"),
        ("~seed", "use SEEDS="), ("train.batch_size=32,64", "asks for several values"),
        ("train.batch_size=choice(32,64)", "asks for several values"), ("train.epochs", "write key=value"),
        ("--cfg=job", "write key=value"), ("=3", "write key=value"),
        ("train.optimizer.lr=0.1", "it is what make sweep-learning-rate varies"),
    ],
)  # fmt: skip
def test_an_override_that_asks_for_other_cells_is_refused(override: str, instead: str) -> None:
    varied = {"train.optimizer.lr": "it is what make sweep-learning-rate varies"}
    with pytest.raises(Mistake) as caught:
        check_overrides([override], varied)
    assert override in str(caught.value)
    assert instead in str(caught.value)
    check_overrides(["train.epochs=null", "device=cpu", "hydra.launcher.partition=gpu", "model.hidden=8"], varied)


def test_choices_may_be_written_in_any_of_hydras_ways() -> None:
    check_choices(["-m", "norm=choice(none,layer)", "experiment=glob(mnist_*)", "norm=none,layer", "profile=full"])
    check_choices(["norm=glob(*,exclude=none)", "experiment='mnist_b128'"])
    for argument, sentence in {
        "norm=choice(none,lyer)": "norm=lyer is not a normalization; .*did you mean layer?",
        "experiment=glob(mnits*)": r"experiment=glob\(mnits\*\) finds nothing; choose from",
        "norm=": "norm= is not a normalization",
        "norm=[none]": "norm=.*none.* is not a normalization",
    }.items():
        with pytest.raises(Mistake, match=sentence):
            check_choices([argument])


def test_settings_reach_the_jobs_of_a_multirun_whatever_their_type() -> None:
    typed = [
        "experiment=mnist_b128", "norm=none,layer", "train.epochs=null", "train.steps=40", "norm.sites=[cell]",
        "train.optimizer={lr: 0.1}", "model.hidden=choice(8,16)", "device=cpu", "-m", "+train.clip_norm=1",
    ]  # fmt: skip
    assert for_hydra(typed) == [
        *typed[:2], "++train.epochs=null", "++train.steps=40", "++norm.sites=[cell]", "++train.optimizer={lr: 0.1}",
        "++model.hidden=choice(8,16)", *typed[7:],
    ]  # fmt: skip
    composed = for_hydra(["train.epochs=null", "train.steps=40", "train.clip_norm=null", "norm.gain_init=null"])
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        recipe = recipe_of(compose("config", ["experiment=draw", *composed]))
    assert (recipe.train.epochs, recipe.train.steps, recipe.train.clip_norm) == (None, 40, None)


# --- every key of every recipe, with a value of every type

VALUES: dict[str, Any] = {
    "null": None, "a list": [1, "a"], "an empty list": [], "a mapping": {"a": 1}, "true": True, "text": "nonsense",
    "a fraction": 0.37, "a negative number": -2, "zero": 0, "a whole number": 3,
    "not a number": float("nan"), "infinite": float("inf"),
}  # fmt: skip


def composed_recipe(experiment: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("config", [f"experiment={experiment}", "profile=smoke"])


def leaves(section: Any, prefix: str = "") -> list[str]:
    found: list[str] = []
    for key, value in section.items():
        found += leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return found


FILES = {name: yaml.safe_load((CONFIGS / "experiment" / f"{name}.yaml").read_text()) for name in names("experiment")}
# One experiment of each task; variants take over the task of another.
TASKS = {recipe["task"]: name for name, recipe in FILES.items() if "task" in recipe}


@pytest.mark.parametrize("experiment", TASKS.values())
def test_every_refusal_names_its_key(experiment: str) -> None:
    base = composed_recipe(experiment)
    whole = OmegaConf.to_container(base, resolve=True)
    # What all recipes share is tried in one of them.
    keys = [key for key in leaves(whole) if experiment == TASKS["experiments.mnist.Mnist"] or key.startswith("model.")]
    OmegaConf.set_struct(base, False)
    accepted = 0
    for key in keys:
        for kind, value in VALUES.items():
            changed = OmegaConf.create(whole)
            OmegaConf.update(changed, key, value, merge=False)
            try:
                recipe = recipe_of(changed)
            except Mistake as mistake:
                sentence = str(mistake)
                assert key in sentence or (key == "norm.name" and sentence.startswith("norm=")), (
                    f"{key} given {kind}: {sentence}"
                )
                assert "\n" not in sentence
                assert len(sentence) < 400
            else:
                assert isinstance(recipe, Recipe)
                accepted += 1
    assert accepted  # some of them fit


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.epoch=3", "train.epoch is no setting of this recipe; did you mean train.epochs?"),
        ("trian.epochs=3", "trian.epochs is no setting of this recipe; did you mean train.epochs?"),
        ("model.hiden=3", "model.hiden is no setting of this recipe; did you mean model.hidden?"),
        ("norm.site=[cell]", "norm.site is no setting of this recipe; did you mean norm.sites?"),
        ("train.optimizer.lrr=3", "train.optimizer.lrr is no setting of this recipe; did you mean train.optimizer.lr?"),
        ("epochs=3", "epochs is no setting of this recipe; did you mean train.epochs?"),
        ("lr=3", "lr is no setting of this recipe; did you mean train.optimizer.lr?"),
        ("train.lr=3", "train.lr is no setting of this recipe; did you mean train.optimizer.lr?"),
        (
            "data=orignal",
            "data=orignal is not a choice of data; choose one of auto, original, substitute, embedded; did",
        ),
        ("devise=cpu", "devise is no setting of this recipe; did you mean device?"),
        ("++devise=cpu", "devise is no setting of this recipe; did you mean device?"),
        ("train.zzz=3", "train.zzz is no setting of this recipe; choose from train.batch_size, train.epochs"),
        ("norm.sites=3", "norm.sites=3 must be a list or null"),
        ("norm.sites=[gates]", "norm.sites: 'gates' is unknown"),
        ("train.batch_size=3.5", "train.batch_size=3.5 must be a whole number"),
        ("train.optimizer.lr=fast", "train.optimizer.lr=fast cannot be used"),
        ("train.optimizer._target_=torch.optim.Adm", "train.optimizer._target_=torch.optim.Adm cannot be imported"),
        ("train=3", "train=3 must be a section of settings, such as train.batch_size"),
        ("seed=x", "seed=x must be a whole number"),
    ],
)
def test_a_refusal_says_what_to_write(recipe: Callable[..., Recipe], override: str, sentence: str) -> None:
    with pytest.raises((Mistake, HydraException)) as caught:
        recipe("experiment=mnist_b128", *for_hydra([override]))
    mistake = not_composed(caught.value) if isinstance(caught.value, HydraException) else caught.value
    assert str(mistake).startswith(sentence)


def test_what_hydra_cannot_read_is_named() -> None:
    for argument in ("model.hidden={1", "results=a(b", "train.epochs=1 2'"):
        with pytest.raises(Mistake) as caught:
            parsed([argument])
        assert str(caught.value).startswith(f"{argument} cannot be read as key=value")
        assert "\n" not in str(caught.value)


def test_the_settings_of_every_recipe_are_known_without_one() -> None:
    assert {"train.epochs", "norm.sites", "device"} <= set(settings_of_every_recipe())


@pytest.mark.parametrize("command", ["compare", "data", "findings", "plan", "report", "reproduce", "table", "verdict"])
def test_a_path_that_can_be_no_folder_is_refused_by_every_command(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    group = ["mnist"] if command in ("plan", "reproduce", "verdict") else []
    for path, why in ((tmp_path / ("a" * 300), "File name too long"), (loop, "Too many levels of symbolic links")):
        monkeypatch.setattr(sys, "argv", [command, *group, f"--results={path}"])
        with pytest.raises(SystemExit) as stopped:
            importlib.import_module(f"scripts.{command}").main()
        assert stopped.value.code == 2
        assert capsys.readouterr().err.splitlines()[-1].endswith(why)

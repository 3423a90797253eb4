"""Numbers that are typed in docs/ are those of the files under results/ that they are said of."""

import json
from pathlib import Path
from statistics import fmean

import pytest

from ln.suite.runs.read import load_runs
from ln.suite.showing.speeds import BASELINE, ratio
from ln.suite.sweeps.cells import Definition, value_root

ROOT = Path(__file__).resolve().parent.parent


def prose(page: str) -> str:
    return " ".join((ROOT / "docs" / page).read_text().split())


def means(sweep: str) -> dict[str, dict[float, float]]:
    """Of each norm, the mean test error over seeds at each value of the setting."""
    definition = Definition.load(sweep)
    assert definition.setting is not None
    (experiment,) = (word.partition("=")[2] for word in definition.fixed if word.startswith("experiment="))
    found: dict[str, dict[float, float]] = {}
    for value in definition.parameters[definition.setting]:
        for norm, runs in load_runs(value_root(ROOT / "results", definition, value), "laptop", experiment).items():
            found.setdefault(norm, {})[value] = fmean(run.value("test_error", "final", True) for run in runs.values())
    return found


def ends(values: dict[float, float]) -> str:
    return f"between {min(values.values()):.3f} and {max(values.values()):.3f}"


def test_what_the_sensitivity_sweeps_came_to() -> None:
    text, rates, batches = prose("commands.md"), means("learning_rate"), means("batch_size")
    assert f"layer norm's test error stays {ends(rates['layer'])}, batch norm's {ends(rates['batch'])}" in text
    assert f"without a norm it is {rates['none'][0.1]:.2f} at 0.1" in text
    assert f"the highest ({batches['batch'][4]:.3f}, layer norm {batches['layer'][4]:.3f})" in text
    for size, errors in {value: {norm: batches[norm][value] for norm in batches} for value in batches["batch"]}.items():
        assert (max if size == 4 else min)(errors, key=errors.__getitem__) == "batch"


@pytest.mark.parametrize(
    ("trains", "said", "apart"),
    [(True, "forward and backward, and", ()), (False, "in inference, but", ("H51", "T1 B1 "))],
)
def test_what_layers_take_at_the_sizes_of_public_models(trains: bool, said: str, apart: tuple[str, ...]) -> None:
    """apart: what the text names by itself."""
    text = prose("layers.md")
    cases = json.loads((ROOT / "results/bench/user.json").read_text())["cases"]
    taken = {
        f"{case['case']}, {case['threads']}": ratio(case["results"], "ln, layer norm", BASELINE)
        for case in cases
        if case["trains"] == trains and not case["case"].startswith("FastWeights")
    }
    rest = [value for case, value in taken.items() if not any(part in case for part in apart)]
    assert f"{min(rest):.2f} to {max(rest):.2f}" in text.partition(said)[0][-100:]
    if apart:
        assert f"({taken['LSTMCell T1 B97 D51 H51, 1']:.2f} on one thread)" in text

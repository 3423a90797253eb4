"""What is wrong with all runs of a sweep is found before the first begins, in one sentence."""

from pathlib import Path

import pytest

from ln.suite.errors import Mistake
from ln.suite.sweeps.preflight import check_runs


def arguments(tmp_path: Path, *overrides: str) -> list[str]:
    chosen = ["experiment=mnist_b128,mnist_b4", "norm=none,layer", "seed=0,1", "profile=smoke"]
    return [*chosen, f"results={tmp_path}/r", *overrides]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("+train.batchsize=3", "train.batchsize is no setting of this recipe; did you mean train.batch_size?"),
        ("train.batchsize=3", "train.batchsize is no setting of this recipe; did you mean train.batch_size?"),
        ("train.batch_size=-3", "train.batch_size=-3 must be positive"),
        ("experiment=mnist_b64", "experiment=mnist_b64 is not an experiment; choose one of "),
        ("data=substitute", "data=substitute is not offered here; choose one of "),
        ("results=/proc/none/such", "/proc/none/such cannot be written: "),
    ],
)
def test_a_mistake_in_all_runs_is_said_once(tmp_path: Path, override: str, sentence: str) -> None:
    with pytest.raises(Mistake) as caught:
        check_runs([arguments(tmp_path, override)])
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_a_mistake_of_one_norm_alone_is_found() -> None:
    with pytest.raises(Mistake, match="norm=lyer is not a normalization"):
        check_runs([["experiment=mnist_b128", "norm=none,lyer", "profile=smoke"]])


def test_runs_elsewhere_need_nothing_of_this_machine(tmp_path: Path) -> None:
    check_runs([arguments(tmp_path, "data=substitute", "results=/proc/none/such")], here=False)


def test_lists_and_interpolations_of_a_sensitivity_sweep_compose(tmp_path: Path) -> None:
    swept = ["train.optimizer.lr=0.1,0.2", "train.epochs=${at:2,1,60}", f"results={tmp_path}/${{train.optimizer.lr}}"]
    check_runs([arguments(tmp_path, *swept)])
    assert [path.name for path in tmp_path.iterdir()] == ["0.1"]

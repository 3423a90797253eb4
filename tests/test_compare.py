"""Another results folder beside this one: verdicts, differences with intervals, curves, and what cannot be compared."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ln.suite.errors import Mistake
from ln.suite.showing.compare import Compared, Measurement, compare, in_words
from ln.suite.showing.page.compare import write_comparison
from tests.judged_runs import check
from tests.page_results import metrics_of, write_run


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """DRAW at laptop, three seeds of two norms in each; theirs are as ours but for layer norm's bound, 10 higher."""
    ours, theirs = tmp_path / "published" / "results", tmp_path / "mine"
    for norm in ("none", "layer"):
        for seed in range(3):
            write_run(ours, "draw", norm, seed, metrics_of("draw"))
    shutil.copytree(ours, theirs)
    for path in theirs.glob("laptop/draw/layer/*/metrics.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        moved = [line | {"test_bound": line["test_bound"] + 10} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in moved))
    return ours, theirs


def one(ours: Path, theirs: Path) -> Compared:
    (found,) = compare(theirs, ours)
    return found


def measurement(found: Compared, claim: str) -> Measurement:
    return next(row for row in found.rows if row.claim.id == claim).measurements[0]


def test_what_was_measured_is_subtracted_with_an_interval_even_where_it_is_not_judged(
    folders: tuple[Path, Path],
) -> None:
    found = one(*folders)
    bound = measurement(found, "draw_bound_layer")  # a published number, which laptop runs are not judged by
    assert bound.apart is not None
    assert bound.apart.estimate == pytest.approx(10)
    assert bound.apart.low < 10 < bound.apart.high
    assert bound.differs
    same = measurement(found, "draw_bound_none")
    assert same.apart is not None
    assert (same.apart.estimate, same.differs) == (0.0, False)


def test_ratios_of_steps_are_divided(folders: tuple[Path, Path]) -> None:
    faster = measurement(one(*folders), "draw_faster")
    assert faster.ours is not None
    assert faster.theirs is not None
    assert faster.apart is not None
    assert faster.apart.estimate == pytest.approx(faster.theirs.estimate / faster.ours.estimate)
    assert faster.apart.low > 0


def test_one_seed_and_diverged_runs_have_no_difference(folders: tuple[Path, Path]) -> None:
    ours, theirs = folders
    for seed in (1, 2):
        shutil.rmtree(theirs / f"laptop/draw/layer/{seed}")
    shutil.rmtree(theirs / "laptop/draw/none/0")
    write_run(theirs, "draw", "none", 0, metrics_of("draw"), "diverged")
    found = one(ours, theirs)
    assert [measurement(found, f"draw_bound_{norm}").apart for norm in ("none", "layer")] == [None, None]
    assert Measurement(check("faster"), None, None).apart is None
    assert not Measurement(check("faster"), None, None).differs


def test_the_terminal_and_the_page_tell_verdicts_differences_and_curves(folders: tuple[Path, Path]) -> None:
    found = one(*folders)
    said = "\n".join(in_words(found))
    assert "6 runs in results, 6 runs in mine" in said
    assert re.search(r"test_bound, norm layer: .*\n +mine - results = 10 \[.*\], they differ", said)
    curve = re.search(r"Layer norm, at epoch (.*)\n +results +(.*)\n +mine +(.*)\n", said, re.IGNORECASE)
    assert curve, said
    ours, theirs = ([float(value) for value in curve[group].split()] for group in (2, 3))
    assert [b - a for a, b in zip(ours, theirs, strict=True)] == pytest.approx([10, 10, 10], abs=0.01)
    page = write_comparison([found], folders[1])
    assert page == folders[1] / "compare.html"
    text = page.read_text()
    assert "mine - results = 10 [" in text
    assert "data:image/svg+xml;base64," in text
    addresses = re.findall(r'(?:src|href)="([^"#][^"]*)"', text)
    assert all(address.startswith("data:") for address in addresses)  # it needs no other file
    HTMLParser().feed(text)
    page.unlink()
    before = text
    assert write_comparison([one(*folders)], folders[1]).read_text() == before


def test_other_settings_data_or_profiles_are_named(folders: tuple[Path, Path]) -> None:
    ours, theirs = folders
    for path in theirs.glob("laptop/draw/*/*/run.json"):
        info = json.loads(path.read_text())
        info["identity"] |= {"train": {"epochs": 3}, "source": {"sha256": "ab" * 32}}
        path.write_text(json.dumps(info))
    assert one(ours, theirs).notes == [
        "the recipes differ in source.sha256: None -> abababababababab; train: None -> {'epochs': 3}"
    ]
    (theirs / "laptop").rename(theirs / "smoke")
    found = one(ours, theirs)
    assert (found.ours.profile, found.theirs.profile) == ("laptop", "smoke")
    assert "results has no run at profile smoke; its runs at laptop stand beside these" in found.notes[0]
    shutil.rmtree(ours / "laptop")
    found = one(ours, theirs)
    assert found.notes == ["results has no run of it"]
    assert found.theirs.count == 6
    assert list(found.panels()) == []
    assert "no runs" in "\n".join(in_words(found))


def test_what_cannot_be_compared_is_one_sentence(folders: tuple[Path, Path], tmp_path: Path) -> None:
    ours, theirs = folders
    (tmp_path / "empty").mkdir()
    for folder, sentence in (
        (tmp_path / "absent", "is not a folder with results"),
        (tmp_path / "empty", "has no run that counts"),
        (ours / ".." / "results", "is the folder that it would be compared with"),
    ):
        with pytest.raises(Mistake, match=sentence):
            compare(folder, ours)
    with pytest.raises(Mistake, match="is not a folder with results"):
        compare(theirs, tmp_path / "absent")


def test_folders_of_one_name_are_told_apart(folders: tuple[Path, Path], tmp_path: Path) -> None:
    ours, theirs = folders
    other = theirs.rename(tmp_path / "results")
    found = one(ours, other)
    assert (found.ours.name, found.theirs.name) == (str(ours), str(other))

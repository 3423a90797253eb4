"""What data each experiment finds, where the rest is to be had, and getting it, on small files of the same format."""

import hashlib
import io
import json
import tarfile
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from ln.suite.config import CONFIGS
from ln.suite.data import Absent, Missing, Origin, Source, cifar10, looking_only, novels, pen_strokes, resolve
from ln.suite.data.fetching import download
from ln.suite.errors import Mistake
from ln.suite.runs.folder import Run
from ln.suite.sweeps import data as places
from scripts import data as command

GROUPS = sorted(path.stem for path in (CONFIGS / "claims").glob("*.yaml"))


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory without data and without a network."""

    def refuse(*arguments: Any, **more: Any) -> None:
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LN_DATA", raising=False)
    monkeypatch.setenv("LN_CACHE", str(tmp_path / "cache"))
    for name in ("MNIST", "CIFAR10"):
        monkeypatch.setattr(getattr(torchvision.datasets, name), "download", refuse)
    return tmp_path


def test_the_table_says_where_all_that_is_not_here_is_to_be_had(
    empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*arguments: Any, **more: Any) -> None:
        raise AssertionError("looking downloads nothing")

    monkeypatch.setattr(urllib.request, "urlopen", never)
    monkeypatch.setattr(torchvision.datasets.MNIST, "download", never)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", never)
    command.main(["--results", str(empty / "none")])
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if not line.startswith((" ", "*", "next: "))] == GROUPS
    assert "data:" not in said  # found, not taken
    for group in GROUPS:
        for find in places.finds(group):
            offers = places.offers(find)
            assert [offer.status for offer in offers if offer.source][-1] == "embedded"
            for offer in offers:
                assert offer.source or (
                    offer.origin and offer.origin.where and offer.origin.terms and offer.origin.size
                )
    block = said.partition("order_embeddings\n")[2].partition("seq_mnist\n")[0]
    assert "original    not here: MS-COCO" in block
    assert "the pictures are their Flickr users'; to be got by hand" in block
    assert "make data-order-embeddings DATA=substitute fetches it" in block
    assert " * embedded    generated scenes" in block


def _source(sha256: str, name: str = "Flickr8k") -> Source:
    return Source(name, "substitute", sha256, lambda: None, Origin(name, "the moon", "none", "1 MB"))


def test_data_made_anew_are_comparable_not_identical(empty: Path) -> None:
    folder = empty / "results/laptop/order_embeddings/layer/0"
    folder.mkdir(parents=True)
    ours = _source("a" * 64).identity
    run = {"status": "complete", "identity": {"seed": 0, "source": ours}, "data": ours}
    (folder / "run.json").write_text(json.dumps(run))
    runs = places.published("order_embeddings", empty / "results")["substitute"]
    assert places.compared(_source("a" * 64), runs).startswith("identical")
    assert places.compared(_source("b" * 64, "Flickr8k with VGG-19 features"), runs) == (
        f"comparable, not identical: the runs in results are on Flickr8k {'a' * 12}"
    )
    assert places.compared(_source("b" * 64), []) == ""


def test_a_folder_of_a_run_on_other_data_says_so(recipe: Any) -> None:
    made = recipe("experiment=mnist_b128")
    run = Run.open(made, _source("a" * 64).identity)
    run.stop("failed")
    run.close()
    with pytest.raises(Mistake, match=r"a run of other data, comparable but not identical .source.sha256: aaa"):
        Run.open(made, _source("b" * 64).identity)
    with pytest.raises(Mistake, match=r"a run of another recipe"):
        Run.open(recipe("experiment=mnist_b128", "train.batch_size=7"), _source("b" * 64).identity)


def test_what_a_finder_misses_is_fetched_once(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there: list[str] = []

    def find(request: str) -> Source:
        def original() -> Source:
            if not there:
                raise Missing("it is nowhere", Origin("it", "the moon", "none", "1 MB", lambda: there.append("it")))
            return _source("a" * 64)

        return resolve(request, {"original": original})

    with looking_only(), pytest.raises(Absent, match="data=original: it is nowhere"):
        find("original")
    assert places._got(find, "original").sha256 == "a" * 64
    assert there == ["it"]
    assert capsys.readouterr().out == "fetching it (1 MB; terms: none) from the moon\n"


def test_a_hub_that_cannot_be_reached_is_one_sentence(
    empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: Any, **more: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    for group, name in {"mnist": "MNIST", "handwriting": "Omniglot", "draw": "binarized MNIST"}.items():
        with pytest.raises(SystemExit):
            command.main([group])
        said = capsys.readouterr().err
        assert f"{name} could not be fetched from" in said
        assert "(no network)" in said
        assert said.count("\n") == 1
    assert not list(empty.rglob("*.partial"))


def test_omniglot_is_fetched_whole_or_not_at_all(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = empty / "home/raw/master/python"
    served.mkdir(parents=True)
    sums = {}
    for name in pen_strokes.OMNIGLOT:
        (served / name).write_bytes(name.encode())
        sums[name] = hashlib.sha256(name.encode()).hexdigest()
    monkeypatch.setattr(pen_strokes, "OMNIGLOT", sums)
    monkeypatch.setattr(pen_strokes, "OMNIGLOT_HOME", (empty / "home").as_uri())
    assert pen_strokes.ORIGIN.fetch is not None
    pen_strokes.ORIGIN.fetch()
    assert {path.name for path in (empty / "data/omniglot").iterdir()} == set(sums)
    with pytest.raises(Mistake, match="is cut short or another file than was published: its sha256 begins"):
        download((served / name).as_uri(), empty / "other.zip", "0" * 64)
    assert not (empty / "other.zip").exists()


def test_novels_are_packed_anew_as_a_source_of_their_own(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = empty / "home/archive"
    served.mkdir(parents=True)
    with tarfile.open(served / "HEAD.tar.gz", "w:gz") as file:
        for name in ("corpus/Woolf_Years_1937.txt", "corpus/B_Two_1900.txt", "corpus/A_One_1929.txt", "README.md"):
            member = tarfile.TarInfo(f"100_english_novels-master/{name}")
            member.size, member.mtime = len(name), 7
            file.addfile(member, io.BytesIO(name.encode()))
    monkeypatch.setattr(novels, "HOME", (empty / "home").as_uri())
    novels.fetch()
    path, sha256 = novels.archive()
    assert sha256 != novels.SHA256
    assert [name for name, _ in novels.texts(path)] == ["A_One_1929.txt", "B_Two_1900.txt"]
    novels.fetch()
    assert novels.archive() == (path, sha256)


def test_the_part_of_cifar10_is_cut_from_the_whole(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = {"train": 9, "valid": 2, "test": 5}
    images = {split: torch.randint(256, (n, *cifar10.SHAPE), generator=generator).byte() for split, n in sizes.items()}
    labels = {split: torch.arange(n) for split, n in sizes.items()}
    whole = cifar10.Pictures(images, labels, cifar10.RIDGE)
    monkeypatch.setattr(cifar10, "original", lambda: Source("CIFAR-10", "original", "0" * 64, lambda: whole))
    monkeypatch.setattr(cifar10, "PART", {"data_batch_1.bin": 4, "data_batch_2.bin": 4, "test_batch_first_1000.bin": 3})
    cifar10.cut_part()
    source = cifar10.part()
    assert source.name == "CIFAR-10, 8 training and 3 test images of it"
    found = source.load()
    assert torch.equal(torch.cat([found.images["train"], found.images["valid"]]), images["train"][:8])
    assert torch.equal(found.images["test"], images["test"][:3])
    assert found.labels["test"].tolist() == [0, 1, 2]

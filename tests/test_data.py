"""Finding data: the order of resolution, damaged files, and the reader of MNIST's format."""

import errno
import fcntl
import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets

import ln.suite.data
from ln.suite.data import Missing, Source, cache_folder, made_once, mnist, resolve
from ln.suite.errors import Mistake


def idx(array: np.ndarray) -> bytes:
    """MNIST's file format: magic, sizes, bytes; gzipped."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


@pytest.fixture
def small_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """40 + 10 images in the official format under $LN_DATA, with their checksums made the expected ones."""
    rng = np.random.default_rng(0)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    arrays = [rng.integers(0, 256, (40, 28, 28)), np.arange(40) % 10, rng.integers(0, 256, (10, 28, 28)), np.arange(10)]
    sums = {}
    for name, array in zip(mnist.FILES, arrays, strict=True):
        content = idx(array)
        (raw / name).write_bytes(content)
        sums[name] = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(mnist, "FILES", sums)
    monkeypatch.setenv("LN_DATA", str(tmp_path))
    return raw


def test_mnist_is_read_and_split(small_mnist: Path) -> None:
    source = mnist.original(valid=5)
    digits = source.load()
    assert source.status == "original"
    assert {name: tuple(images.shape) for name, images in digits.images.items()} == {
        "train": (35, 784),
        "valid": (5, 784),
        "test": (10, 784),
    }
    assert digits.labels["valid"].tolist() == [5, 6, 7, 8, 9]  # the last of the training file
    assert float(digits.images["train"].min()) >= 0
    assert float(digits.images["train"].max()) == 1.0


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_a_damaged_file_is_an_error_and_nothing_else_is_taken_in_its_place(small_mnist: Path, damage: str) -> None:
    path = small_mnist / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    if damage == "altered":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[:-10] if damage == "truncated" else content)
    with pytest.raises(Mistake, match=r"train-images-idx3-ubyte.gz is cut short or altered"):
        resolve("auto", {"original": mnist.original, "embedded": mnist.embedded})


@pytest.mark.parametrize("spelling", ["train-images-idx3-ubyte", "train-images.idx3-ubyte"])
@pytest.mark.parametrize("below", ["MNIST/raw", "MNIST", "mnist"])
def test_unpacked_files_are_the_same_data(
    small_mnist: Path, monkeypatch: pytest.MonkeyPatch, spelling: str, below: str
) -> None:
    packed = mnist.original(valid=1)
    digits, plain = packed.load(), {}
    folder = small_mnist.parents[1] / below
    folder.mkdir(exist_ok=True)
    for path in sorted(small_mnist.iterdir()):
        content, name = gzip.decompress(path.read_bytes()), path.name.removesuffix(".gz")
        plain[name] = hashlib.sha256(content).hexdigest()
        path.unlink()
        (folder / (name.replace("-idx", ".idx") if "." in spelling else name)).write_bytes(content)
    monkeypatch.setattr(mnist, "UNPACKED", {name: plain[name] for name in mnist.UNPACKED})
    unpacked = mnist.original(valid=1)
    assert unpacked.identity == packed.identity
    assert torch.equal(unpacked.load().images["train"], digits.images["train"])
    path = folder / spelling
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Mistake, match=f"{spelling} is cut short or altered"):
        mnist.original(valid=1)


@pytest.fixture
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LN_DATA", raising=False)
    monkeypatch.setattr(torchvision.datasets, "MNIST", refuse)
    ln.suite.data._say_once.cache_clear()


@pytest.mark.usefixtures("_nowhere")
def test_original_insists_and_says_where_it_looked() -> None:
    with pytest.raises(Mistake, match=r"data=original: MNIST .*data/MNIST/raw .*could not be downloaded"):
        resolve("original", {"original": mnist.original, "embedded": mnist.embedded})


@pytest.mark.usefixtures("_nowhere")
def test_auto_falls_to_embedded_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    source = resolve("auto", {"original": mnist.original, "embedded": mnist.embedded})
    assert source.status == "embedded"
    assert "could not be downloaded" in capsys.readouterr().out


def test_the_best_that_is_there_is_taken() -> None:
    def absent() -> Source:
        raise Missing("not there")

    def made() -> Source:
        return Source("made", "substitute", "0", lambda: None)

    assert resolve("auto", {"original": absent, "substitute": made, "embedded": made}).status == "substitute"


def test_embedded_digits_are_whole_and_disjoint() -> None:
    digits = mnist.embedded().load()
    assert [len(digits.labels[name]) for name in ("train", "valid", "test")] == [1297, 200, 300]
    assert all(set(digits.labels[name].tolist()) == set(range(10)) for name in digits.labels)


def test_what_is_prepared_is_made_once_and_never_half(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(path: Path) -> None:
        made.append(path)
        path.write_text("half")
        if len(made) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_text("whole")

    path = tmp_path / "prepared.txt"
    with pytest.raises(Mistake, match=r"prepared.txt cannot be made: No space left on device"):
        made_once(path, make)
    assert not path.exists()
    assert made_once(path, make).read_text() == made_once(path, make).read_text() == "whole"
    assert len(made) == 2
    assert not any(unfinished.exists() for unfinished in made)


def test_a_cache_that_cannot_be_made_or_locked_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(Mistake, match=r"prepared.txt cannot be made: No locks available"):
        made_once(tmp_path / "prepared.txt", Path.touch)
    (tmp_path / "file").touch()
    monkeypatch.setenv("LN_CACHE", str(tmp_path / "file"))
    with pytest.raises(Mistake, match=r"file/books cannot be written: Not a directory; point LN_CACHE elsewhere"):
        cache_folder("books")

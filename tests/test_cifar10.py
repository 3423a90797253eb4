"""CIFAR-10's reader on small files, whole and broken, what stands in for it, and ZCA whitening."""

import hashlib
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.datasets
from torchvision.datasets import CIFAR10

from ln.suite.data import Missing, cifar10, mnist, resolve
from ln.suite.errors import Mistake

FINDERS = {"original": cifar10.original, "embedded": cifar10.embedded}
PER_FILE = 6


def small_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10's files with six images each, and their md5 sums made the expected ones; returns their folder."""
    below = folder / CIFAR10.base_folder
    below.mkdir(parents=True)
    rng = np.random.default_rng(0)

    def write(name: str, content: dict) -> str:
        data = pickle.dumps(content, protocol=2)
        (below / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def batch(name: str, first_label: int) -> list[str]:
        data = rng.integers(0, 256, (PER_FILE, 3072), dtype=np.uint8)
        data[0] = np.repeat([10, 20, 30], 1024)  # red, green and blue planes; the first row of the first is 99
        data[0, :32] = 99
        labels = [(first_label + i) % 10 for i in range(PER_FILE)]
        return [name, write(name, {"data": data, "labels": labels})]

    monkeypatch.setattr(CIFAR10, "train_list", [batch(f"data_batch_{i}", i) for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch", 0)])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": write("batches.meta", {"label_names": list("abc")})})
    return below


@pytest.fixture
def small_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LN_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LN_CACHE", str(tmp_path / "cache"))
    return small_files(tmp_path / "data", monkeypatch)


def test_cifar10_is_read_and_split(small_cifar: Path) -> None:
    source = cifar10.original(valid=8)
    pictures = source.load()
    assert (source.name, source.status) == ("CIFAR-10", "original")
    assert {split: tuple(images.shape) for split, images in pictures.images.items()} == {
        "train": (22, 3, 32, 32),
        "valid": (8, 3, 32, 32),
        "test": (6, 3, 32, 32),
    }
    first = pictures.images["test"][0]
    assert first.dtype == torch.uint8
    assert first[:, 1, 0].tolist() == [10, 20, 30]
    assert first[:, 0, 5].tolist() == [99, 20, 30]
    assert pictures.labels["test"].tolist() == [0, 1, 2, 3, 4, 5]
    assert pictures.labels["valid"].tolist() == [8, 9, 5, 6, 7, 8, 9, 0]  # the last of the fourth and all of the fifth
    assert pictures.ridge == 1e-5


def test_cifar10_is_unpacked_from_its_archive_into_the_cache_once(
    small_cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = cifar10.original(valid=8).load()
    archive = small_cifar.parent / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as file:
        file.add(small_cifar, CIFAR10.base_folder)
    for path in small_cifar.iterdir():
        path.unlink()
    small_cifar.rmdir()
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    for _ in range(2):
        found = cifar10.original(valid=8).load()
        assert torch.equal(found.images["train"], unpacked.images["train"])
        monkeypatch.setattr(tarfile, "open", lambda *arguments: pytest.fail("unpacked twice"))
    assert not small_cifar.exists()
    archive.write_bytes(archive.read_bytes()[:-10])
    with pytest.raises(Mistake, match=r"cifar-10-python.tar.gz is cut short or altered"):
        resolve("auto", FINDERS)


@pytest.mark.parametrize("damage", ["truncated", "altered", "removed"])
@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_damaged_file_is_an_error_and_nothing_else_is_taken(small_cifar: Path, name: str, damage: str) -> None:
    path = small_cifar / name
    content = bytearray(path.read_bytes())
    if damage == "removed":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content if damage == "altered" else content[:-10])
    said = "is not there" if damage == "removed" else "is cut short or altered"
    with pytest.raises(Mistake, match=rf"{name} {said}"):
        resolve("auto", FINDERS)


def test_cifar10_that_is_nowhere_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise RuntimeError("Error downloading cifar-10-python.tar.gz")

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LN_DATA", raising=False)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", refuse)
    with pytest.raises(Missing, match=r"cifar-10-batches-py.* is not whole in data and could not be downloaded"):
        cifar10.original()
    assert resolve("auto", FINDERS).status == "embedded"


def binary(folder: Path, train_files: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """So many training files of twenty images in the binary layout, and the test file; their rows by name."""
    monkeypatch.setattr(cifar10, "IMAGES_OF_A_FILE", 20)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = {}
    for name in [f"data_batch_{number}.bin" for number in range(1, train_files + 1)] + ["test_batch.bin"]:
        rows[name] = rng.integers(0, 256, (20, 3073), dtype=np.uint8)
        rows[name][:, 0] = np.arange(20) % 10
        rows[name].tofile(folder / name)
    return rows


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder that holds nothing yet, and no network."""

    def refuse(*arguments: object, **more: object) -> None:
        raise RuntimeError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LN_DATA", str(tmp_path / "data, 'ünïcode' "))
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", refuse)
    return tmp_path / "data, 'ünïcode' "


@pytest.mark.parametrize("below", ["cifar-10-batches-bin", ".", "cifar-10", "CIFAR10/cifar-10-batches-bin"])
def test_the_whole_binary_layout_is_original(elsewhere: Path, below: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = binary(elsewhere / below, 5, monkeypatch)
    source = cifar10.original(valid=10)
    assert (source.name, source.status) == ("CIFAR-10", "original")
    pictures = source.load()
    assert [len(pictures.images[split]) for split in ("train", "valid", "test")] == [90, 10, 20]
    assert torch.equal(pictures.images["train"][20].flatten(), torch.from_numpy(rows["data_batch_2.bin"][0, 1:]))
    assert pictures.labels["valid"].tolist() == list(range(10))
    assert pictures.labels["test"].dtype == torch.int64


def test_a_binary_layout_that_is_wrong_is_a_mistake(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = elsewhere / cifar10.BINARY_FOLDER
    rows = binary(folder, 5, monkeypatch)["data_batch_3.bin"]
    for damage, said in {
        "cut short": "data_batch_3.bin is cut short or altered: it must hold 20 images",
        "a label": "data_batch_3.bin is altered: a label is 10",
        "a class": "its classes have not as many images as each other",
    }.items():
        changed = rows.copy()
        changed[0, 0] = {"a label": 10, "a class": 3}.get(damage, 0)
        (folder / "data_batch_3.bin").write_bytes(changed.tobytes()[: -5 if damage == "cut short" else None])
        with pytest.raises(Mistake, match=said):
            resolve("auto", FINDERS)


def test_a_part_of_cifar10_stands_in_for_it_before_digits_do(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = elsewhere / cifar10.BINARY_FOLDER
    rows = binary(folder, 2, monkeypatch)
    (folder / "test_batch.bin").rename(folder / "test_batch_first_20.bin")
    monkeypatch.setattr(mnist, "original", mnist.embedded)
    finders = {"original": cifar10.original, "substitute": cifar10.substitute, "embedded": cifar10.embedded}
    source = resolve("auto", finders)
    assert (source.name, source.status) == ("CIFAR-10, 40 training and 20 test images of it", "substitute")
    pictures = source.load()
    assert [len(pictures.images[split]) for split in ("train", "valid", "test")] == [36, 4, 20]
    assert torch.equal(pictures.images["valid"][-1].flatten(), torch.from_numpy(rows["data_batch_2.bin"][-1, 1:]))
    with pytest.raises(Missing, match=r"is not whole in .*could not be downloaded .no network"):
        cifar10.original()
    (folder / "data_batch_2.bin").write_bytes(b"1234")
    with pytest.raises(Mistake, match=r"data_batch_2.bin is cut short: 4 bytes"):
        cifar10.substitute()


def test_python_batches_may_lie_in_the_data_folder_itself(small_cifar: Path) -> None:
    before = cifar10.original(valid=8)
    for path in list(small_cifar.iterdir()):
        path.rename(small_cifar.parent / path.name)
    small_cifar.rmdir()
    found = cifar10.original(valid=8)
    assert found.identity == before.identity
    assert found.load().labels["test"].tolist() == [0, 1, 2, 3, 4, 5]


def test_digits_stand_in_for_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = mnist.embedded().load()
    monkeypatch.setattr(mnist, "original", mnist.embedded)
    monkeypatch.setattr(cifar10, "data_folders", list)
    source = cifar10.substitute()
    assert source.status == "substitute"
    images = source.load().images["test"]
    assert images.shape == (300, 1, 8, 8)
    torch.testing.assert_close(images.flatten(1) / 255, digits.images["test"], rtol=0, atol=0.5 / 255 + 1e-6)


def test_embedded_digits_are_enlarged_without_smoothing() -> None:
    source = cifar10.embedded()
    assert source.status == "embedded"
    assert source.sha256 != mnist.embedded().sha256
    images = source.load().images["valid"]
    assert images.shape == (200, 1, 24, 24)
    small = images[:, :, ::3, ::3]
    for row in range(3):
        for column in range(3):
            assert torch.equal(images[:, :, row::3, column::3], small)


def correlated(count: int) -> torch.Tensor:
    """Images (N, 3, 4, 4) whose 48 values are correlated and have a mean."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(48, 48, generator=generator) / 7
    return (torch.randn(count, 48, generator=generator) @ mixing + 3).view(count, 3, 4, 4)


def test_whitened_training_images_have_identity_covariance(monkeypatch: pytest.MonkeyPatch) -> None:
    images = correlated(700)
    whole = cifar10.zca(images, 0.0)
    monkeypatch.setattr(cifar10, "FIT_CHUNK", 150)
    for whiten in (whole, cifar10.zca(images, 0.0)):
        assert whiten.matrix.dtype == torch.float64
        white = (images.flatten(1).double() - whiten.mean) @ whiten.matrix
        torch.testing.assert_close(white.mean(0), torch.zeros(48).double(), rtol=0, atol=1e-9)
        torch.testing.assert_close(white.T @ white / 700, torch.eye(48).double(), rtol=0, atol=1e-7)
        torch.testing.assert_close(whiten(images), white.float().view(700, 3, 4, 4))


def test_whitening_is_zca_with_a_ridge() -> None:
    """Symmetric, so that an image still looks like itself, and (covariance + ridge)^(-1/2)."""
    images = correlated(300)
    whiten = cifar10.zca(images, 0.05)
    torch.testing.assert_close(whiten.matrix, whiten.matrix.T)
    covariance = torch.cov(images.flatten(1).double().T, correction=0)
    inverse = torch.linalg.inv(whiten.matrix @ whiten.matrix)
    torch.testing.assert_close(inverse, covariance + 0.05 * torch.eye(48).double())


def test_pixels_that_never_vary_whiten_to_finite_values() -> None:
    images = correlated(100)
    images[:, 0] = 1
    assert cifar10.zca(images, 1e-5)(images).isfinite().all()


def test_pixels_are_scaled_as_in_the_recipe() -> None:
    assert cifar10.scaled(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-127.5 / 128, 127.5 / 128]

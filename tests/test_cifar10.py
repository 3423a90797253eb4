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

    refuse.base_folder, refuse.filename = CIFAR10.base_folder, CIFAR10.filename  # type: ignore[attr-defined]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LN_DATA", raising=False)
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", refuse)
    with pytest.raises(Missing, match=r"cifar-10-batches-py .*is not in data and could not be downloaded"):
        cifar10.original()
    assert resolve("auto", FINDERS).status == "embedded"


def test_digits_stand_in_for_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = mnist.embedded().load()
    monkeypatch.setattr(mnist, "original", mnist.embedded)
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

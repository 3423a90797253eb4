"""CIFAR-10's small photographs, else MNIST's digits, else scikit-learn's; and ZCA whitening.

Shapes: N images, C channels, A side of an image, P = C A A pixels. Images are (N, C, A, A) uint8, labels (N,) int64.
"""

import hashlib
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ln.suite.data import Missing, Source, cache_folder, data_folders, made_once, mnist
from ln.suite.errors import Mistake

RIDGE = 1e-5  # added to the covariance's eigenvalues (Salimans & Kingma's code)
# Pixels at a digit's border hardly ever vary. With 1e-5 one that is lit for the first time in a test digit would come
# out 300 times as large as it went in.
DIGITS_RIDGE = 0.1
ENLARGED = 3  # the embedded digits' 8 pixels become 24: two poolings and a 3x3 convolution need at least 12
FIT_CHUNK = 5000  # images in float64 at a time


@dataclass(frozen=True)
class Pictures:
    """Images and labels of each split, and the ridge with which they are whitened."""

    images: dict[str, Tensor]
    labels: dict[str, Tensor]
    ridge: float


@dataclass(frozen=True)
class Whitening:
    """ZCA: x -> (x - mean) W, with W the inverse root of the covariance; float64 (P,) and (P, P)."""

    mean: Tensor
    matrix: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, A, A) float32 images, whitened."""
        chunks = [(chunk.flatten(1).double() - self.mean) @ self.matrix for chunk in images.split(FIT_CHUNK)]
        return torch.cat([chunk.float() for chunk in chunks]).view_as(images)


def zca(images: Tensor, ridge: float) -> Whitening:
    """The whitening of these images (N, C, A, A), W = U (S + ridge)^(-1/2) U^T, computed in float64."""
    P = images[0].numel()
    mean = torch.zeros(P, dtype=torch.float64, device=images.device)
    covariance = torch.zeros(P, P, dtype=torch.float64, device=images.device)
    for chunk in images.split(FIT_CHUNK):
        mean += chunk.flatten(1).double().sum(0) / len(images)
    for chunk in images.split(FIT_CHUNK):
        centred = chunk.flatten(1).double() - mean
        covariance += centred.T @ centred / len(images)
    values, vectors = torch.linalg.eigh(covariance)
    # Rounding leaves eigenvalues that are 0 a little below it.
    return Whitening(mean, (vectors * (values.clamp(min=0) + ridge).rsqrt()) @ vectors.T)


def scaled(images: Tensor) -> Tensor:
    """uint8 pixels as float32 in [-1, 1), as Salimans & Kingma have them."""
    return (images.float() - 127.5) / 128


def original(valid: int = 5000) -> Source:
    """CIFAR-10, from the data folders, unpacked or as its archive, or downloaded by torchvision.

    It is checked by the md5 sums that torchvision carries. The last `valid` training images are the validation split.

    Raises:
        Missing: it is nowhere and cannot be downloaded.
        Mistake: a file is cut short, altered or not there.
    """
    from torchvision.datasets import CIFAR10

    looked = []
    for folder in data_folders():
        if (folder / CIFAR10.base_folder).is_dir():
            return _checked(folder, valid)
        if (folder / CIFAR10.filename).is_file():
            return _checked(_unpacked(folder / CIFAR10.filename), valid)
        looked.append(str(folder))
    try:
        CIFAR10("data", download=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise Missing(
            f"CIFAR-10 ({CIFAR10.base_folder} or {CIFAR10.filename}) is not in {' or '.join(looked)} and could not be "
            f"downloaded ({reason[0]}); get the archive and put it there"
        ) from error
    return _checked(Path("data"), valid)


def _check_md5(path: Path, expected: str) -> None:
    from torchvision.datasets.utils import calculate_md5

    if not path.is_file():
        raise Mistake(f"{path} is not there, though its folder is; delete {path.parent} and get CIFAR-10 again")
    found = calculate_md5(path)
    if found != expected:
        raise Mistake(
            f"{path} is cut short or altered: its md5 begins {found[:12]} where {expected[:12]} is expected; "
            "delete it and get it again"
        )


def _unpacked(archive: Path) -> Path:
    """A folder that holds the archive's contents, in the cache; one that is there is whole."""
    from torchvision.datasets import CIFAR10

    def unpack(folder: Path) -> None:
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")

    _check_md5(archive, CIFAR10.tgz_md5)
    return made_once(cache_folder("cifar10") / CIFAR10.tgz_md5[:16], unpack)


def _checked(root: Path, valid: int) -> Source:
    from torchvision.datasets import CIFAR10

    sums = [*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]]
    for name, md5 in sums:
        _check_md5(root / CIFAR10.base_folder / name, md5)
    combined = hashlib.sha256("".join(md5 for _, md5 in sums).encode()).hexdigest()
    return Source("CIFAR-10", "original", combined, lambda: _read(root, valid))


def _read(root: Path, valid: int) -> Pictures:
    from torchvision.datasets import CIFAR10

    train, test = CIFAR10(root, train=True), CIFAR10(root, train=False)
    images, test_images = (torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test))
    labels, test_labels = (torch.tensor(part.targets) for part in (train, test))
    return Pictures(
        {"train": images[:-valid], "valid": images[-valid:], "test": test_images},
        {"train": labels[:-valid], "valid": labels[-valid:], "test": test_labels},
        RIDGE,
    )


def substitute() -> Source:
    """MNIST's digits as they are, 28 x 28 in one channel.

    Raises: as `mnist.original`.
    """
    source = mnist.original()
    return replace(source, status="substitute", load=lambda: _grey(source.load(), 1))


def embedded() -> Source:
    """scikit-learn's digits, every pixel repeated to 3 x 3."""
    source = mnist.embedded()
    return replace(source, sha256=f"{source.sha256}, enlarged", load=lambda: _grey(source.load(), ENLARGED))


def _grey(digits: mnist.Digits, factor: int) -> Pictures:
    side = round(digits.pixels**0.5)
    images = {
        split: (255 * pixels).round().byte().view(-1, 1, side, side)
        .repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        for split, pixels in digits.images.items()
    }  # fmt: skip
    return Pictures(images, digits.labels, DIGITS_RIDGE)

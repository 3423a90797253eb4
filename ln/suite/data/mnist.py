"""MNIST: the four official files, else scikit-learn's embedded digits.

Shapes: N examples, P pixels. Pixels are float32 in [0, 1], labels int64.
"""

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ln.suite.data import Missing, Source, check_sha256, data_folders

FILES = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}


@dataclass(frozen=True)
class Digits:
    """Grey images (N, P) in [0, 1] and labels (N,) for each split."""

    images: dict[str, Tensor]
    labels: dict[str, Tensor]

    @property
    def pixels(self) -> int:
        return self.images["train"].shape[1]


def split(images: Tensor, labels: Tensor, test_images: Tensor, test_labels: Tensor, valid: int) -> Digits:
    """The last `valid` training examples become the validation split."""
    return Digits(
        {"train": images[:-valid], "valid": images[-valid:], "test": test_images},
        {"train": labels[:-valid], "valid": labels[-valid:], "test": test_labels},
    )


def original(valid: int = 5000) -> Source:
    """The official files, from the data folders or downloaded there by torchvision.

    Raises:
        Missing: they are nowhere and cannot be downloaded.
        Mistake: a file is cut short or altered.
    """
    looked = []
    for folder in (folder / "MNIST" / "raw" for folder in data_folders()):
        if all((folder / name).exists() for name in FILES):
            return _checked(folder, valid)
        looked.append(str(folder))
    try:
        from torchvision.datasets import MNIST

        MNIST("data", download=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise Missing(
            f"MNIST ({', '.join(FILES)}) is not in {' or '.join(looked)} and could not be downloaded ({reason[0]}); "
            "get the four files and put them there"
        ) from error
    return _checked(Path("data/MNIST/raw"), valid)


def _checked(folder: Path, valid: int) -> Source:
    for name, sha256 in FILES.items():
        check_sha256(folder / name, sha256)
    combined = hashlib.sha256("".join(FILES.values()).encode()).hexdigest()
    return Source("MNIST", "original", combined, lambda: _read(folder, valid))


def _read(folder: Path, valid: int) -> Digits:
    def images(name: str) -> Tensor:
        raw = np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, offset=16)
        return torch.from_numpy(raw.reshape(-1, 784).astype(np.float32) / 255)

    def labels(name: str) -> Tensor:
        raw = np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, offset=8)
        return torch.from_numpy(raw.astype(np.int64))

    train_images, train_labels, test_images, test_labels = FILES
    return split(images(train_images), labels(train_labels), images(test_images), labels(test_labels), valid)


def embedded() -> Source:
    """scikit-learn's 1,797 digits of 8 x 8 pixels: 1,297 / 200 / 300, in a fixed random order."""

    def load() -> Digits:
        from sklearn.datasets import load_digits

        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.target))
        images = torch.from_numpy((digits.data[order] / 16).astype(np.float32))
        labels = torch.from_numpy(digits.target[order].astype(np.int64))
        return split(images[:-300], labels[:-300], images[-300:], labels[-300:], valid=200)

    return Source("scikit-learn digits", "embedded", "load_digits, 8x8, 1297/200/300", load)

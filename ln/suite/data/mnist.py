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

from ln.suite.data import Origin, Source, check_sha256, data_folders, fetched

FILES = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
# The same files unpacked, which some copies call train-images.idx3-ubyte.
UNPACKED = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def _download() -> None:
    from torchvision.datasets import MNIST

    MNIST("data", download=True)


ORIGIN = Origin("MNIST", "torchvision's mirrors", "CC BY-SA 3.0", "12 MB", _download)
FOLDERS = ("MNIST/raw", "MNIST", "mnist")


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
    for folder in (folder / below for folder in data_folders() for below in FOLDERS):
        if files := _files(folder):
            return _checked(files, valid)
        looked.append(str(folder))
    missing = f"MNIST ({', '.join(FILES)}) is not in {' or '.join(looked)}"
    fetched(ORIGIN, missing, "get the four files and put them there")
    files = _files(Path("data/MNIST/raw"))
    assert files
    return _checked(files, valid)


def _files(folder: Path) -> list[tuple[Path, str]]:
    """The four files as they lie in a folder, packed or not, with the checksums they must have; [] unless all do."""
    found = []
    for (packed, sha256), (plain, plain_sha256) in zip(FILES.items(), UNPACKED.items(), strict=True):
        forms = [(packed, sha256), (plain, plain_sha256), (plain.replace("-idx", ".idx"), plain_sha256)]
        found += [(folder / name, expected) for name, expected in forms if (folder / name).is_file()][:1]
    return found if len(found) == len(FILES) else []


def _checked(files: list[tuple[Path, str]], valid: int) -> Source:
    for path, sha256 in files:
        check_sha256(path, sha256)
    # Packed or not they hold the same digits, so a run is the same run whichever were there.
    combined = hashlib.sha256("".join(FILES.values()).encode()).hexdigest()
    return Source("MNIST", "original", combined, lambda: _read([path for path, _ in files], valid), ORIGIN)


def _read(paths: list[Path], valid: int) -> Digits:
    raw = [gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes() for path in paths]
    images = [np.frombuffer(raw[i], np.uint8, offset=16).reshape(-1, 784).astype(np.float32) / 255 for i in (0, 2)]
    labels = [np.frombuffer(raw[i], np.uint8, offset=8).astype(np.int64) for i in (1, 3)]
    train, train_labels, test, test_labels = (torch.from_numpy(a) for a in (images[0], labels[0], images[1], labels[1]))
    return split(train, train_labels, test, test_labels, valid)


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

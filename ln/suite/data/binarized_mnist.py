"""Binarized MNIST: the fixed binarization of Larochelle & Murray (2011), else grey MNIST or scikit-learn's digits
binarized once.

Which binarization is used is worth more than a nat of DRAW's bound, so only the first is called original.
Shapes: N examples, P = side x side pixels. Pixels are float32, 0 or 1.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ln.suite.data import Origin, Source, check_sha256, data_folders, fetched, mnist
from ln.suite.data.fetching import download
from ln.suite.errors import Mistake

URL = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist"
SPLITS = ("train", "valid", "test")
# As TensorFlow Datasets publishes them (url_checksums/binarized_mnist.txt).
AMAT = {
    "binarized_mnist_train.amat": "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d",
    "binarized_mnist_valid.amat": "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2",
    "binarized_mnist_test.amat": "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c",
}
# The same bits, np.packbits of each row: written out as text again, they have the three sums above.
PACKED = {"binarized_mnist_packed.npz": "8b4aca87821bf8d1d98bf488d6029e206885841ec51f43c41c7c052fa6807726"}
BINARIZATION_SEED = 0
FOLDER = Path("binarized_mnist")


def _download() -> None:
    for name, sha256 in AMAT.items():
        download(f"{URL}/{name}", "data" / FOLDER / name, sha256)


ORIGIN = Origin("binarized MNIST", URL, "as MNIST's, CC BY-SA 3.0", "110 MB", _download)


@dataclass(frozen=True)
class BinaryImages:
    """Images (N, P) of zeros and ones for each split."""

    images: dict[str, Tensor]
    side: int


def original() -> Source:
    """The fixed binarization, 50,000 / 10,000 / 10,000: packed or as the three .amat files, from the data folders or
    downloaded.

    Raises:
        Missing: it is nowhere and cannot be downloaded.
        Mistake: a file is cut short or altered.
    """
    looked = []
    for folder in (folder / FOLDER for folder in data_folders()):
        for files in (PACKED, AMAT):
            if all((folder / name).exists() for name in files):
                return _checked(folder, files)
        looked.append(str(folder))
    missing = f"binarized MNIST ({', '.join(AMAT)}) is not in {' or '.join(looked)}"
    fetched(ORIGIN, missing, f"get the three files from {URL} and put them there")
    return _checked("data" / FOLDER, AMAT)


def _checked(folder: Path, files: dict[str, str]) -> Source:
    for name, sha256 in files.items():
        check_sha256(folder / name, sha256, text=files is AMAT)
    # Both forms hold the same bits, so a run is the same run whichever of them was there.
    combined = hashlib.sha256("".join(AMAT.values()).encode()).hexdigest()
    read = _read_packed if files is PACKED else _read_amats
    return Source("binarized MNIST", "original", combined, lambda: read(folder), ORIGIN)


def _read_packed(folder: Path) -> BinaryImages:
    with np.load(folder / next(iter(PACKED))) as packed:
        rows = {split: np.unpackbits(packed[split], axis=1) for split in SPLITS}
    return BinaryImages({split: torch.from_numpy(bits.astype(np.float32)) for split, bits in rows.items()}, side=28)


def _read_amats(folder: Path) -> BinaryImages:
    return BinaryImages({s: read_amat(folder / name, 784) for s, name in zip(SPLITS, AMAT, strict=True)}, side=28)


def read_amat(path: Path, pixels: int) -> Tensor:
    """(N, P) from a text file of one image per line, its pixels 0 or 1 and separated by blanks.

    Raises:
        Mistake: a line that is no such image, or no line at all.
    """
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            values = line.split()
            if len(values) != pixels:
                raise Mistake(f"{path}, line {number}: {len(values)} values where {pixels} are expected; get it again")
            strange = set(values) - {b"0", b"1"}
            if strange:
                found = min(strange).decode(errors="replace")
                raise Mistake(f"{path}, line {number}: a pixel is {found!r} where 0 or 1 is expected; get it again")
            rows.append(np.frombuffer(b"".join(values), np.uint8))
    if not rows:
        raise Mistake(f"{path} is empty; delete it and get it again")
    return torch.from_numpy((np.stack(rows) - ord("0")).astype(np.float32))


def substitute() -> Source:
    """Grey MNIST, 50,000 / 10,000 / 10,000, binarized once: a pixel is 1 with its grey level as the probability.

    Raises:
        Missing: grey MNIST is nowhere and cannot be downloaded.
        Mistake: a file of it is cut short or altered.
    """
    return _binarized(mnist.original(valid=10_000), "substitute")


def embedded() -> Source:
    """scikit-learn's digits of 8 x 8 pixels, 1,297 / 200 / 300, binarized in the same way."""
    return _binarized(mnist.embedded(), "embedded")


def _binarized(grey: Source, status: str) -> Source:
    def load() -> BinaryImages:
        generator = torch.Generator().manual_seed(BINARIZATION_SEED)
        digits = grey.load()
        images = {split: torch.bernoulli(digits.images[split], generator=generator) for split in SPLITS}
        return BinaryImages(images, side=round(digits.pixels**0.5))

    return Source(f"{grey.name}, binarized once", status, f"{grey.sha256}, seed {BINARIZATION_SEED}", load, grey.origin)

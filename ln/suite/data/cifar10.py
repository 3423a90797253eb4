"""CIFAR-10's small photographs, else a part of them, MNIST's digits, else scikit-learn's; and ZCA whitening.

Shapes: N images, C channels, A side of an image, P = C A A pixels. Images are (N, C, A, A) uint8, labels (N,) int64.
"""

import hashlib
import pickle
import tarfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ln.suite.data import Missing, Origin, Source, cache_folder, data_folders, fetched, made_once, mnist, sha256_of
from ln.suite.errors import Mistake
from ln.suite.files import replacing

RIDGE = 1e-5  # added to the covariance's eigenvalues (Salimans & Kingma's code)
# Pixels at a digit's border hardly ever vary. With 1e-5 one that is lit for the first time in a test digit would come
# out 300 times as large as it went in.
DIGITS_RIDGE = 0.1
ENLARGED = 3  # the embedded digits' 8 pixels become 24: two poolings and a 3x3 convolution need at least 12
FIT_CHUNK = 5000  # images in float64 at a time
CLASSES, SHAPE = 10, (3, 32, 32)
BINARY_FOLDER = "cifar-10-batches-bin"
BINARY = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
IMAGES_OF_A_FILE, ROW = 10_000, 1 + 3 * 32 * 32
VALID_SHARE = 10  # one of so many training images is for validation


# The part with which runs are published: 20,000 training and 1,000 test images.
PART = {"data_batch_1.bin": 10_000, "data_batch_2.bin": 10_000, "test_batch_first_1000.bin": 1_000}


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


def _download() -> None:
    from torchvision.datasets import CIFAR10

    CIFAR10("data", download=True)


def cut_part() -> None:
    """Write the part with which runs are published to data/cifar-10-batches-bin, from the whole set.

    Raises:
        Missing: the whole is nowhere and cannot be downloaded.
        Mistake: a file cannot be written.
    """
    whole: Pictures = original().load()
    begin = 0
    for name, count in PART.items():
        split, first = ("test", 0) if name.startswith("test") else ("train", begin)
        begin += count
        images, labels = (part[split][first : first + count] for part in (whole.images, whole.labels))
        rows = torch.cat([labels.byte().unsqueeze(1), images.flatten(1)], 1)
        with replacing(Path("data", BINARY_FOLDER, name)) as file:
            file.write(rows.numpy().tobytes())


_TERMS = "none stated; its authors ask to be cited (Krizhevsky 2009)"
ORIGIN = Origin("CIFAR-10", "https://www.cs.toronto.edu/~kriz/cifar.html, by torchvision", _TERMS, "170 MB", _download)
PART_ORIGIN = Origin("a part of CIFAR-10", "CIFAR-10 itself", _TERMS, "65 MB", cut_part)


def original(valid: int = 5000) -> Source:
    """CIFAR-10 whole, from the data folders, unpacked in its Python or its binary layout or as the Python archive, or
    downloaded by torchvision.

    The Python layout is checked by the md5 sums that torchvision carries, the binary one by its sizes and by each
    class's 5,000 and 1,000 images. The last `valid` training images are the validation split.

    Raises:
        Missing: it is nowhere and cannot be downloaded.
        Mistake: a file is cut short, altered or not there.
    """
    from torchvision.datasets import CIFAR10

    looked = []
    for folder in data_folders():
        for place in _places(folder):
            if place.name == CIFAR10.base_folder or (place / CIFAR10.train_list[0][0]).is_file():
                return _checked(place, valid)
            if all((place / name).is_file() for name in BINARY):
                return _binary(place, valid)
        if (folder / CIFAR10.filename).is_file():
            return _checked(_unpacked(folder / CIFAR10.filename) / CIFAR10.base_folder, valid)
        looked.append(str(folder))
    names = f"{CIFAR10.base_folder}, {BINARY_FOLDER} or {CIFAR10.filename}"
    missing = f"CIFAR-10 ({names}) is not whole in {' or '.join(looked)}"
    fetched(ORIGIN, missing, "get the archive and put it there")
    return _checked(Path("data", CIFAR10.base_folder), valid)


def _places(folder: Path) -> list[Path]:
    """Where below a data folder the set may lie unpacked."""
    from torchvision.datasets import CIFAR10

    around = [folder, *(folder / name for name in ("cifar-10", "cifar10", "CIFAR10"))]
    places = [place / name for name in (CIFAR10.base_folder, BINARY_FOLDER, ".") for place in around]
    return [place for place in places if place.is_dir()]


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


def _checked(folder: Path, valid: int) -> Source:
    from torchvision.datasets import CIFAR10

    sums = [*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]]
    for name, md5 in sums:
        _check_md5(folder / name, md5)
    combined = hashlib.sha256("".join(md5 for _, md5 in sums).encode()).hexdigest()
    train, test = ([folder / name for name, _ in files] for files in (CIFAR10.train_list, CIFAR10.test_list))
    return Source(
        "CIFAR-10", "original", combined, lambda: _split(_read_pickles(train), _read_pickles(test), valid), ORIGIN
    )


Labelled = tuple[np.ndarray, np.ndarray]  # images (N, 3, 32, 32) uint8 and labels (N,)


def _read_pickles(paths: list[Path]) -> Labelled:
    """Files of the Python layout, whose checksums are known to be right."""
    batches = [pickle.loads(path.read_bytes(), encoding="latin1") for path in paths]
    images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, *SHAPE)
    return images, np.concatenate([batch["labels"] for batch in batches])


def _read_binary(paths: list[Path]) -> Labelled:
    """Files of the binary layout: for each image its label, then its red, green and blue bytes.

    Raises:
        Mistake: a file that holds no whole number of images, or a label that is none.
    """
    rows = []
    for path in paths:
        raw = np.fromfile(path, np.uint8)
        if len(raw) == 0 or len(raw) % ROW:
            raise Mistake(f"{path} is cut short: {len(raw)} bytes are no whole number of images; get it again")
        rows.append(raw.reshape(-1, ROW))
        if rows[-1][:, 0].max() >= CLASSES:
            raise Mistake(f"{path} is altered: a label is {rows[-1][:, 0].max()} and not 0 ... 9; get it again")
    whole = np.concatenate(rows)
    return whole[:, 1:].reshape(-1, *SHAPE), whole[:, 0]


def _binary(folder: Path, valid: int) -> Source:
    """The whole set in its binary layout."""
    paths = [folder / name for name in BINARY]
    for path in paths:
        if path.stat().st_size != IMAGES_OF_A_FILE * ROW:
            raise Mistake(f"{path} is cut short or altered: it must hold {IMAGES_OF_A_FILE} images; get it again")
    train, test = _read_binary(paths[:-1]), _read_binary(paths[-1:])
    for (_, labels), files in ((train, len(paths) - 1), (test, 1)):
        if (np.bincount(labels, minlength=CLASSES) != files * IMAGES_OF_A_FILE // CLASSES).any():
            raise Mistake(f"{folder} is not CIFAR-10: its classes have not as many images as each other; get it again")
    key = hashlib.sha256("".join(map(sha256_of, paths)).encode()).hexdigest()
    return Source("CIFAR-10", "original", key, partial(_load_binary, paths[:-1], paths[-1:], valid), ORIGIN)


def _load_binary(train: list[Path], test: list[Path], valid: int) -> Pictures:
    return _split(_read_binary(train), _read_binary(test), valid)


def _split(train: Labelled, test: Labelled, valid: int) -> Pictures:
    images, labels, test_images, test_labels = (torch.from_numpy(np.ascontiguousarray(a)) for a in (*train, *test))
    return Pictures(
        {"train": images[:-valid], "valid": images[-valid:], "test": test_images},
        {"train": labels[:-valid].long(), "valid": labels[-valid:].long(), "test": test_labels.long()},
        RIDGE,
    )


def part() -> Source:
    """Some of CIFAR-10 in its binary layout, `data_batch*.bin` and `test_batch*.bin`; the last tenth of the training
    images is the validation split, as in the whole.

    Raises:
        Missing: there is none.
        Mistake: a file is cut short or altered.
    """
    looked = []
    for place in (place for folder in data_folders() for place in _places(folder)):
        train, test = (sorted(place.glob(f"{kind}_batch*.bin")) for kind in ("data", "test"))
        if train and test:
            counts = [sum(path.stat().st_size for path in paths) // ROW for paths in (train, test)]
            _read_binary([*train, *test])
            key = hashlib.sha256("".join(map(sha256_of, [*train, *test])).encode()).hexdigest()
            name = f"CIFAR-10, {counts[0]:,} training and {counts[1]:,} test images of it"
            valid = max(1, counts[0] // VALID_SHARE)
            return Source(name, "substitute", key, partial(_load_binary, train, test, valid), PART_ORIGIN)
        looked.append(str(place))
    raise Missing(
        f"no part of CIFAR-10 (data_batch*.bin, test_batch*.bin) is in {' or '.join(looked) or 'data'}", PART_ORIGIN
    )


def substitute() -> Source:
    """A part of CIFAR-10, else MNIST's digits as they are, 28 x 28 in one channel.

    Raises: as `part` and `mnist.original`.
    """
    try:
        return part()
    except Missing as missing:
        try:
            source = mnist.original()
        except Missing as also:
            raise Missing(f"{missing}; {also}", also.origin) from None
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

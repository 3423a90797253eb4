"""Captions and fixed image features in the `precomp` layout: one row of features per image, five captions each.

MS-COCO (Karpathy's splits) with the 10-crop VGG-19 features that were published with order embeddings; Flickr8k is in
flickr8k.py. Shapes: N images, D features; caption line 5 i + j (from 0) belongs to row i.
"""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ln.suite.data import Missing, Origin, Source, data_folders, sha256_of, text_lines
from ln.suite.errors import Mistake

CAPTIONS = 5  # of each image
SPLITS = ("train", "valid", "test")
NAMES = {"train": "train", "valid": "dev", "test": "test"}  # the layout's own
COCO_IMAGES = {"train": 113287, "valid": 5000, "test": 5000}  # Karpathy's splits, restval with train
VGG19_FEATURES = 4096
# Where a split's features and captions are: the precomp layout, and the folders of the published coco.zip.
PRECOMP = {split: (f"{name}_ims.npy", f"{name}_caps.txt") for split, name in NAMES.items()}
COCO_ZIP = {
    split: (f"images/10crop/{name}.npy", f"{name}.txt")
    for split, name in {"train": "train", "valid": "val", "test": "test"}.items()
}
ORIGIN = Origin(
    "MS-COCO",
    "pictures: https://cocodataset.org (train2014, val2014); splits and captions: Karpathy's dataset_coco.json; then "
    "`python -m scripts.image_features`",
    "captions CC BY 4.0; the pictures are their Flickr users'",
    "19 GB of pictures; 2 GB of features",
)


@dataclass(frozen=True)
class Captioned:
    """One split: features (N, D) float32, 5 N captions as words, N names, and pictures (N, A, A, 3) uint8 if there
    are any."""

    features: np.ndarray
    captions: list[list[str]]
    names: list[str]
    pictures: np.ndarray | None = None


def read_captions(path: Path) -> list[list[str]]:
    """The words of each line.

    Raises:
        Mistake: a line that is empty or not UTF-8.
    """
    captions = []
    for number, line in enumerate(text_lines(path), start=1):
        words = line.split()
        if not words:
            raise Mistake(
                f"{path}, line {number}: the caption is empty; every image needs {CAPTIONS} captions with words"
            )
        captions.append(words)
    return captions


def read_features(path: Path) -> np.ndarray:
    """(N, D) float32.

    Raises:
        Mistake: not a numpy file, not a matrix of floating point numbers, or a row that is not finite.
    """
    try:
        features = np.load(path)
    except (ValueError, EOFError, OSError) as error:
        raise Mistake(f"{path} is not a numpy file: {str(error).splitlines()[0]}") from None
    if features.ndim != 2 or not np.issubdtype(features.dtype, np.floating):
        raise Mistake(f"{path} must hold floating point features (N, D), but holds {features.dtype} {features.shape}")
    features = features.astype(np.float32, copy=False)
    sums = features.sum(1)  # not finite where any part is not, without a second matrix
    if not np.isfinite(sums).all():
        raise Mistake(f"{path}, row {int(np.flatnonzero(~np.isfinite(sums))[0]) + 1}: a feature is not a finite number")
    return features


def read_split(folder: Path, files: tuple[str, str], ids: str | None = None) -> Captioned:
    """One split; where there is no file `ids` of names, an image is called after its row.

    Raises:
        Mistake: a file is wrong by itself, or features, captions and names are not as many as each other.
    """
    image_path, caption_path = (folder / name for name in files)
    captions, features = read_captions(caption_path), read_features(image_path)
    if len(captions) != CAPTIONS * len(features):
        fitting = min(len(captions), CAPTIONS * len(features)) + 1
        raise Mistake(
            f"{caption_path} has {len(captions)} lines where the {len(features)} rows of {image_path.name} need "
            f"{CAPTIONS * len(features)}: line {fitting} is the first that is {_wrong(captions, features)}"
        )
    names = [f"image {row + 1}" for row in range(len(features))]
    if ids and (folder / ids).exists():
        names = text_lines(folder / ids)
        if len(names) != len(features):
            raise Mistake(f"{folder / ids} has {len(names)} lines where {image_path.name} has {len(features)} rows")
    return Captioned(features, captions, names)


def _wrong(captions: list[list[str]], features: np.ndarray) -> str:
    return "missing" if len(captions) < CAPTIONS * len(features) else "too many"


def read(folder: Path, layout: dict[str, tuple[str, str]]) -> dict[str, Captioned]:
    """All splits; features of different widths raise Mistake."""
    splits = {split: read_split(folder, layout[split], f"{NAMES[split]}_ids.txt") for split in SPLITS}
    widths = {split: part.features.shape[1] for split, part in splits.items()}
    for split, width in widths.items():
        if width != widths["train"]:
            raise Mistake(
                f"{folder / layout[split][0]} has {width} features an image where "
                f"{layout['train'][0]} has {widths['train']}"
            )
    return splits


def coco() -> Source:
    """MS-COCO from the data folders, in either published layout; its captions need an agreement to terms, so it is not
    downloaded.

    Raises:
        Missing: it is nowhere.
        Mistake: some of its files are not there, or the features are not those of Karpathy's splits.
    """
    looked = []
    for folder in (folder / "coco" for folder in data_folders()):
        if folder.is_dir():
            layout = COCO_ZIP if (folder / COCO_ZIP["train"][1]).exists() else PRECOMP
            names = [name for split in SPLITS for name in layout[split]]
            for name in names:
                if not (folder / name).exists():
                    raise Mistake(f"{folder} has no {name}, which COCO's layout needs; add it, or move the folder away")
            for split in SPLITS:
                check_shape(folder / layout[split][0], COCO_IMAGES[split], "COCO")
            key = hashlib.sha256("".join(sha256_of(folder / name) for name in names).encode()).hexdigest()
            return Source("MS-COCO", "original", key, partial(read, folder, layout), ORIGIN)
        looked.append(str(folder))
    raise Missing(
        f"MS-COCO with VGG-19 features (train_ims.npy, train_caps.txt and so for dev and test, or the published "
        f"coco.zip) is not in {' or '.join(looked)}; `python -m scripts.image_features --help` says how to make it",
        ORIGIN,
    )


def check_shape(path: Path, images: int, name: str) -> None:
    try:
        shape = np.load(path, mmap_mode="r").shape
    except (ValueError, EOFError, OSError) as error:
        raise Mistake(f"{path} is not a numpy file: {str(error).splitlines()[0]}") from None
    if shape != (images, VGG19_FEATURES):
        raise Mistake(f"{path} holds {shape} where {name}'s split has ({images}, {VGG19_FEATURES}) features")

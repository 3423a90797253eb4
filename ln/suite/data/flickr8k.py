"""Flickr8k in the precomp layout: prepared as for the published runs, or made anew from its public release."""

import hashlib
import zipfile
from functools import partial
from pathlib import Path

from ln.suite.data import Missing, Origin, Source, check_sha256, data_folders, made_once, sha256_of
from ln.suite.data.fetching import download
from ln.suite.data.precomp import PRECOMP, SPLITS, check_shape, read

PREPARED_FOLDER, REMADE_FOLDER = "flickr8k_efficientnet", "flickr8k_vgg19"
FLICKR8K = {
    "train_ims.npy": "61594310ad43eccf2cb5ecb0a8f6b2d0facbe2f07e0ed4620af24b4ce91372be",
    "train_caps.txt": "a3a9f0d5188fe2dbaefac14a5d28e3b7ce6c0cd8d01141f705b9884ac4edd34f",
    "train_ids.txt": "e330ddd5156a4c2d2e2b67bc587e70e588f2d132bd8a10dc54dcb71e58115d8e",
    "dev_ims.npy": "3a1aa99dfb6df13108b56b0b996dcb8d4a6b9bfbc32a8f6df1b54be743f0c61b",
    "dev_caps.txt": "bf08774d6636880acc78808b2eb9e868ead6b110772e613012b585d2aa2383e8",
    "dev_ids.txt": "18ba829f47f6df1cb830bf7f0506e2ddf333818925299babbd1bbcaf50fdc504",
    "test_ims.npy": "5263bd4182d72627cbe3e44ee44946e4ffbc99a1e083b5f3f180c8dc09fd65e9",
    "test_caps.txt": "652d8d02243cd2efcc21e0ab2f65e8fc75bdca2b3f35717ba5e06d1a6671226e",
    "test_ids.txt": "c0924146c131458ceba45da59670fe9520eadce1e5cafffa16a817672a9b1f17",
}
IMAGES = {"train": 6000, "valid": 1000, "test": 1000}
RELEASE = "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k"
TEXT_ZIP, TEXT_MD5 = "Flickr8k_text.zip", "bf6c1abcb8e4a833b7f922104de18627"  # as torchdatasets publishes them
IMAGE_ZIP, IMAGE_MD5 = "Flickr8k_Dataset.zip", "f18a1e2920de5bd84dae7cf08ec78978"
IMAGE_FOLDER = "Flicker8k_Dataset"  # spelt so in the archive
BATCH = 16


def fetch() -> None:
    """Download the public release to data/flickr8k_release and write VGG-19's features of it to data/flickr8k_vgg19.

    Raises:
        OSError: no network.
        Mistake: an archive is not the published one, or no ImageNet weights can be had.
    """
    import torch

    from ln.suite.data import image_features, picture_sets

    folder = Path("data/flickr8k_release")
    archives = [
        download(f"{RELEASE}/{name}", folder / name, md5, "md5")
        for name, md5 in ((TEXT_ZIP, TEXT_MD5), (IMAGE_ZIP, IMAGE_MD5))
    ]
    for archive, place in zip(archives, (folder / "text", folder / "images"), strict=True):
        with zipfile.ZipFile(archive) as file:
            made_once(place, file.extractall)
    found = picture_sets.flickr8k(folder / "text", folder / "images" / IMAGE_FOLDER)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    image_features.write_all(Path("data") / REMADE_FOLDER, found, BATCH, device)


ORIGIN = Origin(
    "Flickr8k",
    f"{RELEASE} ({IMAGE_ZIP}, {TEXT_ZIP})",
    "non-commercial research and education; the pictures are their Flickr users'",
    "1.1 GB of pictures; 130 MB of features",
    fetch,
)


def substitute() -> Source:
    """The features of the published runs, else VGG-19's made anew, with which a run is comparable with those but not
    identical.

    Raises:
        Missing: it is nowhere.
        Mistake: a file is cut short or altered, or the features are not those of its splits.
    """
    looked = []
    for folder in (folder / PREPARED_FOLDER for folder in data_folders()):
        if all((folder / name).exists() for name in FLICKR8K):
            for name, sha256 in FLICKR8K.items():
                check_sha256(folder / name, sha256, text=name.endswith(".txt"))
            key = hashlib.sha256("".join(FLICKR8K.values()).encode()).hexdigest()
            return Source("Flickr8k", "substitute", key, partial(read, folder, PRECOMP), ORIGIN)
        looked.append(str(folder))
    for folder in (folder / REMADE_FOLDER for folder in data_folders()):
        # A split's features are written last.
        if all((folder / PRECOMP[split][0]).exists() for split in SPLITS):
            for split in SPLITS:
                check_shape(folder / PRECOMP[split][0], IMAGES[split], "Flickr8k")
            key = hashlib.sha256("".join(sha256_of(folder / name) for name in FLICKR8K).encode()).hexdigest()
            read_it = partial(read, folder, PRECOMP)
            return Source("Flickr8k with VGG-19 features", "substitute", key, read_it, ORIGIN)
        looked.append(str(folder))
    raise Missing(
        f"Flickr8k in the precomp layout ({', '.join(FLICKR8K)}) is not in {' or '.join(looked)}; "
        "`python -m scripts.image_features --help` says how to make it",
        ORIGIN,
    )

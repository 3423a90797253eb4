"""MS-COCO in the `precomp` layout from its images: ten crops of each through VGG-19, as for published order embeddings.

`python -m scripts.coco_features --images <folder with train2014 and val2014> --karpathy dataset_coco.json`
writes to data/coco, for train, dev and test: _ims.npy (N, 4096), _caps.txt (5 lines an image) and _ids.txt. A split
whose features are there is skipped. Images: cocodataset.org (train2014, val2014); dataset_coco.json: Karpathy's splits.

As published: the shorter side to 256; four corners, the centre, and their mirror images; fc7 after its ReLU, averaged
over the crops and scaled to length 1. Otherwise: torchvision's weights (RGB, its own normalization), not Caffe's.

Shapes: N images, B images at a time, 4096 features.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import VGG19_Weights, vgg19
from torchvision.transforms import functional as transforms
from tqdm import tqdm

from ln.suite.data.precomp import CAPTIONS, NAMES, SPLITS
from ln.suite.errors import Mistake, fail

SHORTER_SIDE, CROP = 256, 224
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what torchvision's weights expect
KARPATHY = {"train": "train", "restval": "train", "val": "valid", "test": "test"}
READERS = 8


@dataclass(frozen=True)
class Entry:
    """One image of the JSON file: where it is, and its five captions."""

    path: Path
    captions: list[str]


def entries(json_path: Path, images: Path) -> dict[str, list[Entry]]:
    """The images of each split in the file's order; of more than five captions the first five.

    Raises:
        Mistake: not Karpathy's format, an unknown split, fewer than five captions, or an image file that is not there.
    """
    found: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    try:
        listed = json.loads(json_path.read_text(encoding="utf-8"))["images"]
        for image in listed:
            path = images / image.get("filepath", "") / image["filename"]
            captions = [" ".join(sentence["tokens"]) for sentence in image["sentences"]]
            captions = [caption for caption in captions if caption][:CAPTIONS]
            if image["split"] not in KARPATHY:
                raise Mistake(f"{json_path}: {path.name} is in split {image['split']}, which is none of Karpathy's")
            if len(captions) < CAPTIONS:
                raise Mistake(f"{json_path}: {path.name} has {len(captions)} captions with words where 5 are needed")
            if not path.exists():
                raise Mistake(f"{path}, listed in {json_path}, is not there; give --images the folder it lies in")
            found[KARPATHY[image["split"]]].append(Entry(path, captions))
    except OSError as error:
        raise Mistake(f"{json_path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, Mistake):
            raise
        raise Mistake(f"{json_path} is not in the format of Karpathy's splits: {error}") from None
    return found


def crops(path: Path) -> Tensor:
    """(10, 3, 224, 224) normalized crops of an image file.

    Raises:
        Mistake: the file is no image that can be read.
    """
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except OSError as error:
        raise Mistake(f"{path} is not an image that can be read: {error}") from None
    resized = transforms.resize(image, [SHORTER_SIDE])
    ten = torch.stack([transforms.to_tensor(crop) for crop in transforms.ten_crop(resized, [CROP, CROP])])
    return transforms.normalize(ten, list(MEAN), list(DEVIATION))


class Fc7(nn.Module):
    """(N, 3, 224, 224) -> (N, 4096): VGG-19 up to the ReLU of its second fully connected layer."""

    def __init__(self, weights: VGG19_Weights | None):
        super().__init__()
        network = vgg19(weights=weights)
        self.features, self.pool, self.connected = network.features, network.avgpool, network.classifier[:5]

    def forward(self, x: Tensor) -> Tensor:
        return self.connected(self.pool(self.features(x)).flatten(1))


def described(ten: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, 4096) of length 1 from crops (B, 10, 3, 224, 224): the mean over an image's crops."""
    each = network(ten.flatten(0, 1))
    return nn.functional.normalize(each.view(*ten.shape[:2], -1).mean(1), dim=1)


def batches(found: list[Entry], size: int) -> Iterator[Tensor]:
    """Crops (B, 10, 3, 224, 224), read ahead by a few threads."""
    parts = [found[i : i + size] for i in range(0, len(found), size)]
    with ThreadPoolExecutor(READERS) as pool:
        ahead = [pool.submit(crops, entry.path) for entry in parts[0]] if parts else []
        for following in [*parts[1:], []]:
            current, ahead = ahead, [pool.submit(crops, entry.path) for entry in following]
            yield torch.stack([future.result() for future in current])


@torch.no_grad()
def write(folder: Path, split: str, found: list[Entry], network: nn.Module, size: int, device: torch.device) -> None:
    """One split's three files; the features last and whole, since their presence says that the split is done."""
    name = NAMES[split]
    target = folder / f"{name}_ims.npy"
    if target.exists():
        print(f"{target} is there, skipped")
        return
    lines = [caption for entry in found for caption in entry.captions]
    (folder / f"{name}_caps.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / f"{name}_ids.txt").write_text("".join(f"{entry.path.name}\n" for entry in found), encoding="utf-8")
    features = [
        described(ten.to(device), network).cpu()
        for ten in tqdm(batches(found, size), total=-(-len(found) // size), desc=split, disable=None)
    ]
    temporary = target.with_name(f"{name}_ims.{os.getpid()}.npy")
    np.save(temporary, torch.cat(features).numpy())
    temporary.replace(target)
    print(f"{target}: {len(found)} images")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--karpathy", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("data/coco"))
    parser.add_argument("--batch", type=int, default=16, help="images at a time")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args(arguments)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        found = entries(given.karpathy, given.images)
        given.out.mkdir(parents=True, exist_ok=True)
        device = torch.device(given.device)
        network = Fc7(VGG19_Weights.IMAGENET1K_V1).eval().to(device)
        for split in SPLITS:
            write(given.out, split, found[split], network, given.batch, device)
    except Mistake as mistake:
        fail(mistake)


if __name__ == "__main__":
    main()

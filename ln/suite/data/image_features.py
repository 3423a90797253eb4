"""Pictures in the `precomp` layout of ln/suite/data/precomp.py: ten crops of each through VGG-19.

As for published order embeddings: the shorter side to 256; four corners, the centre, and their mirror images; fc7 after
its ReLU, averaged over the crops and scaled to length 1. Otherwise: torchvision's ImageNet weights (RGB, its own
normalization), not Caffe's.

Shapes: N images, B images at a time, 4096 features.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import VGG19_Weights, vgg19
from torchvision.transforms import functional as transforms
from tqdm import tqdm

from ln.suite.data.picture_sets import Entry
from ln.suite.data.precomp import NAMES, SPLITS
from ln.suite.errors import Mistake
from ln.suite.files import replacing, write_text

SHORTER_SIDE, CROP = 256, 224
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what torchvision's weights expect
READERS = 8


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


def network(weights: VGG19_Weights | None = VGG19_Weights.IMAGENET1K_V1) -> nn.Module:
    """VGG-19 with its ImageNet weights, downloaded by torchvision unless its cache has them.

    Raises:
        Mistake: they cannot be had.
    """
    try:
        return Fc7(weights).eval()
    except (OSError, RuntimeError) as error:  # no network; or a download whose checksum is wrong
        cache = Path(torch.hub.get_dir(), "checkpoints")
        raise Mistake(
            f"VGG-19's ImageNet weights could not be downloaded ({error}); put {VGG19_Weights.IMAGENET1K_V1.url} "
            f"into {cache}"
        ) from error


def write_all(folder: Path, found: dict[str, list[Entry]], size: int, device: torch.device) -> None:
    """All splits in the precomp layout, `size` images at a time; a split that is there is not made again.

    Raises:
        Mistake: a picture that cannot be read, no weights, or a file that cannot be written.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    describe = network().to(device)
    for split in SPLITS:
        write(folder, split, found[split], describe, size, device)


@torch.no_grad()
def write(folder: Path, split: str, found: list[Entry], describe: nn.Module, size: int, device: torch.device) -> None:
    """One split's three files; the features last, since their presence says that the split is done."""
    name = NAMES[split]
    target = folder / f"{name}_ims.npy"
    if target.exists():
        print(f"{target} is there, skipped")
        return
    write_text(folder / f"{name}_caps.txt", "".join(f"{line}\n" for entry in found for line in entry.captions))
    write_text(folder / f"{name}_ids.txt", "".join(f"{entry.path.name}\n" for entry in found))
    features = [
        described(ten.to(device), describe).cpu()
        for ten in tqdm(batches(found, size), total=-(-len(found) // size), desc=split, disable=None)
    ]
    with replacing(target) as file:
        np.save(file, torch.cat(features).numpy())
    print(f"{target}: {len(found)} images")

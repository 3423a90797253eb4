"""Pictures' features in the `precomp` layout: ten crops of each through VGG-19 with torchvision's ImageNet weights.

MS-COCO: `python -m scripts.image_features --images <folder with train2014 and val2014> --karpathy dataset_coco.json`
(pictures: cocodataset.org, train2014 and val2014; dataset_coco.json: Karpathy's splits) writes to data/coco.
Flickr8k: `... --images <folder of Flickr8k_Dataset.zip's pictures> --flickr8k <folder of Flickr8k_text.zip>` writes to
data/flickr8k_vgg19.

For train, dev and test: _ims.npy (N, 4096), _caps.txt (5 lines an image) and _ids.txt. A split whose features are there
is skipped.
"""

import argparse
from pathlib import Path

import torch

from ln.suite.data import image_features, picture_sets
from ln.suite.data.flickr8k import REMADE_FOLDER
from ln.suite.errors import Mistake, fail


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--karpathy", type=Path, help="the JSON file of Karpathy's splits")
    kind.add_argument("--flickr8k", type=Path, help="the folder of Flickr8k's captions and lists")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--batch", type=int, default=16, help="images at a time")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args(arguments)
    try:
        if given.karpathy:
            found, folder = picture_sets.karpathy(given.karpathy, given.images), "coco"
        else:
            found, folder = picture_sets.flickr8k(given.flickr8k, given.images), REMADE_FOLDER
        image_features.write_all(given.out or Path("data", folder), found, given.batch, torch.device(given.device))
    except Mistake as mistake:
        fail(mistake)


if __name__ == "__main__":
    main()

"""Published sets of captioned pictures: MS-COCO by Karpathy's splits, and Flickr8k's public release.

Which pictures each split has, and five captions of each, as words separated by spaces.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from ln.suite.data import text_lines
from ln.suite.data.precomp import CAPTIONS, SPLITS
from ln.suite.errors import Mistake

KARPATHY = {"train": "train", "restval": "train", "val": "valid", "test": "test"}
FLICKR8K_CAPTIONS = "Flickr8k.token.txt"
FLICKR8K_LISTS = {
    "train": "Flickr_8k.trainImages.txt",
    "valid": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
WORD = re.compile(r"[a-z0-9']+")


@dataclass(frozen=True)
class Entry:
    """One picture: where it is, and its five captions."""

    path: Path
    captions: list[str]


def karpathy(json_path: Path, images: Path) -> dict[str, list[Entry]]:
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


def flickr8k(folder: Path, images: Path) -> dict[str, list[Entry]]:
    """The pictures of each split in the order of the release's lists, which lie with its captions in `folder`.

    A caption's words are its runs of small letters, digits and apostrophes, none of these at a word's ends.

    Raises:
        Mistake: a file of the release or a picture is not there, a line that is not `name#number<tab>caption`, or a
            picture that has not five captions with words.
    """
    captions: dict[str, list[str]] = {}
    path = folder / FLICKR8K_CAPTIONS
    for number, line in enumerate(_release_lines(path), 1):
        name, tab, text = line.partition("\t")
        if not tab or "#" not in name:
            raise Mistake(f"{path}, line {number}: {line[:40]!r} is not <picture>#<number>, a tab and a caption")
        words = (word.strip("'") for word in WORD.findall(text.lower()))
        if caption := " ".join(word for word in words if word):
            captions.setdefault(name.partition("#")[0], []).append(caption)
    found: dict[str, list[Entry]] = {}
    for split, listed in FLICKR8K_LISTS.items():
        found[split] = []
        for name in filter(None, map(str.strip, _release_lines(folder / listed))):
            if len(captions.get(name, [])) != CAPTIONS:
                raise Mistake(
                    f"{path}: {name} has {len(captions.get(name, []))} captions with words where 5 are needed"
                )
            if not (images / name).exists():
                raise Mistake(f"{images / name}, listed in {listed}, is not there; give --images the folder it lies in")
            found[split].append(Entry(images / name, captions[name]))
    return found


def _release_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise Mistake(f"{path} is not there; unpack all of Flickr8k_text.zip into {path.parent}")
    return text_lines(path)

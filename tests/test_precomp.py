"""The precomp layout: its reader, its sentences when something is wrong, and what writes it of pictures."""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ln.suite.data import Missing, flickr8k, image_features, picture_sets, precomp
from ln.suite.data.precomp import CAPTIONS, PRECOMP
from ln.suite.errors import Mistake
from scripts import image_features as command

IMAGES = {"train": 4, "valid": 2, "test": 2}
WIDTH = 6


def write_layout(folder: Path, layout: dict[str, tuple[str, str]] = PRECOMP, dtype: type = np.float32) -> None:
    generator = np.random.default_rng(0)
    for split, (features, captions) in layout.items():
        count = IMAGES[split]
        for name in (features, captions):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / features, generator.normal(size=(count, WIDTH)).astype(dtype))
        lines = [f"{split} image {i} caption {j}\n" for i in range(count) for j in range(CAPTIONS)]
        (folder / captions).write_text("".join(lines), encoding="utf-8")


@pytest.fixture
def coco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small COCO in the precomp layout under $LN_DATA, its sizes made the expected ones."""
    monkeypatch.setattr(precomp, "COCO_IMAGES", IMAGES)
    monkeypatch.setattr(precomp, "VGG19_FEATURES", WIDTH)
    monkeypatch.setenv("LN_DATA", str(tmp_path))
    write_layout(tmp_path / "coco")
    return tmp_path / "coco"


def test_captions_belong_to_their_rows(coco: Path) -> None:
    source = precomp.coco()
    data = source.load()
    assert (source.name, source.status) == ("MS-COCO", "original")
    assert {split: part.features.shape for split, part in data.items()} == {
        split: (count, WIDTH) for split, count in IMAGES.items()
    }
    assert data["valid"].captions[7] == ["valid", "image", "1", "caption", "2"]
    assert data["train"].names[3] == "image 4"
    assert np.array_equal(data["test"].features, np.load(coco / "test_ims.npy"))


def test_the_published_archives_folders_are_read_too(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LN_DATA", str(tmp_path / "other"))
    write_layout(tmp_path / "other" / "coco", precomp.COCO_ZIP)
    assert (tmp_path / "other/coco/images/10crop/val.npy").exists()
    ours, theirs = precomp.read(coco, PRECOMP), precomp.coco().load()
    for split, part in ours.items():
        assert part.captions == theirs[split].captions
        assert np.array_equal(part.features, theirs[split].features)


def test_half_precision_features_become_float32(tmp_path: Path) -> None:
    write_layout(tmp_path, dtype=np.float16)
    assert precomp.read(tmp_path, PRECOMP)["train"].features.dtype == np.float32


def test_the_identity_follows_the_files(coco: Path) -> None:
    before = precomp.coco().sha256
    assert precomp.coco().sha256 == before
    path = coco / "train_caps.txt"
    path.write_text(path.read_text().replace("image 0", "image O", 1))
    assert precomp.coco().sha256 != before


def replaced(path: Path, line: int, content: bytes | None) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line - 1 : line] = [] if content is None else [content]
    path.write_bytes(b"".join(lines))


def test_an_empty_caption_is_named_by_file_and_line(coco: Path) -> None:
    replaced(coco / "dev_caps.txt", 4, b" \t\n")
    with pytest.raises(Mistake, match=r"coco/dev_caps.txt, line 4: the caption is empty; every image needs 5"):
        precomp.coco().load()


def test_a_wrong_encoding_is_named_by_file_and_line(coco: Path) -> None:
    replaced(coco / "train_caps.txt", 9, "a caf\u00e9\n".encode("latin-1"))
    with pytest.raises(Mistake, match=r"coco/train_caps.txt, line 9: a byte is not UTF-8; convert the file to it"):
        precomp.coco().load()


def test_captions_and_features_of_different_length_are_named(coco: Path) -> None:
    replaced(coco / "test_caps.txt", 10, None)
    with pytest.raises(
        Mistake, match=r"test_caps.txt has 9 lines where the 2 rows of test_ims.npy need 10: line 10 .* missing"
    ):
        precomp.coco().load()
    write_layout(coco)
    with (coco / "train_caps.txt").open("a") as file:
        file.write("one more\n")
    with pytest.raises(Mistake, match=r"train_caps.txt has 21 lines .* need 20: line 21 is the first that is too many"):
        precomp.coco().load()


def test_features_that_are_none_are_named(coco: Path) -> None:
    features = np.load(coco / "dev_ims.npy")
    features[1, 3] = np.nan
    np.save(coco / "dev_ims.npy", features)
    with pytest.raises(Mistake, match=r"dev_ims.npy, row 2: a feature is not a finite number"):
        precomp.coco().load()
    np.save(coco / "dev_ims.npy", np.zeros((2, WIDTH), np.int64))
    with pytest.raises(Mistake, match=r"dev_ims.npy must hold floating point features \(N, D\), but holds int64"):
        precomp.coco().load()
    (coco / "dev_ims.npy").write_bytes(b"no numpy")
    with pytest.raises(Mistake, match=r"dev_ims.npy is not a numpy file"):
        precomp.coco()


def test_names_of_another_number_and_widths_that_differ_are_refused(tmp_path: Path) -> None:
    write_layout(tmp_path)
    (tmp_path / "dev_ids.txt").write_text("one.jpg\n")
    with pytest.raises(Mistake, match=r"dev_ids.txt has 1 lines where dev_ims.npy has 2 rows"):
        precomp.read(tmp_path, PRECOMP)
    (tmp_path / "dev_ids.txt").unlink()
    np.save(tmp_path / "test_ims.npy", np.zeros((2, WIDTH + 1), np.float32))
    with pytest.raises(Mistake, match=r"test_ims.npy has 7 features an image where train_ims.npy has 6"):
        precomp.read(tmp_path, PRECOMP)


def test_coco_that_is_not_whole_is_not_taken_for_it(coco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precomp, "COCO_IMAGES", {**IMAGES, "train": 5})
    with pytest.raises(Mistake, match=r"train_ims.npy holds \(4, 6\) where COCO's split has \(5, 6\) features"):
        precomp.coco()
    (coco / "test_caps.txt").unlink()
    with pytest.raises(Mistake, match=r"coco has no test_caps.txt"):
        precomp.coco()


def test_nowhere_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LN_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Missing, match=r"is not in .*/coco or data/coco; `python -m scripts.image_features --help`"):
        precomp.coco()
    with pytest.raises(
        Missing, match=r"Flickr8k .* is not in .*/flickr8k_efficientnet or .*data/flickr8k_vgg19; `python"
    ):
        flickr8k.substitute()


def test_an_altered_flickr8k_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LN_DATA", str(tmp_path))
    folder = tmp_path / flickr8k.PREPARED_FOLDER
    write_layout(folder)
    for split in IMAGES:
        name = f"{precomp.NAMES[split]}_ids.txt"
        (folder / name).write_text("".join(f"{i}.jpg\n" for i in range(IMAGES[split])))
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in flickr8k.FLICKR8K}
    monkeypatch.setattr(flickr8k, "FLICKR8K", sums)
    assert flickr8k.substitute().load()["train"].names == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    replaced(folder / "dev_caps.txt", 1, b"another caption\n")
    with pytest.raises(Mistake, match=r"dev_caps.txt is cut short or altered"):
        flickr8k.substitute()


# --- the script that makes COCO's features


class Patches(nn.Module):
    """A small network in VGG's place: random weights, 4 features of a crop."""

    def __init__(self, weights: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.filters = nn.Conv2d(3, 4, 32, stride=32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.filters(x).relu().mean((2, 3))


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    """Six tiny images, two of them grey, and their entry in Karpathy's format."""
    generator = np.random.default_rng(0)
    folder, listed = tmp_path / "images", []
    for i, split in enumerate(["train", "val", "restval", "test", "train", "train"]):
        place = "val2014" if split in ("val", "restval", "test") else "train2014"
        (folder / place).mkdir(parents=True, exist_ok=True)
        size = (30, 20, 3) if i < 4 else (20, 30)
        Image.fromarray(generator.integers(0, 256, size).astype(np.uint8)).save(folder / place / f"{i}.png")
        sentences = [{"tokens": ["caption", str(j), "of", str(i)]} for j in range(7)]
        listed.append({"filepath": place, "filename": f"{i}.png", "split": split, "sentences": sentences})
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": listed, "dataset": "coco"}))
    return folder, path


def test_features_are_written_in_the_layout(
    images: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(image_features, "Fc7", Patches)
    folder, splits = images
    out = tmp_path / "coco"
    arguments = [
        "--images",
        str(folder),
        "--karpathy",
        str(splits),
        "--out",
        str(out),
        "--batch",
        "3",
        "--device",
        "cpu",
    ]
    command.main(arguments)
    data = precomp.read(out, PRECOMP)
    assert data["train"].names == ["0.png", "2.png", "4.png", "5.png"]  # restval joins, in the file's order
    assert data["train"].captions[CAPTIONS] == ["caption", "0", "of", "2"]
    assert {split: part.features.shape for split, part in data.items()} == {
        "train": (4, 4), "valid": (1, 4), "test": (1, 4)
    }  # fmt: skip
    with torch.no_grad():
        expected = Patches(None)(image_features.crops(folder / "val2014" / "1.png")).mean(0)
    np.testing.assert_allclose(data["valid"].features[0], expected / expected.norm(), rtol=1e-5)
    assert {path.name for path in out.iterdir()} == {
        f"{name}_{what}" for name in ("train", "dev", "test") for what in ("ims.npy", "caps.txt", "ids.txt")
    }
    command.main(arguments)
    assert capsys.readouterr().out.count("is there, skipped") == 3


def test_ten_crops_are_corners_centre_and_their_mirrors(tmp_path: Path) -> None:
    columns = np.linspace(0, 255, 512).round().astype(np.uint8)
    Image.fromarray(np.broadcast_to(columns[None, :, None], (256, 512, 3)).copy()).save(tmp_path / "ramp.png")
    ten = image_features.crops(tmp_path / "ramp.png")
    assert ten.shape == (10, 3, 224, 224)
    assert torch.equal(ten[5:], ten[[1, 0, 3, 2, 4]].flip(-1))  # the left corners' mirror images are the mirror's right
    middles = [float(crop[0].mean()) for crop in ten[:5]]
    assert middles[0] == middles[2] < middles[4] < middles[1] == middles[3]


def test_fc7_is_vggs_second_connected_layer() -> None:
    with torch.device("meta"):  # the initial weights of 140 million parameters would take seconds
        network = image_features.Fc7(None)
    network = network.to_empty(device="cpu").eval()
    for parameter in network.parameters():
        torch.nn.init.uniform_(parameter, -0.01, 0.01)
    kinds = [type(layer).__name__ for layer in network.connected]
    assert kinds == ["Linear", "ReLU", "Dropout", "Linear", "ReLU"]
    with torch.no_grad():
        found = network(torch.randn(1, 3, 224, 224))
    assert found.shape == (1, precomp.VGG19_FEATURES)
    assert bool((found >= 0).all())


def test_what_is_wrong_with_images_or_splits_is_one_sentence(
    images: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, splits = images
    content = json.loads(splits.read_text())

    def refusal() -> str:
        with pytest.raises(Mistake) as refused:
            picture_sets.karpathy(splits, folder)
        return str(refused.value)

    content["images"][0]["sentences"] = content["images"][0]["sentences"][:4]
    splits.write_text(json.dumps(content))
    assert refusal() == f"{splits}: 0.png has 4 captions with words where 5 are needed"
    splits.write_text(json.dumps([]))
    assert "is not in the format of Karpathy's splits" in refusal()
    (folder / "val2014" / "1.png").write_bytes(b"no image")
    with pytest.raises(Mistake, match=r"1.png is not an image that can be read"):
        image_features.crops(folder / "val2014" / "1.png")
    with pytest.raises(SystemExit):
        command.main(["--images", str(folder), "--karpathy", str(tmp_path / "none.json"), "--out", str(tmp_path)])
    assert "none.json cannot be read" in capsys.readouterr().err


RELEASE = {"train": ["a.jpg", "b.jpg"], "valid": ["c.jpg"], "test": ["d.jpg"]}


@pytest.fixture
def release(tmp_path: Path) -> tuple[Path, Path]:
    """Four tiny pictures, and their captions and lists as Flickr8k's public release has them."""
    text, pictures = tmp_path / "text", tmp_path / "Flicker8k_Dataset"
    text.mkdir()
    pictures.mkdir()
    lines = []
    for split, names in RELEASE.items():
        (text / picture_sets.FLICKR8K_LISTS[split]).write_text("".join(f"{name}\n" for name in names))
        for name in names:
            Image.new("RGB", (300, 260), (ord(name[0]), 80, 10)).save(pictures / name)
            lines += [f"{name}#{i}\tThe dog's toy , number {i} of '{name[0]}' .\n" for i in range(CAPTIONS)]
    lines.append("2258277193_586949ec62.jpg.1#0\tA picture that no list names .\n")
    (text / picture_sets.FLICKR8K_CAPTIONS).write_text("".join(lines))
    return text, pictures


def test_flickr8ks_release_is_made_into_a_comparable_source(
    release: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, pictures = release
    monkeypatch.setattr(image_features, "Fc7", Patches)
    monkeypatch.setattr(precomp, "VGG19_FEATURES", 4)
    monkeypatch.setattr(flickr8k, "IMAGES", {split: len(names) for split, names in RELEASE.items()})
    monkeypatch.setenv("LN_DATA", str(tmp_path))
    out = tmp_path / flickr8k.REMADE_FOLDER
    command.main(["--images", str(pictures), "--flickr8k", str(text), "--out", str(out), "--device", "cpu"])
    source = flickr8k.substitute()
    assert (source.name, source.status) == ("Flickr8k with VGG-19 features", "substitute")
    data = source.load()
    assert {split: part.names for split, part in data.items()} == RELEASE
    assert data["train"].captions[CAPTIONS + 1] == ["the", "dog's", "toy", "number", "1", "of", "b"]
    with torch.no_grad():
        expected = Patches(None)(image_features.crops(pictures / "c.jpg")).mean(0)
    np.testing.assert_allclose(data["valid"].features[0], expected / expected.norm(), rtol=1e-5)
    monkeypatch.setattr(flickr8k, "IMAGES", {"train": 6000, "valid": 1000, "test": 1000})
    with pytest.raises(Mistake, match=r"train_ims.npy holds \(2, 4\) where Flickr8k's split has \(6000, 4\) features"):
        flickr8k.substitute()


def test_flickr8ks_release_is_fetched_and_prepared(
    release: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, pictures = release
    served = tmp_path / "served"
    served.mkdir()
    for name, folder, below, kind in (
        (flickr8k.TEXT_ZIP, text, "", "TEXT_MD5"),
        (flickr8k.IMAGE_ZIP, pictures, f"{flickr8k.IMAGE_FOLDER}/", "IMAGE_MD5"),
    ):
        with zipfile.ZipFile(served / name, "w") as archive:
            for path in sorted(folder.iterdir()):
                archive.write(path, below + path.name)
        monkeypatch.setattr(flickr8k, kind, hashlib.md5((served / name).read_bytes()).hexdigest())
    monkeypatch.setattr(flickr8k, "RELEASE", served.as_uri())
    monkeypatch.setattr(image_features, "Fc7", Patches)
    monkeypatch.setattr(precomp, "VGG19_FEATURES", 4)
    monkeypatch.setattr(flickr8k, "IMAGES", {split: len(names) for split, names in RELEASE.items()})
    monkeypatch.delenv("LN_DATA", raising=False)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    flickr8k.fetch()
    assert flickr8k.substitute().load()["test"].names == ["d.jpg"]
    assert sorted(path.name for path in Path("data/flickr8k_release").iterdir() if not path.name.startswith(".")) == [
        flickr8k.IMAGE_ZIP, flickr8k.TEXT_ZIP, "images", "text"
    ]  # fmt: skip
    (served / flickr8k.TEXT_ZIP).write_bytes(b"another")
    Path("data/flickr8k_release", flickr8k.TEXT_ZIP).unlink()
    with pytest.raises(Mistake, match=r"Flickr8k_text.zip is cut short or another file than was published: its md5"):
        flickr8k.fetch()
    assert not Path("data/flickr8k_release", flickr8k.TEXT_ZIP).exists()


def test_what_is_wrong_with_flickr8ks_release_is_one_sentence(release: tuple[Path, Path]) -> None:
    text, pictures = release
    captions = text / picture_sets.FLICKR8K_CAPTIONS
    whole = captions.read_text()

    def refusal() -> str:
        with pytest.raises(Mistake) as refused:
            picture_sets.flickr8k(text, pictures)
        return str(refused.value)

    captions.write_text(whole.replace("d.jpg#4\t", "d.jpg 4 "))
    assert "line 20: " in refusal()
    assert "is not <picture>#<number>, a tab and a caption" in refusal()
    captions.write_text(whole.replace("d.jpg#4\tThe dog's toy , number 4 of 'd' .", "d.jpg#4\t."))
    assert "d.jpg has 4 captions with words where 5 are needed" in refusal()
    captions.write_text(whole)
    (pictures / "b.jpg").unlink()
    assert "b.jpg, listed in Flickr_8k.trainImages.txt, is not there" in refusal()
    (text / "Flickr_8k.trainImages.txt").unlink()
    assert "trainImages.txt is not there; unpack all of Flickr8k_text.zip" in refusal()


def test_weights_that_cannot_be_had_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(weights: object) -> nn.Module:
        raise OSError("no network")

    monkeypatch.setattr(image_features, "vgg19", unreachable)
    with pytest.raises(Mistake, match=r"weights could not be downloaded \(no network\); put .*vgg19-.*pth into "):
        image_features.network()

"""Pictures for the page: embedded while there is room, linked otherwise, so that the page stays small."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ln.norms import NORMS
from ln.suite.runs.read import say_once
from ln.suite.showing.page.found import PageRun

ROOM_BYTES = 900_000  # of all embedded pictures, before base64 makes a third more of them
COLOURS = 128
KINDS = {".png": "image/png", ".gif": "image/gif"}


@dataclass(frozen=True)
class Picture:
    """A picture; `path` is relative to the results folder, `data` a data URI or empty where it is only linked."""

    path: str
    kind: str  # what it shows; pictures of one kind stand side by side
    alt: str
    caption: str
    width: int
    height: int
    data: str

    @property
    def moving(self) -> bool:
        return self.path.endswith(".gif")


class Album:
    """Reads pictures until the room for them is used up."""

    def __init__(self, results: Path, room: int = ROOM_BYTES):
        self.results, self.room = results, room

    def take(self, path: Path, alt: str, caption: str = "", kind: str | None = None) -> Picture:
        with Image.open(path) as image:
            width, height = image.size
            file = path.read_bytes() if path.suffix == ".gif" else _smaller(image)
        data = ""
        if len(file) <= self.room:
            self.room -= len(file)
            data = f"data:{KINDS[path.suffix]};base64,{base64.b64encode(file).decode()}"
        shown = path.relative_to(self.results).as_posix()
        return Picture(shown, kind or words(path), alt, caption, width, height, data)

    def of_folder(self, folder: Path, title: str) -> list[Picture]:
        """What an experiment drew beside its figure."""
        paths = [p for p in sorted(folder.glob("*")) if p.suffix in KINDS and p.stem != "figure" and undamaged(p)]
        return [self.take(p, f"{words(p)} of {title}") for p in paths]

    def beside_the_claims(self) -> list[Picture]:
        """The figures of the sensitivity sweeps, and what the benchmarks drew."""
        pictures = []
        for path in filter(undamaged, sorted(self.results.glob("sweeps/*/figure-*.png"))):
            setting, profile = path.parent.name.replace("_", " "), path.stem.partition("-")[2]
            alt = f"Result against the {setting}, one line per norm"
            pictures.append(self.take(path, alt, f"{setting.capitalize()}, profile {profile}", "Sensitivity"))
        for path in filter(undamaged, sorted(self.results.glob("bench/*.png"))):
            shown = words(path).replace("Cpu", "CPU")
            pictures.append(self.take(path, shown, shown, "Speed"))
        return pictures

    def of_runs(self, found: Sequence[PageRun]) -> list[Picture]:
        """What the first seed of each norm drew; the others' pictures lie in their folders."""
        first: dict[tuple[str, str], tuple[PageRun, list[Path]]] = {}
        for run in found:
            paths = [path for path in sorted((self.results / run.folder).glob("*")) if path.suffix in KINDS]
            if run.done and paths:
                first.setdefault((run.experiment, run.norm), (run, paths))
        pictures = []
        for run, paths in first.values():
            name = f"{NORMS[run.norm].label}, seed {run.seed}"
            for path in filter(undamaged, paths):
                pictures.append(self.take(path, f"{words(path)} of the run of {run.experiment} with {name}", name))
        return sorted(pictures, key=lambda picture: picture.kind)


def undamaged(path: Path) -> bool:
    """Whether a picture can be read to its end; of one that cannot it is said."""
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, SyntaxError) as error:  # PIL's word for a damaged PNG
        say_once(f"{path} is damaged ({error}); it is left out")
        return False
    return True


def _smaller(image: Image.Image) -> bytes:
    """A still as a PNG of few colours, about a third of what matplotlib writes; curves and digits look the same."""
    file = io.BytesIO()
    # Median cut, the default, gives thin coloured lines on white the wrong colour; this method does not.
    few = image.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(file, "PNG", optimize=True)
    return file.getvalue()


def words(path: Path) -> str:
    """samples.png -> Samples, table1.png -> Table 1; an animation says so."""
    name = re.sub(r"_|-|(?<=[a-z])(?=\d)", " ", path.stem).capitalize()
    return f"{name} (animation)" if path.suffix == ".gif" else name

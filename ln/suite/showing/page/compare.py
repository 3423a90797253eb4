"""`make compare THEIRS=<folder>`: both folders' verdicts, measurements and curves as one page that needs no network."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from markupsafe import Markup

from ln.suite.files import write_text
from ln.suite.showing.compare import Compared, apart, figure, label, told
from ln.suite.showing.page.build import HERE, environment


def write_comparison(found: Sequence[Compared], folder: str | Path) -> Path:
    """Write compare.html into a folder.

    Raises:
        Mistake: it cannot be written.
    """
    path = Path(folder) / "compare.html"
    template = environment(html=True).get_template("compare.html")
    pictures = {compared.key: _picture(compared) for compared in found}
    style = Markup((HERE / "page.css").read_text())
    write_text(path, template.render(found=found, pictures=pictures, style=style, label=label, told=told, apart=apart))
    return path


def _picture(compared: Compared) -> str:
    """The figure as a data URI of vectors; empty where neither folder has a curve."""
    drawing = figure(compared)
    if drawing is None:
        return ""
    file = io.BytesIO()
    drawing.savefig(file, format="svg", metadata={"Date": None})
    plt.close(drawing)
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"

"""Write a text by hand: `python -m scripts.write "some text" --norm layer --bias 0.5` draws it with a finished run."""

import argparse
from pathlib import Path

import torch

from experiments.handwriting.task import finished, picture_written
from ln.norms import NORMS
from ln.suite.errors import Mistake, fail, results_folder
from ln.suite.runs.folder import run_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text")
    parser.add_argument("--norm", default="layer", choices=NORMS)
    parser.add_argument("--bias", type=float, default=0.5, help="0 draws from the model; larger is neater")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--seed", type=int, default=0, help="of the run")
    parser.add_argument("--draw", type=int, default=0, help="seed of the drawing; another gives another hand")
    parser.add_argument("--results", default="results", type=results_folder)
    parser.add_argument("--out", type=Path, default=Path("written.png"))
    arguments = parser.parse_args()
    try:
        if arguments.bias < 0:
            raise Mistake(f"--bias {arguments.bias} must not be negative")
        folder = run_folder(arguments.results, arguments.profile, "handwriting", arguments.norm, arguments.seed)
        network = finished(folder, arguments.norm)
        torch.manual_seed(arguments.draw)
        ((line, _),) = network.write([arguments.text], arguments.bias)
    except Mistake as mistake:
        fail(mistake)
    label = NORMS[arguments.norm].label
    picture_written(arguments.out, arguments.text, line, f"{label}, seed {arguments.seed}, bias {arguments.bias:g}")
    print(f"{arguments.out}: {len(line)} pen points")


if __name__ == "__main__":
    main()

"""Find the nearest sentences: `python -m scripts.nearest "a sentence"` compares vectors of a finished run by cosine."""

import argparse

from experiments.skip_thoughts.task import finished
from ln.norms import NORMS
from ln.suite.data.books import words_of
from ln.suite.errors import Mistake, fail, results_folder
from ln.suite.runs.folder import run_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sentence")
    parser.add_argument("--norm", default="layer", choices=NORMS)
    parser.add_argument("--count", type=int, default=5, help="so many sentences")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--seed", type=int, default=0, help="of the run")
    parser.add_argument("--results", default="results", type=results_folder)
    arguments = parser.parse_args()
    try:
        if arguments.count < 1:
            raise Mistake(f"--count {arguments.count} must be at least 1")
        words = words_of(arguments.sentence)
        if not words:
            raise Mistake("the sentence is empty; give some words")
        task = finished(
            run_folder(arguments.results, arguments.profile, "skip_thoughts", arguments.norm, arguments.seed)
        )
        unknown = [word for word in words if word not in task.vocabulary.ids]
        (found,) = task.nearest(task.encoded([words]), arguments.count)
    except Mistake as mistake:
        fail(mistake)
    if unknown:
        print(f"not in the vocabulary, read as unknown: {', '.join(unknown)}")
    for cosine, sentence in found:
        print(f"{cosine:.3f}  {sentence}")


if __name__ == "__main__":
    main()

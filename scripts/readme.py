"""`make readme`: rewrite the README's results table from the verdicts on disk."""

from pathlib import Path

from ln.suite.showing.report import readme_block, with_block


def main() -> None:
    readme = Path("README.md")
    readme.write_text(with_block(readme.read_text(), readme_block("results")))


if __name__ == "__main__":
    main()

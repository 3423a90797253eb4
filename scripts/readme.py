"""`make readme`: rewrite the README's results table from the verdicts on disk."""

from pathlib import Path

from ln.suite.files import write_text
from ln.suite.judging.findings import findings
from ln.suite.showing.findings import readme_block as findings_block
from ln.suite.showing.report import readme_block, with_block


def main() -> None:
    readme = Path("README.md")
    text = with_block(readme.read_text(), readme_block("results"))
    write_text(readme, with_block(text, findings_block(findings())))


if __name__ == "__main__":
    main()

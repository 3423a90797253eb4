"""`make readme`: rewrite the README's scoreboard with its picture, its findings and its speeds, and the speeds of
docs/layers.md, from what is on disk."""

from pathlib import Path

from ln.suite.errors import Mistake, fail
from ln.suite.files import write_text
from ln.suite.judging.findings import findings
from ln.suite.showing import scoreboard, speeds
from ln.suite.showing.findings import readme_block as findings_block
from ln.suite.showing.onward import onward
from ln.suite.showing.report import with_block


def main() -> None:
    readme, layers, results = Path("README.md"), Path("docs/layers.md"), Path("results")
    try:
        text = with_block(readme.read_text(), scoreboard.readme_block(results))
        text = with_block(text, findings_block(findings()))
        write_text(readme, with_block(text, speeds.readme_block(results)))
        write_text(layers, with_block(layers.read_text(), speeds.docs_block(results)))
        picture = scoreboard.picture(scoreboard.rows_on_disk(results), results / scoreboard.PICTURE)
    except Mistake as mistake:
        fail(mistake)
    print(f"{readme}\n{layers}\n{picture}\n{onward('readme')}")


if __name__ == "__main__":
    main()

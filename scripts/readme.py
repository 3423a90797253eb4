"""`make readme`: rewrite the README's scoreboard, its picture and its list of findings from what is on disk."""

from pathlib import Path

from ln.suite.errors import Mistake, fail
from ln.suite.files import write_text
from ln.suite.judging.findings import findings
from ln.suite.showing import scoreboard
from ln.suite.showing.findings import readme_block as findings_block
from ln.suite.showing.onward import onward
from ln.suite.showing.report import with_block


def main() -> None:
    readme, results = Path("README.md"), Path("results")
    try:
        text = with_block(readme.read_text(), scoreboard.readme_block(results))
        write_text(readme, with_block(text, findings_block(findings())))
        picture = scoreboard.picture(scoreboard.rows_on_disk(results), results / scoreboard.PICTURE)
    except Mistake as mistake:
        fail(mistake)
    print(f"{readme}\n{picture}\n{onward('readme')}")


if __name__ == "__main__":
    main()

"""The report: every verdict, figure, curve and run of a results folder as one HTML page and as Markdown."""

from ln.suite.showing.page.build import Built, write_page

__all__ = ["Built", "write_page"]

"""A report as one page of HTML, without anything outside it: words, tables, and drawings that follow its colours."""

from btcompress.page.document import check_installed, largest, page

__all__ = ["check_installed", "largest", "page"]

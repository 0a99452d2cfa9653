"""Keeps numbers and the percent signs behind them on one line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from docutils import nodes

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def setup(app: Sphinx) -> dict[str, bool]:
    """Do so once a page was read."""
    app.connect("doctree-read", _joined)
    return {"parallel_read_safe": True}


def _joined(_app: Sphinx, page: nodes.document) -> None:
    for text in list(page.findall(nodes.Text)):
        if not isinstance(text.parent, nodes.literal | nodes.literal_block):
            joined = re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", text)
            if joined != text:
                text.parent.replace(text, nodes.Text(joined))

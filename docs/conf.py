"""How the site is made of these pages: `make docs` writes it to `site/`, and any warning fails it."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(Path(__file__).parent / "_ext"), str(ROOT)]

import btcompress  # noqa: E402 - from this clone, which the line above says

project = "btcompress"
author = "the btcompress authors"
version = release = btcompress.__version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "commandreference", "publicnames", "units"]
myst_enable_extensions = ["colon_fence"]
exclude_patterns = ["_ext", "_static"]

# Two hyphens begin an option: quotes alone are set as printers do.
smartquotes_action = "q"

# Headings have the anchors that they have in a repository, down to ####.
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
python_maximum_signature_line_length = 88
napoleon_use_ivar = True
napoleon_use_rtype = False
add_module_names = False

# A name that leads nowhere fails the build; publicnames.py lets those be that are in the code, without an entry here.
nitpicky = True
# Limits of numbers within annotations are no names.
nitpick_ignore_regex = [("py:class", r"[0-9.e+-]+")]

html_theme = "furo"
html_title = "btcompress"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_show_copyright = False
html_domain_indices = False

"""Drawing with matplotlib into SVG that lives in a page: real text, the page's colours, the same bytes each time."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from btcompress.errors import missing
from btcompress.text import printable

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

#: Colours of the page by what they mean, as the drawings name them until they are in the page.
INK, MUTED, LINE, BEFORE, AFTER, SVD, ROWS, GROUPS = (f"#0{n}0{n}0{n}" for n in range(1, 9))
_VARIABLES = dict(
    zip(
        (INK, MUTED, LINE, BEFORE, AFTER, SVD, ROWS, GROUPS),
        ("ink", "muted", "line", "before", "after", "svd", "rows", "groups"),
        strict=True,
    )
)
#: Width in the page's pixels that is read on a telephone as it is.
WIDTH = 350
_DPI = 72
_SETTINGS: Any = {  # matplotlib's own type of it differs from version to version
    "svg.fonttype": "none",
    "svg.hashsalt": "btcompress",
    "text.parse_math": False,
    "text.color": INK,
    "font.size": 12,
    "axes.labelsize": 11,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": False,
    "figure.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
}
#: Points of a line that are drawn: more cannot be told apart.
_MOST_POINTS = 120
#: Values beyond which nothing is drawn, as the arithmetic of scales would end.
_MOST = 1e30
#: Characters of a name in a drawing.
_NAME = 40

_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
#: Attributes that are lengths in the page's pixels, of which one digit behind the point is enough.
_LENGTHS = ("d", "points", "x", "y", "width", "height", "transform")
_NUMBER = re.compile(r"-?\d+\.\d+")
_FONT = re.compile(r"font-family: [^;\"]*;? ?")
_REFERENCE = re.compile(r"url\(#([^)]*)\)")


def svg(draw: Callable[[Figure], None], height: float, label: str, anchor: str, width: float = WIDTH) -> Markup:
    """A drawing as an element of a page.

    Args:
        draw: draws into matplotlib's figure, which it is given.
        height: in the page's pixels.
        label: what is to be seen, for those who do not see it.
        anchor: what the names within the drawing begin with; another one for each drawing of a page.
        width: as the height; drawings grow and shrink with the page.

    Raises:
        BTCompressError: matplotlib or jinja2 is missing.
    """
    try:
        import matplotlib as mpl
        from markupsafe import Markup
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing("a report as a page", error.name or "matplotlib", "page") from error
    text = io.StringIO()
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        # Of letters that matplotlib's own font lacks: the browser has them.
        warnings.filterwarnings("ignore", category=UserWarning)
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, layout="constrained")
        draw(figure)
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return Markup(_in_page(text.getvalue(), label, anchor))  # noqa: S704 - written by an XML writer from parsed XML


def titled(figure: Figure, name: str) -> None:
    """Put a name above a drawing, at its left edge, where most of it fits."""
    figure.suptitle(named(name), x=0.01, ha="left", fontsize=12, fontweight="bold")


def named(name: str) -> str:
    """A name as it is written in a drawing: visible, on one line, a long one by its two ends."""
    shown = printable(name)
    if len(shown) <= _NAME:
        return shown
    end = (_NAME - 1) // 2
    return f"{shown[: _NAME - 1 - end]}…{shown[-end:]}"


def drawable(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points of a line that can be drawn, of very many some, both ends included."""
    sane = [(x, y) for x, y in points if all(math.isfinite(each) and abs(each) < _MOST for each in (x, y))]
    if len(sane) <= _MOST_POINTS:
        return sane
    step = (len(sane) - 1) / (_MOST_POINTS - 1)
    return [sane[round(n * step)] for n in range(_MOST_POINTS)]


def plot(axes: Any, points: Sequence[tuple[float, float]], **how: Any) -> bool:  # noqa: ANN401 - matplotlib's
    """Draw points, joined by a line unless ``how`` says otherwise; whether there were any that can be drawn."""
    found = drawable(points)
    if found:
        axes.plot(*map(list, zip(*found, strict=True)), **how)
    return bool(found)


def _in_page(text: str, label: str, anchor: str) -> str:
    """A drawing of matplotlib's as an element of a page.

    No two drawings of a page share a name in it, styles follow the page's variables, and nothing is left that only a
    file needs.
    """
    for prefix, space in (("", _SVG), ("xlink", _LINK)):
        ElementTree.register_namespace(prefix, space)
    root = ElementTree.fromstring(text)  # noqa: S314 - matplotlib wrote it just now
    used = {name for element in root.iter() for name in _references(element)}
    for parent in list(root.iter()):
        for child in [each for each in parent if each.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style")]:
            parent.remove(child)
    for element in root.iter():
        _adapt(element, used, anchor)
    size = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update({"viewBox": size, "role": "img", "aria-label": printable(label)})
    return ElementTree.tostring(root, encoding="unicode")


def _references(element: ElementTree.Element) -> list[str]:
    """The names within the drawing that an element refers to."""
    found = [match for value in element.attrib.values() for match in _REFERENCE.findall(value)]
    return [*found, *(value[1:] for name in ("href", f"{{{_LINK}}}href") if (value := element.get(name)))]


def _adapt(element: ElementTree.Element, used: set[str], anchor: str) -> None:
    """Give an element of a drawing its names and colours in the page, and fewer digits."""
    for name, value in list(element.attrib.items()):
        if name == "id":
            del element.attrib[name]
            if value in used:
                element.set("id", f"{anchor}-{value}")
        elif name in ("href", f"{{{_LINK}}}href"):
            del element.attrib[name]
            element.set("href", f"#{anchor}-{value[1:]}")
        else:
            element.set(name, _adapted(name, value, anchor))
    if element.text is not None and not element.text.strip():
        element.text = None
    element.tail = None


def _adapted(name: str, value: str, anchor: str) -> str:
    value = _REFERENCE.sub(rf"url(#{anchor}-\1)", value)
    if name == "style":
        for colour, variable in _VARIABLES.items():
            value = value.replace(colour, f"var(--{variable})")
        return _FONT.sub("", value)
    if name not in _LENGTHS:
        return value
    return " ".join(_NUMBER.sub(lambda found: f"{float(found[0]):.1f}", value).split())

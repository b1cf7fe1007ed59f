"""Figures as SVG that follows the page's colours, prints, carries no style of its own, and is the same for equal numbers."""

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure as Canvas

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
SERIES = 8  # colours that can be told apart
# Stand-ins that matplotlib draws with; the page's style sheet has the colours, for light, dark and print.
INK, FAINT, PAPER, POSITIVE, NEGATIVE = "#000001", "#000002", "#000003", "#000004", "#000005"
NAMES = {INK: "ink", FAINT: "faint", PAPER: "paper", POSITIVE: "positive", NEGATIVE: "negative"}
COLOURS = [f"#0000{10 + place}" for place in range(SERIES)]
VARIABLES = {code: f"var(--{name})" for code, name in NAMES.items()} | {
    code: f"var(--series-{place})" for place, code in enumerate(COLOURS)
}
MARKERS = "osD^vP<>"
DASHES: list[Any] = ["-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5))]
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "plo", "text.parse_math": False, "axes.unicode_minus": True,
    "font.size": 9, "font.family": ["DejaVu Sans"], "axes.titlesize": 9, "axes.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": FAINT, "axes.labelcolor": INK,
    "axes.titlecolor": INK, "text.color": INK, "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK,
    "ytick.labelcolor": INK, "grid.color": FAINT, "grid.alpha": 0.25, "grid.linewidth": 0.5, "lines.linewidth": 1.3,
    "lines.markersize": 4, "legend.frameon": False, "legend.fontsize": 8, "legend.handlelength": 2.4,
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none", "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}  # fmt: skip
_DECIMALS = re.compile(r"-?\d+\.\d+(e-?\d+)?")


@dataclass(frozen=True)
class Figure:
    """A figure of the page.

    Attributes:
        key: identifier, unique on the page.
        alternative: what the picture shows, in words, for readers who do not see it.
        caption: what is drawn, with unit, number of observations and kind of interval.
    """

    key: str
    title: str
    svg: Markup
    alternative: str
    caption: str
    is_wide: bool = False


@contextmanager
def canvas(width: float = 4.7, height: float = 3.2) -> Iterator[Canvas]:
    """Open a figure of that size in inches with the page's style; `to_svg` has to be called inside the block."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # whatever a user's matplotlibrc sets
        mpl.rcParams.update(STYLE)
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's browser has the fonts
        warnings.filterwarnings("ignore", "constrained_layout not applied")
        quiet, before = logging.getLogger("matplotlib"), logging.getLogger("matplotlib").level
        quiet.setLevel(logging.ERROR)
        try:
            yield Canvas(figsize=(width, height), layout="constrained")
        finally:
            quiet.setLevel(before)


def to_svg(drawn: Canvas, key: str, alternative: str) -> Markup:
    """Return the figure as an `<svg>` element for an HTML page, with identifiers that begin with `key`.

    Colours become the variables of the page's style sheet. Styles become attributes, because a Content-Security-Policy without
    'unsafe-inline' refuses `style="..."`.
    """
    buffer = io.StringIO()
    drawn.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in list(root.iter()):
        parent.tail = None
        if parent.tag != f"{{{SVG}}}text":
            parent.text = None
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    referenced = set(re.findall(r"#([\w-]+)", " ".join(_values(root))))
    for element in root.iter():
        _restyle(element, key, referenced)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": alternative, "stroke-linejoin": "round", "stroke-linecap": "butt"}
    ElementTree.register_namespace("", SVG)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _values(root: ElementTree.Element) -> Iterator[str]:
    for element in root.iter():
        for name, value in element.attrib.items():
            if name == f"{{{XLINK}}}href" or "url(" in value:
                yield value


def _restyle(element: ElementTree.Element, key: str, referenced: set[str]) -> None:
    style = element.attrib.pop("style", "")
    for name, value in (part.split(":", 1) for part in style.split(";") if ":" in part):
        element.set(name.strip(), value.strip())
    element.attrib.pop("font-family", None)  # the page has its own
    own = element.attrib.pop("id", "")
    if own in referenced:
        element.set("id", f"{key}-{own}")
    if link := element.attrib.pop(f"{{{XLINK}}}href", ""):
        element.set("href", f"#{key}-{link[1:]}")
    for name, value in element.attrib.items():
        if value in VARIABLES:
            element.set(name, VARIABLES[value])
        elif "url(#" in value:
            element.set(name, value.replace("url(#", f"url(#{key}-"))
        elif name in ("d", "x", "y", "transform"):
            element.set(name, " ".join(_DECIMALS.sub(_short, value).split()))


def _short(number: re.Match[str]) -> str:
    """Return a coordinate to a hundredth of a point, without the zeros at its end."""
    return f"{float(number[0]):.2f}".rstrip("0").rstrip(".")

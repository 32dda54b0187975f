"""What all figures look like, and how they become PNG files with the same bytes each time."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator

from core.ml.analysis.figures.base import Data
from core.ml.analysis.inputs import Role

DPI = 120
#: Of the palette of Okabe and Ito, which people with any colour vision can tell apart.
COLOURS = {Role.STUDENT: "#0072B2", Role.TEACHER: "#D55E00", Role.BASELINE: "#009E73"}
FROZEN_COLOUR = "#7F7F7F"
GRID_COLOUR = "#D9D9D9"
LABELS = {
    Role.STUDENT: "student",
    Role.TEACHER: "teacher",
    Role.BASELINE: "student without teacher",
}

_NAME_CHARS = 20
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID_COLOUR,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.titlesize": 12,
    "figure.facecolor": "white",
    "figure.constrained_layout.h_pad": 0.08,  # inches
    "figure.constrained_layout.w_pad": 0.08,
    "lines.linewidth": 1.6,
    "text.parse_math": False,  # a class may be called "$5"
}


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure as data and as a picture.

    Attributes:
        data: JSON values: everything that the picture shows, and more.
        figure: the picture, not yet rendered.
    """

    data: Data
    figure: Figure


@contextmanager
def styled() -> Iterator[None]:
    """Draw in this style within the context, whatever the user's own settings are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(cast(Any, _STYLE))  # its type lists every key
        yield


def new_figure(width_in: float, height_in: float) -> Figure:
    """Return an empty figure that lays itself out, without pyplot's global state."""
    figure = Figure(figsize=(width_in, height_in), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Figure) -> bytes:
    """Return the picture; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    # No name and version of the program that wrote it: they would change the bytes.
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def class_labels(classes: Sequence[str]) -> list[str]:
    """Return class names as they can be drawn: shortened, or by number if letters are missing."""
    return [class_label(name, index) for index, name in enumerate(classes)]


def class_label(name: str, index: int) -> str:
    """Return one class name as it can be drawn.

    Args:
        name: the class.
        index: its number, shown where the font lacks a letter of the name.
    """
    name = " ".join(name.split())
    if not name or not _letters().issuperset(map(ord, name)):
        return f"class {index}"
    return shorten(name)


def shorten(name: str, limit: int = _NAME_CHARS) -> str:
    """Return a name of at most `limit` characters, its middle left out where it is longer."""
    if len(name) <= limit:
        return name
    head = (limit - 1) // 2
    return f"{name[:head]}…{name[len(name) - (limit - 1 - head) :]}"


def count_epochs_on(axes: Axes) -> None:
    """Label the x axis with whole epochs."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def spread_colours(count: int) -> list[tuple[float, float, float, float]]:
    """Return `count` colours: ones that differ clearly up to 20, a rainbow beyond."""
    if count <= 10:  # noqa: PLR2004
        table = mpl.colormaps["tab10"](np.arange(10))
    elif count <= 20:  # noqa: PLR2004
        table = mpl.colormaps["tab20"](np.arange(20))
    else:
        table = mpl.colormaps["gist_rainbow"].resampled(count)(np.arange(count))
    return [(float(r), float(g), float(b), float(a)) for r, g, b, a in table[:count]]


def percent(share: float) -> str:
    """Return a share as people read it."""
    return f"{100 * share:.1f} %"


@cache
def _letters() -> frozenset[int]:
    path = findfont(FontProperties(family="DejaVu Sans"))
    return frozenset(get_font(path).get_charmap())

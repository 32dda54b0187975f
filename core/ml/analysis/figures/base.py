"""What a figure is, and what it may say instead of being one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

Options = Mapping[str, Any]
Data = dict[str, Any]


class NotAvailableError(Exception):
    """This figure cannot be made of this run; the message is a sentence that says why."""


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure as data and as a picture.

    Attributes:
        data: JSON values: everything that the picture shows, and more.
        figure: the picture, not yet rendered.
    """

    data: Data
    figure: Figure

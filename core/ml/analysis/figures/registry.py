"""Make a figure by name; whatever happens, the answer is a document and never an exception."""

import json
import logging
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from core.catalog.figures import FigureName, FigureStatus
from core.ml.analysis.figures.base import NotAvailableError, Options
from core.ml.analysis.inputs import AnalysisInputs

logger = logging.getLogger(__name__)

FIGURE_VERSION = 1
_PACKAGE = "core.ml.analysis.figures"


@dataclass(frozen=True)
class BuiltFigure:
    """A figure that was asked for.

    Attributes:
        name: which.
        status: whether it could be made.
        reason: why not; empty if it could.
        document: its JSON file.
        png: its picture; None if it could not be made.
    """

    name: FigureName
    status: FigureStatus
    reason: str
    document: bytes
    png: bytes | None


def build_figure(name: FigureName, inputs: AnalysisInputs, options: Options) -> BuiltFigure:
    """Make one figure.

    A figure that this run cannot have is `not_available`; one that breaks is `failed`, with the
    whole error in the log: the trained model must not be lost over a picture of it.

    Args:
        name: which.
        inputs: the run.
        options: what `core.catalog.figures` lists for it.
    """
    try:
        # Not before: matplotlib is loaded for those who want a figure.
        style = import_module(f"{_PACKAGE}.style")
        module = import_module(f"{_PACKAGE}.{name.value}")
        with style.styled():
            drawing = module.build(inputs, options)
            png: bytes = style.to_png(drawing.figure)
        body = {"status": FigureStatus.READY.value, "data": drawing.data}
        return BuiltFigure(name, FigureStatus.READY, "", _document(name, body), png)
    except NotAvailableError as error:
        status, reason = FigureStatus.NOT_AVAILABLE, str(error)
    except Exception as error:
        logger.exception("the figure %s broke", name.value)
        status, reason = FigureStatus.FAILED, f"it broke while it was made: {error!r}"
    document = _document(name, {"status": status.value, "reason": reason})
    return BuiltFigure(name, status, reason, document, None)


def _document(name: FigureName, body: dict[str, Any]) -> bytes:
    whole = {"object": "model.figure", "name": name.value, "version": FIGURE_VERSION, **body}
    return (json.dumps(whole, ensure_ascii=False, allow_nan=False) + "\n").encode()

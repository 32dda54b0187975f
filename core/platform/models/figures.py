"""The evaluation and the figures of a model, as its row knows them."""

from dataclasses import dataclass

from core.catalog.figures import FIGURES, FigureName, FigureStatus
from core.errors import NotFoundError
from core.platform.db.tables import ModelRow


@dataclass(frozen=True)
class StoredFigure:
    """A figure that the model's job asked for.

    Attributes:
        name: which.
        status: whether it could be made.
        reason: why not; None if it could.
        json_sha256: its data, or the reason as a document.
        png_sha256: its picture; None if it could not be made.
    """

    name: FigureName
    status: FigureStatus
    reason: str | None
    json_sha256: str
    png_sha256: str | None


def get_evaluation(model: ModelRow) -> str:
    """Return the SHA-256 of a model's evaluation.

    Raises:
        NotFoundError: the model was made before there were any.
    """
    if model.evaluation_sha256 is None:
        raise NotFoundError(
            f"{model.id} was trained by a release that did not evaluate models; train it again "
            "to have an evaluation",
            code="evaluation_not_found",
        )
    return model.evaluation_sha256


def list_figures(model: ModelRow) -> list[StoredFigure]:
    """Return the figures that the model's job asked for, in the catalog's order."""
    stored = model.figures or {}
    return [_read(name, stored[name.value]) for name in FIGURES if name.value in stored]


def get_figure(model: ModelRow, name: str) -> StoredFigure:
    """Return one figure of a model.

    Raises:
        NotFoundError: there is no such figure, or the job did not ask for it.
    """
    for figure in list_figures(model):
        if figure.name == name:
            return figure
    if name not in set(FigureName):
        names = ", ".join(figure.value for figure in FIGURES)
        message = f"there is no figure {name!r}; there are {names}"
    else:
        message = (
            f"the figure {name!r} of {model.id} was not asked for; name it in `figures` when the "
            "job is created"
        )
    raise NotFoundError(message, code="figure_not_found")


def get_picture(model: ModelRow, figure: StoredFigure) -> str:
    """Return the SHA-256 of a figure's picture.

    Raises:
        NotFoundError: it could not be made.
    """
    if figure.png_sha256 is None:
        raise NotFoundError(
            f"the figure {figure.name.value!r} of {model.id} has no picture: {figure.reason}",
            code=f"figure_{figure.status.value}",
        )
    return figure.png_sha256


def _read(name: FigureName, stored: object) -> StoredFigure:
    assert isinstance(stored, dict), "as the worker writes it"
    return StoredFigure(
        name=name,
        status=FigureStatus(stored["status"]),
        reason=stored["reason"],
        json_sha256=stored["json_sha256"],
        png_sha256=stored["png_sha256"],
    )

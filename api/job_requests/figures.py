"""Which figures a request asks for."""

from typing import Any

from api.job_requests.problems import quote
from api.schemas.jobs import FigureRequest
from core.catalog.figures import FIGURES, FigureName
from core.errors import FieldError


def resolve_figures(wanted: list[FigureRequest], errors: list[FieldError]) -> list[dict[str, Any]]:
    """Return every figure with the options that were given for it."""
    figures: dict[str, dict[str, Any]] = {}
    for index, request in enumerate(wanted):
        pointer, name = f"/figures/{index}", request.name
        if name not in set(FigureName):
            message = f"there is no figure {name!r}; allowed: {quote(FigureName)}"
            errors.append(FieldError(pointer, message, "unknown_figure"))
            continue
        if name in figures:
            message = f"{name!r} is asked for twice; a model has one figure of each name"
            errors.append(FieldError(pointer, message, "duplicate"))
            continue
        options = request.model_dump(exclude={"name"}, exclude_none=True)
        for option in options.keys() - FIGURES[FigureName(name)].options.keys():
            message = f"the figure {name!r} has no such option"
            errors.append(FieldError(f"{pointer}/{option}", message, "not_allowed"))
        figures[name] = {"name": name, **options}
    return list(figures.values())

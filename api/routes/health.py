"""Liveness and readiness, for whoever routes traffic here. Open to everybody."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError

from api.deps import Services, ServicesDep
from api.errors import build_problem
from api.schemas.problems import problems
from core.errors import AppError
from core.platform.db.migrate import find_revision, head_revision, is_workable

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def get_health() -> dict[str, str]:
    """Tell that this process runs and answers; nothing else is looked at."""
    return {"status": "ok"}


@router.get("/readyz", responses=problems(), response_model=dict[str, str])
def get_readiness(request: Request, services: ServicesDep) -> JSONResponse:
    """Tell whether requests can be served: database, schema, store, inference engine.

    Inference is ready once its backbones are loaded, and not any more once the process drains.
    """
    request_id = request.state.request_id
    is_draining = request.app.state.lifecycle.is_draining
    faults = {
        "process": "it is about to stop, and finishes what it has accepted"
        if is_draining
        else None,
        "database": _find_database_fault(services),
        "store": _find_store_fault(services),
        "inference": services.inference.find_fault() if services.inference else None,
    }
    reasons = {part: fault for part, fault in faults.items() if fault is not None}
    if not reasons:
        return JSONResponse({"status": "ready"})
    errors = [
        {"code": f"{part}_not_ready", "message": fault} for part, fault in sorted(reasons.items())
    ]
    detail = "; ".join(f"{part}: {fault}" for part, fault in sorted(reasons.items()))
    headers = {"Retry-After": "5"}
    return build_problem(request_id, 503, detail, "not_ready", errors=errors, headers=headers)


def _find_database_fault(services: Services) -> str | None:
    try:
        with services.database.read() as session:
            revision = find_revision(session)
    except SQLAlchemyError as error:
        return f"cannot be reached ({type(error).__name__})"
    if not is_workable(revision):
        return (
            f"its schema is at revision {revision or 'none'}, this release needs "
            f"{head_revision()}; run: python -m migrations upgrade"
        )
    return None


def _find_store_fault(services: Services) -> str | None:
    try:
        services.store.check()
    except (OSError, AppError) as error:
        return f"cannot be written ({error})"
    return None

"""What the workers' sweeps put right and freed, for operators."""

import re

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError

from api.deps import DatabaseDep
from api.pagination import Page, PageDep
from api.schemas.maintenance import Sweep
from api.schemas.problems import problems
from core.platform.collection.log import list_sweeps

router = APIRouter(prefix="/v1/maintenance", tags=["maintenance"])

_SWEEP_ID = re.compile(r"swp_([0-9]{1,18})")


@router.get("", responses=problems(422))
def list_maintenance(database: DatabaseDep, page: PageDep) -> Page[Sweep]:
    """List the sweeps of the last seven days that had something to tell, newest first."""
    with database.read() as session:
        rows = list_sweeps(
            session,
            after=_parse_sweep_id(page.after),
            limit=page.limit + 1,
            descending=page.descending,
        )
    return page.build_page(rows, Sweep.from_row)


def _parse_sweep_id(after: str | None) -> int:
    if after is None:
        return 0
    match = _SWEEP_ID.fullmatch(after)
    if match is None:
        detail = {"type": "sweep_id", "loc": ("query", "after"), "msg": "must be an id like swp_42"}
        raise RequestValidationError([detail])
    return int(match[1])

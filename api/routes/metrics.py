"""What Prometheus scrapes."""

from fastapi import APIRouter, Request, Response
from prometheus_client.exposition import choose_encoder

from api.deps import ProjectDep
from api.errors import ForbiddenError
from api.schemas.problems import problems
from core.types import DEFAULT_PROJECT

router = APIRouter(tags=["health"])


@router.get("/metrics", response_class=Response, responses=problems(403))
def get_metrics(request: Request, project: ProjectDep) -> Response:
    """Give the metrics of this process, in the format of Prometheus or of OpenMetrics.

    They tell of all projects, so only a key of the project `default` opens them; no key does where
    the API needs none.
    """
    if project != DEFAULT_PROJECT:
        raise ForbiddenError(
            "metrics tell of all projects; scrape them with a key of the project "
            f"{DEFAULT_PROJECT!r}, an entry of IDAT_API_KEYS without a project's name"
        )
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(request.app.state.metrics), headers={"Content-Type": content_type})

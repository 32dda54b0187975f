"""What a route may ask for: the services opened at start, as annotated parameters."""

from dataclasses import dataclass
from typing import Annotated, Protocol, cast

from fastapi import Depends, Path, Request

from api.errors import wrong_type
from api.metrics import ServingMetrics
from api.schemas.fields import ALIAS_PATTERN, MODEL_REFERENCE_PATTERN, SLUG_PATTERN
from core.platform.db.engine import Database
from core.platform.doorbell import Doorbell
from core.platform.storage.base import BlobStore
from core.settings import Settings


class ReadinessProbe(Protocol):
    """The inference engine as readiness sees it; the rest of it is known to `api.inference`."""

    @property
    def metrics(self) -> ServingMetrics:
        """What it counts."""

    async def start(self) -> None:
        """Begin, on the event loop that requests will run on."""

    def find_fault(self) -> str | None:
        """Return why no image can be classified now, or None."""

    def check_admission(self, project: str, reference: str | None) -> None:
        """Raise what a request for the model with this reference would end with anyhow."""

    def close(self) -> None:
        """End the threads."""


@dataclass(frozen=True)
class Services:
    """Everything that a process of the API holds open.

    Attributes:
        settings: what it was started with.
        database: the truth.
        store: the blobs.
        doorbell: wakes workers.
        inference: the inference engine, None without that role.
    """

    settings: Settings
    database: Database
    store: BlobStore
    doorbell: Doorbell
    inference: ReadinessProbe | None = None


# These are coroutines although they wait for nothing: FastAPI would run functions in threads, which
# costs many times what they do.


async def get_services(request: Request) -> Services:
    """Return what the lifespan opened."""
    return services_of(request)


async def _get_settings(request: Request) -> Settings:
    return services_of(request).settings


async def _get_database(request: Request) -> Database:
    return services_of(request).database


async def _get_store(request: Request) -> BlobStore:
    return services_of(request).store


async def _get_doorbell(request: Request) -> Doorbell:
    return services_of(request).doorbell


async def get_project(request: Request) -> str:
    """Return the project that the request's key opens; `api.auth` has put it there."""
    return project_of(request)


def services_of(request: Request) -> Services:
    """Return what the lifespan opened, to a route that cannot afford a dependency."""
    return cast(Services, request.app.state.services)


def project_of(request: Request) -> str:
    """Return what `ProjectDep` gives, likewise."""
    return cast(str, request.state.project)


async def require_json(request: Request) -> None:
    """Refuse a body that does not say that it is JSON.

    Raises:
        UnsupportedTypeError: it says something else, or nothing.
    """
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise wrong_type("application/json", content_type)


ServicesDep = Annotated[Services, Depends(get_services)]
SettingsDep = Annotated[Settings, Depends(_get_settings)]
DatabaseDep = Annotated[Database, Depends(_get_database)]
StoreDep = Annotated[BlobStore, Depends(_get_store)]
DoorbellDep = Annotated[Doorbell, Depends(_get_doorbell)]
#: Whose things a route may see and change: nothing of any other project.
ProjectDep = Annotated[str, Depends(get_project)]

#: An id, or a model's name, in a path. The pattern keeps bytes out that no database would take.
ReferencePath = Annotated[str, Path(pattern=SLUG_PATTERN)]

#: What may name a model in a path.
ModelPath = Annotated[
    str, Path(pattern=MODEL_REFERENCE_PATTERN, description="Id, name (its newest), or name@alias.")
]
AliasPath = Annotated[str, Path(pattern=ALIAS_PATTERN)]

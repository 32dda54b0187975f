"""The application: opens the services at start, wires middleware, handlers and routes."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi_offline import FastAPIOffline
from prometheus_client import CollectorRegistry, ProcessCollector
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware

from api import errors
from api.auth import DOCS_ASSETS, OPEN_PATHS, AuthMiddleware
from api.control_metrics import ControlMetrics
from api.deps import ReadinessProbe, Services
from api.gate import InferenceGateMiddleware
from api.lifecycle import Lifecycle
from api.middleware import BodyCapMiddleware, HeadMiddleware, RequestContextMiddleware
from api.oip.errors import OipErrorMiddleware
from api.routes import (
    aliases,
    batch_predictions,
    datasets,
    exports,
    health,
    job_control,
    jobs,
    maintenance,
    methods,
    metrics,
    models,
    projects,
    webhook_endpoints,
)
from api.schemas.problems import Problem
from core.platform.collection.scratch import remove_abandoned_uploads
from core.platform.db.engine import Database
from core.platform.doorbell import Doorbell, QueuedDoorbell, build_doorbell
from core.platform.storage.base import BlobStore
from core.platform.storage.factory import build_store
from core.settings import Settings

logger = logging.getLogger(__name__)

VERSION = "0.1.0"
_DESCRIPTION = """\
Upload images in class folders, fine-tune a network on them with iDAT (or plain adapters), download
the small adapter or classify with it here.

Every failure is an `application/problem+json` document with a stable `code`; lists come in pages
(`?after=&limit=&order=`); creating requests take an `Idempotency-Key`.
"""
_TAGS = [
    {"name": "datasets", "description": "Archives of images, and the datasets made of them."},
    {"name": "fine-tuning", "description": "Jobs, what they may be, and how they go."},
    {"name": "models", "description": "Trained adapters, to show and to download."},
    {"name": "inference", "description": "Classify images, and their features."},
    {
        "name": "open inference protocol",
        "description": 'v2, as KServe, Triton and MLServer speak it; failures are `{"error"}`.',
    },
    {"name": "mlflow", "description": "MLflow's scoring protocol, for one model."},
    {"name": "webhooks", "description": "Who is told when jobs and datasets are done."},
    {"name": "projects", "description": "The project of the key that is used."},
    {"name": "maintenance", "description": "What the workers put right and freed."},
    {"name": "health", "description": "For whoever routes traffic here."},
]


class UnsafeBindingError(ValueError):
    """The server would be open to the network without any key."""


def create_app(settings: Settings) -> FastAPI:
    """Build the application.

    Raises:
        UnsafeBindingError: the host is not loopback and there are no API keys.
        InvalidError: the storage URL is not supported (raised when the application starts).
    """
    if not settings.is_loopback and not settings.api_keys:
        raise UnsafeBindingError(
            f"IDAT_HOST={settings.host} can be reached from other machines: set IDAT_API_KEYS to "
            "one or more secret keys, or bind 127.0.0.1"
        )
    lifecycle = Lifecycle()
    # Its pages bring their scripts along: a host without internet access has documentation too.
    app = FastAPIOffline(
        static_url=DOCS_ASSETS,
        title="iDAT fine-tuning service",
        version=VERSION,
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        lifespan=_lifespan,
        redirect_slashes=False,
        middleware=[
            Middleware(OipErrorMiddleware),
            Middleware(RequestContextMiddleware),
            Middleware(AuthMiddleware, settings=settings),
            Middleware(InferenceGateMiddleware, settings=settings, lifecycle=lifecycle),
            Middleware(BodyCapMiddleware),
            Middleware(HeadMiddleware),
            *_build_direct(settings),
        ],
        # Nothing here takes part in traces, and asking for every request whether it should costs.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.settings = settings
    app.state.lifecycle = lifecycle
    errors.install(app)
    if "inference" in settings.roles:
        # By name: importing it loads torch, which the control role lives without. And first: routes
        # are tried in their order, and classify is asked more often than all others together.
        for name in (
            "classify",
            "embeddings",
            "oip",
            "repository",
            "invocations",
            "merged",
            "onnx",
            "imports",
        ):
            route = import_module(f"api.routes.{name}")
            app.include_router(route.router)
    app.include_router(health.router)
    app.include_router(metrics.router)
    if "control" in settings.roles:
        for module in (
            datasets,
            methods,
            jobs,
            job_control,
            models,
            aliases,
            exports,
            batch_predictions,
            webhook_endpoints,
            projects,
            maintenance,
        ):
            app.include_router(module.router)
    app.openapi = lambda: _build_openapi(app)  # type: ignore[method-assign]  # FastAPI's own way
    return app


def _build_direct(settings: Settings) -> list[Middleware]:
    if "inference" not in settings.roles:
        return []
    return [Middleware(import_module("api.routes.classify").DirectClassifyMiddleware)]


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    settings.scratch_dir.mkdir(parents=True, exist_ok=True)
    for path in remove_abandoned_uploads(settings.scratch_dir):
        logger.info("removed %s, left by an upload whose process was killed", path.name)
    database = Database(settings.resolved_database_url)
    try:
        store = build_store(settings)
        app.state.services = Services(
            settings=settings,
            database=database,
            store=store,
            doorbell=_build_doorbell(settings),
            inference=await run_in_threadpool(_build_inference, settings, store, database),
        )
        app.state.metrics = _build_metrics(app.state.services)
        if app.state.services.inference is not None:
            await app.state.services.inference.start()
        yield
    finally:
        services = getattr(app.state, "services", None)
        if services is not None and services.inference is not None:
            await run_in_threadpool(services.inference.close)
        database.dispose()


def _build_metrics(services: Services) -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    if "control" in services.settings.roles:
        registry.register(ControlMetrics(services.database))
    if services.inference is not None:
        registry.register(services.inference.metrics.registry)
    return registry


def _build_doorbell(settings: Settings) -> Doorbell:
    doorbell = build_doorbell(
        settings.broker_url, visibility_timeout_s=settings.broker_visibility_timeout_s
    )
    return QueuedDoorbell(doorbell) if settings.broker_url else doorbell


def _build_inference(
    settings: Settings, store: BlobStore, database: Database
) -> ReadinessProbe | None:
    if "inference" not in settings.roles:
        return None
    build = import_module("api.inference").InferenceEngine
    engine: ReadinessProbe = build(settings, store, database)
    return engine


def _build_openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            tags=app.openapi_tags,
            routes=app.routes,
        )
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(problem.pop("$defs"))
        schemas["Problem"] = problem
        _document_keys(schema)
        app.openapi_schema = schema
    return app.openapi_schema


def _document_keys(schema: dict[str, Any]) -> None:
    """Say which operations want a key.

    As a dependency of the routes it would cost every request, and decide nothing.
    """
    schemes = schema["components"].setdefault("securitySchemes", {})
    schemes["HTTPBearer"] = {"type": "http", "scheme": "bearer"}
    for path, operations in schema["paths"].items():
        if path not in OPEN_PATHS:
            for operation in operations.values():
                operation["security"] = [{"HTTPBearer": []}]

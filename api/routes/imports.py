"""Publish a model that was made elsewhere. Served with the `inference` role, which has torch."""

from dataclasses import dataclass
from typing import IO, Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from sqlalchemy.orm import Session

from api.bundle_uploads import ReceivedModel, receive_model
from api.deps import ProjectDep, Services, ServicesDep
from api.idempotency import (
    REPLAYED_HEADER,
    IdempotencyKey,
    ProjectKey,
    create_once,
    digest_request,
    find_created,
)
from api.schemas.fields import Slug
from api.schemas.models import Model
from api.schemas.problems import problems
from api.serving import EngineDep
from core.errors import FieldError, InvalidError, UnavailableError
from core.ml.export.bundle import Bundle
from core.ml.export.card import build_card
from core.ml.export.imported import check_format, parse_import
from core.platform.collection.naming import BlobCollectedError, ensure_stored
from core.platform.db.tables import ModelRow
from core.platform.models import repository
from core.platform.models.bundle_zip import ADAPTER_NAME, CONFIG_NAME, read_bundle
from core.platform.models.imports import ImportedModel, add_imported

router = APIRouter(tags=["models"])

PATH = "/v1/models:import"

_MAX_CONFIG_BYTES = 8 << 20
_DIGEST_FIELDS = {"adapter": "adapter_sha256", "config": "config_sha256"}
#: A large adapter takes several times its size in memory while it is checked.
_checking = CapacityLimiter(1)

_FILE = {"type": "string", "format": "binary"}
_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": {"type": "string", "description": "What to call the model."},
                        "adapter": {**_FILE, "description": "`adapter.safetensors`."},
                        "config": {**_FILE, "description": "`config.json`."},
                        "bundle": {
                            **_FILE,
                            "description": "Both of them in a zip or a plain tar, as "
                            "`GET /v1/models/{id}/bundle` sends them.",
                        },
                        "adapter_sha256": {"type": "string", "description": "To be checked."},
                        "config_sha256": {"type": "string", "description": "To be checked."},
                    },
                }
            }
        },
    }
}


class _Fields(BaseModel):
    name: Slug


@router.post(
    PATH,
    status_code=201,
    responses=problems(400, 409, 413, 415, 422, 507),
    openapi_extra=_FORM,
)
async def import_model(
    *,
    request: Request,
    response: Response,
    services: ServicesDep,
    engine: EngineDep,
    project: ProjectDep,
    key: IdempotencyKey,
) -> Model:
    """Publish a model from its two files, or from one archive of them.

    Names, shapes and numbers are checked against what is known of its backbone; nothing that could
    run code is read. If the backbone is in memory here, the model has to answer as it did where it
    was trained; otherwise that is checked when it is used first.
    """
    settings = services.settings
    async with receive_model(
        request, settings.scratch_dir, max_bytes=settings.max_import_bytes
    ) as received:
        fields = _parse_fields(received.fields)
        digests = await run_sync(received.digest)
        digest = digest_request(f"POST {PATH}", {"name": fields.name, **digests})
        wanted = _Import(services, project, key, digest, fields.name)
        earlier = await run_sync(wanted.find_earlier)
        if earlier is not None:
            row, is_new = earlier, False
        else:
            bundle, adapter, config = await run_sync(
                _read, received, digests, settings.max_import_bytes, limiter=_checking
            )
            await engine.check(bundle)
            row, is_new = await run_sync(wanted.publish, bundle, adapter, config)
    if not is_new:
        response.headers[REPLAYED_HEADER] = "true"
    response.headers["Location"] = f"/v1/models/{row.id}"
    return Model.from_row(row)


def _parse_fields(fields: dict[str, str]) -> _Fields:
    try:
        return _Fields.model_validate(fields)
    except ValidationError as error:
        details = [{**detail, "loc": ("body", *detail["loc"])} for detail in error.errors()]
        raise RequestValidationError(details) from error


def _read(
    received: ReceivedModel, digests: dict[str, str], max_bytes: int
) -> tuple[Bundle, bytes, bytes]:
    """Return the bundle that was received, checked, and the bytes of its two files."""
    for name, field in _DIGEST_FIELDS.items():
        told = received.fields.get(field, "").strip().lower()
        if told and name in digests and told != digests[name]:
            raise _field_error(field, f"{name} has the SHA-256 {digests[name]}", "digest_mismatch")
    if set(received.files) == {"adapter", "config"}:
        check_format(_peek(received.files["adapter"]), "the adapter")
        adapter = received.files["adapter"].read()
        config = received.files["config"].read(_MAX_CONFIG_BYTES + 1)
    elif set(received.files) == {"bundle"}:
        limits = {ADAPTER_NAME: max_bytes, CONFIG_NAME: _MAX_CONFIG_BYTES}
        files = read_bundle(received.files["bundle"], limits)
        adapter, config = files[ADAPTER_NAME], files[CONFIG_NAME]
    else:
        raise _field_error("adapter", "send adapter and config, or bundle alone", "required")
    return parse_import(adapter, config), adapter, config


@dataclass(frozen=True)
class _Import:
    """A request whose files have arrived."""

    services: Services
    project: str
    key: ProjectKey | None
    digest: str
    name: str

    def find_earlier(self) -> ModelRow | None:
        """Return the model that the same request has made before."""
        return find_created(self.services.database, self.key, self.digest, self._load)

    def publish(self, bundle: Bundle, adapter: bytes, config: bytes) -> tuple[ModelRow, bool]:
        """Store the files and add the model's row; return it and whether it is new.

        Raises:
            UnavailableError: the bytes were collected between being stored and being named.
        """
        store = self.services.store
        # Written here, and not taken from the archive: others will read it.
        card = build_card(self.name, bundle.config)
        model = ImportedModel(
            name=self.name,
            backbone=bundle.backbone.name,
            classes=bundle.classes,
            metrics=bundle.config["metrics"],
            adapter_sha256=store.put_bytes(adapter).sha256,
            adapter_bytes=len(adapter),
            config_sha256=store.put_bytes(config).sha256,
            card_sha256=store.put_bytes(card.encode()).sha256,
        )

        def create(session: Session) -> tuple[str, ModelRow]:
            blobs = (model.adapter_sha256, model.config_sha256, model.card_sha256)
            ensure_stored(session, store, *blobs)
            row = add_imported(session, model, project=self.project)
            return row.id, row

        database = self.services.database
        try:
            return create_once(database, self.key, self.digest, create=create, load=self._load)
        except BlobCollectedError as error:
            raise UnavailableError(
                "the same files, of a model that is gone, were being removed just now; send the "
                "request again",
                code="model_collected",
            ) from error

    def _load(self, session: Session, model_id: str) -> ModelRow:
        return repository.get_model(session, model_id, project=self.project)


def _peek(file: IO[bytes]) -> bytes:
    start = file.read(8)
    file.seek(0)
    return start


def _field_error(name: str, message: str, code: str) -> InvalidError:
    field = FieldError(f"/{name}", message, code)
    return InvalidError(f"form field {name!r}: {message}", code=code, fields=(field,))

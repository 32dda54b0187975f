"""A model as one archive, to be kept, moved or imported elsewhere."""

import hashlib
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from api.deps import DatabaseDep, ModelPath, ProjectDep, SettingsDep, StoreDep
from api.downloads import find_unchanged, send_file
from api.schemas.problems import problems
from api.uploads import disk_errors
from core.platform.db.tables import ModelRow
from core.platform.models import repository
from core.platform.models.bundle_zip import ADAPTER_NAME, CARD_NAME, CONFIG_NAME, write_bundle
from core.platform.storage.base import BlobStore

router = APIRouter(prefix="/v1/models", tags=["models"])

_TYPE = "application/zip"


@router.get(
    "/{model}/bundle",
    response_class=FileResponse,
    responses={
        **problems(404, 507),
        200: {"content": {_TYPE: {}}, "description": "The archive."},
        206: {"description": "The part that `Range` asked for."},
        304: {"description": "`If-None-Match` names this very file."},
        **{status: problems(status)[status] for status in (400, 416)},
    },
)
def download_bundle(
    *,
    request: Request,
    database: DatabaseDep,
    project: ProjectDep,
    settings: SettingsDep,
    store: StoreDep,
    model: ModelPath,
) -> Response:
    """Download `adapter.safetensors`, `config.json` and the card as one zip, without compression.

    The same model has the same bytes. `POST /v1/models:import` reads it.
    """
    with database.read() as session:
        row = repository.get_model(session, model, project=project)
    digests = (row.adapter_sha256, row.config_sha256, row.card_sha256)
    etag = f'"{hashlib.sha256("".join(digests).encode()).hexdigest()}"'
    return find_unchanged(request, etag) or send_file(
        _build_zip(store, row, settings.scratch_dir),
        etag=etag,
        media_type=_TYPE,
        file_name=f"{row.name}.zip",
    )


def _build_zip(store: BlobStore, row: ModelRow, scratch_dir: Path) -> IO[bytes]:
    """Return the archive as a file without a name, which goes when it is closed."""
    blobs = {
        ADAPTER_NAME: row.adapter_sha256,
        CONFIG_NAME: row.config_sha256,
        CARD_NAME: row.card_sha256,
    }
    with ExitStack() as stack, disk_errors():
        files = {name: stack.enter_context(store.open(digest)) for name, digest in blobs.items()}
        out = tempfile.TemporaryFile(dir=scratch_dir)  # noqa: SIM115 - the answer closes it
        try:
            write_bundle(out, files)
        except BaseException:
            out.close()
            raise
        out.flush()
        return out

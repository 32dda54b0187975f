"""One server process for all tests here, with models of two names."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from core.catalog.methods import AdapterKind
from core.platform.db.engine import Database
from core.platform.db.migrate import upgrade_to_head
from core.platform.models.aliases import Target, set_alias
from core.platform.storage.factory import build_store
from core.settings import Settings
from tests.integration.inference.published import ANIMALS, BIRDS, Published, publish
from tests.integration.inference.server import run_server

MAX_IMAGE_BYTES = 200_000


@dataclass(frozen=True)
class Server:
    """A running server and what it serves.

    Attributes:
        url: without a slash at its end.
        client: bound to it.
        old: the first version of `animals`; `animals@production` points at it.
        new: the second, which `animals` means.
        birds: of another name, and another kind of adapter.
        foreign_id: a model of another project.
    """

    url: str
    client: httpx.Client
    old: Published
    new: Published
    birds: Published
    foreign_id: str

    @property
    def host(self) -> str:
        """Host and port."""
        return self.url.removeprefix("http://")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server process with three models."""
    data_dir = tmp_path_factory.mktemp("serving")
    settings = Settings.model_validate({"data_dir": data_dir})
    upgrade_to_head(settings.resolved_database_url)
    settings.scratch_dir.mkdir(parents=True, exist_ok=True)
    database = Database(settings.resolved_database_url)
    store = build_store(settings)

    def add(model_id: str, name: str, classes: list[str], **options: object) -> Published:
        folder: Path = data_dir / "bundles" / model_id
        return publish(
            database,
            store,
            folder,
            model_id=model_id,
            name=name,
            classes=classes,
            **options,  # type: ignore[arg-type]  # passed on as they came
        )

    try:
        old = add("mdl_old", "animals", ANIMALS, seed=3)
        new = add("mdl_new", "animals", ANIMALS, seed=4)
        birds = add("mdl_birds", "birds", BIRDS, kind=AdapterKind.LORA, seed=5)
        foreign = add("mdl_foreign", "secrets", BIRDS, seed=6, project="other")
        with database.write() as session:
            set_alias(session, "animals", "production", Target("mdl_old"))
    finally:
        database.dispose()
    changes = {
        "IDAT_MAX_IMAGE_BYTES": str(MAX_IMAGE_BYTES),
        "IDAT_INVOCATIONS_MODEL": "animals",
        "IDAT_INFERENCE_PRECISION": "fp32",
    }
    with (
        run_server(data_dir, **changes) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield Server(url, client, old, new, birds, foreign.id)


@pytest.fixture
def client(server: Server) -> httpx.Client:
    """A plain client of the server."""
    return server.client

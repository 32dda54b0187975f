"""An API over a database and a store of its own, in this process."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from core.platform.db.migrate import upgrade_to_head
from core.settings import Settings
from tests.integration.api.rig import TESTS_URL, Rig


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty SQLite file to copy."""
    path = tmp_path_factory.mktemp("template") / "idat.db"
    upgrade_to_head(f"sqlite:///{path}")
    return path


@pytest.fixture
def data_dir(tmp_path: Path, migrated_database: Path) -> Path:
    """A data folder with an empty database."""
    folder = tmp_path / "data"
    folder.mkdir()
    shutil.copyfile(migrated_database, folder / "idat.db")
    return folder


@pytest.fixture
def start_rig(data_dir: Path) -> Iterator[Callable[..., Rig]]:
    """Start an API with some settings changed."""
    clients: list[TestClient] = []

    def start(*, headers: dict[str, str] | None = None, **changes: object) -> Rig:
        settings = Settings.model_validate({"data_dir": data_dir, "roles": ["control"], **changes})
        app = create_app(settings)
        client = TestClient(app, base_url=TESTS_URL, headers=headers)
        client.__enter__()
        clients.append(client)
        return Rig(settings, app, client, app.state.services.database)

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def rig(start_rig: Callable[..., Rig]) -> Rig:
    """An API of the control role."""
    return start_rig()

"""A data folder with two models, for processes that are started by the tests."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from core.catalog.methods import AdapterKind
from core.platform.db.engine import Database
from core.platform.db.migrate import upgrade_to_head
from core.platform.storage.factory import build_store
from core.settings import Settings
from tests.integration.inference.published import ANIMALS, BIRDS, Published, publish


@dataclass(frozen=True)
class Site:
    """Attributes: data_dir: of the service; animals, birds: its models."""

    data_dir: Path
    animals: Published
    birds: Published


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A database and a store with two models."""
    data_dir = tmp_path_factory.mktemp("split")
    settings = Settings.model_validate({"data_dir": data_dir})
    upgrade_to_head(settings.resolved_database_url)
    database = Database(settings.resolved_database_url)
    store = build_store(settings)
    try:
        animals = publish(
            database,
            store,
            data_dir / "bundles" / "animals",
            model_id="mdl_animals",
            name="animals",
            classes=ANIMALS,
            seed=3,
        )
        birds = publish(
            database,
            store,
            data_dir / "bundles" / "birds",
            model_id="mdl_birds",
            name="birds",
            classes=BIRDS,
            kind=AdapterKind.LORA,
            seed=5,
        )
    finally:
        database.dispose()
    return Site(data_dir, animals, birds)

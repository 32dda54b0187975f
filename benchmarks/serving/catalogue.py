"""Put a stock's models where this service finds them: a database and a store of their own."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.serving.models import Stock
from core.platform.db.engine import Database
from core.platform.db.migrate import upgrade_to_head
from core.platform.db.tables import ModelRow
from core.platform.storage.factory import build_store
from core.settings import Settings


def fill_catalogue(stock: Stock, models: int, folder: Path, projects: Sequence[str]) -> list[str]:
    """Publish the first models of a stock, for projects in turn; return their ids, in order."""
    folder.mkdir(parents=True)
    settings = Settings(data_dir=folder)
    upgrade_to_head(settings.resolved_database_url)
    store = build_store(settings)
    database = Database(settings.resolved_database_url)
    names = [f"mdl_{index:04d}" for index in range(models)]
    classes = [f"class {index:03d}" for index in range(stock.classes)]
    try:
        with database.write() as session:
            for index, name in enumerate(names):
                adapter = (stock.bundle(index) / "adapter.safetensors").read_bytes()
                config = (stock.bundle(index) / "config.json").read_bytes()
                row = ModelRow(
                    id=name,
                    project_id=projects[index % len(projects)],
                    name=f"model-{index}",
                    version=1,
                    backbone=stock.network,
                    adapter_sha256=store.put_bytes(adapter).sha256,
                    adapter_bytes=len(adapter),
                    config_sha256=store.put_bytes(config).sha256,
                    card_sha256=store.put_bytes(b"# made for a benchmark\n").sha256,
                    classes=classes,
                    metrics={},
                )
                session.add(row)
    finally:
        database.dispose()
    return names

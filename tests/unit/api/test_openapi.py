"""The documentation says which operations want a key: all that `api.auth` does not leave open."""

from api.app import create_app
from api.auth import OPEN_PATHS
from core.settings import Settings


def test_every_closed_operation_names_the_key(tmp_path):
    app = create_app(Settings.model_validate({"data_dir": tmp_path, "roles": ["control"]}))
    schema = app.openapi()
    assert schema["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            wants = [] if path in OPEN_PATHS else [{"HTTPBearer": []}]
            assert operation.get("security", []) == wants, path

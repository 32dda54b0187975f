"""Which processes the launcher starts."""

import pytest

from core.settings import Settings
from embedded.stack import list_children


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["api", "worker"]),
        ({"api_processes": 2}, ["engine", "api1", "api2", "worker"]),
        ({"engine_socket": "/run/idat/socket"}, ["engine", "api1", "worker"]),
        ({"engine_socket": ""}, ["api", "worker"]),
        ({"api_processes": 2, "roles": "control"}, ["api1", "api2", "worker"]),
    ],
)
def test_an_engine_where_fronts_share_one(settings, expected, tmp_path):
    settings = Settings.model_validate({"data_dir": tmp_path, **settings})
    children = list_children(settings)
    assert list(children) == expected
    assert all(children[name] == ("-m", "api") for name in expected if name.startswith("api"))
    assert children.get("engine", ("-m", "api.engine")) == ("-m", "api.engine")

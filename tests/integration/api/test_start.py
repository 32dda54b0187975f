"""Start-up, readiness, roles, and what the documentation says."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from api.app import UnsafeBindingError, create_app
from core.platform.db.migrate import downgrade_to
from core.settings import Settings
from tests.integration.api.rig import Rig

_ROOT = Path(__file__).parents[3]


def _start(*arguments: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "api", *arguments],
        cwd=_ROOT,
        env={"PATH": "", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class TestProcess:
    def test_prints_its_address_serves_and_ends_when_told(self, data_dir: Path) -> None:
        process = _start(IDAT_DATA_DIR=str(data_dir), IDAT_PORT="0", IDAT_ROLES="control")
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d+", url)
        assert httpx.get(f"{url}/readyz", timeout=60).json() == {"status": "ready"}
        process.terminate()
        _, stderr = process.communicate(timeout=60)
        assert "GET '/readyz' 200" in stderr

    def test_a_full_collection_finds_hardly_anything_to_look_at(self, data_dir: Path) -> None:
        code = (
            "import gc, sys; import api.__main__ as process\n"
            "def run(server, sockets): print(gc.get_freeze_count(), len(gc.get_objects()))\n"
            "process.DrainingServer.run = run\n"
            "sys.argv[1:] = []; sys.exit(process.main())\n"
        )
        environment = {"IDAT_DATA_DIR": str(data_dir), "IDAT_PORT": "0", "IDAT_ROLES": "control"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=_ROOT,
            env={"PATH": "", **environment},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        exempt, looked_at = map(int, done.stdout.splitlines()[-1].split())
        assert exempt > 50_000
        assert looked_at < exempt / 20

    @pytest.mark.parametrize(("argument", "exit_code"), [("--help", 0), ("--port=1", 2)])
    def test_an_argument_does_not_start_it(
        self, tmp_path: Path, argument: str, exit_code: int
    ) -> None:
        process = _start(argument, IDAT_DATA_DIR=str(tmp_path / "data"))
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == exit_code
        assert "usage: python -m api" in stdout + stderr
        assert not (tmp_path / "data").exists()

    @pytest.mark.parametrize(
        ("environment", "reason"),
        [
            ({"IDAT_HOST": "0.0.0.0"}, "IDAT_API_KEYS"),
            ({"IDAT_PORT": "70000"}, "IDAT_PORT"),
            ({"IDAT_ROLES": "king"}, "IDAT_ROLES"),
            ({"IDAT_DATABASE_URL": "mysql://u:pa55@h/d"}, "IDAT_DATABASE_URL: must be sqlite"),
            ({"IDAT_STORAGE_URL": "file://blobs"}, "IDAT_STORAGE_URL: must be file:///"),
            ({"IDAT_BROKER_URL": "amqp://h"}, "IDAT_BROKER_URL: must be redis://"),
            ({"IDAT_DEVICE": "gpu9"}, "IDAT_DEVICE: must be auto"),
            ({"IDAT_HEARTBEAT_S": "59"}, "IDAT_HEARTBEAT_S"),
            ({"IDAT_HOST": "192.0.2.1", "IDAT_API_KEYS": "k"}, "cannot listen on 192.0.2.1"),
        ],
    )
    def test_refuses_wrong_settings_in_one_line(
        self, tmp_path: Path, environment: dict[str, str], reason: str
    ) -> None:
        process = _start(IDAT_DATA_DIR=str(tmp_path), **environment)
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 2
        assert stdout == ""
        assert stderr.count("\n") == 1
        assert "pa55" not in stderr
        assert reason in stderr

    def test_the_control_role_never_loads_torch(self, data_dir: Path) -> None:
        code = (
            "import sys; from api.app import create_app; from core.settings import Settings\n"
            "from starlette.testclient import TestClient\n"
            "with TestClient(create_app(Settings()), base_url='http://127.0.0.1') as client:\n"
            "    client.get('/v1/fine_tuning/methods').raise_for_status()\n"
            "heavy = {'torch', 'timm', 'numpy', 'PIL'} & set(sys.modules)\n"
            "assert not heavy, heavy\n"
        )
        environment = {"IDAT_DATA_DIR": str(data_dir), "IDAT_ROLES": "control", "PATH": ""}
        subprocess.run([sys.executable, "-c", code], cwd=_ROOT, env=environment, check=True)


class TestBinding:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
    def test_a_reachable_address_needs_keys(self, host: str, tmp_path: Path) -> None:
        with pytest.raises(UnsafeBindingError):
            create_app(Settings(host=host, data_dir=tmp_path))
        create_app(
            Settings.model_validate(
                {"host": host, "data_dir": tmp_path, "api_keys": "k", "roles": "control"}
            )
        )

    def test_with_keys_every_route_wants_one(self, start_rig: Callable[..., Rig]) -> None:
        rig = start_rig(api_keys="secret-1")
        refused = rig.client.get("/v1/datasets")
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"
        headers = {"Authorization": "Bearer secret-1"}
        assert rig.client.get("/v1/datasets", headers=headers).status_code == 200
        assert rig.client.get("/healthz").status_code == 200
        assert rig.client.get("/openapi.json").status_code == 200


class TestReadiness:
    def test_is_ready_and_leaves_no_probe_behind(self, rig: Rig) -> None:
        assert rig.client.get("/readyz").json() == {"status": "ready"}
        rig.assert_untouched()

    def test_tells_of_a_schema_that_is_behind(self, rig: Rig) -> None:
        downgrade_to(rig.settings.resolved_database_url, "base")
        answer = rig.client.get("/readyz")
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "5"
        assert [e["code"] for e in answer.json()["errors"]] == ["database_not_ready"]
        assert "python -m migrations" in answer.json()["detail"]

    def test_tells_of_a_store_that_is_gone(self, rig: Rig) -> None:
        shutil.rmtree(rig.settings.data_dir / "blobs")
        answer = rig.client.get("/readyz")
        assert answer.status_code == 503
        assert [e["code"] for e in answer.json()["errors"]] == ["store_not_ready"]

    def test_tells_of_a_database_that_cannot_be_reached(
        self, start_rig: Callable[..., Rig]
    ) -> None:
        rig = start_rig(database_url="postgresql://nobody@127.0.0.1:1/none")
        answer = rig.client.get("/readyz")
        assert answer.status_code == 503
        assert [e["code"] for e in answer.json()["errors"]] == ["database_not_ready"]
        listed = rig.client.get("/v1/datasets")
        assert (listed.status_code, listed.json()["code"]) == (503, "database_unavailable")
        assert rig.client.get("/healthz").status_code == 200


class TestDocumentation:
    def test_every_operation_documents_its_failures_as_problems(self, rig: Rig) -> None:
        described = rig.client.get("/openapi.json").json()
        for path, operations in described["paths"].items():
            if path == "/healthz":
                continue
            for operation in operations.values():
                failures = {s: r for s, r in operation["responses"].items() if s >= "400"}
                assert failures, path
                assert all("application/problem+json" in r["content"] for r in failures.values())
        assert "HTTPValidationError" not in described["components"]["schemas"]
        assert "request_id" in described["components"]["schemas"]["Problem"]["properties"]

    def test_the_example_of_a_job_is_accepted_by_the_schema(self, rig: Rig) -> None:
        described = rig.client.get("/openapi.json").json()
        example = described["components"]["schemas"]["JobRequest"]["examples"][0]
        example["dataset_id"] = rig.upload()
        assert rig.client.post("/v1/fine_tuning/jobs", json=example).status_code == 201

    def test_the_page_is_there(self, rig: Rig) -> None:
        assert "swagger" in rig.client.get("/docs").text

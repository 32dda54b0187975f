"""What can be said about the images and the compose file without a container engine."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from core.settings import Settings, build_environment

ROOT = Path(__file__).parents[3]
TOOLS = Path(sys.executable).parent
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
COMPOSE_FILES = [ROOT / "docker-compose.yml", ROOT / "docker" / "compose.gpu.yml"]
OUR_SERVICES = ("migrate", "api", "inference", "worker")
ENVIRONMENT = {"IDAT_API_KEYS": "key-one,key-two", "POSTGRES_PASSWORD": "pw"}


def name_of(path):
    return path.name


def tool(name):
    path = shutil.which(name, path=TOOLS)
    if path is None:
        pytest.skip(f"{name} is not published for this platform")
    return path


def run(*command, **arguments):
    outcome = subprocess.run(command, capture_output=True, text=True, check=False, **arguments)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def own_copies(dockerfile):
    """Yield (source, target) of what an image copies from the checkout, build stages left out."""
    for line in dockerfile.read_text().splitlines():
        if line.startswith("COPY") and "--from" not in line:
            *sources, target = line.split()[1:]
            for source in sources:
                yield source, target


def load_compose(path=COMPOSE_FILES[0]):
    return yaml.safe_load(path.read_text())


def environment_of(service):
    """Return a service's environment as compose would fill it in, with `ENVIRONMENT` set."""

    def fill(match):
        name, rule, default = match.groups()
        if name in ENVIRONMENT:
            return ENVIRONMENT[name]
        assert rule == ":-", f"{name} is required"
        return default

    variables = load_compose()["services"][service]["environment"]
    pattern = re.compile(r"\$\{(\w+)(:-|:\?)?([^}]*)\}")
    return {name: pattern.sub(fill, str(value)) for name, value in variables.items()}


def known_variables():
    return {f"IDAT_{name.upper()}" for name in Settings.model_fields}


class TestDockerfiles:
    def test_there_is_one_for_each_role(self):
        names = ["api.Dockerfile", "inference.Dockerfile", "worker.Dockerfile"]
        assert [path.name for path in DOCKERFILES] == names

    @pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=name_of)
    def test_hadolint_has_no_complaint(self, dockerfile):
        run(tool("hadolint"), "--no-color", str(dockerfile))

    @pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=name_of)
    def test_every_copied_path_exists_and_is_in_the_build_context(self, dockerfile):
        kept = [
            line.removeprefix("!")
            for line in (ROOT / ".dockerignore").read_text().splitlines()
            if line.startswith("!")
        ]
        for source, _target in own_copies(dockerfile):
            matches = list(ROOT.glob(source))
            assert matches, f"{source} does not exist"
            for match in matches:
                inside = match.relative_to(ROOT)
                parts = [Path(*inside.parts[: depth + 1]) for depth in range(len(inside.parts))]
                assert any(part.match(pattern) for part in parts for pattern in kept), inside

    @pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=name_of)
    def test_sets_only_variables_that_exist(self, dockerfile):
        assert set(re.findall(r"\bIDAT_\w+", dockerfile.read_text())) <= known_variables()

    @pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=name_of)
    def test_runs_as_a_user_without_privileges_and_gets_signals(self, dockerfile):
        text = dockerfile.read_text()

        assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["10001:10001"]
        assert re.search(r'^CMD \["python", "-m", "\w+"\]$', text, re.MULTILINE)
        assert "HEALTHCHECK" in text

    def test_worker_and_inference_share_their_heavy_layers(self):
        def down_to_environment(name):
            text = (ROOT / "docker" / name).read_text()
            return text[text.index("FROM") : text.index("WORKDIR")]

        worker = down_to_environment("worker.Dockerfile")
        assert worker == down_to_environment("inference.Dockerfile")

    def test_the_api_image_answers_without_the_ml_stack(self, tmp_path):
        """Build the image's folder, hide every package that it will not have, start the API."""
        for source, target in own_copies(ROOT / "docker" / "api.Dockerfile"):
            for match in ROOT.glob(source):
                if source.startswith("requirements"):
                    continue
                if match.is_dir():
                    shutil.copytree(match, tmp_path / target)
                else:
                    (tmp_path / target).mkdir(exist_ok=True)
                    shutil.copy(match, tmp_path / target)
        script = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "timm", "torchvision", "numpy", "PIL"}:
            raise ModuleNotFoundError(f"{name} is not in this image", name=name)
sys.meta_path.insert(0, Hidden())
from api.app import create_app
from core.settings import Settings
routes = create_app(Settings()).openapi()["paths"]
assert "/v1/datasets" in routes, routes
assert "/v1/models/{model}/classify" not in routes
"""
        environment = build_environment(
            {
                "PYTHONPATH": str(tmp_path),
                "IDAT_ROLES": "control",
                "IDAT_HOST": "0.0.0.0",
                "IDAT_API_KEYS": "key",
                "IDAT_DATA_DIR": str(tmp_path / "data"),
            }
        )
        run(sys.executable, "-c", script, cwd=tmp_path, env=environment)


class TestCompose:
    def test_fits_the_compose_schema(self):
        command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
        run(*command, *map(str, COMPOSE_FILES))

    @pytest.mark.parametrize("service", OUR_SERVICES)
    def test_sets_only_variables_that_exist(self, service):
        names = {name for name in environment_of(service) if name.startswith("IDAT_")}
        assert names <= known_variables()

    @pytest.mark.parametrize("service", OUR_SERVICES)
    def test_environment_makes_valid_settings_for_the_network(self, service, monkeypatch):
        image = ROOT / "docker" / "api.Dockerfile"
        for name in known_variables():
            monkeypatch.delenv(name, raising=False)
        for name, value in re.findall(r"\b(IDAT_\w+)=(\S+)", image.read_text()):
            monkeypatch.setenv(name, value)
        for name, value in environment_of(service).items():
            monkeypatch.setenv(name, value)

        settings = Settings()

        assert [key.get_secret_value() for key in settings.api_keys] == ["key-one", "key-two"]
        assert settings.resolved_database_url == "postgresql://idat:pw@postgres:5432/idat"
        assert settings.broker_url == "redis://redis:6379/0"
        assert settings.resolved_storage_url == "file:///srv/idat/blobs"
        assert not settings.is_loopback

    @pytest.mark.parametrize("name", ["IDAT_API_KEYS", "POSTGRES_PASSWORD"])
    def test_no_secret_has_a_default(self, name):
        uses = re.findall(rf"\$\{{{name}(\S\S)", COMPOSE_FILES[0].read_text())
        assert uses
        assert set(uses) == {":?"}

    @pytest.mark.parametrize("service", ["api", "inference", "worker"])
    def test_the_store_is_one_volume(self, service):
        volumes = load_compose()["services"][service]["volumes"]
        assert "blobs:/srv/idat/blobs" in volumes

    def test_nothing_is_published_beyond_this_machine(self):
        for name, service in load_compose()["services"].items():
            for port in service.get("ports", []):
                assert port.startswith("127.0.0.1:"), name

    def test_built_images_have_their_dockerfile(self):
        for service in OUR_SERVICES:
            build = load_compose()["services"][service]["build"]
            assert (ROOT / build["context"] / build["dockerfile"]).is_file()

    def test_gpus_are_given_to_services_that_exist(self):
        gpu = load_compose(COMPOSE_FILES[1])["services"]
        assert gpu.keys() == {"worker", "inference"}
        assert gpu.keys() <= load_compose()["services"].keys()


class TestRequirements:
    @staticmethod
    def pins(name):
        text = (ROOT / "requirements" / name).read_text()
        return dict(re.findall(r"^([a-z0-9.-]+)==([^ \\\n]+)", text, re.MULTILINE))

    def test_the_api_image_gets_no_ml_stack(self):
        ml = {"torch", "torchvision", "timm", "numpy", "pillow", "safetensors"}

        assert not ml & self.pins("control.txt").keys()
        assert ml <= self.pins("full.txt").keys()

    @pytest.mark.parametrize(("smaller", "larger"), [("control", "full"), ("full", "dev")])
    def test_what_is_tested_is_what_runs(self, smaller, larger):
        assert self.pins(f"{smaller}.txt").items() <= self.pins(f"{larger}.txt").items()

    @pytest.mark.parametrize("name", ["control.txt", "full.txt", "dev.txt"])
    def test_every_pin_has_hashes(self, name):
        text = (ROOT / "requirements" / name).read_text()
        blocks = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
        assert [block.split()[0] for block in blocks if "--hash=sha256:" not in block] == []

    @pytest.mark.parametrize("name", ["control.txt", "full.txt", "dev.txt"])
    def test_names_no_registry(self, name):
        assert "://" not in (ROOT / "requirements" / name).read_text()

"""Classifying with a published model, over the real network of the starter pair."""

import io
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from api.inference import InferenceEngine
from api.routes.classify import MAX_IMAGES
from core.catalog.methods import AdapterKind
from core.catalog.pairs import STARTER_STUDENT
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from core.ml.backbones.load import LoadedBackbone, load_backbone
from core.ml.export.bundle import save_bundle
from core.platform.db.tables import ModelRow
from core.platform.jobs import attempts, claiming
from tests.integration.api.live import serve, wait_until
from tests.integration.api.rig import SERVES, Rig

_CLASSES = ["ant", "bee", "cat", "dog", "emu", "fox", "gnu"]


@pytest.fixture(scope="module")
def backbone() -> LoadedBackbone:
    return load_backbone(STARTER_STUDENT)


@pytest.fixture(scope="module")
def model(backbone: LoadedBackbone) -> AdaptedModel:
    """A model whose weights are random but large enough to tell images apart."""
    model = AdaptedModel(backbone, AdapterSpec(AdapterKind.PARALLEL, 4), len(_CLASSES), seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)
    return model


def _publish(rig: Rig, model: AdaptedModel, folder: Path, *, tamper: str = "") -> str:
    save_bundle(folder, model, classes=_CLASSES, recipe={}, metrics={}, versions={}, teacher=None)
    config = json.loads((folder / "config.json").read_text())
    if tamper:
        config["backbone"]["weights_sha256"] = tamper
    dataset_id = rig.upload()
    rig.finish_validation()
    wanted = {"dataset_id": dataset_id, "name": "animals", "method": {"pair": "starter"}}
    assert rig.client.post("/v1/fine_tuning/jobs", json=wanted).status_code == 201
    store = rig.app.state.services.store
    adapter = (folder / "adapter.safetensors").read_bytes()
    with rig.database.write() as session:
        claim = claiming.claim_job(session, owner="test", ttl_s=60)
        assert claim is not None
        row = ModelRow(
            id="mdl_test",
            name="animals",
            job_id=claim.row_id,
            dataset_id=dataset_id,
            backbone=STARTER_STUDENT,
            adapter_sha256=store.put_bytes(adapter).sha256,
            adapter_bytes=len(adapter),
            config_sha256=store.put_bytes(json.dumps(config).encode()).sha256,
            card_sha256=store.put_bytes(b"# animals\n").sha256,
            classes=_CLASSES,
            metrics={},
        )
        attempts.publish(session, claim, row)
    return row.id


@pytest.fixture
def rig(start_rig: Callable[..., Rig], model: AdaptedModel, tmp_path: Path) -> Rig:
    """An API of both roles with the model `mdl_test`, called `animals`."""
    rig = start_rig(**SERVES, max_image_bytes=200_000)
    _publish(rig, model, tmp_path / "bundle")
    return rig


def _picture(seed: int, *, encoding: str = "PNG", size: tuple[int, int] = (64, 64)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, encoding)
    return buffer.getvalue()


def _expected_scores(model: AdaptedModel, picture: bytes) -> dict[str, float]:
    """The scores by hand: pixels to -1..1, through the network, softmax."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), dtype=np.float32)
    scaled = torch.from_numpy((pixels / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]
    with torch.no_grad():
        probabilities = torch.softmax(model(scaled), dim=1)[0]
    return dict(zip(_CLASSES, probabilities.tolist(), strict=True))


class TestRaw:
    def test_gives_the_models_own_probabilities_best_first(
        self, rig: Rig, model: AdaptedModel
    ) -> None:
        picture = _picture(1)
        answer = rig.client.post(
            "/v1/models/mdl_test/classify?top_k=7",
            content=picture,
            headers={"content-type": "image/png"},
        )
        assert answer.status_code == 200
        scores = answer.json()
        expected = _expected_scores(model, picture)
        assert [s["label"] for s in scores] == sorted(expected, key=expected.__getitem__)[::-1]
        for score in scores:
            assert score["score"] == pytest.approx(expected[score["label"]], abs=1e-5)
        assert answer.headers["x-model-id"] == "mdl_test"
        assert re.fullmatch(
            r"decode;dur=[\d.]+, queue;dur=[\d.]+, forward;dur=[\d.]+",
            answer.headers["server-timing"],
        )

    @pytest.mark.parametrize(("query", "count"), [("", 5), ("?top_k=1", 1), ("?top_k=1000", 7)])
    def test_gives_as_many_classes_as_asked_for(self, rig: Rig, query: str, count: int) -> None:
        answer = rig.client.post(
            f"/v1/models/animals/classify{query}",
            content=_picture(1, encoding="JPEG"),
            headers={"content-type": "application/octet-stream"},
        )
        assert len(answer.json()) == count


class TestMultipart:
    def test_gives_a_list_for_each_file_in_order(self, rig: Rig) -> None:
        pictures = [_picture(seed, encoding=e) for seed, e in enumerate(("PNG", "WEBP", "BMP"))]
        files = [("file", (f"{i}.img", picture)) for i, picture in enumerate(pictures)]
        together = rig.client.post("/v1/models/animals/classify", files=files).json()
        alone = [
            rig.client.post(
                "/v1/models/animals/classify",
                content=picture,
                headers={"content-type": "image/x"},
            ).json()
            for picture in pictures
        ]
        assert [[s["label"] for s in scores] for scores in together] == [
            [s["label"] for s in scores] for scores in alone
        ]
        assert together[0] != together[1]

    def test_one_file_gets_a_list_of_one_list(self, rig: Rig) -> None:
        files = {"image": ("a.png", _picture(1))}
        answer = rig.client.post("/v1/models/animals/classify?top_k=2", files=files).json()
        assert [len(scores) for scores in answer] == [2]


def _bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    return buffer.getvalue()


_BAD_IMAGES = {
    "text": b"hello " * 300,
    "truncated": _picture(1, encoding="JPEG", size=(128, 128))[:-2000],
    "pixel bomb": _bomb(),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "one pixel": _picture(1, size=(1, 1)),
    "pickle": b"\x80\x04\x95\x0b\x00\x00\x00",
}


class TestBadInput:
    @pytest.mark.parametrize("case", _BAD_IMAGES)
    def test_what_is_no_image_is_422_and_named(self, rig: Rig, case: str) -> None:
        files = [
            ("file", ("good.png", _picture(1))),
            ("file", ("bad.jpg", _BAD_IMAGES[case])),
        ]
        answer = rig.client.post("/v1/models/animals/classify", files=files)
        assert answer.status_code == 422, answer.text
        assert "bad.jpg" in answer.json()["detail"]
        assert answer.json()["errors"][0]["pointer"] == "/1"
        raw = rig.client.post(
            "/v1/models/animals/classify",
            content=_BAD_IMAGES[case],
            headers={"content-type": "image/jpeg"},
        )
        assert (raw.status_code, raw.json()["code"]) == (422, answer.json()["code"])

    def test_no_image_at_all_is_422(self, rig: Rig) -> None:
        raw = rig.client.post(
            "/v1/models/animals/classify", content=b"", headers={"content-type": "image/png"}
        )
        form = rig.client.post(
            "/v1/models/animals/classify",
            content=b"--x--\r\n",
            headers={"content-type": "multipart/form-data; boundary=x"},
        )
        field = rig.client.post("/v1/models/animals/classify", files={"file": (None, "text")})
        assert raw.status_code == 422
        assert raw.json()["code"] == "image_missing"
        assert form.status_code in (400, 422)
        assert field.status_code == 422

    @pytest.mark.parametrize("content_type", ["text/plain", "application/xml"])
    def test_another_content_type_is_415(self, rig: Rig, content_type: str) -> None:
        headers = {"content-type": content_type}
        answer = rig.client.post("/v1/models/animals/classify", content=b"x", headers=headers)
        assert answer.status_code == 415

    def test_an_image_over_the_limit_is_413(self, rig: Rig) -> None:
        big = b"x" * 200_001
        headers = {"content-type": "image/png"}
        url = "/v1/models/animals/classify"
        declared = rig.client.post(url, content=big, headers=headers)
        counted = rig.client.post(url, content=iter([big]), headers=headers)
        in_form = rig.client.post(url, files={"file": ("big.png", big)})
        assert [a.status_code for a in (declared, counted, in_form)] == [413, 413, 413]
        assert "big.png" in in_form.json()["detail"]

    def test_too_many_images_are_413(self, rig: Rig) -> None:
        files = [("file", (f"{i}.png", b"x")) for i in range(MAX_IMAGES + 1)]
        answer = rig.client.post("/v1/models/animals/classify", files=files)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")

    @pytest.mark.parametrize("top_k", ["0", "-1", "many", "1001"])
    def test_a_bad_top_k_is_422(self, rig: Rig, top_k: str) -> None:
        answer = rig.client.post(
            f"/v1/models/animals/classify?top_k={top_k}",
            content=_picture(1),
            headers={"content-type": "image/png"},
        )
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/top_k"

    def test_an_unknown_model_is_404(self, rig: Rig) -> None:
        answer = rig.client.post(
            "/v1/models/mdl_none/classify",
            content=_picture(1),
            headers={"content-type": "image/png"},
        )
        assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found")


def test_a_deleted_model_classifies_no_more_in_any_process(
    rig: Rig, start_rig: Callable[..., Rig]
) -> None:
    """Also where its adapter is loaded and cached."""
    model_id = rig.client.get("/v1/models/animals").json()["id"]
    picture = {"content": _picture(1), "headers": {"content-type": "image/png"}}
    assert rig.client.post("/v1/models/animals/classify", **picture).status_code == 200
    other = start_rig()
    assert other.client.delete(f"/v1/models/{model_id}").status_code == 204
    for reference in ("animals", model_id):
        url = f"/v1/models/{reference}/classify"
        # What a reference means is asked of the database once a second, in every process.
        wait_until(lambda url=url: rig.client.post(url, **picture).status_code != 200)
        answer = rig.client.post(url, **picture)
        assert (answer.status_code, answer.json()["code"]) == (404, "model_not_found")
    assert rig.client.get(f"/v1/models/{model_id}/merged").status_code == 404


def test_a_model_of_other_weights_is_never_answered_for(
    start_rig: Callable[..., Rig], model: AdaptedModel, tmp_path: Path
) -> None:
    rig = start_rig(roles=["control", "inference"], device="cpu", threads=1)
    _publish(rig, model, tmp_path / "bundle", tamper="0" * 64)
    answer = rig.client.post(
        "/v1/models/animals/classify", content=_picture(1), headers={"content-type": "image/png"}
    )
    assert (answer.status_code, answer.json()["code"]) == (409, "weights_mismatch")


@pytest.fixture
def held_network(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Let every forward pass wait until the event is set."""
    engine: InferenceEngine = rig.app.state.services.inference
    may_go = threading.Event()
    forward = engine.networks.engine.forward

    def wait_and_run(*args: object) -> object:
        may_go.wait()
        return forward(*args)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(engine.networks.engine, "forward", wait_and_run)
    yield may_go
    may_go.set()


def test_a_slow_network_holds_the_other_routes_up_in_nothing(
    rig: Rig, held_network: threading.Event
) -> None:
    answers: list[httpx.Response] = []
    with serve(rig.app, lifespan="off") as port:
        url = f"http://127.0.0.1:{port}"

        def classify() -> None:
            answers.append(
                httpx.post(
                    f"{url}/v1/models/animals/classify",
                    content=_picture(1),
                    headers={"content-type": "image/png"},
                    timeout=60,
                )
            )

        threads = [threading.Thread(target=classify) for _ in range(8)]
        for thread in threads:
            thread.start()
        for path in ("/healthz", "/readyz", "/v1/models"):
            assert httpx.get(url + path, timeout=60).status_code == 200
        assert answers == []
        held_network.set()
        for thread in threads:
            thread.join()
    assert [answer.status_code for answer in answers] == [200] * 8
    # The last bits depend on who shares a batch.
    first, *others = [answer.json() for answer in answers]
    for other in others:
        assert [s["label"] for s in other] == [s["label"] for s in first]
        assert [s["score"] for s in other] == pytest.approx([s["score"] for s in first], abs=1e-5)


class TestMerged:
    def test_a_mergeable_model_leaves_as_a_plain_timm_checkpoint(
        self, start_rig: Callable[..., Rig], backbone: LoadedBackbone, tmp_path: Path
    ) -> None:
        model = AdaptedModel(backbone, AdapterSpec(AdapterKind.LORA, 4, 1.0), 7, seed=3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(1))
        rig = start_rig(roles=["control", "inference"], device="cpu", threads=1)
        _publish(rig, model, tmp_path / "bundle")
        answer = rig.client.get("/v1/models/animals/merged")
        assert answer.status_code == 200, answer.text
        network = timm.create_model(STARTER_STUDENT, num_classes=7).eval()
        network.load_state_dict(safetensors.torch.load(answer.content), strict=True)
        images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            assert torch.allclose(network(images), model(images), rtol=0, atol=1e-5)
        tag = answer.headers["etag"]
        again = rig.client.get("/v1/models/animals/merged", headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")

    def test_others_are_refused_and_the_mergeable_ones_named(self, rig: Rig) -> None:
        answer = rig.client.get("/v1/models/mdl_test/merged")
        assert (answer.status_code, answer.json()["code"]) == (422, "not_mergeable")
        assert "parallel" in answer.json()["detail"]
        assert "lora, ssf" in answer.json()["detail"]

    def test_an_unknown_model_is_404(self, rig: Rig) -> None:
        assert rig.client.get("/v1/models/nobody/merged").status_code == 404

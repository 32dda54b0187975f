"""Many models, many requests, one network: what serving promises under load, over real HTTP."""

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.inference import InferenceEngine
from core.catalog.methods import AdapterKind
from core.ml.inference.batch_size import BatchSize
from tests.integration.api.live import serve, wait_until
from tests.integration.api.models import build_files, build_picture, classify, import_model
from tests.integration.api.rig import SERVES, Rig

_PATIENCE_S = 120.0
_PICTURE = {"content-type": "image/png"}


class Network:
    """Stands between the queue and the real network: holds batches back, and remembers them."""

    def __init__(self, engine: InferenceEngine) -> None:
        self.batches: list[list[Any]] = []
        self.may_run = threading.Event()
        self.may_run.set()
        self._forward = engine.networks.engine.forward
        engine.networks.engine.forward = self.forward  # type: ignore[method-assign]

    def forward(self, residents: Any, pixels: Any, cores: int) -> Any:
        self.batches.append(list(residents))
        assert self.may_run.wait(_PATIENCE_S)
        return self._forward(residents, pixels, cores)


class Served:
    """A live API, some models in it, and clients in threads."""

    def __init__(self, rig: Rig, port: int, network: Network, pool: ThreadPoolExecutor) -> None:
        self.rig = rig
        self.port = port
        self.network = network
        self.engine: InferenceEngine = rig.app.state.services.inference
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=_PATIENCE_S)
        self._pool = pool

    def ask(self, model: str, picture: bytes, **headers: str) -> "Future[httpx.Response]":
        """Classify in a thread."""
        url = f"/v1/models/{model}/classify"
        headers = {**_PICTURE, **headers}
        return self._pool.submit(self.client.post, url, content=picture, headers=headers)

    def ask_and_hold(self, model: str, picture: bytes) -> "Future[httpx.Response]":
        """Let the network begin with this image and get no further."""
        self.network.may_run.clear()
        begun = len(self.network.batches)
        answer = self.ask(model, picture)
        wait_until(lambda: len(self.network.batches) > begun)
        return answer

    def count(self, name: str, **labels: str) -> float:
        """A metric's value now."""
        return self.engine.metrics.registry.get_sample_value(name, labels) or 0.0

    def wait_for_queued(self, images: int) -> None:
        """Return once so many decoded images wait for the network."""
        wait_until(
            lambda: (
                sum(len(lane.batcher) for lane in self.engine.networks.lanes.list_all()) >= images
            )
        )


@pytest.fixture
def serve_rig(
    start_rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Served]]:
    """Start a live API with some settings changed.

    Batches may be as large as the setting says: what size pays is a matter of this machine's speed.
    """
    monkeypatch.setattr(BatchSize, "find", lambda size, **_: size._most)
    undo: list[Callable[[], object]] = []

    def start(**changes: object) -> Served:
        rig = start_rig(**{**SERVES, "inference_deadline_s": _PATIENCE_S, **changes})
        pool = ThreadPoolExecutor(120)
        network = Network(rig.app.state.services.inference)
        server = serve(rig.app, lifespan="off")
        served = Served(rig, server.__enter__(), network, pool)
        undo.extend(
            (
                lambda: server.__exit__(None, None, None),
                served.client.close,
                pool.shutdown,
                network.may_run.set,
            )
        )
        return served

    yield start
    for step in reversed(undo):
        step()


def _scores(answer: httpx.Response) -> dict[str, float]:
    assert answer.status_code == 200, answer.text
    return {score["label"]: score["score"] for score in answer.json()}


def _import_many(served: Served, folder: Path, kinds: dict[str, AdapterKind]) -> None:
    for seed, (name, kind) in enumerate(kinds.items()):
        import_model(served.client, build_files(folder / name, seed=seed, kind=kind), name)


def test_models_mixed_in_one_batch_answer_as_they_do_alone(
    serve_rig: Callable[..., Served], tmp_path: Path
) -> None:
    served = serve_rig()
    names = {f"m{number}": AdapterKind.PARALLEL for number in range(4)}
    _import_many(served, tmp_path, {**names, "other": AdapterKind.LORA})
    pictures = [build_picture(seed) for seed in range(3)]
    alone = {
        (name, index): _scores(classify(served.client, name, picture))
        for name in (*names, "other")
        for index, picture in enumerate(pictures)
    }
    first = served.ask_and_hold("m0", pictures[0])
    answers = {key: served.ask(key[0], pictures[key[1]]) for key in alone}
    served.wait_for_queued(len(alone))
    served.network.may_run.set()
    for key, answer in answers.items():
        assert _scores(answer.result()) == pytest.approx(alone[key], abs=1e-5)
    assert _scores(first.result()) == pytest.approx(alone["m0", 0], abs=1e-5)
    mixed = [{resident.key for resident in batch} for batch in served.network.batches]
    assert max(len(keys) for keys in mixed) == 4, "the four were not mixed"


def test_a_corrupt_image_fails_its_own_request_only(
    serve_rig: Callable[..., Served], tmp_path: Path
) -> None:
    served = serve_rig()
    _import_many(served, tmp_path, {"a": AdapterKind.PARALLEL, "b": AdapterKind.PARALLEL})
    good, bad = build_picture(1), build_picture(2)[:-3000]
    alone = {name: _scores(classify(served.client, name, good)) for name in ("a", "b")}
    answers = [
        (name, is_good, served.ask(name, good if is_good else bad))
        for name in ("a", "b")
        for is_good in (True, False, True, True, False)
    ]
    for name, is_good, answer in answers:
        if is_good:
            assert _scores(answer.result()) == pytest.approx(alone[name], abs=1e-5)
        else:
            assert answer.result().status_code == 422
            assert answer.result().json()["code"] == "image_truncated"


def test_a_hundred_requests_for_a_cold_model_are_one_load(
    serve_rig: Callable[..., Served], tmp_path: Path
) -> None:
    served = serve_rig()
    _import_many(served, tmp_path, {"a": AdapterKind.PARALLEL})
    answers = [served.ask("a", build_picture(1)) for _ in range(100)]
    assert {answer.result().status_code for answer in answers} == {200}
    assert served.engine.networks.residency.count()["loads"] == 1


class TestOverload:
    def test_the_one_too_many_is_refused_before_its_body_is_sent(
        self, serve_rig: Callable[..., Served], tmp_path: Path
    ) -> None:
        served = serve_rig(inference_max_images=3, inference_max_batch=1)
        _import_many(served, tmp_path, {"a": AdapterKind.PARALLEL})
        classify(served.client, "a", build_picture(1))  # how fast it is, is known from then on
        first = served.ask_and_hold("a", build_picture(1))
        others = [served.ask("a", build_picture(1)) for _ in range(2)]
        served.wait_for_queued(2)
        with socket.create_connection(("127.0.0.1", served.port), timeout=_PATIENCE_S) as client:
            client.sendall(
                b"POST /v1/models/a/classify HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                b"Content-Type: image/png\r\nContent-Length: 9000000\r\n\r\n"
            )
            head = client.recv(65_536).decode()
        assert head.startswith("HTTP/1.1 503")
        assert '"code":"overloaded"' in head
        assert int(head.lower().partition("retry-after: ")[2].split()[0]) >= 1
        assert served.count("idat_rejections_total", reason="overloaded") == 1
        assert served.client.get("/readyz").status_code == 200, "the queue is full, not broken"
        served.network.may_run.set()
        assert [a.result().status_code for a in (first, *others)] == [200] * 3
        assert classify(served.client, "a", build_picture(1)).status_code == 200

    def test_bodies_of_all_requests_together_are_bounded(
        self, serve_rig: Callable[..., Served], tmp_path: Path
    ) -> None:
        picture = build_picture(1)
        served = serve_rig(inference_body_bytes=2 * len(picture) + 10)
        _import_many(served, tmp_path, {"a": AdapterKind.PARALLEL})
        held = [served.ask_and_hold("a", picture), served.ask("a", picture)]
        served.wait_for_queued(1)
        refused = classify(served.client, "a", picture)
        assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
        served.network.may_run.set()
        assert [answer.result().status_code for answer in held] == [200] * 2

    def test_a_quiet_project_does_not_wait_behind_a_flood(
        self, serve_rig: Callable[..., Served], tmp_path: Path
    ) -> None:
        served = serve_rig(
            api_keys=["flood:f", "quiet:q"], inference_max_batch=4, inference_max_images=40
        )
        flood, quiet = ({"Authorization": f"Bearer {key}"} for key in "fq")
        for seed, (project, headers) in enumerate((("flood", flood), ("quiet", quiet))):
            files = build_files(tmp_path / project, seed=seed)
            with httpx.Client(base_url=served.client.base_url, headers=headers) as client:
                import_model(client, files, "m")
        for headers in (flood, quiet):
            assert served.ask("m", build_picture(1), **headers).result().status_code == 200
        begun = len(served.network.batches)
        served.network.may_run.clear()
        floods = [served.ask("m", build_picture(1), **flood) for _ in range(60)]
        wait_until(lambda: sum(answer.done() for answer in floods) >= 20)
        single = served.ask("m", build_picture(1), **quiet)
        served.wait_for_queued(40 - 4 + 1)
        served.network.may_run.set()
        assert single.result().status_code == 200, "the flood has filled the queue, not its share"
        codes = [answer.result().status_code for answer in floods]
        assert (codes.count(200), codes.count(503)) == (40, 20)
        keys = [[resident.key for resident in batch] for batch in served.network.batches[begun:]]
        flood_key = keys[0][0]
        first_mixed = next(n for n, batch in enumerate(keys) if set(batch) != {flood_key})
        assert first_mixed == 1, "the quiet one was not in the very next batch"


class TestGivenUp:
    def test_late_is_504_and_the_network_is_spared(
        self, serve_rig: Callable[..., Served], tmp_path: Path
    ) -> None:
        served = serve_rig()
        _import_many(served, tmp_path, {"a": AdapterKind.PARALLEL})
        first = served.ask_and_hold("a", build_picture(1))
        late = served.ask("a", build_picture(2), **{"Request-Timeout": "0.05"}).result()
        assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
        assert "within 0.05 s" in late.json()["detail"]
        served.network.may_run.set()
        assert first.result().status_code == 200
        assert classify(served.client, "a", build_picture(1)).status_code == 200
        assert [len(batch) for batch in served.network.batches] == [1, 1]

    @pytest.mark.parametrize("timeout", ["soon", "0", "-1", "nan", "inf"])
    def test_a_timeout_that_is_none_is_422(
        self, serve_rig: Callable[..., Served], tmp_path: Path, timeout: str
    ) -> None:
        served = serve_rig()
        _import_many(served, tmp_path, {"a": AdapterKind.PARALLEL})
        answer = served.ask("a", build_picture(1), **{"Request-Timeout": timeout}).result()
        assert answer.status_code == 422
        assert "Request-Timeout" in answer.json()["detail"]

    def test_the_image_of_a_client_that_has_gone_is_dropped(
        self, serve_rig: Callable[..., Served], tmp_path: Path
    ) -> None:
        served = serve_rig()
        model_id = import_model(served.client, build_files(tmp_path / "a"), "a")
        first = served.ask_and_hold("a", build_picture(1))
        picture = build_picture(2)
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            client.sendall(
                b"POST /v1/models/a/classify HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                b"Content-Type: image/png\r\nContent-Length: %d\r\n\r\n" % len(picture) + picture
            )
            served.wait_for_queued(1)
        labels = {"model": model_id, "outcome": "disconnected"}
        wait_until(lambda: served.count("idat_inference_requests_total", **labels) == 1)
        served.network.may_run.set()
        assert first.result().status_code == 200
        assert classify(served.client, "a", build_picture(1)).status_code == 200
        assert [len(batch) for batch in served.network.batches] == [1, 1]


def test_models_beyond_the_bound_leave_and_come_back(
    serve_rig: Callable[..., Served], tmp_path: Path
) -> None:
    served = serve_rig()
    _import_many(served, tmp_path / "probe", {"probe": AdapterKind.PARALLEL})
    classify(served.client, "probe", build_picture(1))
    one_bytes = served.engine.networks.residency.count()["bytes"]
    served = serve_rig(inference_bank_bytes=int(2.5 * one_bytes))
    names = {f"m{number}": AdapterKind.PARALLEL for number in range(5)}
    _import_many(served, tmp_path, names)
    rounds = [
        {name: _scores(classify(served.client, name, build_picture(1))) for name in names}
        for _ in range(2)
    ]
    assert rounds[0] == rounds[1]
    wait_until(lambda: served.engine.networks.residency.count()["bytes"] <= 2.5 * one_bytes)
    counts = served.engine.networks.residency.count()
    assert counts["loads"] == 10
    assert counts["evictions"] >= 8
    assert counts["models"] == 2


def test_a_network_that_breaks_is_not_ready_and_recovers(
    serve_rig: Callable[..., Served], tmp_path: Path
) -> None:
    served = serve_rig()
    _import_many(served, tmp_path, {"a": AdapterKind.PARALLEL})
    forward = served.network._forward

    def fail(*_: object) -> None:
        raise RuntimeError("the device has failed")

    served.network._forward = fail
    for _ in range(3):
        answer = classify(served.client, "a", build_picture(1))
        assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    readiness = served.client.get("/readyz")
    assert readiness.status_code == 503
    assert "failed 3 batches" in readiness.json()["detail"]
    served.network._forward = forward
    assert classify(served.client, "a", build_picture(1)).status_code == 200
    assert served.client.get("/readyz").status_code == 200

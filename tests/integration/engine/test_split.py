"""Two fronts and an engine: one service, whichever of them is killed."""

import signal
import stat
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from core.catalog.pairs import STARTER_STUDENT
from tests.integration.api.live import wait_until
from tests.integration.engine.conftest import Site
from tests.integration.engine.processes import Process, run_process, run_split
from tests.integration.inference.published import draw, normalise

_PATIENCE_S = 120.0
_CLASSIFY = "/v1/models/animals/classify"
#: fp32 rounding, as pictures may meet others in a batch
_NEAR = {"rel": 1e-5, "abs": 1e-6}

Split = tuple[Process, list[Process]]


@pytest.fixture
def split(site: Site) -> Iterator[Split]:
    """An engine and two fronts."""
    with run_split(site.data_dir, fronts=2) as processes:
        yield processes


class Load:
    """Clients of the fronts that go on until they are told to stop, whatever the answers are."""

    def __init__(self, fronts: list[Process], clients: int = 4) -> None:
        self.outcomes: Counter[tuple[int, str]] = Counter()
        self.unavailable: list[httpx.Response] = []
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(number % len(fronts), fronts))
            for number in range(clients)
        ]
        for thread in self._threads:
            thread.start()

    def count(self, outcome: str) -> int:
        """Answers of all fronts."""
        with self._lock:
            return sum(n for (_, found), n in self.outcomes.items() if found == outcome)

    def stop(self) -> set[str]:
        """End the clients; return what they were told."""
        self._is_over.set()
        for thread in self._threads:
            thread.join(_PATIENCE_S)
            assert not thread.is_alive()
        return {outcome for _, outcome in self.outcomes}

    def _run(self, number: int, fronts: list[Process]) -> None:
        picture = draw(number)
        with httpx.Client(base_url=fronts[number].address, timeout=_PATIENCE_S) as client:
            while not self._is_over.is_set():
                try:
                    answer = client.post(_CLASSIFY, content=picture)
                except httpx.TransportError:
                    outcome = "no connection"
                else:
                    is_known = answer.status_code in (200, 503)
                    outcome = str(answer.status_code) if is_known else answer.text
                    if answer.status_code == 503:
                        self.unavailable.append(answer)
                with self._lock:
                    self.outcomes[number, outcome] += 1
                if outcome != "200":
                    time.sleep(0.02)


def _ask(front: Process, model: str, pictures: list[bytes]) -> list[dict[str, float]]:
    files = [("file", (f"{index}.png", picture)) for index, picture in enumerate(pictures)]
    answer = httpx.post(
        f"{front.address}/v1/models/{model}/classify",
        files=files,
        params={"top_k": 7},
        timeout=_PATIENCE_S,
    )
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-model-precision"] == "fp32"
    return [{score["label"]: score["score"] for score in scores} for scores in answer.json()]


@pytest.mark.slow
def test_fronts_answer_as_a_single_process_does(site: Site, split: Split) -> None:
    engine, fronts = split
    pictures = [draw(seed) for seed in range(4)]
    with run_process("api", site.data_dir, site.data_dir / "single.log") as single:
        wait_until(single.is_ready)
        for model in (site.animals, site.birds):
            expected = _ask(single, model.name, pictures)
            for front in fronts:
                for given, wanted, picture in zip(
                    _ask(front, model.name, pictures), expected, pictures, strict=True
                ):
                    assert given == pytest.approx(wanted, **_NEAR)
                    assert given == pytest.approx(model.compute_probabilities(picture), **_NEAR)
    _check_socket(engine)
    _check_pixels(site, fronts[0])
    _check_bad_images(fronts[0])
    _check_repository(fronts)
    _check_metrics(fronts)


def _check_socket(engine: Process) -> None:
    assert stat.S_IMODE(Path(engine.address).stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(engine.address).parent.stat().st_mode) == 0o700


def _check_pixels(site: Site, front: Process) -> None:
    values = normalise(draw(1))[None]
    tensor = {"name": "pixel_values", "datatype": "FP32", "shape": list(values.shape)}
    body = {"inputs": [{**tensor, "data": values.tolist()}], "outputs": [{"name": "probabilities"}]}
    answer = httpx.post(f"{front.address}/v2/models/animals/infer", json=body, timeout=60)
    expected = list(site.animals.compute_probabilities(draw(1)).values())
    assert answer.json()["outputs"][0]["data"] == pytest.approx(expected, **_NEAR)


def _check_bad_images(front: Process) -> None:
    files = [("f", ("a.png", draw(1))), ("f", ("b.png", b"no image")), ("f", ("c.png", draw(2)))]
    answer = httpx.post(f"{front.address}{_CLASSIFY}", files=files, timeout=60)
    assert answer.status_code == 422
    assert "b.png" in answer.json()["detail"]


def _check_repository(fronts: list[Process]) -> None:
    """What one front is told holds for the engine, and so for the other."""
    first, second = (front.address for front in fronts)

    def states() -> dict[str, str]:
        index = httpx.post(f"{second}/v2/repository/index", json={}, timeout=60).json()
        return {entry["name"]: entry["state"] for entry in index}

    assert states() == {"animals": "READY", "birds": "READY"}
    assert httpx.post(f"{first}/v2/repository/models/birds/unload", timeout=60).status_code == 200
    wait_until(lambda: states()["birds"] != "READY")
    assert httpx.post(f"{first}/v2/repository/models/birds/load", timeout=60).status_code == 200
    assert states()["birds"] == "READY"
    assert httpx.get(f"{second}/v2/models/birds/ready", timeout=60).status_code == 200


def _check_metrics(fronts: list[Process]) -> None:
    for front in fronts:
        text = httpx.get(f"{front.address}/metrics", timeout=60).text
        families = list(text_string_to_metric_families(text))
        samples = {
            (sample.name, tuple(sample.labels.values())): sample.value
            for family in families
            for sample in family.samples
        }
        assert samples["idat_engine_up", ()] == 1
        assert samples["idat_engine_fronts", ()] == 2
        assert samples["idat_networks_info", ("fp32",)] == 1
        assert samples["idat_resident_models", ()] == 2
        assert samples["idat_images_under_way", (STARTER_STUDENT,)] == 0
        assert len({family.name for family in families}) == len(families)


@pytest.mark.slow
def test_killed_engine_costs_503s_until_the_next_one(site: Site, split: Split) -> None:
    engine, fronts = split
    load = Load(fronts)
    try:
        wait_until(lambda: load.count("200") >= 8)
        engine.send_signal(signal.SIGKILL)
        engine.wait()
        wait_until(lambda: load.count("503") >= 8)
        assert not any(front.is_ready() for front in fronts)
        answered = load.count("200")
        with run_process(
            "api.engine",
            site.data_dir,
            site.data_dir / "engine.log",
            IDAT_ENGINE_SOCKET=engine.address,
        ):
            wait_until(lambda: load.count("200") >= answered + 8)
            wait_until(lambda: all(front.is_ready() for front in fronts))
            assert load.stop() == {"200", "503"}
    finally:
        load.stop()
    assert {answer.json()["code"] for answer in load.unavailable} == {"engine_unavailable"}
    assert all("retry-after" in answer.headers for answer in load.unavailable)


@pytest.mark.slow
def test_killed_front_takes_only_its_own_requests_along(split: Split) -> None:
    _, (doomed, other) = split
    load = Load([doomed, other])
    try:
        wait_until(lambda: load.count("200") >= 8)
        doomed.send_signal(signal.SIGKILL)
        doomed.wait()
        answered = load.outcomes[1, "200"]
        wait_until(lambda: load.outcomes[1, "200"] >= answered + 8)
        load.stop()
    finally:
        load.stop()
    assert {outcome for number, outcome in load.outcomes if number == 1} == {"200"}
    wait_until(lambda: "idat_engine_fronts 1.0" in httpx.get(f"{other.address}/metrics").text)
    assert f'idat_images_under_way{{backbone="{STARTER_STUDENT}"}} 0.0' in (
        httpx.get(f"{other.address}/metrics").text
    )


@pytest.mark.slow
@pytest.mark.parametrize("engine_first", [True, False], ids=["engine first", "fronts first"])
def test_sigterm_in_either_order_answers_what_was_accepted(
    split: Split, *, engine_first: bool
) -> None:
    engine, fronts = split
    load = Load(fronts)
    try:
        wait_until(lambda: load.count("200") >= 8)
        leaving = [engine, *fronts] if engine_first else [*fronts, engine]
        for process in leaving:
            process.send_signal(signal.SIGTERM)
            if process is engine:
                assert process.wait() == 0
            else:
                assert process.wait() in (0, -signal.SIGTERM)
        assert load.stop() <= {"200", "503", "no connection"}
    finally:
        load.stop()
    codes = {answer.json()["code"] for answer in load.unavailable}
    assert codes <= {"engine_unavailable", "draining"}
    log = engine.read_log() + "".join(front.read_log() for front in fronts)
    assert "Traceback" not in log

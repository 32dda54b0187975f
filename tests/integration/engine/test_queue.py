"""Fronts of one engine share its queue: real sockets, a network that is written out here."""

import asyncio
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import api.networks
from api.engine.address import EngineSocket
from api.engine.framing import VERSION, Kind, encode
from api.engine.server import EngineServer
from api.inference import InferenceEngine
from api.networks import LocalNetworks
from api.resolution import build_bare
from core.errors import AppError, DeadlineError, InvalidError
from core.ml.inference.engine import Output
from core.settings import Settings

_PX = 2
_MODEL = build_bare("written_out", "default")
_PATIENCE_S = 60.0


class Network:
    """Answers with the first number of an image, one image at a time, when it is let."""

    cores = 1

    def __init__(self, **_: object) -> None:
        self.order: list[int] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self._resident = SimpleNamespace(
            key=("", ""),
            backbone=_MODEL.backbone,
            batch_key="all",
            image_px=_PX,
            preprocess_version=1,
            size_bytes=1,
        )

    def prepare(self, backbone: str) -> None:
        pass

    def base(self, backbone: str) -> SimpleNamespace:
        return self._resident

    def evict(self, resident: object) -> None:
        pass

    def forward(self, residents: object, pixels: list[np.ndarray], cores: int) -> list[Output]:
        assert self.may_go.wait(_PATIENCE_S)
        numbers = [int(image.flat[0]) for image in pixels]
        self.order += numbers
        return [
            Output(np.array([number], np.float32), np.array([-number], np.float32))
            for number in numbers
        ]


class Service:
    """An engine in this process, and fronts that reach it through its socket.

    Attributes:
        network: what the images go through in the end.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._settings = Settings.model_validate(
            {
                "data_dir": folder,
                "device": "cpu",
                "engine_socket": folder / "engine" / "socket",
                "inference_max_batch": 1,
                "inference_deadline_s": 30,
                "inference_max_images": 64,
                "inference_decode_threads": 1,
                "warm_backbones": _MODEL.backbone,
            }
        )
        self.path = folder / "engine" / "socket"

    @asynccontextmanager
    async def run_engine(self) -> AsyncIterator[None]:
        listening = EngineSocket(self.path)
        self.server = EngineServer()
        self.networks = LocalNetworks(
            self._settings,
            None,  # type: ignore[arg-type]  # no bundle is read
            None,  # type: ignore[arg-type]  # the backbones are named
            deliver=self.server.deliver,
            find_rate=self.server.find_rate,
            weight_of=self.server.weight_of,
        )
        self.network: Network = self.networks.engine  # type: ignore[assignment]
        await self.server.open(self.networks, listening.listener)
        try:
            yield
        finally:
            self.network.may_go.set()
            await self.server.close()
            await asyncio.to_thread(self.networks.close)
            listening.close()

    @asynccontextmanager
    async def run_front(self) -> AsyncIterator[InferenceEngine]:
        front = InferenceEngine(self._settings, None, None)  # type: ignore[arg-type]
        await front.start()
        try:
            yield front
        finally:
            await asyncio.to_thread(front.close)

    def count(self) -> int:
        return self.networks.count_images()


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setattr(api.networks, "Engine", Network)
    return Service(tmp_path)


def _draw(*numbers: int) -> list[np.ndarray]:
    return [np.full((_PX, _PX, 3), number, np.uint8) for number in numbers]


async def _until(condition: Callable[[], bool]) -> None:
    async def look() -> None:
        while not condition():  # noqa: ASYNC110 - conditions of many kinds
            await asyncio.sleep(0.005)

    await asyncio.wait_for(look(), _PATIENCE_S)


async def _connect(service: Service, *fronts: InferenceEngine) -> None:
    for front in fronts:
        await _until(lambda front=front: front.networks.precision != "unknown")


async def _warm_up(front: InferenceEngine, network: Network) -> None:
    """Let the engine learn how fast its network is: it admits more than two images then."""
    await front.predict(_MODEL, _draw(0), project="first")
    network.order.clear()


def _run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), _PATIENCE_S))


def test_a_flood_through_one_front_does_not_starve_a_project_of_another(service: Service) -> None:
    async def test() -> None:
        async with service.run_engine(), service.run_front() as one, service.run_front() as other:
            await _connect(service, one, other)
            await _warm_up(one, service.network)
            service.network.may_go.clear()
            flood = asyncio.create_task(one.predict(_MODEL, _draw(*[1] * 60), project="flood"))
            await _until(lambda: len(service.networks.lanes.get(_MODEL.backbone).batcher) >= 59)
            quiet = asyncio.create_task(other.predict(_MODEL, _draw(100, 101), project="quiet"))
            queue = service.networks.lanes.get(_MODEL.backbone).batcher
            await _until(lambda: len(queue) == 61)  # and one is in the network
            service.network.may_go.set()
            answers = await asyncio.gather(flood, quiet)
            assert [a.logits[0, 0] for a in answers] == [1, 100]
            assert answers[0].logits.shape == (60, 1)
            order = service.network.order
            assert order[:6].count(100) + order[:6].count(101) == 2, "they take turns"
            assert service.count() == 0

    _run(test)


def test_a_full_queue_is_full_for_every_front(service: Service) -> None:
    async def test() -> None:
        async with service.run_engine(), service.run_front() as one, service.run_front() as other:
            await _connect(service, one, other)
            await _warm_up(one, service.network)
            service.network.may_go.clear()
            flood = asyncio.create_task(one.predict(_MODEL, _draw(*[1] * 60), project="flood"))
            await _until(lambda: service.count() == 60)
            with pytest.raises(AppError) as refused:
                await other.predict(_MODEL, _draw(*[2] * 5), project="flood")
            assert refused.value.retryable
            assert refused.value.retry_after_s is not None
            assert refused.value.code == "overloaded"
            with pytest.raises(AppError) as before_the_body:
                other.networks.check_admission("flood", _MODEL)
            assert before_the_body.value.code == "overloaded"
            other.networks.check_admission("quiet", _MODEL)
            service.network.may_go.set()
            await flood

    _run(test)


def test_who_goes_takes_the_images_along(service: Service) -> None:
    async def test() -> None:
        async with service.run_engine(), service.run_front() as front:
            await _connect(service, front)
            await _warm_up(front, service.network)
            service.network.may_go.clear()
            first = asyncio.create_task(front.predict(_MODEL, _draw(1), project="a"))
            await _until(lambda: service.count() == 1)
            gone = asyncio.create_task(front.predict(_MODEL, _draw(2), project="b"))
            await _until(lambda: service.count() == 2)
            gone.cancel()
            await asyncio.wait([gone])
            with pytest.raises(DeadlineError):
                await front.predict(_MODEL, _draw(3), project="c", deadline_s=0.05)
            service.network.may_go.set()
            assert (await first).logits[0, 0] == 1
            await _until(lambda: service.count() == 0)
            assert service.network.order == [1]

    _run(test)


def test_a_front_that_dies_leaves_nothing_behind(service: Service) -> None:
    async def test() -> None:
        async with service.run_engine(), service.run_front() as other:
            async with service.run_front() as front:
                await _connect(service, front, other)
                await _warm_up(front, service.network)
                service.network.may_go.clear()
                running = asyncio.create_task(other.predict(_MODEL, _draw(1), project="a"))
                await _until(lambda: service.count() == 1)
                lost = asyncio.create_task(front.predict(_MODEL, _draw(2, 3), project="b"))
                await _until(lambda: service.count() == 3)
            with pytest.raises(AppError) as failed:
                await lost
            assert failed.value.code == "engine_unavailable"
            await _until(lambda: len(service.server.connections) == 1)
            service.network.may_go.set()
            await running
            await _until(lambda: service.count() == 0)
            assert service.network.order == [1]

    _run(test)


def test_an_engine_that_goes_fails_what_it_has_and_the_next_one_is_found(service: Service) -> None:
    async def test() -> None:
        async with service.run_front() as front:
            with pytest.raises(AppError) as refused:
                await front.predict(_MODEL, _draw(1), project="a")
            assert refused.value.code == "engine_unavailable"
            assert refused.value.retry_after_s == 1
            async with service.run_engine():
                await _connect(service, front)
                assert await asyncio.to_thread(front.find_fault) is None
                service.network.may_go.clear()
                cut = asyncio.create_task(front.predict(_MODEL, _draw(1), project="a"))
                await _until(lambda: service.count() == 1)
                for connection in service.server.connections:
                    connection._transport.abort()  # type: ignore[union-attr]
                with pytest.raises(AppError) as failed:
                    await cut
                assert failed.value.code == "engine_unavailable"
            assert await asyncio.to_thread(front.find_fault) is not None
            async with service.run_engine():
                while True:
                    try:
                        answer = await front.predict(_MODEL, _draw(7), project="a")
                        break
                    except AppError as error:
                        assert error.code == "engine_unavailable"  # noqa: PT017 - until it is found
                        await asyncio.sleep(0.02)
                assert answer.logits[0, 0] == 7
                assert answer.features[0, 0] == -7

    _run(test)


def test_a_leaving_engine_answers_what_it_has_and_takes_nothing_new(service: Service) -> None:
    async def test() -> None:
        async with service.run_engine(), service.run_front() as front:
            await _connect(service, front)
            service.network.may_go.clear()
            accepted = asyncio.create_task(front.predict(_MODEL, _draw(5), project="a"))
            await _until(lambda: service.count() == 1)
            service.server.leave()
            await _until(lambda: front.networks._link.is_leaving)  # type: ignore[attr-defined]
            with pytest.raises(AppError) as refused:
                await front.predict(_MODEL, _draw(6), project="a")
            assert refused.value.code == "engine_unavailable"
            assert not service.server.is_idle
            service.network.may_go.set()
            assert (await accepted).logits[0, 0] == 5
            await _until(lambda: service.server.is_idle)

    _run(test)


def test_an_image_of_the_wrong_size_is_its_own_fault(service: Service) -> None:
    async def test() -> None:
        async with service.run_engine(), service.run_front() as front:
            await _connect(service, front)
            with pytest.raises(InvalidError) as wrong:
                await front.predict(_MODEL, [np.zeros((9, 9, 3), np.uint8)], project="a")
            assert wrong.value.code == "shape_mismatch"
            assert (await front.predict(_MODEL, _draw(4), project="a")).logits[0, 0] == 4
            await _until(lambda: service.count() == 0)

    _run(test)


@pytest.mark.parametrize(
    "stream",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        encode(Kind.HELLO, meta={"version": VERSION + 1}),
        encode(Kind.ASK, 1, {"what": "fault"}),
        encode(Kind.HELLO, meta={"version": VERSION}) + encode(Kind.BOOKED, 1),
        encode(Kind.HELLO, meta={"version": VERSION}) + encode(Kind.BOOK, 1, {"images": 1e9}),
        encode(Kind.HELLO, meta={"version": VERSION})
        + encode(Kind.IMAGE, 1, {"i": 0}, 4)
        + b"1234",
        encode(Kind.HELLO, meta={"version": VERSION})
        + struct.pack("!HBxIII", 0x1DA7, 4, 1, 0, -1 % 2**32),
    ],
    ids=["http", "version", "no greeting", "kind", "booking", "image", "length"],
)
def test_who_breaks_the_protocol_is_cut_off_and_hurts_nobody(
    service: Service, stream: bytes
) -> None:
    async def test() -> None:
        async with service.run_engine(), service.run_front() as front:
            await _connect(service, front)
            reader, writer = await asyncio.open_unix_connection(str(service.path))
            writer.write(stream)
            await asyncio.wait_for(reader.read(), _PATIENCE_S)  # until the end of the connection
            writer.close()
            assert (await front.predict(_MODEL, _draw(4), project="a")).logits[0, 0] == 4

    _run(test)

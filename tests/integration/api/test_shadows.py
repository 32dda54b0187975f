"""Shadow evaluation, from a request through an alias to the report, and what it never does."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api.calls import Predictions
from api.resolution import ServedModel, Shadow
from api.shadows import Shadows
from core.errors import InvalidError
from core.platform.db.engine import Database
from core.platform.models.shadow import Agreement
from tests.integration.api.live import wait_until
from tests.integration.api.models import build_files, build_picture, classify, import_model
from tests.integration.api.rig import Rig

ALIAS = "/v1/models/animals/aliases/production"


def test_a_second_model_is_compared_on_the_same_images(
    start_rig: Callable[..., Rig], tmp_path: Path
) -> None:
    rig = start_rig(roles=["control", "inference"], device="cpu", threads=1)
    main, other = (
        import_model(rig.client, build_files(tmp_path / str(seed), seed=seed)) for seed in (1, 2)
    )
    target = {"model_id": main, "shadow_model_id": other}
    assert rig.client.put(ALIAS, json=target).status_code == 201
    fresh = rig.client.get(f"{ALIAS}/shadow").json()
    assert (fresh["images"], fresh["agreement"], fresh["shadow_fraction"]) == (0, None, 1.0)

    pictures = [build_picture(seed) for seed in range(6)]
    expected, deltas = 0, []
    for picture in pictures:
        answers = [classify(rig.client, model_id, picture).json() for model_id in (main, other)]
        expected += answers[0][0]["label"] == answers[1][0]["label"]
        first, second = ({s["label"]: s["score"] for s in answer} for answer in answers)
        deltas.append(np.mean([abs(first[label] - second[label]) for label in first]))

    engine = rig.app.state.services.inference
    for count, picture in enumerate(pictures, start=1):
        answer = classify(rig.client, "animals@production", picture)
        assert (answer.status_code, answer.headers["x-model-id"]) == (200, main)
        wait_until(lambda count=count: sum(a.images for a in counted(engine)) == count)
    engine._shadows.flush()
    report = rig.client.get(f"{ALIAS}/shadow").json()
    assert (report["images"], report["dropped"], report["failed"]) == (6, 0, 0)
    assert report["agreement"] == pytest.approx(expected / 6)
    assert report["mean_abs_delta"] == pytest.approx(np.mean(deltas), abs=1e-3)
    assert sum(pair["images"] for pair in report["disagreements"]) == 6 - expected

    classify(rig.client, main, pictures[0])
    assert counted(engine) == []  # only what goes through the alias is compared


def counted(engine: Any) -> list[Agreement]:
    return list(engine._shadows._counted.values())


class _Rig:
    """Shadows over a model that answers as it is told."""

    def __init__(self, database: Database) -> None:
        self.is_idle = True
        self.drawn = 0.0
        self.error: Exception | None = None
        self.may_answer = threading.Event()
        self.may_answer.set()
        model = ServedModel("mdl_b", "n", "default", "1" * 64, "2" * 64, "starter", ("a", "b"))
        self.shadow = Shadow(7, model, 0.5)
        self.shadows = Shadows(
            database,
            predict=self._predict,
            is_idle=lambda _: self.is_idle,
            draw=lambda: self.drawn,
        )

    async def _predict(self, model: ServedModel, images: Sequence[Any]) -> Predictions:
        if self.error is not None:
            raise self.error
        await asyncio.to_thread(self.may_answer.wait, 30)
        return answer(len(images), (0.0, 1.0))

    def offer(self, images: int = 1) -> None:
        self.shadows.offer(self.shadow, [b"x"] * images, answer(images, (1.0, 0.0)))

    @property
    def total(self) -> Agreement:
        return self.shadows._counted.get(7, Agreement())


def answer(images: int, logits: tuple[float, float]) -> Predictions:
    rows = np.array([logits] * images, dtype=np.float32)
    return Predictions("mdl", ("a", "b"), rows, rows, 0, 0, 0)


async def until(condition: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_until, condition)


class TestStanding:
    def run(self, database: Database, script: Callable[[_Rig], Any]) -> _Rig:
        rig = _Rig(database)
        try:
            asyncio.run(script(rig))
        finally:
            rig.may_answer.set()
            rig.shadows._is_closed.set()
        return rig

    def test_counts_what_differs(self, sqlite: Database) -> None:
        async def script(rig: _Rig) -> None:
            rig.offer(3)
            await until(lambda: rig.total.images == 3)
            assert (rig.total.agreed, dict(rig.total.disagreements)) == (0, {("a", "b"): 3})

        self.run(sqlite, script)

    def test_a_busy_backbone_is_left_alone(self, sqlite: Database) -> None:
        async def script(rig: _Rig) -> None:
            rig.is_idle = False
            rig.offer(2)
            await until(lambda: rig.total.dropped == 2)
            assert rig.total.images == 0

        self.run(sqlite, script)

    def test_what_does_not_fit_into_the_line_is_dropped_at_once(self, sqlite: Database) -> None:
        async def script(rig: _Rig) -> None:
            rig.may_answer.clear()
            for _ in range(30):
                rig.offer()
            assert rig.total.dropped >= 30 - 9
            rig.may_answer.set()
            await until(lambda: rig.total.dropped + rig.total.images == 30)

        self.run(sqlite, script)

    def test_a_model_that_fails_is_counted_and_no_more(self, sqlite: Database) -> None:
        async def script(rig: _Rig) -> None:
            rig.error = InvalidError("broken")
            rig.offer(2)
            await until(lambda: rig.total.failed == 2)
            rig.error = None
            rig.offer()
            await until(lambda: rig.total.images == 1)

        self.run(sqlite, script)

    def test_only_the_drawn_share_is_compared(self, sqlite: Database) -> None:
        async def script(rig: _Rig) -> None:
            rig.drawn = 0.5
            rig.offer()
            rig.drawn = 0.49
            rig.offer()
            await until(lambda: rig.total.images == 1)
            assert rig.total == Agreement(1, 0, rig.total.delta_sum, 0, 0, {("a", "b"): 1})

        self.run(sqlite, script)

"""The image cache: what is written is what is mapped, whole or not at all."""

import hashlib
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from core.ml.data.cache import (
    CacheBuilder,
    CacheCorruptError,
    cache_digest,
    cache_name,
    open_cache,
    write_cache,
)

Rows = npt.NDArray[np.uint8]


@pytest.fixture
def rows() -> Rows:
    return np.random.default_rng(0).integers(0, 256, (7, 5, 5, 3), dtype=np.uint8)


class TestWriteCache:
    def test_round_trip(self, tmp_path: Path, rows: Rows) -> None:
        path = tmp_path / cache_name(5)
        digest = write_cache(path, iter(rows), count=7, image_px=5)
        mapped = open_cache(path)
        np.testing.assert_array_equal(mapped, rows)
        assert digest == cache_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()
        np.testing.assert_array_equal(np.load(path), rows)

    def test_readers_cannot_change_it(self, tmp_path: Path, rows: Rows) -> None:
        write_cache(tmp_path / "c.npy", iter(rows), count=7, image_px=5)
        with pytest.raises(ValueError, match="read-only"):
            open_cache(tmp_path / "c.npy")[0] = 0

    def test_an_interrupted_write_leaves_nothing(self, tmp_path: Path, rows: Rows) -> None:
        def broken() -> Iterator[Rows]:
            yield rows[0]
            raise RuntimeError("cut")

        with pytest.raises(RuntimeError, match="cut"):
            write_cache(tmp_path / "c.npy", broken(), count=7, image_px=5)
        assert list(tmp_path.iterdir()) == []

    def test_an_interrupted_rewrite_keeps_the_old_one(self, tmp_path: Path, rows: Rows) -> None:
        path = tmp_path / "c.npy"
        write_cache(path, iter(rows), count=7, image_px=5)
        with pytest.raises(ValueError, match="2 rows instead of 7"):
            write_cache(path, iter(rows[:2]), count=7, image_px=5)
        np.testing.assert_array_equal(open_cache(path), rows)

    def test_a_row_of_another_shape_is_refused(self, tmp_path: Path) -> None:
        bad = np.zeros((5, 4, 3), dtype=np.uint8)
        with pytest.raises(ValueError, match="not uint8 of side 5"):
            write_cache(tmp_path / "c.npy", [bad], count=1, image_px=5)


class TestCacheBuilder:
    def test_any_order_from_any_thread_gives_the_same_bytes(
        self, tmp_path: Path, rows: Rows
    ) -> None:
        expected = write_cache(tmp_path / "in_order.npy", iter(rows), count=7, image_px=5)
        order = random.Random(1).sample(range(7), 7)
        with closing(CacheBuilder(tmp_path / "c.npy", capacity=7, image_px=5)) as builder:
            with ThreadPoolExecutor(3) as pool:
                list(pool.map(lambda index: builder.put(index, rows[index]), order))
            assert builder.finish() == expected == cache_digest(tmp_path / "c.npy")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["c.npy", "in_order.npy"]

    def test_left_out_rows_close_the_gaps(self, tmp_path: Path, rows: Rows) -> None:
        expected = write_cache(tmp_path / "kept.npy", iter(rows[[1, 4, 6]]), count=3, image_px=5)
        with closing(CacheBuilder(tmp_path / "c.npy", capacity=7, image_px=5)) as builder:
            for index in (6, 4, 1, 2):
                builder.put(index, rows[index])
            assert builder.finish([1, 4, 6]) == expected
        np.testing.assert_array_equal(open_cache(tmp_path / "c.npy"), rows[[1, 4, 6]])

    def test_a_missing_row_is_noticed(self, tmp_path: Path, rows: Rows) -> None:
        with closing(CacheBuilder(tmp_path / "c.npy", capacity=2, image_px=5)) as builder:
            builder.put(1, rows[1])
            with pytest.raises(ValueError, match="row 0 was never put"):
                builder.finish()
        assert list(tmp_path.iterdir()) == []


class TestOpenCache:
    def test_a_cut_file_is_refused(self, tmp_path: Path, rows: Rows) -> None:
        path = tmp_path / "c.npy"
        write_cache(path, iter(rows), count=7, image_px=5)
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(CacheCorruptError):
            open_cache(path)

    @pytest.mark.parametrize(
        "array", [np.zeros((2, 4, 5, 3), np.uint8), np.zeros((2, 4, 4, 3)), np.zeros(3, np.uint8)]
    )
    def test_another_array_is_refused(self, tmp_path: Path, array: npt.NDArray[np.generic]) -> None:
        np.save(tmp_path / "c.npy", array)
        with pytest.raises(CacheCorruptError, match="not images"):
            open_cache(tmp_path / "c.npy")

    def test_a_pickle_is_never_loaded(self, tmp_path: Path) -> None:
        np.save(tmp_path / "c.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
        with pytest.raises(CacheCorruptError):
            open_cache(tmp_path / "c.npy")

"""The images of a batch prediction, as pixels of the size and the version that the model wants."""

import os
import threading
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.clock import monotonic_s
from core.ml.data.cache import cache_name, open_cache
from core.ml.data.manifest import Manifest, load_manifest
from core.ml.data.preprocess import ImageError
from core.ml.inference.engine import Resident
from core.platform.datasets.archive import ArchiveLimits, open_archive, read_pictures
from core.platform.predictions.parameters import ALL_SPLITS
from core.types import Split
from worker.child import PROGRESS_INTERVAL_S, send
from worker.decoding import build_cache, decode_entries

_MAX_THREADS = 8


@dataclass(frozen=True, eq=False)
class Picture:
    """One image to answer for.

    Attributes:
        name: its path in the archive.
        pixels: uint8 (px, px, 3); None where it could not be decoded.
        label: its class in the dataset; None in an archive, which has none.
        error: why there are no pixels.
    """

    name: str
    pixels: NDArray[np.uint8] | None
    label: str | None = None
    error: ImageError | None = None


class PictureProgress:
    """Tells the supervisor how many images are answered for, and how long the rest will take.

    Args:
        total: images in all.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._began_s: float | None = None
        self._told_s = float("-inf")

    def tell(self, done: int) -> None:
        """Send the number, unless one was sent just now; the clock starts with the first image."""
        now_s = monotonic_s()
        if now_s - self._told_s < PROGRESS_INTERVAL_S and done < self._total:
            return
        self._told_s = now_s
        eta_s = None
        if done and self._began_s is not None:
            eta_s = round((now_s - self._began_s) / done * (self._total - done), 1)
        send({"type": "progress", "images": done, "of": self._total, "eta_s": eta_s})

    def begin(self) -> None:
        """Count time from now on: the network is ready, and so are the images."""
        self._began_s = monotonic_s()

    def tell_decoded(self, _done: int, _total: int) -> None:
        """Say that the work goes on while images are only decoded."""
        self.tell(0)


def read_pictures_of(
    request: dict[str, Any],
    workdir: Path,
    resident: Resident,
    progress: PictureProgress,
    stop: threading.Event,
) -> Generator[Picture, None, None]:
    """Yield the images of a request in their order; fewer when `stop` is set.

    Raises:
        ArchiveError: the archive is damaged.
        CacheCorruptError: it is not the archive that the dataset was made from.
    """
    if request["manifest"] is None:
        pictures = _read_archive(request, resident)
    else:
        manifest = load_manifest(Path(request["manifest"]))
        pictures = _read_dataset(request, manifest, workdir, resident, progress)
    with closing(pictures):
        for index, picture in enumerate(pictures):
            if stop.is_set():
                return
            if index == 0:
                progress.begin()
            yield picture


def _read_archive(request: dict[str, Any], resident: Resident) -> Generator[Picture, None, None]:
    pixels: dict[int, NDArray[np.uint8]] = {}
    with open_archive(Path(request["archive"]), _limits(request), read=read_pictures) as archive:
        decoding = decode_entries(
            archive,
            archive.entries,
            sizes_px=[resident.image_px],
            sink=lambda entry, _, image: pixels.__setitem__(entry.index, image),
            max_pixels=request["max_image_pixels"],
            threads=_threads(request),
            version=resident.preprocess_version,
        )
        with closing(decoding):  # its threads must be gone before the archive is
            for entry, found in decoding:
                error = found if isinstance(found, ImageError) else None
                yield Picture(entry.name, pixels.pop(entry.index, None), error=error)


def _read_dataset(
    request: dict[str, Any],
    manifest: Manifest,
    workdir: Path,
    resident: Resident,
    progress: PictureProgress,
) -> Generator[Picture, None, None]:
    split = request["split"]
    chosen = [
        row
        for row, item in enumerate(manifest.items)
        if split == ALL_SPLITS or item.split is Split(split)
    ]
    wanted = replace(manifest, items=tuple(manifest.items[row] for row in chosen))
    if request["cache"] is not None:
        cache = open_cache(Path(request["cache"]))
    else:
        # Of another size, or preprocessed otherwise, than anything has needed so far.
        cache_path = workdir / cache_name(resident.image_px)
        build_cache(
            Path(request["archive"]),
            replace(wanted, preprocess_version=resident.preprocess_version),
            resident.image_px,
            cache_path,
            limits=_limits(request),
            max_pixels=request["max_image_pixels"],
            threads=_threads(request),
            on_progress=progress.tell_decoded,
        )
        cache, chosen = open_cache(cache_path), list(range(len(chosen)))
    for row, item in zip(chosen, wanted.items, strict=True):
        yield Picture(item.name, np.asarray(cache[row]), label=manifest.classes[item.label])


def _limits(request: dict[str, Any]) -> ArchiveLimits:
    return ArchiveLimits(
        max_files=request["max_archive_files"], max_image_bytes=request["max_image_bytes"]
    )


def _threads(request: dict[str, Any]) -> int:
    return request["decode_threads"] or min(_MAX_THREADS, os.cpu_count() or 1)

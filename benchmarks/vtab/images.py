"""Every image decoded once: an array of uint8 for each list, kept in the work folder."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.vtab.dataset import Dataset
from benchmarks.vtab.lists import Entry, FolderError, ListName, Problem
from benchmarks.vtab.watch import Console, StopSignal
from core.errors import InvalidError
from core.ml.data.cache import CHANNELS, open_cache, write_cache
from core.ml.data.preprocess import PREPROCESS_VERSION, ImageError, preprocess

_MAX_THREADS = 8
_CHUNK = 256
_SPARE_BYTES = 2**28


class ImageStore:
    """The decoded images of a benchmark, made when they are first asked for."""

    def __init__(self, folder: Path, *, stop: StopSignal, console: Console) -> None:
        """Name the folder, which is made when it is needed."""
        self._folder, self._stop, self._console = folder, stop, console

    def load(self, dataset: Dataset, name: ListName, image_px: int) -> NDArray[np.uint8]:
        """Return the images of a list, (entries, image_px, image_px, 3).

        The array is a private map of the file: it takes memory only for what is being read.

        Raises:
            FolderError: with every image that cannot be decoded.
            InvalidError: the disk has too little room.
            TrainingStoppedError: that was asked for; nothing half-made is left.
        """
        path = self._path(dataset, name, image_px)
        if not path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            entries = dataset.lists[name].entries
            self._check_room(len(entries) * image_px * image_px * CHANNELS)
            rows = self._decode(dataset, name, image_px)
            write_cache(path, rows, count=len(entries), image_px=image_px)
        open_cache(path)  # says so if the file is damaged
        # Copy on write: writable, so that training on a CPU takes it as it is.
        images: NDArray[np.uint8] = np.load(path, mmap_mode="c", allow_pickle=False)
        return images

    def drop(self, dataset: Dataset) -> None:
        """Remove the decoded images of a dataset."""
        for path in self._folder.glob(f"{dataset.recipe.folder}-*.npy"):
            path.unlink()

    def _path(self, dataset: Dataset, name: ListName, image_px: int) -> Path:
        found = dataset.lists[name]
        # Sizes tell nearly every replaced image without reading it.
        sizes = [(dataset.folder / entry.path).stat().st_size for entry in found.entries]
        named = [found.sha256, dataset.first_images[name], PREPROCESS_VERSION, sizes]
        digest = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]
        return self._folder / f"{dataset.recipe.folder}-{name.value}-{image_px}-{digest}.npy"

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if free < needed + _SPARE_BYTES:
            raise InvalidError(
                f"{self._folder} has {free / 1e9:.1f} GB free, the decoded images take "
                f"{needed / 1e9:.1f} GB more; name a larger disk with --work-dir, or let the "
                "images of a finished dataset go with --drop-images"
            )

    def _decode(
        self, dataset: Dataset, name: ListName, image_px: int
    ) -> Iterator[NDArray[np.uint8]]:
        """Yield the images in order; after the last, raise for all that were bad."""
        entries = dataset.lists[name].entries
        problems: list[Problem] = []
        blank = np.zeros((image_px, image_px, CHANNELS), np.uint8)

        def decode(entry: Entry) -> NDArray[np.uint8] | Problem:
            try:
                return preprocess((dataset.folder / entry.path).read_bytes(), image_px)
            except (ImageError, OSError) as error:
                reason = error.message if isinstance(error, ImageError) else str(error)
                return Problem(dataset.shown(name), f"{entry.path}: {reason}", entry.line)

        with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
            for start in range(0, len(entries), _CHUNK):
                self._stop.check()
                self._console.show(
                    f"  decoding {dataset.shown(name)}: {start} of {len(entries)} images"
                )
                for outcome in pool.map(decode, entries[start : start + _CHUNK]):
                    if isinstance(outcome, Problem):
                        problems.append(outcome)
                    yield blank if isinstance(outcome, Problem) else outcome
        if problems:
            raise FolderError(problems)

"""Decode the images of an archive in threads, each once, in the order in which they are stored.

Decoders and resizing release the interpreter lock, so that threads suffice.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt

from core.ml.data.cache import CacheBuilder, CacheCorruptError
from core.ml.data.manifest import Manifest
from core.ml.data.preprocess import (
    MAX_PIXELS,
    PREPROCESS_VERSION,
    ImageError,
    read_image,
    resize_image,
)
from core.ml.data.report import ImageFacts
from core.ml.data.resize import VERSIONS
from core.platform.datasets.archive import Archive, ArchiveEntry, ArchiveLimits, open_archive

#: Images read ahead of the decoders, for each thread: an encoded image may have tens of MB.
_AHEAD = 2

#: Takes the image of one size of one entry; called from several threads at once.
Sink = Callable[[ArchiveEntry, int, npt.NDArray[np.uint8]], None]
_Decoded = tuple[ArchiveEntry, ImageFacts | ImageError]


def decode_entries(
    archive: Archive,
    entries: Iterable[ArchiveEntry],
    *,
    sizes_px: Sequence[int],
    sink: Sink,
    max_pixels: int,
    threads: int,
    version: int = PREPROCESS_VERSION,
) -> Generator[_Decoded, None, None]:
    """Decode entries, hand their pixels to `sink` in every size, and yield what was found.

    Args:
        archive: where the entries come from.
        entries: which images.
        sizes_px: sides of the square images to make.
        sink: takes (entry, side, uint8 array of shape (side, side, 3)).
        max_pixels: largest image, width x height.
        threads: images decoded at once.
        version: of the preprocessing.

    Yields:
        Each entry with its facts, or with the error that it could not be decoded for.

    Raises:
        ArchiveError: when the archive turns out to be damaged.
    """

    def decode(entry: ArchiveEntry, data: bytes) -> _Decoded:
        try:
            found = read_image(data, max_pixels=max_pixels)
        except ImageError as error:
            return entry, error
        for side_px in sizes_px:
            sink(entry, side_px, resize_image(found.pixels, side_px, version=version))
        return entry, ImageFacts(
            name=entry.name,
            sha256=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
            format=found.format,
            width=found.width,
            height=found.height,
            conversions=found.conversions,
        )

    waiting: deque[Future[_Decoded]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        for entry, data in archive.iterate(entries):
            waiting.append(pool.submit(decode, entry, data))
            if len(waiting) > threads * (1 + _AHEAD):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def build_cache(
    archive_path: Path,
    manifest: Manifest,
    image_px: int,
    out_path: Path,
    *,
    limits: ArchiveLimits,
    max_pixels: int = MAX_PIXELS,
    threads: int = 2,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> str:
    """Make the image cache of another size for a dataset, byte for byte as its intake would have.

    Args:
        archive_path: the archive that the dataset was made from.
        manifest: the dataset.
        image_px: side of an image.
        out_path: the cache to make; appears whole or not at all.
        limits: as at the intake.
        max_pixels: as at the intake.
        threads: images decoded at once.
        on_progress: called with (done, total).

    Returns:
        SHA-256 of the file in hex.

    Raises:
        ArchiveError: when the archive is damaged.
        CacheCorruptError: when it is not the archive that the dataset was made from, or when a
            later release of the service made it.
    """
    if manifest.preprocess_version not in VERSIONS:
        raise CacheCorruptError(
            f"The dataset was made by preprocessing {manifest.preprocess_version}, which this "
            "version of the service does not know: run the newer one.",
            code="preprocess_version_unknown",
        )
    rows = {item.name: row for row, item in enumerate(manifest.items)}
    with (
        open_archive(archive_path, limits) as archive,
        closing(CacheBuilder(out_path, capacity=len(rows), image_px=image_px)) as cache,
    ):
        decoding = decode_entries(
            archive,
            [entry for entry in archive.entries if entry.name in rows],
            sizes_px=[image_px],
            sink=lambda entry, _, pixels: cache.put(rows[entry.name], pixels),
            max_pixels=max_pixels,
            threads=threads,
            version=manifest.preprocess_version,
        )
        done = 0
        with closing(decoding):  # its threads must be gone before the cache is
            for done, (entry, found) in enumerate(decoding, start=1):
                item = manifest.items[rows[entry.name]]
                if isinstance(found, ImageError) or found.sha256 != item.sha256:
                    raise _mismatch(entry.name)
                on_progress(done, len(rows))
        if done != len(rows):
            raise _mismatch(f"{len(rows) - done} image(s)")
        return cache.finish()


def _mismatch(what: str) -> CacheCorruptError:
    return CacheCorruptError(
        f"{what}: not as in the archive that the dataset was made from.", code="archive_mismatch"
    )

"""Open an archive of any supported kind, and say at upload time whether it can become a dataset."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from core.platform.datasets.archive.entries import (
    ArchiveEntry,
    ArchiveError,
    ArchiveLimits,
    ArchiveSummary,
    Member,
    MemberSource,
    shown,
)
from core.platform.datasets.archive.inflate import (
    BZIP2_MAGIC,
    GZIP_MAGIC,
    XZ_MAGIC,
    InflatingReader,
)
from core.platform.datasets.archive.layout import Layout, read_layout
from core.platform.datasets.archive.tar_source import TarSource
from core.platform.datasets.archive.zip_source import ZIP_MAGICS, ZipSource

_COMPRESSED_TAR_MAGICS = (GZIP_MAGIC, BZIP2_MAGIC, XZ_MAGIC)
_FOREIGN_KINDS = {
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "RAR",
    b"\x28\xb5\x2f\xfd": "Zstandard",
}
_BLOCK_BYTES = 512
_CHECKSUM = slice(148, 156)


class Archive:
    """The images of an archive and their places, read without extracting.

    Attributes:
        entries: the images, in the archive's order.
        classes: class names, sorted.
        has_splits: whether folders name the splits.
        ignored_files: files that are neither images nor system litter.
        empty_classes: class folders without an image.
    """

    def __init__(self, source: MemberSource, layout: Layout) -> None:
        self._source = source
        self._files = sum(1 for member in source.members if not member.is_folder)
        self.entries = layout.entries
        self.classes = layout.classes
        self.has_splits = layout.has_splits
        self.ignored_files = layout.ignored_files
        self.empty_classes = layout.empty_classes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def iterate(
        self, entries: Iterable[ArchiveEntry] | None = None
    ) -> Iterator[tuple[ArchiveEntry, bytes]]:
        """Yield entries with their encoded bytes, in the archive's order, in one pass.

        Args:
            entries: which ones; all by default.

        Raises:
            ArchiveError: when the data turn out to be cut, damaged or not what was declared.
        """
        by_index = {e.index: e for e in (self.entries if entries is None else entries)}
        for index, data in self._source.iterate(by_index):
            yield by_index[index], data

    def read(self, entry: ArchiveEntry) -> bytes:
        """Return one image's bytes; from a tar this costs a pass up to it."""
        return next(data for _, data in self.iterate([entry]))

    def summary(self) -> ArchiveSummary:
        """Return the counts that an upload's answer shows."""
        per_split = Counter(e.split.value if e.split else "" for e in self.entries)
        return ArchiveSummary(
            files=self._files,
            images=len(self.entries),
            ignored_files=self.ignored_files,
            inflated_bytes=sum(e.size_bytes for e in self.entries),
            classes=self.classes,
            has_splits=self.has_splits,
            images_per_split=dict(per_split),
        )


def open_archive(
    path: Path,
    limits: ArchiveLimits,
    *,
    read: Callable[[Sequence[Member]], Layout] = read_layout,
) -> Archive:
    """List and check an archive; the caller closes it.

    Args:
        path: the uploaded bytes; the kind is told by content, never by name.
        limits: how much it may hold.
        read: finds the images among the members; class folders by default.

    Raises:
        ArchiveError: with the code of what is wrong, see `entries`.
    """
    source = _open_source(path, limits)
    try:
        layout = read(source.members)
        for entry in layout.entries:
            _check_size(entry, limits)
    except BaseException:
        source.close()
        raise
    return Archive(source, layout)


def check_archive(
    path: Path,
    limits: ArchiveLimits,
    *,
    read: Callable[[Sequence[Member]], Layout] = read_layout,
) -> ArchiveSummary:
    """Return what an archive holds, or raise what makes it unfit; reads no image.

    Takes milliseconds for a zip; a compressed tar is inflated once.

    Raises:
        ArchiveError: with the code of what is wrong, see `entries`.
    """
    with open_archive(path, limits, read=read) as archive:
        return archive.summary()


def _check_size(entry: ArchiveEntry, limits: ArchiveLimits) -> None:
    if entry.size_bytes > limits.max_image_bytes:
        raise ArchiveError(
            f"{shown(entry.name)} has {entry.size_bytes} bytes, at most {limits.max_image_bytes} "
            "are read: save it smaller.",
            code="image_too_large",
        )


def _open_source(path: Path, limits: ArchiveLimits) -> MemberSource:
    file_bytes = path.stat().st_size
    if file_bytes == 0:
        raise ArchiveError("The file is empty: send the archive again.", code="archive_empty")
    with path.open("rb") as file:
        head = file.read(_BLOCK_BYTES)
        if head.startswith(ZIP_MAGICS):
            return ZipSource(path, limits)
        if head.startswith(_COMPRESSED_TAR_MAGICS):
            reader = InflatingReader(
                file, file_bytes=file_bytes, max_total_bytes=limits.max_total_bytes
            )
            head = _read_block(reader)
    if _is_tar_header(head):
        return TarSource(path, limits)
    kind = next((name for magic, name in _FOREIGN_KINDS.items() if head.startswith(magic)), None)
    what = f"a {kind} file, which is not read" if kind else "neither a zip nor a tar"
    raise ArchiveError(
        f"The file is {what}: pack the folder as zip, tar, tar.gz, tar.bz2 or tar.xz.",
        code="not_an_archive",
    )


def _read_block(reader: InflatingReader) -> bytes:
    block = b""
    while len(block) < _BLOCK_BYTES and (data := reader.read(_BLOCK_BYTES - len(block))):
        block += data
    return block


def _is_tar_header(block: bytes) -> bool:
    """Return whether the block is a tar header by its checksum, or the end mark of an empty tar."""
    if len(block) < _BLOCK_BYTES:
        return False
    if not any(block):
        return True
    try:
        declared = int(block[_CHECKSUM].strip(b" \0"), 8)
    except ValueError:
        return False
    return declared == sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" ")

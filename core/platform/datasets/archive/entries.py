"""The vocabulary of archives: limits, members, entries, the error that names what is wrong.

Codes of `ArchiveError`, all of them the uploader's to repair:

    not_an_archive · archive_empty · archive_truncated · archive_corrupt · archive_encrypted ·
    unsupported_compression · zip_bomb · archive_too_large · image_too_large · too_many_files ·
    path_traversal · invalid_name · name_too_long · path_too_deep · special_file · duplicate_name ·
    no_images · images_outside_class_folders · too_few_classes · mixed_layout · no_train_split ·
    split_label_mismatch
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from core.errors import InvalidError
from core.types import Split

#: A file that inflates to more than this many times its compressed size is a bomb.
MAX_RATIO = 100

_SHOWN_CHARS = 160


class ArchiveError(InvalidError):
    """The archive cannot become a dataset; the message names the member and the way out."""

    code = "archive_invalid"


@dataclass(frozen=True)
class ArchiveLimits:
    """How much an archive may hold.

    Attributes:
        max_files: most members, ignored ones included.
        max_image_bytes: largest encoded image.
        max_total_bytes: most bytes that all members together may inflate to.
    """

    max_files: int = 200_000
    max_image_bytes: int = 32 * 2**20
    max_total_bytes: int = 32 * 2**30


@dataclass(frozen=True, slots=True)
class Member:
    """One file or folder of an archive, before anyone asks what it is for.

    Attributes:
        index: position in the archive's own listing; identifies the member even where names repeat.
        name: path with `/`, without `.` and empty parts, checked by `names.clean_name`.
        size_bytes: inflated size as the archive declares it.
        is_folder: whether it is a folder entry.
    """

    index: int
    name: str
    size_bytes: int
    is_folder: bool = False


@dataclass(frozen=True, slots=True)
class ArchiveEntry:
    """One image of an archive and where its path puts it.

    Attributes:
        name: path inside the archive.
        split: what the folder names say, None where the archive has no splits.
        class_name: the class folder's name in Unicode NFC, otherwise verbatim.
        size_bytes: encoded size.
        index: position in the archive's own listing.
    """

    name: str
    split: Split | None
    class_name: str
    size_bytes: int
    index: int


@dataclass(frozen=True)
class ArchiveSummary:
    """What an accepted archive holds.

    Attributes:
        files: members that are files, ignored ones included.
        images: images in class folders.
        ignored_files: files that are neither images nor system litter.
        inflated_bytes: declared size of all images together.
        classes: class names, sorted.
        has_splits: whether the folders say which split an image belongs to.
        images_per_split: images by split; under the key `""` where the archive has no splits.
    """

    files: int
    images: int
    ignored_files: int
    inflated_bytes: int
    classes: tuple[str, ...]
    has_splits: bool
    images_per_split: dict[str, int] = field(default_factory=dict)


class MemberSource(Protocol):
    """A container format: lists members once, reads some of them in the order they are stored."""

    @property
    def members(self) -> tuple[Member, ...]:
        """All members, in the archive's own order."""
        ...

    def iterate(self, wanted: Collection[int]) -> Iterator[tuple[int, bytes]]:
        """Yield (index, bytes) of the wanted members, in an order that never reads twice."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


def shown(name: str) -> str:
    """Return the name quoted, escaped and shortened for a message."""
    text = ascii(name) if not name.isprintable() else repr(name)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…'"

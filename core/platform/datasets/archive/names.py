"""Member names: which are refused, which are litter, which are images."""

import re
import unicodedata

from core.platform.datasets.archive.entries import ArchiveError, shown

#: Longest path and longest part of a path, in UTF-8 bytes (what common file systems hold).
MAX_PATH_BYTES = 1024
MAX_PART_BYTES = 255
MAX_DEPTH = 16

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})

#: Images that are not decoded here. They are listed like the others, so that decoding reports each
#: of them: leaving them out in silence would train on less than the uploader believes.
FOREIGN_IMAGE_EXTENSIONS = frozenset(
    {".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg", ".eps", ".ico"}
    | {".jfif", ".jpe", ".dib", ".ppm", ".pgm", ".tga", ".psd", ".dng", ".cr2", ".nef", ".arw"}
)

_LITTER = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin"})
_DRIVE = re.compile(r"[A-Za-z]:")


def clean_name(raw: str) -> str:
    """Return the member's path without `.` and empty parts.

    Args:
        raw: the name as the archive gives it.

    Raises:
        ArchiveError: for a name that leaves the archive, cannot be stored, or is over a limit.
    """
    if "\0" in raw:
        raise ArchiveError(
            f"The name {shown(raw)} holds a NUL character: pack the archive again.",
            code="invalid_name",
        )
    try:
        size_bytes = len(raw.encode())
    except UnicodeEncodeError as error:
        raise ArchiveError(
            f"The name {shown(raw)} is not UTF-8: rename the file and pack the archive again.",
            code="invalid_name",
        ) from error
    parts = [part for part in raw.split("/") if part not in ("", ".")]
    if raw.startswith("/") or "\\" in raw or ".." in parts or _DRIVE.match(raw):
        raise ArchiveError(
            f"The name {shown(raw)} is absolute, leaves the archive or holds a backslash: "
            "pack the folder itself, with relative paths and forward slashes.",
            code="path_traversal",
        )
    if size_bytes > MAX_PATH_BYTES or any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        raise ArchiveError(
            f"The name {shown(raw)} is too long: at most {MAX_PART_BYTES} bytes a part "
            f"and {MAX_PATH_BYTES} in all.",
            code="name_too_long",
        )
    if len(parts) > MAX_DEPTH:
        raise ArchiveError(
            f"{shown(raw)} lies {len(parts)} levels deep: at most {MAX_DEPTH} are read.",
            code="path_too_deep",
        )
    return "/".join(parts)


def is_litter(name: str) -> bool:
    """Return whether the path is something an operating system left behind, such as `.DS_Store`."""
    return any(part.startswith(".") or part.casefold() in _LITTER for part in name.split("/"))


def is_image(name: str) -> bool:
    """Return whether the extension is an image's, whether or not it can be decoded here."""
    extension = f".{name.rpartition('.')[2].lower()}"
    return extension in IMAGE_EXTENSIONS or extension in FOREIGN_IMAGE_EXTENSIONS


def collision_key(name: str) -> str:
    """Return what two names share that differ only in case or in Unicode composition."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def normal_label(part: str) -> str:
    """Return a folder name in NFC: macOS packs `é` as two code points, Linux and Windows as one."""
    return unicodedata.normalize("NFC", part)

"""A model as one archive: `adapter.safetensors`, `config.json` and `README.md`, its card.

It is written as a zip without compression, with the same bytes whenever the same files go in. It is
read from a zip or a tar from anywhere: names are looked up, nothing is extracted, and every size is
limited.
"""

import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Final

from core.errors import InvalidError, TooLargeError, UnsupportedTypeError

ADAPTER_NAME: Final = "adapter.safetensors"
CONFIG_NAME: Final = "config.json"
CARD_NAME: Final = "README.md"

#: The oldest date that a zip can hold.
_DATE = (1980, 1, 1, 0, 0, 0)
_FILE_MODE = 0o100644
_UNIX = 3
#: An archive of ours has three files; one that somebody packed by hand may have some more.
_MAX_ENTRIES = 64
_CHUNK_BYTES = 1 << 20
#: `torch.save` writes a zip with a `data.pkl`.
_PICKLE_SUFFIXES = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt")
#: What the readers raise; RuntimeError and NotImplementedError are `zipfile`'s for methods that it
#: does not know.
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)


class InvalidArchiveError(InvalidError):
    """The file is not an archive with a model in it."""

    code = "invalid_model_archive"


def write_bundle(out: IO[bytes], files: Mapping[str, IO[bytes]]) -> None:
    """Write files into a zip.

    Args:
        out: where to.
        files: name -> content, in the order in which they shall stand.
    """
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _DATE)
            entry.create_system = _UNIX
            entry.external_attr = _FILE_MODE << 16
            with archive.open(entry, "w", force_zip64=True) as target:
                shutil.copyfileobj(content, target, _CHUNK_BYTES)


def read_bundle(file: IO[bytes], limits: Mapping[str, int]) -> dict[str, bytes]:
    """Return files of an archive by their names, from its top or from its one folder.

    Args:
        file: a zip, or a tar without compression, which could hide any amount of data.
        limits: name of a wanted file -> most bytes it may have.

    Raises:
        InvalidArchiveError: it is neither, is broken, or lacks a file.
        UnsupportedTypeError: (`unsupported_model_format`) it has weights that are pickled.
        TooLargeError: a file is over its limit.
    """
    others: list[str] = []
    try:
        with _open_archive(file) as entries:
            found = dict(_find(entries, limits, others))
    except _BROKEN as error:
        raise InvalidArchiveError(f"the archive cannot be read: {error}") from error
    missing = [name for name in limits if name not in found]
    pickled = [name for name in others if name.lower().endswith(_PICKLE_SUFFIXES)]
    if missing and pickled:
        raise UnsupportedTypeError(
            f"the archive holds {pickled[0]}, a format that can run code when it is loaded and is "
            f"not read here; send {' and '.join(limits)}",
            code="unsupported_model_format",
        )
    if missing:
        raise InvalidArchiveError(
            f"the archive has no {missing[0]}; it must hold {' and '.join(limits)}, as "
            "GET /v1/models/{id}/bundle sends them"
        )
    return found


class _Entries:
    """The regular files of an archive, whatever its format."""

    def __init__(self, archive: zipfile.ZipFile | tarfile.TarFile) -> None:
        self._archive = archive

    def __iter__(self) -> Iterator[tuple[str, zipfile.ZipInfo | tarfile.TarInfo]]:
        """Yield names and members, up to a limit on their number."""
        members: Iterator[zipfile.ZipInfo | tarfile.TarInfo]
        if isinstance(self._archive, zipfile.ZipFile):
            members = iter(self._archive.infolist())
        else:
            members = iter(self._archive)  # header by header: a tar has no table of contents
        for index, member in enumerate(members):
            if index == _MAX_ENTRIES:
                raise InvalidArchiveError(f"the archive has more than {_MAX_ENTRIES} entries")
            if isinstance(member, zipfile.ZipInfo):
                if not member.is_dir():
                    yield member.filename, member
            elif member.isreg():
                yield member.name, member

    def read(self, member: zipfile.ZipInfo | tarfile.TarInfo, limit_bytes: int) -> bytes:
        """Return a member's content, at most one byte over the limit."""
        with self._open(member) as file:
            return file.read(limit_bytes + 1)

    def _open(self, member: zipfile.ZipInfo | tarfile.TarInfo) -> IO[bytes]:
        if isinstance(self._archive, zipfile.ZipFile):
            assert isinstance(member, zipfile.ZipInfo)
            if member.flag_bits & 1:
                raise InvalidArchiveError("the archive is encrypted")
            return self._archive.open(member)
        assert isinstance(member, tarfile.TarInfo)
        file = self._archive.extractfile(member)
        assert file is not None, "it is a regular file"
        return file


@contextmanager
def _open_archive(file: IO[bytes]) -> Iterator[_Entries]:
    is_zip = zipfile.is_zipfile(file)
    file.seek(0)
    if is_zip:
        with zipfile.ZipFile(file) as archive:
            yield _Entries(archive)
        return
    try:
        tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - closed below; only opening it tells what it is
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InvalidArchiveError(
            "the file is neither a zip nor a tar archive without compression"
        ) from error
    with tar:
        yield _Entries(tar)


def _find(
    entries: _Entries, limits: Mapping[str, int], others: list[str]
) -> Iterator[tuple[str, bytes]]:
    """Yield the wanted files; append the names of all others to `others`."""
    seen: set[str] = set()
    for path, member in entries:
        folder, _, name = path.removeprefix("./").rpartition("/")
        if name not in limits or "/" in folder:
            others.append(name)
            continue
        if name in seen:
            raise InvalidArchiveError(f"the archive has {name} twice")
        seen.add(name)
        content = entries.read(member, limits[name])
        if len(content) > limits[name]:
            raise TooLargeError(f"{name} is over {limits[name]} bytes")
        yield name, content

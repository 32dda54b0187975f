"""Broken and hostile archives: each is refused with its code, and nothing hangs or fills memory."""

import bz2
import gzip
import io
import lzma
import random
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from core.platform.datasets.archive import ArchiveError, ArchiveLimits, check_archive, open_archive

LIMITS = ArchiveLimits(max_files=50, max_image_bytes=20_000_000, max_total_bytes=40_000_000)
GOOD = {"cat/1.jpg": b"a" * 600, "dog/1.jpg": b"b" * 600}


def zip_bytes(
    files: dict[str, bytes],
    compression: int = zipfile.ZIP_STORED,
    edit: Callable[[zipfile.ZipInfo], None] = lambda _: None,
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            edit(info)
            archive.writestr(info, data, compression)
    return buffer.getvalue()


def patch_headers(data: bytes, local_at: int, central_at: int, layout: str, *values: int) -> bytes:
    """Overwrite a field of every local and every central header of a zip."""
    changed = bytearray(data)
    for magic, at in ((b"PK\x03\x04", local_at), (b"PK\x01\x02", central_at)):
        position = changed.find(magic)
        while position >= 0:
            struct.pack_into(layout, changed, position + at, *values)
            position = changed.find(magic, position + 4)
    return bytes(changed)


def tar_bytes(build: Callable[[tarfile.TarFile], None], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in GOOD.items():
            add(archive, name, data)
        build(archive)
    return buffer.getvalue()


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in fields.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(data))


def tar_with(name: str, data: bytes = b"x", **fields: object) -> bytes:
    return tar_bytes(lambda archive: add(archive, name, data, **fields))


def raw_header(name: bytes, size_field: bytes, kind: bytes = b"0") -> bytes:
    """Return a tar header that the library would not write."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108] = b"0000644\0"
    block[124:136] = size_field
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


NEGATIVE = b"\xff" * 11 + b"\x00"  # base-256, two's complement: -256
TAR_END = bytes(1024)
NOISE = random.Random(0).randbytes(3000)


def overlapping_zip() -> bytes:
    """Two directory entries that share one kernel of data."""
    data = bytearray(zip_bytes({"cat/1.jpg": b"a" * 600, "dog/1.jpg": b"b" * 600}))
    second = data.rfind(b"PK\x01\x02")
    struct.pack_into("<L", data, second + 42, 0)
    return bytes(data)


def zip64_elsewhere() -> bytes:
    """A ZIP64 locator that points at another record than the one right before it."""
    data = zip_bytes(GOOD)
    end = data.rfind(b"PK\x05\x06")
    size, offset = struct.unpack_from("<2L", data, end + 12)
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 2, 2, size, offset)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 10, 1)
    return data[:end] + record + locator + data[end:]


def pax_size(value: str) -> Callable[[tarfile.TarFile], None]:
    return lambda archive: add(archive, "cat/3.jpg", b"abc", pax_headers={"size": value})


HOSTILE: list[tuple[str, str, Callable[[], bytes]]] = [
    # Not an archive at all, or not all of it
    ("archive_empty", "no bytes", lambda: b""),
    ("archive_empty", "zip without members", lambda: zip_bytes({})),
    ("archive_empty", "tar without members", lambda: bytes(10_240)),
    ("not_an_archive", "text", lambda: b"hello " * 200),
    ("not_an_archive", "7z", lambda: b"7z\xbc\xaf\x27\x1c" + NOISE),
    ("not_an_archive", "gzip of something else", lambda: gzip.compress(NOISE)),
    ("not_an_archive", "JPEG", lambda: b"\xff\xd8\xff\xe0" + NOISE),
    ("archive_truncated", "zip cut in its data", lambda: zip_bytes(GOOD)[:400]),
    ("archive_truncated", "zip cut in its end record", lambda: zip_bytes(GOOD)[:-5]),
    ("archive_truncated", "tar cut between members", lambda: tar_with("cat/9.jpg", NOISE)[:3072]),
    ("archive_corrupt", "tar cut inside a member", lambda: tar_with("cat/9.jpg", NOISE)[:4600]),
    ("archive_truncated", "tar.gz cut", lambda: gzip.compress(tar_with("a/9.jpg", NOISE))[:-300]),
    ("archive_truncated", "tar.gz tail", lambda: gzip.compress(tar_with("a/9.jpg", NOISE))[:-3]),
    ("archive_truncated", "tar.xz cut", lambda: lzma.compress(tar_with("a/9.jpg", NOISE))[:-20]),
    ("archive_truncated", "tar.bz2 cut", lambda: bz2.compress(tar_with("a/9.jpg", NOISE))[:-20]),
    (
        "archive_corrupt",
        "tar.gz checksum",
        lambda: gzip.compress(tar_with("a/9.jpg", NOISE))[:-8] + b"\1" * 8,
    ),
    ("archive_corrupt", "tar.bz2 garbage", lambda: b"BZh9" + NOISE),
    (
        "archive_corrupt",
        "tar header in the middle",
        lambda: tar_with("cat/9.jpg")[:2048] + b"garbage" * 200 + TAR_END,
    ),
    ("archive_corrupt", "bytes after the end", lambda: zip_bytes(GOOD) + b"tail"),
    ("archive_corrupt", "bytes before the zip", lambda: b"PK\x03\x04junk" + zip_bytes(GOOD)),
    ("archive_corrupt", "ZIP64 locator elsewhere", zip64_elsewhere),
    # Names that leave the archive or cannot be kept
    ("path_traversal", "zip ..", lambda: zip_bytes(GOOD | {"cat/../../1.jpg": b"x"})),
    ("path_traversal", "zip absolute", lambda: zip_bytes(GOOD | {"/etc/1.jpg": b"x"})),
    ("path_traversal", "zip drive", lambda: zip_bytes(GOOD | {"C:/1.jpg": b"x"})),
    ("path_traversal", "zip backslash", lambda: zip_bytes(GOOD | {"cat\\1.jpg": b"x"})),
    ("path_traversal", "zip litter too", lambda: zip_bytes(GOOD | {"__MACOSX/../x": b""})),
    ("path_traversal", "tar ..", lambda: tar_with("../cat/1.jpg")),
    ("path_traversal", "tar absolute", lambda: tar_with("/cat/1.jpg")),
    (
        "invalid_name",
        "zip NUL",
        lambda: zip_bytes(GOOD | {"cat/1@.jpg": b"x"}).replace(b"cat/1@.jpg", b"cat/1\0.jpg"),
    ),
    ("invalid_name", "tar not UTF-8", lambda: tar_with("cat/\udcff.jpg")),
    ("name_too_long", "zip part", lambda: zip_bytes(GOOD | {f"cat/{'n' * 300}.jpg": b"x"})),
    ("name_too_long", "tar part", lambda: tar_with(f"cat/{'n' * 300}.jpg")),
    ("name_too_long", "path", lambda: zip_bytes(GOOD | {f"{'abcdefg/' * 150}.jpg": b"x"})),
    ("path_too_deep", "depth 50", lambda: zip_bytes(GOOD | {"d/" * 50 + "1.jpg": b"x"})),
    ("too_many_files", "zip", lambda: zip_bytes({f"cat/{n}.jpg": b"" for n in range(51)})),
    (
        "too_many_files",
        "tar",
        lambda: tar_bytes(lambda t: [add(t, f"a/{n}.jpg") for n in range(60)] and None),
    ),
    # Members that are no files
    ("special_file", "tar symlink", lambda: tar_with("a", type=tarfile.SYMTYPE, linkname="/etc")),
    ("special_file", "tar hardlink", lambda: tar_with("a", type=tarfile.LNKTYPE, linkname="b")),
    ("special_file", "tar device", lambda: tar_with("a", type=tarfile.CHRTYPE)),
    ("special_file", "tar block device", lambda: tar_with("a", type=tarfile.BLKTYPE)),
    ("special_file", "tar fifo", lambda: tar_with("a", type=tarfile.FIFOTYPE)),
    ("special_file", "tar sparse", lambda: tar_with("a", b"", type=tarfile.GNUTYPE_SPARSE)),
    (
        "special_file",
        "tar sparse by pax",
        lambda: tar_with(
            "a",
            b"1\n0\n1\n".ljust(512),
            pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
        ),
    ),
    (
        "special_file",
        "zip symlink",
        lambda: zip_bytes(GOOD, edit=lambda i: setattr(i, "external_attr", 0o120777 << 16)),
    ),
    # Sizes that lie, bombs
    ("archive_corrupt", "tar negative size", lambda: raw_header(b"a/1.jpg", NEGATIVE) + TAR_END),
    (
        "archive_corrupt",
        "tar negative extended header",
        lambda: raw_header(b"a", NEGATIVE, b"x") + TAR_END,
    ),
    ("archive_corrupt", "tar huge pax header", lambda: raw_header(b"a", b"77777777777\0", b"x")),
    (
        "archive_corrupt",
        "tar digits in pax",
        lambda: raw_header(b"a", b"00000020000\0", b"x") + b"1" * 8192 + TAR_END,
    ),
    ("archive_corrupt", "tar negative size by pax", lambda: tar_bytes(pax_size("-512"))),
    ("zip_bomb", "zip overlap", overlapping_zip),
    (
        "zip_bomb",
        "zip ratio",
        lambda: zip_bytes(GOOD | {"a/1.jpg": bytes(10_000_000)}, zipfile.ZIP_DEFLATED),
    ),
    ("zip_bomb", "tar.gz ratio", lambda: gzip.compress(tar_with("a/1.jpg", bytes(15_000_000)))),
    ("zip_bomb", "tar.bz2 ratio", lambda: bz2.compress(tar_with("a/1.jpg", bytes(15_000_000)))),
    ("zip_bomb", "tar.xz ratio", lambda: lzma.compress(tar_with("a/1.jpg", bytes(15_000_000)))),
    (
        "archive_corrupt",
        "stored sizes differ",
        lambda: patch_headers(zip_bytes(GOOD), 18, 20, "<L", 500),
    ),
    (
        "archive_too_large",
        "declared total",
        lambda: patch_headers(zip_bytes(GOOD, zipfile.ZIP_DEFLATED), 22, 24, "<L", 2**31),
    ),
    # What a zip may be and is not read
    ("archive_encrypted", "flag", lambda: patch_headers(zip_bytes(GOOD), 6, 8, "<H", 1)),
    ("unsupported_compression", "bzip2", lambda: zip_bytes(GOOD, zipfile.ZIP_BZIP2)),
    ("unsupported_compression", "lzma", lambda: zip_bytes(GOOD, zipfile.ZIP_LZMA)),
    (
        "unsupported_compression",
        "deflate64",
        lambda: patch_headers(zip_bytes(GOOD), 8, 10, "<H", 9),
    ),
]


@pytest.mark.parametrize(
    ("code", "build"), [pytest.param(c, b, id=f"{c}-{what}") for c, what, b in HOSTILE]
)
def test_refused_at_the_listing(code: str, build: Callable[[], bytes], tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(build())
    with pytest.raises(ArchiveError) as caught:
        check_archive(path, LIMITS)
    assert caught.value.code == code, caught.value.message
    assert caught.value.message


def test_an_image_over_its_limit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(zip_bytes(GOOD))
    with pytest.raises(ArchiveError, match=r"'cat/1\.jpg' has 600 bytes") as caught:
        check_archive(path, ArchiveLimits(max_image_bytes=599))
    assert caught.value.code == "image_too_large"


class TestDataThatTurnOutOtherwise:
    """The listing cannot see these: they show when the members are read."""

    def read(self, data: bytes, tmp_path: Path) -> ArchiveError:
        path = tmp_path / "upload"
        path.write_bytes(data)
        with open_archive(path, LIMITS) as archive, pytest.raises(ArchiveError) as caught:
            list(archive.iterate())
        return caught.value

    def test_more_than_declared_is_never_inflated(self, tmp_path: Path) -> None:
        data = zip_bytes({n: d * 100 for n, d in GOOD.items()}, zipfile.ZIP_DEFLATED)
        error = self.read(patch_headers(data, 22, 24, "<L", 700), tmp_path)
        assert error.code == "archive_corrupt"

    def test_less_than_declared(self, tmp_path: Path) -> None:
        # The checksum agrees with the data, so that only the length can tell.
        data = zip_bytes(GOOD, zipfile.ZIP_DEFLATED)
        error = self.read(patch_headers(data, 22, 24, "<L", 900), tmp_path)
        assert error.code == "archive_corrupt"
        assert "600 bytes, not 900" in error.message

    def test_a_wrong_checksum(self, tmp_path: Path) -> None:
        data = zip_bytes(GOOD).replace(b"a" * 600, b"a" * 599 + b"z")
        assert self.read(data, tmp_path).code == "archive_corrupt"

    def test_a_damaged_deflate_stream(self, tmp_path: Path) -> None:
        noise = {"cat/1.jpg": NOISE.hex().encode(), "dog/1.jpg": b"b"}
        data = bytearray(zip_bytes(noise, zipfile.ZIP_DEFLATED))
        data[100:160] = b"\xff" * 60
        assert self.read(bytes(data), tmp_path).code == "archive_corrupt"


def test_a_chain_of_extended_headers_does_not_exhaust_the_stack(tmp_path: Path) -> None:
    record = b"13 comment=x\n".ljust(512, b"\0")
    header = raw_header(b"a", b"00000000015\0", b"x")
    path = tmp_path / "upload"
    path.write_bytes((header + record) * 5000 + TAR_END)
    with pytest.raises(ArchiveError) as caught:
        check_archive(path, LIMITS)
    assert caught.value.code == "archive_corrupt"


def test_an_xz_dictionary_may_not_take_all_memory(tmp_path: Path) -> None:
    data = tar_with("cat/2.jpg", NOISE)
    encoded = lzma.compress(data, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 2**20}])
    path = tmp_path / "upload"
    path.write_bytes(encoded)
    assert check_archive(path, LIMITS).images == 3
    # Encoding with a dictionary of 1 GiB takes ten; the block header's field is changed instead:
    # code 2n means 2 ** (n + 12) bytes.
    size_code = 2 * (30 - 12)
    header_bytes = (encoded[12] + 1) * 4
    block = bytearray(encoded[12 : 12 + header_bytes])
    field = block.index(bytes([0x21, 0x01])) + 2
    block[field] = size_code
    struct.pack_into("<L", block, header_bytes - 4, zlib.crc32(bytes(block[:-4])))
    path.write_bytes(encoded[:12] + bytes(block) + encoded[12 + header_bytes :])
    with pytest.raises(ArchiveError, match=r"[Mm]emory"):
        check_archive(path, LIMITS)

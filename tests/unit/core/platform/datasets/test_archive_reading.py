"""Good archives of every kind: what is listed and what is read back."""

import gzip
import io
import random
import struct
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from core.platform.datasets.archive import ArchiveLimits, check_archive, open_archive
from core.types import Split

LIMITS = ArchiveLimits()
FILES = {
    "set/train/cat/1.jpg": b"one",
    "set/train/dog/1.PNG": b"two",
    "set/valid/cat/2.webp": b"three",
    "set/test/dog/deep/er/3.bmp": b"four",
    "set/readme.txt": b"text",
    "set/train/.DS_Store": b"litter",
    "__MACOSX/set/train/cat/._1.jpg": b"litter",
    "set/train/cat/Thumbs.db": b"litter",
    "set/train/.ipynb_checkpoints/1.jpg": b"litter",
}
IMAGES = {name: data for name, data in FILES.items() if data not in (b"text", b"litter")}


def write_zip(path: Path, files: Mapping[str, bytes], compression: int) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def write_tar(path: Path, files: Mapping[str, bytes], mode: str, tar_format: int) -> None:
    with tarfile.open(path, mode, format=tar_format) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.fixture(
    params=[
        "zip-stored",
        "zip-deflated",
        "tar-pax",
        "tar-gnu",
        "tar-ustar",
        "tar-gz",
        "tar-bz2",
        "tar-xz",
    ]
)
def archive_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same files, packed in each way that is supported; the name says nothing."""
    path = tmp_path / "upload"
    kind = request.param.partition("-")[2]
    if kind in ("stored", "deflated"):
        compression = zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED
        write_zip(path, FILES, compression)
    else:
        formats = {"gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}
        mode = f"w:{kind}" if kind in ("gz", "bz2", "xz") else "w"
        write_tar(path, FILES, mode, formats.get(kind, tarfile.PAX_FORMAT))
    return path


class TestEveryKind:
    def test_lists_images_with_split_and_class(self, archive_path: Path) -> None:
        with open_archive(archive_path, LIMITS) as archive:
            found = {(e.name, e.split, e.class_name, e.size_bytes) for e in archive.entries}
        assert found == {
            ("set/train/cat/1.jpg", Split.TRAIN, "cat", 3),
            ("set/train/dog/1.PNG", Split.TRAIN, "dog", 3),
            ("set/valid/cat/2.webp", Split.VAL, "cat", 5),
            ("set/test/dog/deep/er/3.bmp", Split.TEST, "dog", 4),
        }

    def test_reads_every_image_back_in_one_pass(self, archive_path: Path) -> None:
        with open_archive(archive_path, LIMITS) as archive:
            assert {entry.name: data for entry, data in archive.iterate()} == IMAGES

    def test_reads_a_selection_and_single_entries(self, archive_path: Path) -> None:
        with open_archive(archive_path, LIMITS) as archive:
            last, first = archive.entries[-1], archive.entries[0]
            chosen = [(e.name, data) for e, data in archive.iterate([last, first])]
            assert sorted(chosen) == sorted((e.name, IMAGES[e.name]) for e in (first, last))
            assert archive.read(last) == IMAGES[last.name]

    def test_summary_counts_what_was_kept_and_what_ignored(self, archive_path: Path) -> None:
        summary = check_archive(archive_path, LIMITS)
        assert summary.files == len(FILES)
        assert summary.images == 4
        assert summary.ignored_files == 1
        assert summary.classes == ("cat", "dog")
        assert summary.has_splits
        assert summary.images_per_split == {"train": 2, "val": 1, "test": 1}
        assert summary.inflated_bytes == sum(map(len, IMAGES.values()))


def test_long_and_foreign_names_survive(tmp_path: Path) -> None:
    long_class = "k" * 200
    files = {f"{long_class}/{'n' * 200}.jpg": b"1", "größe 猫/1.jpg": b"2"}
    for name, tar_format in (("gnu", tarfile.GNU_FORMAT), ("pax", tarfile.PAX_FORMAT)):
        path = tmp_path / name
        write_tar(path, files, "w", tar_format)
        with open_archive(path, LIMITS) as archive:
            assert archive.classes == ("größe 猫", long_class)
            assert {e.name: d for e, d in archive.iterate()} == files


def test_class_names_are_kept_verbatim(tmp_path: Path) -> None:
    names = ["<b>bold<b>", "=cmd()", "a\nb", "\u202eltr", "a'b\"c"]
    path = tmp_path / "upload"
    write_zip(path, {f"{name}/1.jpg": b"x" for name in names}, zipfile.ZIP_STORED)
    assert check_archive(path, LIMITS).classes == tuple(sorted(names))


def test_class_folders_in_either_unicode_form_are_one_class(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    files = {"train/caf\u00e9/1.jpg": b"1", "test/cafe\u0301/2.jpg": b"2", "train/b/3.jpg": b"3"}
    write_zip(path, files, zipfile.ZIP_STORED)
    assert check_archive(path, LIMITS).classes == ("b", "caf\u00e9")


def test_utf8_names_without_the_flag_are_read_as_utf8(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    write_zip(path, {"größe/1.jpg": b"1", "klein/1.jpg": b"2"}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        position = data.find(magic)
        while position >= 0:
            flags = struct.unpack_from("<H", data, position + at)[0]
            struct.pack_into("<H", data, position + at, flags & ~0x800)
            position = data.find(magic, position + 1)
    path.write_bytes(data)
    assert check_archive(path, LIMITS).classes == ("größe", "klein")


def test_streamed_zip_with_data_descriptors(tmp_path: Path) -> None:
    class Unseekable(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: object) -> int:
            raise io.UnsupportedOperation

        def tell(self) -> int:
            raise io.UnsupportedOperation

    buffer = Unseekable()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.jpg", b"1" * 50)
        archive.writestr("b/1.jpg", b"2" * 50)
    path = tmp_path / "upload"
    path.write_bytes(buffer.getvalue())
    with open_archive(path, LIMITS) as opened:
        assert [d for _, d in opened.iterate()] == [b"1" * 50, b"2" * 50]


def test_zip64_end_record_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # More than 65,535 members would take long to write; the writer's threshold is lowered instead.
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    path = tmp_path / "upload"
    write_zip(path, {"a/1.jpg": b"1", "b/1.jpg": b"2"}, zipfile.ZIP_STORED)
    monkeypatch.undo()
    assert b"PK\x06\x06" in path.read_bytes()
    assert check_archive(path, LIMITS).images == 2


@pytest.mark.slow
def test_a_wrapped_member_count_without_zip64_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    files = {f"{'ab'[n % 2]}/{n}.jpg": b"" for n in range(65_540)}
    write_zip(path, files, zipfile.ZIP_STORED)
    data = path.read_bytes()
    end64 = data.rfind(b"PK\x06\x06")
    size, offset = struct.unpack_from("<2Q", data, end64 + 40)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 4, 4, size, offset, 0)
    path.write_bytes(data[:end64] + end)
    assert check_archive(path, LIMITS).images == 65_540


def test_several_gzip_streams_with_padding_are_one_file(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    noise = random.Random(0).randbytes(40_000)
    write_tar(plain, {"a/1.jpg": noise, "b/1.jpg": b"2"}, "w", tarfile.PAX_FORMAT)
    data = plain.read_bytes()
    path = tmp_path / "upload"
    middle = len(data) // 2
    path.write_bytes(gzip.compress(data[:middle]) + gzip.compress(data[middle:]) + b"\0" * 1000)
    with open_archive(path, LIMITS) as archive:
        assert [d for _, d in archive.iterate()] == [noise, b"2"]


def test_a_packed_current_folder_has_no_wrapper(tmp_path: Path) -> None:
    path = tmp_path / "upload"
    with tarfile.open(path, "w") as archive:
        for name in (".", "./a", "./b"):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
        for name in ("./a/1.jpg", "./b//1.jpg"):
            archive.addfile(tarfile.TarInfo(name))
    with open_archive(path, LIMITS) as opened:
        assert [entry.name for entry in opened.entries] == ["a/1.jpg", "b/1.jpg"]
        assert opened.empty_classes == ()

"""The intake as a real process: from an archive on disk to the three files of a dataset."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from core.ml.data.cache import CacheCorruptError, cache_name, open_cache
from core.ml.data.manifest import Manifest, load_manifest
from core.ml.data.preprocess import preprocess
from core.platform.datasets.archive import ArchiveLimits
from core.types import Split
from worker.child import ORPHANED_EXIT_CODE
from worker.decoding import build_cache

ROOT = Path(__file__).parents[3]


def encoded(seed: int, kind: str = "PNG", side: int = 20, **options: object) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def class_folders(per_class: int = 12, classes: str = "ab") -> dict[str, bytes]:
    return {
        f"{name}/{n:02}.png": encoded(1000 * label + n)
        for label, name in enumerate(classes)
        for n in range(per_class)
    }


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@contextmanager
def started(workdir: Path, archive: Path, **request: Any) -> Iterator[subprocess.Popen[str]]:
    workdir.mkdir(exist_ok=True)
    body = {"archive_path": str(archive), "image_px": [8], "threads": 2} | request
    (workdir / "request.json").write_text(json.dumps(body))
    with subprocess.Popen(
        [sys.executable, "-m", "worker.intake", str(workdir)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run(workdir: Path, archive: Path, **request: Any) -> list[dict[str, Any]]:
    """Run an intake to its end; return its messages."""
    with started(workdir, archive, **request) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        messages = [json.loads(line) for line in process.stdout]
        assert process.wait() == 0, process.stderr.read()
    return messages


def report_of(workdir: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((workdir / "out" / "report.json").read_text())
    return report


def load(workdir: Path) -> Manifest:
    return load_manifest(workdir / "out" / "manifest.json")


class TestGoodArchive:
    def test_leaves_manifest_caches_and_report(self, tmp_path: Path) -> None:
        files = class_folders()
        archive = write_zip(tmp_path / "upload", files)
        messages = run(tmp_path / "w", archive, image_px=[8, 20])
        assert [m["type"] for m in messages[:-1]] == ["progress"] * (len(messages) - 1)
        assert messages[0] == {"type": "progress", "done": 0, "total": 24}
        manifest = load(tmp_path / "w")
        assert sorted(p.name for p in (tmp_path / "w" / "out").iterdir()) == [
            "images_20.npy",
            "images_8.npy",
            "manifest.json",
            "report.json",
        ]
        assert messages[-1] == {
            "type": "done",
            "manifest_sha256": manifest.digest,
            "images": 24,
            "classes": 2,
            "caches": {
                px: hashlib.sha256((tmp_path / f"w/out/images_{px}.npy").read_bytes()).hexdigest()
                for px in ("8", "20")
            },
        }

    def test_every_row_is_its_item_preprocessed(self, tmp_path: Path) -> None:
        files = class_folders()
        run(tmp_path / "w", write_zip(tmp_path / "upload", files), image_px=[8])
        cache = open_cache(tmp_path / "w" / "out" / cache_name(8))
        manifest = load(tmp_path / "w")
        assert manifest.classes == ("a", "b")
        assert len(cache) == len(manifest.items) == len(files)
        for row, item in zip(cache, manifest.items, strict=True):
            data = files[item.name]
            assert item.sha256 == hashlib.sha256(data).hexdigest()
            assert manifest.classes[item.label] == item.name[0]
            np.testing.assert_array_equal(row, preprocess(data, 8))

    def test_splits_are_stratified_and_recorded(self, tmp_path: Path) -> None:
        archive = write_zip(tmp_path / "upload", class_folders(20))
        run(tmp_path / "w", archive)
        expected = {Split.TRAIN: 14, Split.VAL: 3, Split.TEST: 3}
        assert load(tmp_path / "w").counts() == {"a": expected, "b": expected}
        assert report_of(tmp_path / "w")["summary"]["splits"] == {"train": 28, "val": 6, "test": 6}

    def test_given_splits_are_kept(self, tmp_path: Path) -> None:
        files = {f"train/{name}": data for name, data in class_folders().items()}
        files |= {f"valid/{c}/v.png": encoded(77 + i) for i, c in enumerate("ab")}
        run(tmp_path / "w", write_zip(tmp_path / "upload", files))
        manifest = load(tmp_path / "w")
        assert {i.name: i.split for i in manifest.items}["valid/a/v.png"] is Split.VAL
        assert len(manifest.indices(Split.TRAIN)) == 24
        assert "no_test_split" in report_of(tmp_path / "w")["counts"]

    def test_packing_and_order_change_nothing_the_seed_does(self, tmp_path: Path) -> None:
        files = class_folders()
        backwards = dict(reversed(files.items()))
        one = run(tmp_path / "1", write_zip(tmp_path / "zip", files), threads=1)[-1]
        two = run(tmp_path / "2", write_tar(tmp_path / "tar", backwards), threads=3)[-1]
        assert one == two
        other = run(tmp_path / "3", tmp_path / "zip", seed=1)[-1]
        assert other["manifest_sha256"] != one["manifest_sha256"]
        assert other["caches"] == one["caches"]

    def test_warnings_are_reported(self, tmp_path: Path) -> None:
        files = class_folders(11)
        files["a/copy.png"] = files["a/00.png"]
        files["b/stolen.png"] = files["a/01.png"]
        exif = Image.Exif()
        exif[0x0112] = 6
        files["b/turned.jpg"] = encoded(5, "JPEG", exif=exif)
        files |= {"void/": b"", "notes.txt": b"x"}
        run(tmp_path / "w", write_zip(tmp_path / "upload", files))
        report = report_of(tmp_path / "w")
        assert report["errors"] == []
        assert report["counts"] == {
            "exact_duplicate": 1,
            "conflicting_label_duplicate": 1,
            "exif_rotation": 1,
            "few_images": 2,
            "empty_class": 1,
            "ignored_files": 1,
        }
        assert report["summary"]["formats"] == {"JPEG": 1, "PNG": 24}
        assert all(w["severity"] == "warning" and w["hint"] for w in report["warnings"])


class TestArchiveAtFault:
    def test_every_bad_image_is_listed(self, tmp_path: Path) -> None:
        files = class_folders()
        files["a/00.png"] = files["a/00.png"][:60]
        files["b/00.png"] = b"GIF89a" + bytes(50)
        files["b/01.png"] = encoded(1, side=300)
        archive = write_zip(tmp_path / "upload", files)
        final = run(tmp_path / "w", archive, max_image_pixels=80_000)[-1]
        assert (final["type"], final["class"]) == ("failed", "user")
        assert final["code"] == "too_many_invalid"
        assert "3 of 24 images" in final["message"]
        assert "a/00.png" in final["message"]
        errors = {e["path"]: e["code"] for e in report_of(tmp_path / "w")["errors"]}
        assert errors.pop("a/00.png") in {"image_truncated", "image_undecodable"}
        assert errors == {"b/00.png": "unsupported_format", "b/01.png": "pixel_bomb"}
        assert [p.name for p in (tmp_path / "w" / "out").iterdir()] == ["report.json"]

    def test_one_kind_of_fault_gives_the_code(self, tmp_path: Path) -> None:
        files = class_folders() | {"a/x.gif": encoded(1, "GIF"), "b/y.jpg": encoded(2, "GIF")}
        final = run(tmp_path / "w", write_zip(tmp_path / "upload", files))[-1]
        assert final["code"] == "unsupported_format"

    def test_tolerated_images_are_left_out(self, tmp_path: Path) -> None:
        files = class_folders() | {"a/05.png": b"bad", "b/11.png": b"bad"}
        archive = write_zip(tmp_path / "upload", files)
        assert run(tmp_path / "1", archive, tolerance=0.05)[-1]["type"] == "failed"
        assert run(tmp_path / "2", archive, tolerance=0.1)[-1]["images"] == 22
        manifest = load(tmp_path / "2")
        assert "a/05.png" not in {item.name for item in manifest.items}
        cache = open_cache(tmp_path / "2" / "out" / cache_name(8))
        for row, item in zip(cache, manifest.items, strict=True):
            np.testing.assert_array_equal(row, preprocess(files[item.name], 8))
        assert len(report_of(tmp_path / "2")["errors"]) == 2

    def test_a_class_without_a_usable_image(self, tmp_path: Path) -> None:
        files = class_folders(12, "a") | {"b/1.png": b"bad"}
        archive = write_zip(tmp_path / "upload", files)
        assert run(tmp_path / "w", archive, tolerance=0.5)[-1]["code"] == "too_few_classes"

    def test_one_image_a_class_cannot_be_validated(self, tmp_path: Path) -> None:
        archive = write_zip(tmp_path / "upload", class_folders(1, "abc"))
        assert run(tmp_path / "w", archive)[-1]["code"] == "too_few_images"

    @pytest.mark.parametrize(
        ("content", "code"), [(b"nonsense" * 99, "not_an_archive"), (b"", "archive_empty")]
    )
    def test_an_unreadable_archive(self, tmp_path: Path, content: bytes, code: str) -> None:
        (tmp_path / "upload").write_bytes(content)
        final = run(tmp_path / "w", tmp_path / "upload")[-1]
        assert (final["type"], final["code"], final["class"]) == ("failed", code, "user")
        assert [e["code"] for e in report_of(tmp_path / "w")["errors"]] == [code]

    def test_damage_that_the_listing_cannot_see(self, tmp_path: Path) -> None:
        archive = write_zip(tmp_path / "upload", class_folders())
        data = bytearray(archive.read_bytes())
        data[200] ^= 0xFF
        archive.write_bytes(data)
        assert run(tmp_path / "w", archive)[-1]["code"] == "archive_corrupt"
        assert [p.name for p in (tmp_path / "w" / "out").iterdir()] == ["report.json"]

    def test_limits_of_the_request_hold(self, tmp_path: Path) -> None:
        archive = write_zip(tmp_path / "upload", class_folders())
        assert run(tmp_path / "1", archive, max_archive_files=10)[-1]["code"] == "too_many_files"
        assert run(tmp_path / "2", archive, max_image_bytes=99)[-1]["code"] == "image_too_large"


class TestSupervision:
    """Acted on after the first line; the archive is large enough that the end is seconds away."""

    @pytest.fixture
    def long_archive(self, tmp_path: Path) -> Path:
        buffer = io.BytesIO()
        Image.new("RGB", (3000, 3000)).save(buffer, "PNG")  # small, yet slow to decode
        data = buffer.getvalue()
        return write_zip(
            tmp_path / "upload", {f"{'ab'[n % 2]}/{n:05}.png": data for n in range(200)}
        )

    def test_exits_when_its_supervisor_dies(self, tmp_path: Path, long_archive: Path) -> None:
        with started(tmp_path / "w", long_archive, threads=1) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["done"] == 0
            process.stdin.close()
            assert process.wait(60) == ORPHANED_EXIT_CODE
        assert not (tmp_path / "w" / "out" / "manifest.json").exists()

    def test_stops_when_asked_to(self, tmp_path: Path, long_archive: Path) -> None:
        with started(tmp_path / "w", long_archive, threads=1) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["done"] == 0
            process.stdin.write("stop\n")
            process.stdin.flush()
            last = list(process.stdout)[-1]
            assert process.wait(60) == 0
        assert json.loads(last) == {"type": "stopped"}
        assert [p.name for p in (tmp_path / "w" / "out").iterdir()] == ["report.json"]

    def test_a_killed_intake_leaves_no_manifest(self, tmp_path: Path, long_archive: Path) -> None:
        with started(tmp_path / "w", long_archive, threads=1) as process:
            assert process.stdout is not None
            process.stdout.readline()
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait(60) == -signal.SIGKILL
        assert not (tmp_path / "w" / "out" / "manifest.json").exists()
        assert not list((tmp_path / "w" / "out").glob("images_*"))
        # Another attempt in the same folder is not disturbed by what was left.
        archive = write_zip(tmp_path / "small", class_folders())
        assert run(tmp_path / "w", archive)[-1]["type"] == "done"


class TestBuildCache:
    @pytest.fixture
    def archive(self, tmp_path: Path) -> Path:
        files = class_folders() | {"a/03.png": b"bad"}
        archive = write_tar(tmp_path / "upload", files)
        run(tmp_path / "w", archive, image_px=[12], tolerance=0.1)
        return archive

    def test_another_size_has_the_bytes_that_the_intake_would_give(
        self, tmp_path: Path, archive: Path
    ) -> None:
        manifest = load(tmp_path / "w")
        out = tmp_path / "late.npy"
        told: list[tuple[int, int]] = []
        digest = build_cache(
            archive,
            manifest,
            12,
            out,
            limits=ArchiveLimits(),
            threads=3,
            on_progress=lambda done, total: told.append((done, total)),
        )
        assert out.read_bytes() == (tmp_path / "w" / "out" / "images_12.npy").read_bytes()
        assert digest == hashlib.sha256(out.read_bytes()).hexdigest()
        assert told == [(n, 23) for n in range(1, 24)]

    @pytest.mark.parametrize("change", [{"a/00.png": encoded(999)}, {"a/00.png": b"bad"}])
    def test_another_archive_is_refused(
        self, tmp_path: Path, archive: Path, change: dict[str, bytes]
    ) -> None:
        assert archive.exists()
        other = write_zip(tmp_path / "other", class_folders() | change)
        with pytest.raises(CacheCorruptError) as caught:
            build_cache(
                other, load(tmp_path / "w"), 8, tmp_path / "late.npy", limits=ArchiveLimits()
            )
        assert caught.value.code == "archive_mismatch"
        assert not list(tmp_path.glob("*late*"))

    def test_a_missing_image_is_noticed(self, tmp_path: Path, archive: Path) -> None:
        files = class_folders()
        del files["b/07.png"]
        other = write_zip(archive.with_name("other"), files)
        with pytest.raises(CacheCorruptError) as caught:
            build_cache(
                other, load(tmp_path / "w"), 8, tmp_path / "late.npy", limits=ArchiveLimits()
            )
        assert caught.value.code == "archive_mismatch"

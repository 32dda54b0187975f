"""The intake process: from an archive to an immutable dataset. `python -m worker.intake <workdir>`.

Reads `request.json`, decodes every image once, and leaves in `out/`

    manifest.json       the images, their classes and splits; its digest is the dataset's identity
    images_<px>.npy     the decoded images, one file for each size asked for
    report.json         counts, errors and warnings; written also when the archive is at fault

It talks to its supervisor as `worker.child` says and exits with 0 after `done`, `failed` and
`stopped`; anything else is a crash. It opens what strangers uploaded, so it runs with a cap on its
memory.
"""

import errno
import json
import math
import os
import resource
import sys
import threading
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from core.clock import monotonic_s
from core.errors import InvalidError
from core.ml.data.atomic import replace_file
from core.ml.data.cache import CacheBuilder, cache_name
from core.ml.data.manifest import Manifest, ManifestItem, build_manifest, save_manifest
from core.ml.data.preprocess import MAX_PIXELS, PREPROCESS_VERSION, ImageError
from core.ml.data.report import (
    ImageFacts,
    Issue,
    Report,
    find_conversions,
    find_duplicates,
    find_label_collisions,
    find_thin_classes,
    image_error,
    summarise_files,
    summarise_splits,
    warn,
)
from core.ml.data.splits import SplitItem, assign_splits
from core.platform.datasets import MAX_TOLERANCE
from core.platform.datasets.archive import Archive, ArchiveEntry, ArchiveLimits, open_archive
from core.types import Split
from worker.child import PROGRESS_INTERVAL_S, listen_for_stop, read_request, send, send_failure
from worker.decoding import decode_entries

OUT_FOLDER = "out"
REPORT_FILE = "report.json"
MANIFEST_FILE = "manifest.json"

#: A decoder holds up to 16 bytes a pixel: 800 MB for the largest image allowed by default.
_MAX_THREADS = 8
#: Address space of the interpreter, the libraries (3 GB with torch's for GPUs, mapped but hardly
#: touched) and threads' stacks; images come on top.
_BASE_MEMORY_BYTES = 6 * 2**30
#: Up to four copies in the making, at four bytes a pixel, and the decoder's own buffers.
_BYTES_PER_PIXEL = 24


@dataclass(frozen=True)
class IntakeRequest:
    """What to validate, and how strictly.

    Attributes:
        archive_path: the uploaded bytes.
        image_px: sides of the square images to cache.
        seed: seed of the splits.
        tolerance: fraction of images that may be undecodable and are then left out.
        max_image_pixels: largest image, width x height.
        limits: how much the archive may hold.
        threads: images decoded at once; by default one for each core, but no more than eight.
    """

    archive_path: Path
    image_px: tuple[int, ...]
    seed: int = 0
    tolerance: float = 0.0
    max_image_pixels: int = MAX_PIXELS
    limits: ArchiveLimits = field(default_factory=ArchiveLimits)
    threads: int = 1

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Self:
        """Return the request; what is left out means the defaults."""
        default = ArchiveLimits()
        return cls(
            archive_path=Path(body["archive_path"]),
            image_px=tuple(body["image_px"]),
            seed=body.get("seed", 0),
            tolerance=body.get("tolerance", 0.0),
            max_image_pixels=body.get("max_image_pixels", MAX_PIXELS),
            limits=ArchiveLimits(
                max_files=body.get("max_archive_files", default.max_files),
                max_image_bytes=body.get("max_image_bytes", default.max_image_bytes),
                max_total_bytes=body.get("max_total_bytes", default.max_total_bytes),
            ),
            threads=body.get("threads") or min(_MAX_THREADS, os.cpu_count() or 1),
        )


class IntakeStoppedError(Exception):
    """The supervisor asked to stop; nothing was made."""


def run_intake(request: IntakeRequest, out: Path, *, stop: threading.Event) -> dict[str, Any]:
    """Validate an archive and write the dataset into `out`.

    Returns:
        What the final message tells: the dataset's digest, its counts, the digests of its caches.

    Raises:
        InvalidError: when the archive is at fault; the report is written.
        IntakeStoppedError: when `stop` was set on the way.
    """
    out.mkdir(parents=True, exist_ok=True)
    report = Report()
    try:
        with open_archive(request.archive_path, request.limits) as archive, ExitStack() as stack:
            entries = sorted(archive.entries, key=lambda entry: entry.name)
            caches = {
                side_px: stack.enter_context(
                    closing(
                        CacheBuilder(
                            out / cache_name(side_px), capacity=len(entries), image_px=side_px
                        )
                    )
                )
                for side_px in request.image_px
            }
            facts = _decode(request, archive, entries, caches=caches, report=report, stop=stop)
            report.summary = summarise_files(list(facts.values()))
            report.summary["failed_images"] = len(report.errors)
            report.summary["ignored_files"] = archive.ignored_files
            _refuse_bad_images(report.errors, total=len(entries), tolerance=request.tolerance)
            kept = [row for row, entry in enumerate(entries) if entry.name in facts]
            manifest = _build_manifest(request.seed, [entries[row] for row in kept], facts)
            _refuse_thin_splits(manifest)
            report.summary |= summarise_splits(manifest)
            report.summary["manifest_sha256"] = manifest.digest
            report.warnings += _find_warnings(archive, manifest, list(facts.values()))
            digests = {str(side_px): cache.finish(kept) for side_px, cache in caches.items()}
        save_manifest(manifest, out / MANIFEST_FILE)
    except InvalidError as error:
        if not report.errors:
            report.errors.append(Issue(error.code, "error", error.message, "see the message"))
        raise
    finally:
        _save_report(report, out / REPORT_FILE)
    return {
        "manifest_sha256": manifest.digest,
        "images": len(manifest.items),
        "classes": len(manifest.classes),
        "caches": digests,
    }


def _decode(
    request: IntakeRequest,
    archive: Archive,
    entries: list[ArchiveEntry],
    *,
    caches: dict[int, CacheBuilder],
    report: Report,
    stop: threading.Event,
) -> dict[str, ImageFacts]:
    """Return what was found out about each image by name; errors go to the report."""
    rows = {entry.name: row for row, entry in enumerate(entries)}
    decoding = decode_entries(
        archive,
        entries,
        sizes_px=request.image_px,
        sink=lambda entry, side_px, pixels: caches[side_px].put(rows[entry.name], pixels),
        max_pixels=request.max_image_pixels,
        threads=request.threads,
    )
    facts: dict[str, ImageFacts] = {}
    send({"type": "progress", "done": 0, "total": len(entries)})
    told_s = monotonic_s()
    with closing(decoding):  # its threads must be gone before the caches are
        for done, (entry, found) in enumerate(decoding, start=1):
            if stop.is_set():
                raise IntakeStoppedError
            if isinstance(found, ImageError):
                report.errors.append(image_error(entry.name, found))
            else:
                facts[entry.name] = found
            if monotonic_s() - told_s >= PROGRESS_INTERVAL_S:
                send({"type": "progress", "done": done, "total": len(entries)})
                told_s = monotonic_s()
    report.errors.sort(key=lambda issue: issue.path or "")
    return facts


def _refuse_bad_images(errors: list[Issue], *, total: int, tolerance: float) -> None:
    if len(errors) <= tolerance * total:
        return
    first = errors[0]
    codes = {issue.code for issue in errors}
    raise InvalidError(
        f"{len(errors)} of {total} images cannot be used. The first is {first.path!r}. "
        f"{first.message}: {first.hint}. The report lists them{_way_out(len(errors), total)}.",
        code=first.code if len(codes) == 1 else "too_many_invalid",
    )


def _way_out(bad: int, total: int) -> str:
    """Name the least tolerance, in whole percents, that lets the bad images pass."""
    enough = math.ceil(100 * bad / total) / 100
    if enough > MAX_TOLERANCE:
        return ""
    return f"; to leave them out, upload the archive with the form field tolerance={enough}"


def _build_manifest(
    seed: int, entries: list[ArchiveEntry], facts: dict[str, ImageFacts]
) -> Manifest:
    classes = sorted({entry.class_name for entry in entries})
    labels = {name: label for label, name in enumerate(classes)}
    to_place = [
        SplitItem(
            name=entry.name,
            label=labels[entry.class_name],
            group=facts[entry.name].sha256,
            split=entry.split,
        )
        for entry in entries
    ]
    items = [
        ManifestItem(
            name=item.name,
            label=item.label,
            split=split,
            sha256=item.group,
            width=facts[item.name].width,
            height=facts[item.name].height,
        )
        for item, split in zip(to_place, assign_splits(to_place, seed=seed), strict=True)
    ]
    return build_manifest(classes, items, seed=seed, preprocess_version=PREPROCESS_VERSION)


def _refuse_thin_splits(manifest: Manifest) -> None:
    trained = {item.label for item in manifest.items if item.split is Split.TRAIN}
    missing = [name for label, name in enumerate(manifest.classes) if label not in trained]
    if missing or len(manifest.classes) < 2:  # noqa: PLR2004 - what is there to tell apart
        raise InvalidError(
            f"Too few usable classes are left for training (without images: {missing}): "
            "repair or add images.",
            code="too_few_classes",
        )
    if not len(manifest.indices(Split.VAL)):
        raise InvalidError(
            "No image is left to validate on, as every class has only one: add images.",
            code="too_few_images",
        )


def _find_warnings(archive: Archive, manifest: Manifest, facts: list[ImageFacts]) -> list[Issue]:
    warnings = [
        *find_duplicates(manifest),
        *find_thin_classes(manifest),
        *find_label_collisions(manifest.classes),
        *find_conversions(facts),
    ]
    for name in archive.empty_classes:
        message = f"the folder of class {name!r} holds no image"
        warnings.append(warn("empty_class", message, "add images, or drop the folder", path=name))
    if archive.ignored_files:
        message = f"{archive.ignored_files} file(s) are no images by their names and were ignored"
        warnings.append(warn("ignored_files", message, "nothing", count=archive.ignored_files))
    return warnings


def _save_report(report: Report, path: Path) -> None:
    with replace_file(path) as file:
        file.write(json.dumps(report.to_json()).encode())


def _limit_process(request: IntakeRequest) -> None:
    """Cap the address space, so that no image can take the host's memory; leave no core dump."""
    images = request.threads * (
        _BYTES_PER_PIXEL * request.max_image_pixels + 4 * request.limits.max_image_bytes
    )
    wanted = _BASE_MEMORY_BYTES + images
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or wanted < hard:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(workdir: Path) -> None:
    """Do what the request in the working folder asks for and tell the supervisor how it ended."""
    stop = listen_for_stop()
    request = IntakeRequest.from_json(read_request(workdir))
    _limit_process(request)
    try:
        result = run_intake(request, workdir / OUT_FOLDER, stop=stop)
    except IntakeStoppedError:
        send({"type": "stopped"})
    except InvalidError as error:
        send_failure(error.code, error.message, user=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        send_failure("storage_full", "The disk of the worker is full.", user=False)
    else:
        send({"type": "done", **result})


if __name__ == "__main__":
    main(Path(sys.argv[1]))

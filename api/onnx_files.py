"""ONNX files of models: made one at a time, kept for a while on this host, bounded in bytes.

Each is made by a process of its own, at a lower priority: tracing a network holds Python's lock
for seconds and patches torch, under which other threads answer requests, and its memory is free
again when it ends. One of the modules of the API that load torch.
"""

import hashlib
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import anyio.to_thread
import onnx
import torch
from anyio import CapacityLimiter

from api.resolution import ServedModel
from api.uploads import disk_errors
from core.clock import now_s
from core.errors import ConflictError, UnavailableError
from core.ml.backbones.load import WeightsMismatchError
from core.ml.data.atomic import replace_file
from core.ml.export.bundle import parse_bundle
from core.ml.export.onnx import OPSET, OnnxFile, export_bundle
from core.platform.storage.base import BlobStore

_SUFFIX = ".onnx"
_MAX_WAITING = 4


#: Below those who answer requests, and not so low that a busy host never gets to it.
_NICENESS = 5

#: Makes a file of a bundle's two files.
Export = Callable[[bytes, bytes, Path | None], OnnxFile]


def export_apart(adapter: bytes, config: bytes, weights_dir: Path | None) -> OnnxFile:
    """Export a model in a process of its own; raises what `export_bundle` does.

    Raises:
        UnavailableError: (`export_failed`) the process was killed, for want of memory perhaps.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_export_here, adapter, config, weights_dir).result()
        except BrokenProcessPool as error:
            raise UnavailableError(
                "the process that exported the model was killed; it may lack memory",
                code="export_failed",
            ) from error


def _export_here(adapter: bytes, config: bytes, weights_dir: Path | None) -> OnnxFile:
    os.nice(_NICENESS)
    return export_bundle(parse_bundle(adapter, config), weights_dir=weights_dir)


@dataclass(frozen=True)
class CheckedFile:
    """An ONNX file that has been checked.

    Attributes:
        file: open.
        max_delta: largest difference of a logit between torch and ONNX Runtime.
        sha256: of its bytes, which depend on the processor by that difference alone.
    """

    file: IO[bytes]
    max_delta: float
    sha256: str


class OnnxFiles:
    """A folder of files that are named after what they were made of.

    Args:
        folder: made if it is not there. Processes may share it.
        max_bytes: of all files; those that were sent longest ago go first.
        store: where bundles are.
        weights_dir: folder with backbone weights, searched before the hub.
        export: makes a file; for tests.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_bytes: int,
        store: BlobStore,
        weights_dir: Path | None,
        export: Export = export_apart,
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._store = store
        self._weights_dir = weights_dir
        self._export = export
        # Each takes several times the size of the network in memory.
        self._limiter = CapacityLimiter(1)
        self._wanted = 0

    async def open(self, model: ServedModel) -> CheckedFile:
        """Return a model's file, made now if it is not kept here; the caller closes it.

        Raises:
            UnavailableError: (`overloaded`) several others are to be made first.
            ConflictError: the backbone here is not the one that the model was trained on.
            WeightsUnavailableError: the backbone is not here.
            TooLargeError: it is beyond what one ONNX file holds.
            StorageFullError: the disk is full.
        """
        kept = self._find(model)
        if kept is not None:
            return kept
        if self._wanted > _MAX_WAITING:
            raise UnavailableError(
                "several networks are to be exported before this one; try again later",
                code="overloaded",
            )
        self._wanted += 1  # counted here: the limiter knows of a request some steps later only
        try:
            return await anyio.to_thread.run_sync(self._make, model, limiter=self._limiter)
        finally:
            self._wanted -= 1

    def _key(self, model: ServedModel) -> str:
        parts = (*model.key, f"opset {OPSET}", f"torch {torch.__version__}", onnx.__version__)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _find(self, model: ServedModel) -> CheckedFile | None:
        for path in self._folder.glob(f"{self._key(model)}_*{_SUFFIX}"):
            try:
                file = path.open("rb")
            except FileNotFoundError:
                continue
            _mark_wanted(file)
            _, delta, sha256 = path.name.removesuffix(_SUFFIX).split("_")
            return CheckedFile(file, float(delta), sha256)
        return None

    def _make(self, model: ServedModel) -> CheckedFile:
        kept = self._find(model)  # another request may have made it while this one waited
        if kept is not None:
            return kept
        with self._store.open(model.adapter_sha256) as file:
            adapter = file.read()
        with self._store.open(model.config_sha256) as file:
            config = file.read()
        try:
            exported = self._export(adapter, config, self._weights_dir)
        except WeightsMismatchError as error:
            raise ConflictError(error.message, code=error.code) from error
        sha256 = hashlib.sha256(exported.data).hexdigest()
        path = self._folder / f"{self._key(model)}_{exported.max_delta:.3e}_{sha256}{_SUFFIX}"
        with disk_errors():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._make_room(len(exported.data))
            with replace_file(path) as target:
                target.write(exported.data)
            made = path.open("rb")
            _mark_wanted(made)
        if len(exported.data) > self._max_bytes:
            path.unlink(missing_ok=True)  # who has it open keeps it
        return CheckedFile(made, exported.max_delta, sha256)

    def _make_room(self, wanted_bytes: int) -> None:
        """Remove the files that were wanted longest ago until another one fits."""
        found = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue  # another process removed it
            found.append((status.st_mtime_ns, path, status.st_size))
        left_bytes = self._max_bytes - wanted_bytes - sum(size for _, _, size in found)
        for _, path, size in sorted(found):
            if left_bytes >= 0:
                return
            path.unlink(missing_ok=True)
            left_bytes += size


def _mark_wanted(file: IO[bytes]) -> None:
    """Note that a file was wanted just now.

    By the clock itself: a time that the kernel sets is some milliseconds coarse, and two files that
    were wanted in such a moment would be in no order.
    """
    os.utime(file.fileno(), (now_s(), now_s()))

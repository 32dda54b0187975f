"""Keep an interrupted run on disk so that no crash, at any moment, leaves it unreadable.

A checkpoint is one safetensors file with its figures as JSON in the header. It is written under
another name, flushed and renamed, and the folder is flushed too; the one before it is kept, in case
the disk damages the newest. What the tensors mean is the business of `run_state`.
"""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import safetensors
import safetensors.torch
from torch import Tensor

from core.errors import ConflictError
from core.ml.backbones.digest import compute_tensors_sha256

logger = logging.getLogger(__name__)

_FORMAT = 2
_KEPT = 2
_PATTERN = "checkpoint-*.safetensors"


class CheckpointMismatchError(ConflictError):
    """The checkpoint belongs to another plan, dataset or backbone."""

    code = "checkpoint_mismatch"


@dataclass(frozen=True)
class Snapshot:
    """The state of a run between two steps.

    Attributes:
        step: how many steps have been taken.
        tensors: everything that is a tensor, by name.
        values: everything else, as JSON values.
    """

    step: int
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


class Checkpoints(Protocol):
    """Where a run keeps its snapshots."""

    def save(self, snapshot: Snapshot) -> Path:
        """Keep a snapshot and return the file that it is in."""
        ...

    def find_latest(self) -> Snapshot | None:
        """Return the newest snapshot of this run, or None."""
        ...


class CheckpointFolder:
    """The checkpoints of one job.

    Args:
        folder: made if it is not there.
        fingerprint: names plan, dataset and backbones; checkpoints of another are refused.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._folder = folder
        self._fingerprint = fingerprint
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, snapshot: Snapshot) -> Path:
        """Write a checkpoint durably, remove all but the newest two, and return its path."""
        tensors = {
            name: tensor.detach().cpu().contiguous() for name, tensor in snapshot.tensors.items()
        }
        header = {
            "format": _FORMAT,
            "fingerprint": self._fingerprint,
            "step": snapshot.step,
            "values": dict(snapshot.values),
            "sha256": compute_tensors_sha256(tensors),
        }
        path = self._folder / f"checkpoint-{snapshot.step:09d}.safetensors"
        data = safetensors.torch.save(tensors, metadata={"idat": json.dumps(header)})
        write_durably(path, data)
        for stale in sorted(self._folder.glob(_PATTERN))[:-_KEPT]:
            stale.unlink(missing_ok=True)
        return path

    def find_latest(self) -> Snapshot | None:
        """Return the newest checkpoint that reads back whole, or None.

        Raises:
            CheckpointMismatchError: it belongs to another run.
        """
        for path in sorted(self._folder.glob(_PATTERN), reverse=True):
            snapshot = self._read(path)
            if snapshot is not None:
                return snapshot
        return None

    def _read(self, path: Path) -> Snapshot | None:
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})["idat"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            whole = header["sha256"] == compute_tensors_sha256(tensors)
        except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
            logger.warning(
                "checkpoint %s cannot be read (%s); trying the one before", path.name, error
            )
            return None
        if not whole:
            logger.warning("checkpoint %s is damaged; trying the one before", path.name)
            return None
        if header["format"] != _FORMAT or header["fingerprint"] != self._fingerprint:
            raise CheckpointMismatchError(
                f"{path.name} was made by a run with another plan, dataset or backbone; "
                "remove the folder to start over"
            )
        return Snapshot(step=header["step"], tensors=tensors, values=header["values"])


def write_durably(path: Path, data: bytes) -> None:
    """Write a file so that after a crash it is there whole, or as it was before."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

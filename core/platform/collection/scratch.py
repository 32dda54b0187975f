"""Uploads on their way in: whose process lives, and what killed ones have left."""

import fcntl
import os
from io import FileIO
from pathlib import Path

from core.clock import now_s

UPLOAD_PREFIX = "upload-"

#: An upload is locked just after its file is made; younger files may still be between the two.
_GRACE_S = 60.0


def mark_live(upload: FileIO) -> None:
    """Tell `remove_abandoned_uploads` that the upload's process lives, until the file is closed."""
    fcntl.flock(upload, fcntl.LOCK_EX)


def remove_abandoned_uploads(scratch_dir: Path, *, grace_s: float = _GRACE_S) -> list[Path]:
    """Remove what killed processes left of their uploads; return the paths.

    Args:
        scratch_dir: where uploads are received.
        grace_s: spare files that were written to more recently.
    """
    removed = []
    for path in scratch_dir.glob(f"{UPLOAD_PREFIX}*"):
        try:
            with path.open("rb") as upload:
                if os.fstat(upload.fileno()).st_mtime > now_s() - grace_s:
                    continue
                fcntl.flock(upload, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        except (BlockingIOError, FileNotFoundError):
            continue
        removed.append(path)
    return removed

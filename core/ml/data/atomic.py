"""Files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file beside `path` that takes its name when the block ends without error.

    The bytes reach the disk before the name does, and the name before this returns. On an error the
    temporary file is removed and an older `path` stays untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w+b") as file:
            yield file
            publish_file(file, temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def publish_file(file: BinaryIO, temporary: Path, path: Path) -> None:
    """Give a finished, still open file its final name in the same folder, durably."""
    file.flush()
    os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

"""Uploaded archives: what they hold, read without ever extracting them to disk.

Knows zip, tar and the folder layouts; knows nothing of pixels, so that the control role can refuse
a bad upload before any worker is involved.
"""

from core.platform.datasets.archive.entries import (
    ArchiveEntry,
    ArchiveError,
    ArchiveLimits,
    ArchiveSummary,
)
from core.platform.datasets.archive.layout import read_pictures
from core.platform.datasets.archive.reader import Archive, check_archive, open_archive

__all__ = [
    "Archive",
    "ArchiveEntry",
    "ArchiveError",
    "ArchiveLimits",
    "ArchiveSummary",
    "check_archive",
    "open_archive",
    "read_pictures",
]

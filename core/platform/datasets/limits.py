"""The limits of an installation, as the archive reader takes them."""

from core.platform.datasets.archive import ArchiveLimits
from core.settings import Settings

#: Archives of images hardly compress; four times leaves room for BMP files.
_INFLATED_PER_ARCHIVE_BYTE = 4


def build_archive_limits(settings: Settings) -> ArchiveLimits:
    """Return how much an archive may hold in this installation."""
    return ArchiveLimits(
        max_files=settings.max_archive_files,
        max_image_bytes=settings.max_image_bytes,
        max_total_bytes=_INFLATED_PER_ARCHIVE_BYTE * settings.max_archive_bytes,
    )

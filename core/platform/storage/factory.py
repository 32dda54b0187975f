"""From a storage URL to a store."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from core.errors import InvalidError
from core.platform.storage.base import BlobStore
from core.platform.storage.local import LocalStore


def build_store(url: str) -> BlobStore:
    """Open the store that a URL names.

    Raises:
        InvalidError: the scheme is not supported.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        return LocalStore(Path(unquote(parts.path)))
    raise InvalidError(
        f"IDAT_STORAGE_URL={url} has the scheme {parts.scheme or '(none)'!r}; supported: "
        "file:///absolute/path (a folder that every process can reach)",
        code="unsupported_storage",
    )

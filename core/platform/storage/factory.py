"""From the settings to a store."""

import logging
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

from core.errors import AppError, InvalidError
from core.platform.storage.base import BlobStore
from core.platform.storage.errors import StoreMisconfiguredError
from core.platform.storage.local import LocalStore
from core.settings import Settings

logger = logging.getLogger(__name__)


def build_store(settings: Settings) -> BlobStore:
    """Open the store that the settings name; a server is not asked yet.

    Raises:
        InvalidError: the scheme is not supported.
    """
    url = settings.resolved_storage_url
    parts = urlsplit(url)
    if parts.scheme == "file":
        return LocalStore(Path(unquote(parts.path)))
    if parts.scheme == "s3":
        # By name: boto3 costs a quarter of a second and is of no use to a folder.
        store: BlobStore = import_module("core.platform.storage.s3_open").open_s3_store(settings)
        return store
    raise InvalidError(
        f"IDAT_STORAGE_URL={url} has the scheme {parts.scheme or '(none)'!r}; supported: "
        "file:///absolute/path (a folder that every process can reach) and s3://bucket/prefix",
        code="unsupported_storage",
    )


def check_store(settings: Settings) -> None:
    """Open the store and use it once, before anything is started on it.

    A server that does not answer now is no reason not to start: it may in a minute, and `/readyz`
    tells until then.

    Raises:
        StoreMisconfiguredError: it cannot work until somebody changes something; says what.
    """
    try:
        build_store(settings).check()
    except OSError as error:
        raise StoreMisconfiguredError(
            f"{settings.resolved_storage_url} cannot be written ({error.strerror}): correct its "
            "rights, or IDAT_STORAGE_URL"
        ) from error
    except StoreMisconfiguredError:
        raise
    except AppError as error:
        logger.warning("the store does not work yet: %s", error)

"""From the settings to an S3 store: endpoint, credentials, time limits."""

from functools import cache
from urllib.parse import urlsplit

from boto3.session import Session
from botocore.config import Config

from core.platform.storage.cache import FileCache
from core.platform.storage.s3 import PART_BYTES, S3Store
from core.settings import Settings

_CONNECT_TIMEOUT_S = 5.0
_CONNECTIONS = 32


@cache
def _get_session() -> Session:
    """Return this process's session: it has read AWS's own settings and the description of S3."""
    return Session()


def open_s3_store(settings: Settings, *, part_bytes: int = PART_BYTES) -> S3Store:
    """Return the store of `s3://bucket/prefix`.

    A request ends, at the latest, when each of its attempts has run into the time limit: silence,
    resets, overload and server errors are retried with growing pauses of a few seconds at most.
    """
    secret = settings.s3_secret_access_key
    client = _get_session().client(
        "s3",
        endpoint_url=settings.s3_endpoint_url or None,
        region_name=settings.s3_region or None,
        aws_access_key_id=settings.s3_access_key_id or None,
        aws_secret_access_key=(secret.get_secret_value() if secret else "") or None,
        config=Config(
            connect_timeout=min(_CONNECT_TIMEOUT_S, settings.s3_timeout_s),
            read_timeout=settings.s3_timeout_s,
            retries={"mode": "standard", "total_max_attempts": settings.s3_attempts},
            max_pool_connections=_CONNECTIONS,
            s3={"addressing_style": "path" if settings.s3_path_style else "auto"},
            # Checksums are named where they are sent, and digests checked after every download:
            # what boto3 adds by itself is refused by servers that know S3 as it was before 2025.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            tcp_keepalive=True,
        ),
    )
    parts = urlsplit(settings.resolved_storage_url)
    path = parts.path.strip("/")
    files = FileCache(settings.cache_dir, settings.storage_cache_bytes)
    return S3Store(client, parts.netloc, f"{path}/" if path else "", files, part_bytes=part_bytes)

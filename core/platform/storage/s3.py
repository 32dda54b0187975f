"""Blobs in a bucket: `s3://bucket/prefix/<first two hex digits>/<sha256>`, as in a local folder."""

import hashlib
import re
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, BinaryIO

from botocore.exceptions import ClientError

from core.clock import now_s
from core.platform.storage.base import Blob, StoredBlob
from core.platform.storage.cache import FileCache
from core.platform.storage.files import CHUNK_BYTES
from core.platform.storage.s3_errors import bucket_missing, status_of, typed_s3_errors
from core.platform.storage.s3_transfer import S3Object, download, upload, upload_bytes

#: Objects below this size are sent in one request.
PART_BYTES = 16 << 20
#: An object that was put more recently is young enough for every collector of garbage.
_FRESH_S = 600.0
_NOT_FOUND = 404


class S3Store:
    """A bucket. An object appears under its name whole or not at all, which is S3's promise."""

    def __init__(
        self,
        client: Any,  # noqa: ANN401 - boto3 makes its classes at run time
        bucket: str,
        prefix: str,
        cache: FileCache,
        *,
        part_bytes: int = PART_BYTES,
    ) -> None:
        """Remember where things are; nothing is asked of the server yet.

        Args:
            client: boto3's S3 client.
            bucket: an existing bucket.
            prefix: what all keys begin with: empty, or a path that ends with a slash.
            cache: where fetched blobs are kept.
            part_bytes: size of the parts of an upload.
        """
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        self._cache = cache
        self._part_bytes = part_bytes
        self._place = f"s3://{bucket}/{prefix}".rstrip("/")

    def put_file(self, path: Path) -> Blob:
        """Hash a file, and upload it unless it is there already."""
        digest = hashlib.sha256()
        size_bytes = 0
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                size_bytes += len(chunk)
        return self._put(path, Blob(digest.hexdigest(), size_bytes))

    def take_file(self, path: Path, sha256: str) -> Blob:
        """Upload a file; it stays on this host as the cached copy."""
        blob = self._put(path, Blob(sha256, path.stat().st_size))
        self._cache.adopt(path, sha256)
        return blob

    def put_bytes(self, data: bytes) -> Blob:
        """Upload a few bytes."""
        blob = Blob(hashlib.sha256(data).hexdigest(), len(data))
        if not self._is_fresh(blob):
            upload_bytes(self._object(blob.sha256), data, blob.sha256)
        return blob

    def open(self, sha256: str) -> BinaryIO:
        """Open the cached copy."""
        return self._cache.open(sha256, lambda path: self._download(sha256, path))

    def fetch(self, sha256: str, *, into: Path | None = None) -> Path:
        """Download, unless it is cached."""
        if into is None:
            return self._cache.get(sha256, lambda path: self._download(sha256, path))
        return self._cache.link(sha256, into, lambda path: self._download(sha256, path))

    def exists(self, sha256: str) -> bool:
        """Ask."""
        with typed_s3_errors(self._place):
            if self._find(sha256) is not None:
                return True
            try:
                # The answer to HEAD is the same 404 for a bucket that is not there.
                self._client.head_bucket(Bucket=self._bucket)
            except ClientError as error:
                if status_of(error) == _NOT_FOUND:
                    raise bucket_missing(self._place) from error
                raise
        return False

    def delete(self, sha256: str) -> None:
        """Delete the object and this host's copy; those of other hosts are evicted in time."""
        with typed_s3_errors(self._place):
            self._client.delete_object(**self._object(sha256).name)
        self._cache.discard(sha256)

    def iter_blobs(self) -> Iterator[StoredBlob]:
        """List the bucket, a thousand objects a request."""
        key = re.compile(re.escape(self._prefix) + r"[0-9a-f]{2}/(?P<sha256>[0-9a-f]{64})")
        for page in self._pages("list_objects_v2"):
            for entry in page.get("Contents", []):
                if match := key.fullmatch(entry["Key"]):
                    modified_at_s = entry["LastModified"].timestamp()
                    yield StoredBlob(match["sha256"], entry["Size"], modified_at_s)

    def remove_abandoned(self, *, older_than_s: float) -> int:
        """End uploads that were begun and never completed; clear the cache of partial files.

        S3 refuses requests from clocks that are more than minutes off, so that ages in hours can
        be told by this machine's.
        """
        removed = self._cache.remove_abandoned(older_than_s=older_than_s)
        for page in self._pages("list_multipart_uploads"):
            for entry in page.get("Uploads", []):
                if entry["Initiated"].timestamp() > now_s() - older_than_s:
                    continue
                name = {"Bucket": self._bucket, "Key": entry["Key"], "UploadId": entry["UploadId"]}
                with typed_s3_errors(self._place):
                    try:
                        self._client.abort_multipart_upload(**name)
                    except self._client.exceptions.NoSuchUpload:
                        continue  # it was completed, or another sweeper was faster
                removed += 1
        return removed

    def check(self) -> None:
        """Write a few bytes under a fixed name, and list a little."""
        with typed_s3_errors(self._place):
            self._client.put_object(Bucket=self._bucket, Key=f"{self._prefix}probe", Body=b"probe")
            self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)

    def _object(self, sha256: str) -> S3Object:
        key = f"{self._prefix}{sha256[:2]}/{sha256}"
        return S3Object(self._client, self._bucket, key, self._place)

    def _put(self, path: Path, blob: Blob) -> Blob:
        if not self._is_fresh(blob):
            target = self._object(blob.sha256)
            upload(target, path, blob.size_bytes, blob.sha256, part_bytes=self._part_bytes)
        return blob

    def _is_fresh(self, blob: Blob) -> bool:
        """Return whether an upload can be spared.

        An object of another size is no copy of these bytes, and is replaced. An old one is sent
        again, which makes it new: a collector that has seen it unused may be about to delete it.
        """
        with typed_s3_errors(self._place):
            found = self._find(blob.sha256)
        if found is None or found["ContentLength"] != blob.size_bytes:
            return False
        date = found["ResponseMetadata"]["HTTPHeaders"].get("date")
        if date is None:
            return False
        # Both times are the server's.
        age_s = (parsedate_to_datetime(date) - found["LastModified"]).total_seconds()
        return bool(age_s < _FRESH_S)

    def _find(self, sha256: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._client.head_object(**self._object(sha256).name)
        except ClientError as error:
            if status_of(error) == _NOT_FOUND:
                return None
            raise
        return found

    def _download(self, sha256: str, path: Path) -> None:
        download(self._object(sha256), path, sha256, self._cache.make_room)

    def _pages(self, operation: str) -> Iterator[dict[str, Any]]:
        pages = self._client.get_paginator(operation).paginate(
            Bucket=self._bucket, Prefix=self._prefix
        )
        with typed_s3_errors(self._place):
            yield from pages

"""Bytes to S3 and back: checked on the way, cut into parts where they are many."""

import base64
import contextlib
import hashlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from botocore.exceptions import BotoCoreError, ClientError

from core.platform.storage.errors import BlobCorruptError, StoreUnavailableError, blob_missing
from core.platform.storage.files import CHUNK_BYTES
from core.platform.storage.s3_errors import typed_s3_errors

logger = logging.getLogger(__name__)

#: S3's own limit on the parts of an upload.
_MAX_PARTS = 10_000
_UPLOAD_THREADS = 4
#: How often in a row a download may break off before it has got much further.
_DOWNLOAD_TRIES = 4
#: What counts as much: connections that bring a few bytes each would go on for ever.
_PROGRESS_BYTES = 1 << 20


@dataclass(frozen=True)
class S3Object:
    """An object of a bucket, and how to reach it.

    Attributes:
        client: boto3's client; safe to use from many threads.
        bucket: the bucket.
        key: the object's name.
        place: what messages call the store.
    """

    client: Any
    bucket: str
    key: str
    place: str

    @property
    def name(self) -> dict[str, str]:
        """The arguments of every request about it."""
        return {"Bucket": self.bucket, "Key": self.key}


def upload(target: S3Object, path: Path, size_bytes: int, sha256: str, *, part_bytes: int) -> None:
    """Store a file; the object is there whole when this returns, and else not at all.

    A file of more than one part is sent in parts, each with its own checksum: S3 shows the object
    only when the upload is completed. What a killed process had begun stays invisible, until
    `S3Store.remove_abandoned` ends it.
    """
    if size_bytes > part_bytes:
        _upload_parts(target, path, size_bytes, max(part_bytes, -(-size_bytes // _MAX_PARTS)))
        return
    with typed_s3_errors(target.place), path.open("rb") as file:
        target.client.put_object(
            **target.name, Body=file, ContentLength=size_bytes, ChecksumSHA256=_encode(sha256)
        )


def upload_bytes(target: S3Object, data: bytes, sha256: str) -> None:
    """Store a few bytes."""
    with typed_s3_errors(target.place):
        target.client.put_object(**target.name, Body=data, ChecksumSHA256=_encode(sha256))


def download(source: S3Object, target: Path, sha256: str, make_room: Callable[[int], None]) -> None:
    """Write an object to a file, going on where a connection broke, and check its digest.

    Args:
        source: the object.
        target: the file to write.
        sha256: what its digest must be.
        make_room: called with the size before the first byte is written.

    Raises:
        BlobCorruptError: twice in a row the bytes were not those that the name promises.
        BlobMissingError: there is no such object.
    """
    for last_try in (False, True):
        received = hashlib.sha256()
        with target.open("wb") as file:
            size_bytes = _receive(source, file, received, make_room)
        if received.hexdigest() == sha256:
            return
        logger.error(
            "%s: object %s of %d bytes has the digest %s%s",
            source.place,
            source.key,
            size_bytes,
            received.hexdigest(),
            "" if last_try else "; fetching it again",
        )
    raise BlobCorruptError(
        f"blob {sha256} is damaged in {source.place}: restore the object {source.key} from a "
        "backup or an earlier version; what needs it cannot be used until then"
    )


def _receive(
    source: S3Object, file: BinaryIO, digest: "hashlib._Hash", make_room: Callable[[int], None]
) -> int:
    """Write all bytes of an object, in as many requests as it takes; return how many they are."""
    size_bytes: int | None = None
    received = tries = 0
    while size_bytes is None or received < size_bytes:
        before = received
        try:
            answer = _get(source, received)
            with contextlib.closing(answer["Body"]) as body:
                if size_bytes is None:
                    size_bytes = int(answer["ContentLength"])
                    make_room(size_bytes)
                while chunk := _read(body, source.place):
                    digest.update(chunk)
                    file.write(chunk)
                    received += len(chunk)
        except StoreUnavailableError as error:
            tries = 0 if received - before >= _PROGRESS_BYTES else tries + 1
            if tries == _DOWNLOAD_TRIES:
                raise
            logger.warning("%s; going on at byte %d of %s", error, received, source.key)
    return size_bytes


def _get(source: S3Object, first_byte: int) -> dict[str, Any]:
    where = {"Range": f"bytes={first_byte}-"} if first_byte else {}
    with typed_s3_errors(source.place):
        try:
            answer: dict[str, Any] = source.client.get_object(**source.name, **where)
        except source.client.exceptions.NoSuchKey as error:
            raise blob_missing(source.key.rsplit("/")[-1]) from error
        return answer


def _read(body: Any, place: str) -> bytes:  # noqa: ANN401 - botocore's stream has no types
    with typed_s3_errors(place):
        chunk: bytes = body.read(CHUNK_BYTES)
        return chunk


def _upload_parts(target: S3Object, path: Path, size_bytes: int, part_bytes: int) -> None:
    client = target.client
    with typed_s3_errors(target.place):
        begun = client.create_multipart_upload(**target.name, ChecksumAlgorithm="SHA256")
    upload_id = {"UploadId": begun["UploadId"]}

    def send(number: int) -> dict[str, Any]:
        with path.open("rb") as file:
            file.seek((number - 1) * part_bytes)
            data = file.read(part_bytes)
        checksum = _encode(hashlib.sha256(data).hexdigest())
        part = {"PartNumber": number, "ChecksumSHA256": checksum}
        with typed_s3_errors(target.place):
            sent = client.upload_part(**target.name, **upload_id, **part, Body=data)
        return {**part, "ETag": sent["ETag"]}

    try:
        numbers = range(1, -(-size_bytes // part_bytes) + 1)
        with ThreadPoolExecutor(_UPLOAD_THREADS, thread_name_prefix="s3-part") as pool:
            futures = [pool.submit(send, number) for number in numbers]
            try:
                parts = [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        _complete(target, upload_id, parts, size_bytes)
    except BaseException:
        try:
            client.abort_multipart_upload(**target.name, **upload_id)
        except (ClientError, BotoCoreError) as error:
            logger.warning("an upload to %s could not be ended: %s", target.place, error)
        raise


def _complete(
    target: S3Object, upload_id: dict[str, str], parts: list[dict[str, Any]], size_bytes: int
) -> None:
    """Make the object visible, and see that it has all its bytes."""
    failure: ClientError | BotoCoreError | None = None
    try:
        target.client.complete_multipart_upload(
            **target.name, **upload_id, MultipartUpload={"Parts": parts}
        )
    except (ClientError, BotoCoreError) as error:
        # Perhaps it is done and only the answer was lost: then the retry finds no upload any more.
        failure = error
    with typed_s3_errors(target.place):
        try:
            found = target.client.head_object(**target.name)
        except ClientError:
            raise failure or StoreUnavailableError(
                f"{target.place} has lost an upload of {size_bytes} bytes; try again"
            ) from failure
        if found["ContentLength"] != size_bytes:
            raise failure or StoreUnavailableError(
                f"{target.place} has kept {found['ContentLength']} of {size_bytes} bytes; try again"
            )


def _encode(sha256: str) -> str:
    return base64.b64encode(bytes.fromhex(sha256)).decode()

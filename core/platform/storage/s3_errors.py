"""From what boto3 raises to what the rest of the service understands."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    TokenRetrievalError,
)

from core.errors import AppError, StorageFullError
from core.platform.storage.errors import StoreMisconfiguredError, StoreUnavailableError

_NO_CREDENTIALS = (
    NoCredentialsError,
    PartialCredentialsError,
    CredentialRetrievalError,
    TokenRetrievalError,
)
#: Codes of AWS and of servers that speak its language, by what is to be done about them.
_FULL = frozenset(
    {"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientCapacity"}
)
_BUSY = frozenset({"SlowDown", "SlowDownRead", "SlowDownWrite", "RequestTimeout", "Throttling"})
_BAD_KEYS = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefresh"}
)
_WRONG_REGION = frozenset(
    {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)
_RIGHTS = (
    "GetObject, PutObject, DeleteObject, AbortMultipartUpload, ListBucket and "
    "ListBucketMultipartUploads"
)


@contextmanager
def typed_s3_errors(place: str) -> Iterator[None]:
    """Turn boto3's errors into ours; `place` says which store it was, without any secret.

    Raises:
        StoreUnavailableError: no answer, a server error, too many requests.
        StoreMisconfiguredError: keys, rights, bucket or region are wrong.
        StorageFullError: the store has no room.
    """
    try:
        yield
    except ClientError as error:
        raise _translate_answer(error, place) from error
    except _NO_CREDENTIALS as error:
        raise StoreMisconfiguredError(
            f"no credentials for {place} were found: set IDAT_S3_ACCESS_KEY_ID and "
            "IDAT_S3_SECRET_ACCESS_KEY, or one of the places where boto3 looks",
            code="store_no_credentials",
        ) from error
    except BotoCoreError as error:
        raise StoreUnavailableError(
            f"{place} cannot be reached ({type(error).__name__}); try again, and see that "
            "IDAT_S3_ENDPOINT_URL is right"
        ) from error


def status_of(error: ClientError) -> int:
    """Return the HTTP status of an answer."""
    metadata: dict[str, Any] = error.response.get("ResponseMetadata", {})
    return int(metadata.get("HTTPStatusCode", 0))


def bucket_missing(place: str) -> StoreMisconfiguredError:
    """Return the error for a bucket that is not there."""
    return StoreMisconfiguredError(
        f"the bucket of {place} does not exist: create it, or correct IDAT_STORAGE_URL, "
        "IDAT_S3_ENDPOINT_URL and IDAT_S3_REGION",
        code="store_bucket_missing",
    )


def _translate_answer(error: ClientError, place: str) -> AppError:
    # Answers without a body have the status as their code.
    code, status = str(error.response.get("Error", {}).get("Code", "")), status_of(error)
    if code in _FULL or status == 507:  # noqa: PLR2004 - "insufficient storage"
        return StorageFullError(f"{place} has no room left ({code}); free space or raise its quota")
    if code in _BUSY or status >= 500 or status == 429:  # noqa: PLR2004
        return StoreUnavailableError(f"{place} answers {status} ({code}); try again")
    if code == "NoSuchBucket":
        return bucket_missing(place)
    ours, way_out = _describe_refusal(code, status)
    return StoreMisconfiguredError(f"{place} refuses ({code}): {way_out}", code=ours)


def _describe_refusal(code: str, status: int) -> tuple[str, str]:
    """Return our code for an answer that trying again does not change, and the way out."""
    if code in _WRONG_REGION or status in (301, 307):
        return "store_wrong_region", "its bucket is in another region: correct IDAT_S3_REGION"
    if code == "RequestTimeTooSkewed":
        return "store_clock_skewed", "the clock of this machine is wrong: set it right"
    if code in _BAD_KEYS:
        return "store_access_denied", (
            "correct IDAT_S3_ACCESS_KEY_ID and IDAT_S3_SECRET_ACCESS_KEY, or the credentials that "
            "boto3 finds in their place"
        )
    if status in (401, 403):
        return "store_access_denied", (
            f"see that the credentials are right and may do {_RIGHTS} there"
        )
    return "store_misconfigured", (
        "see whether IDAT_S3_ENDPOINT_URL and IDAT_STORAGE_URL are right and the server speaks S3"
    )

"""What can go wrong with a store, by whose fault it is and whether to try again."""

from core.errors import AppError, UnavailableError


class BlobMissingError(AppError, FileNotFoundError):
    """The store does not hold the blob."""

    code = "blob_missing"


class BlobCorruptError(AppError):
    """The bytes under a blob's name are not those that the name promises."""

    code = "blob_corrupt"


class StoreUnavailableError(UnavailableError):
    """The store does not answer, or says that it is overloaded."""

    code = "store_unavailable"


class StoreMisconfiguredError(UnavailableError):
    """The store refuses, and will until somebody changes a setting, a right or the bucket."""

    code = "store_misconfigured"
    retryable = False


def blob_missing(sha256: str) -> BlobMissingError:
    """Return the error for a blob that is not there."""
    return BlobMissingError(
        f"the store has no blob {sha256}: it was deleted, or the store is not the one "
        "that the database belongs to"
    )

"""The errors that cross a boundary, without any HTTP in them.

    AppError
    ├── NotFoundError      the id names nothing that the caller may see
    ├── ConflictError      the request is fine, the state it meets is not
    ├── PreconditionFailedError   what the request said it expects (`If-Match`) is not so
    ├── InvalidError       the request itself is wrong; `fields` point at the culprits
    │   └── UnsupportedTypeError   the content type or the format is not one we read
    ├── TooLargeError      over a size limit
    ├── UnauthorizedError  no key, or a wrong one
    ├── RateLimitedError   this caller has too much under way
    ├── UnavailableError   try again later
    ├── DeadlineError      no answer within the time that there was
    └── StorageFullError   the disk is full

Leaves with a stable `code` of their own live near their noun.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class FieldError:
    """One wrong field of a request.

    Attributes:
        pointer: JSON pointer (RFC 6901) into the request body, for example `/method/pair`.
        message: what is wrong and what is allowed.
        code: stable machine-readable reason.
    """

    pointer: str
    message: str
    code: str = "invalid"


class AppError(Exception):
    """An expected failure with a stable code and a sentence that says the way out.

    Attributes:
        code: stable machine-readable name of the failure.
        message: a sentence for a person.
        fields: the wrong fields, where the request body is to blame.
        retryable: whether the same request may succeed later.
        retry_after_s: when to try again, where that is known better than "soon".
    """

    code = "error"
    retryable = False
    retry_after_s: float | None = None

    def __init__(
        self, message: str, *, code: str | None = None, fields: tuple[FieldError, ...] = ()
    ) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields
        if code is not None:
            self.code = code


class NotFoundError(AppError):
    """The id names nothing that the caller may see."""

    code = "not_found"


class ConflictError(AppError):
    """The request is well formed but the state of the resource forbids it."""

    code = "conflict"


class PreconditionFailedError(AppError):
    """The resource is not in the state that the request expects by `If-Match` and the like."""

    code = "precondition_failed"


class InvalidError(AppError):
    """The request is wrong; sending it again will not help."""

    code = "invalid_request"


class UnsupportedTypeError(InvalidError):
    """The content type or file format is not one that is read here."""

    code = "unsupported_media_type"


class TooLargeError(AppError):
    """The body, the archive or an image is over its limit."""

    code = "too_large"


class UnauthorizedError(AppError):
    """No API key was given, or one that is not known."""

    code = "unauthorized"


class RateLimitedError(AppError):
    """This caller has too much under way; others are served meanwhile."""

    code = "rate_limited"
    retryable = True


class UnavailableError(AppError):
    """The service cannot answer now; the same request may succeed later."""

    code = "unavailable"
    retryable = True


class DeadlineError(AppError):
    """There was no answer within the time that the request had."""

    code = "deadline_exceeded"
    retryable = True


class StorageFullError(AppError):
    """The disk under the data directory or the store is full."""

    code = "storage_full"
    retryable = True

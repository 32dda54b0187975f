"""What a row says about an attempt that broke on our side."""

from core.errors import AppError


def describe_fault(error: Exception) -> dict[str, str]:
    """Return the error of an attempt, in the form that rows keep."""
    if isinstance(error, AppError):
        return {"code": error.code, "message": error.message, "class": "system"}
    return {"code": "attempt_broke", "message": repr(error), "class": "system"}

"""How the wrong fields of a request are told: all of them at once."""

from collections.abc import Iterable

from core.errors import FieldError, InvalidError


def build_error(errors: list[FieldError]) -> InvalidError:
    """Return the error that lists every wrong field, the first of them in its message."""
    first = errors[0]
    more = f" (and {len(errors) - 1} more; see errors)" if len(errors) > 1 else ""
    return InvalidError(f"{first.pointer}: {first.message}{more}", fields=tuple(errors))


def quote(names: Iterable[str]) -> str:
    """Return names as a list for people."""
    return ", ".join(repr(str(name)) for name in names)

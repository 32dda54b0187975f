"""A request's headers, for where each look at them counts: before a body is read, and per image."""

from starlette.types import Scope


def find_header(scope: Scope, name: bytes) -> str | None:
    """Return the first value of a header, or None; what `Headers.get` gives, for a tenth of it.

    Args:
        scope: of an HTTP request; servers give names in lower case there, as ASGI wants it.
        name: in lower case.
    """
    for given, value in scope["headers"]:
        if given == name:
            text: str = value.decode("latin-1")
            return text
    return None

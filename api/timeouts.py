"""How long a caller is willing to wait: the header `Request-Timeout`, in seconds.

HTTP has no such header of its own; this is the name of an IETF draft (thomson-hybi-http-timeout),
with decimals allowed. The Open Inference Protocol has the parameter `timeout`, in microseconds, for
the same.
"""

import math

from starlette.types import Scope

from api.headers import find_header
from core.errors import InvalidError

_HEADER = b"request-timeout"


def read_timeout_s(scope: Scope) -> float | None:
    """Return the seconds that a request allows, or None if it does not say.

    Raises:
        InvalidError: the header is no number above 0.
    """
    text = find_header(scope, _HEADER)
    if text is None:
        return None
    try:
        timeout_s = float(text)
    except ValueError:
        timeout_s = math.nan
    if not (math.isfinite(timeout_s) and timeout_s > 0):
        raise InvalidError(f"Request-Timeout is {text!r}, not a number of seconds above 0")
    return timeout_s

"""Headers of a scope, as starlette's `Headers.get` reads them."""

import pytest
from starlette.datastructures import Headers
from starlette.types import Scope

from api.headers import find_header

_SCOPE: Scope = {
    "headers": [(b"host", b"a"), (b"x-name", b"first"), (b"x-name", b"second"), (b"x-odd", b"\xe9")]
}


@pytest.mark.parametrize("name", ["host", "x-name", "x-odd", "origin", "x-nam"])
def test_gives_what_starlette_gives(name: str) -> None:
    assert find_header(_SCOPE, name.encode()) == Headers(scope=_SCOPE).get(name)


def test_an_empty_value_is_a_value() -> None:
    assert find_header({"headers": [(b"origin", b"")]}, b"origin") == ""

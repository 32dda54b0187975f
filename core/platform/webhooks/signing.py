"""Secrets and signatures, as the Standard Webhooks specification has them."""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence

_PREFIX = "whsec_"
_SECRET_BYTES = 32


def new_secret() -> str:
    """Return a fresh secret: `whsec_` and 32 random bytes in base64."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def sign(signing_secrets: Sequence[str], event_id: str, timestamp_s: int, body: bytes) -> str:
    """Return the header `webhook-signature`: one `v1,…` for each secret, separated by spaces.

    Args:
        signing_secrets: `whsec_…`; the newest first.
        event_id: the header `webhook-id`.
        timestamp_s: the header `webhook-timestamp`, unix seconds.
        body: the bytes that are sent.
    """
    content = b".".join((event_id.encode(), str(timestamp_s).encode(), body))
    return " ".join(_sign_with(secret, content) for secret in signing_secrets)


def _sign_with(secret: str, content: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    digest = hmac.new(key, content, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"

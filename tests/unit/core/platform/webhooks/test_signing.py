"""Signatures, against the specification's own example and against openssl."""

import base64
import shutil
import subprocess

import pytest

from core.platform.webhooks.schedule import RETRY_DELAYS_S, find_retry_delay_s
from core.platform.webhooks.signing import new_secret, sign

#: From the Standard Webhooks specification's reference implementations.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE_ID, TIMESTAMP = "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330
PAYLOAD = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_specifications_example() -> None:
    assert sign([SECRET], MESSAGE_ID, TIMESTAMP, PAYLOAD) == SIGNATURE


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")
def test_openssl_computes_the_same() -> None:
    secret = new_secret()
    key = base64.b64decode(secret.removeprefix("whsec_"))
    body = '{"name":"Gänseblümchen"}'.encode()
    answer = subprocess.run(
        ["openssl", "dgst", "-sha256", "-mac", "HMAC", "-macopt", f"hexkey:{key.hex()}", "-binary"],
        input=b"evt_1.1700000000." + body,
        capture_output=True,
        check=True,
        timeout=30,
    )
    expected = f"v1,{base64.b64encode(answer.stdout).decode()}"
    assert sign([secret], "evt_1", 1700000000, body) == expected


def test_two_secrets_sign_side_by_side() -> None:
    other = new_secret()
    both = sign([other, SECRET], MESSAGE_ID, TIMESTAMP, PAYLOAD)
    assert both == f"{sign([other], MESSAGE_ID, TIMESTAMP, PAYLOAD)} {SIGNATURE}"


def test_secrets_are_long_and_different() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert {len(base64.b64decode(s.removeprefix("whsec_"))) for s in secrets} == {32}


def test_pauses_grow_from_five_seconds_to_a_day_and_end() -> None:
    pauses = [find_retry_delay_s(failures) for failures in range(1, 10)]
    for nominal, pause in zip(RETRY_DELAYS_S, pauses, strict=True):
        assert pause is not None
        assert nominal <= pause <= 1.1 * nominal
    assert tuple(sorted(RETRY_DELAYS_S)) == RETRY_DELAYS_S
    assert (RETRY_DELAYS_S[0], RETRY_DELAYS_S[-1]) == (5.0, 86_400.0)
    assert find_retry_delay_s(10) is None
    assert len({find_retry_delay_s(5) for _ in range(20)}) > 1

"""When an event is sent again, and when an endpoint is given up."""

import random

_MINUTE_S = 60.0
_HOUR_S = 60 * _MINUTE_S
DAY_S = 24 * _HOUR_S

#: Pauses before the second and every further attempt, as the Standard Webhooks specification
#: suggests them; after the last one an event is given up, about 3 days and 4 hours after the first.
RETRY_DELAYS_S = (
    5.0,
    5 * _MINUTE_S,
    30 * _MINUTE_S,
    2 * _HOUR_S,
    5 * _HOUR_S,
    10 * _HOUR_S,
    14 * _HOUR_S,
    20 * _HOUR_S,
    24 * _HOUR_S,
)
_JITTER = 0.1

#: An endpoint is disabled when so many attempts in a row have failed over at least this time.
DISABLE_AFTER_FAILURES = 10
DISABLE_AFTER_S = 3 * DAY_S


def find_retry_delay_s(failures: int) -> float | None:
    """Return after how many seconds to try again that which has failed so often; None: never.

    Up to a tenth is added at random, so that what failed together does not come back together.
    """
    if failures > len(RETRY_DELAYS_S):
        return None
    spread = random.uniform(1.0, 1.0 + _JITTER)  # noqa: S311 - nothing secret in it
    return RETRY_DELAYS_S[failures - 1] * spread

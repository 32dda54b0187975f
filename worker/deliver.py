"""Sends what webhook endpoints are owed: claim, send in one of some threads, write down.

Any number of workers may do this at once; they meet in the database only. Of a worker's threads,
half may wait for endpoints whose last attempt has failed: receivers that hang cannot take all of
them away from those that answer.
"""

import logging
import ssl
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from core.clock import monotonic_s
from core.platform.db.engine import TRANSIENT_ERRORS, Database
from core.platform.leases import LeaseLostError
from core.platform.webhooks.addresses import AllowedHosts
from core.platform.webhooks.attempts import Outcome, conclude
from core.platform.webhooks.deliveries import Outgoing, claim_due, has_due
from core.platform.webhooks.signing import sign
from core.platform.webhooks.targets import Resolver, TargetError, parse_target, resolve_target
from worker.runtime import Runtime
from worker.webhook_request import RequestFailedError, post

logger = logging.getLogger(__name__)

#: For one attempt, the resolution of the name included.
ATTEMPT_TIMEOUT_S = 15.0
#: Longer than an attempt with all that is written about it.
LEASE_S = 60.0
_THREADS = 8
#: How often to look for what has come due while receivers are being waited for.
_LOOK_AGAIN_S = 0.5
_WRITE_TRIES = 3
_USER_AGENT = "idat-webhooks/1"
_MULTIPLE_CHOICES, _BAD_REQUEST = 300, 400


@dataclass(frozen=True)
class Sender:
    """All that sending takes beside a delivery.

    Attributes:
        database: where deliveries are claimed and concluded.
        owner: name that claims carry.
        allowed: addresses that may be connected to although they are not public.
        timeout_s: for one attempt.
        lease_s: for which a claim is exclusive.
        resolver: of host names, None for the system's.
        tls: who is trusted, None for the system's authorities.
    """

    database: Database
    owner: str
    allowed: AllowedHosts
    timeout_s: float = ATTEMPT_TIMEOUT_S
    lease_s: float = LEASE_S
    resolver: Resolver | None = None
    tls: ssl.SSLContext | None = None


def deliver_due(runtime: Runtime) -> int:
    """Send what is due until nothing is left or the worker drains; return how many attempts.

    Args:
        runtime: this process's.
    """
    allowed = AllowedHosts.from_settings(runtime.settings.webhook_allowed_hosts)
    sender = Sender(runtime.database, runtime.owner, allowed)
    return send_due(sender, threads=_THREADS, should_stop=lambda: runtime.is_draining)


def send_due(sender: Sender, *, threads: int, should_stop: Callable[[], bool]) -> int:
    """Send what is due with some threads; return how many attempts were made.

    As long as one receiver is being waited for, what comes due meanwhile is sent by the others.
    """
    with sender.database.read() as session:
        if not has_due(session):
            return 0
    sent = 0
    flying: dict[Future[None], bool] = {}  # attempt -> whether its endpoint has failed before
    with ThreadPoolExecutor(threads, thread_name_prefix="deliver") as pool:
        while not should_stop():
            outgoing = None
            if len(flying) < threads:
                only_healthy = sum(flying.values()) >= max(1, threads // 2)
                outgoing = _claim(sender, only_healthy=only_healthy)
            if outgoing is not None:
                flying[pool.submit(_send_once, sender, outgoing)] = outgoing.is_suspect
                sent += 1
                continue
            if not flying:
                break
            landed, _ = wait(flying, timeout=_LOOK_AGAIN_S, return_when=FIRST_COMPLETED)
            for attempted in landed:
                del flying[attempted]
                attempted.result()  # a bug of ours is to be seen
    for attempted in flying:
        attempted.result()
    return sent


def _claim(sender: Sender, *, only_healthy: bool) -> Outgoing | None:
    try:
        with sender.database.write() as session:
            return claim_due(
                session, owner=sender.owner, ttl_s=sender.lease_s, only_healthy=only_healthy
            )
    except TRANSIENT_ERRORS as error:
        logger.warning("the database keeps webhooks from being claimed: %s", error)
        return None


def _send_once(sender: Sender, outgoing: Outgoing) -> None:
    outcome = attempt(sender, outgoing)
    try:
        _write_down(sender, outgoing, outcome)
    except TRANSIENT_ERRORS as error:
        # Its lease runs out, and the sweep has it sent again.
        logger.warning("could not write down webhook %s: %s", outgoing.claim.row_id, error)


def attempt(sender: Sender, outgoing: Outgoing) -> Outcome:
    """Send an event once, and say what came of it; the receiver cannot make this raise."""
    started_s = monotonic_s()
    status, error = None, None
    try:
        status = _send(sender, outgoing)
        error = _judge(status)
    except RequestFailedError as failure:
        status, error = failure.status, str(failure)
    except TargetError as refusal:
        error = f"{refusal.code}: {refusal.message}"
    return Outcome(status, error, duration_ms=round(1000 * (monotonic_s() - started_s)))


def _send(sender: Sender, outgoing: Outgoing) -> int:
    """Check where the URL leads now, and post there.

    Raises:
        TargetError: to an address that is not allowed, or nowhere.
        RequestFailedError: there was no whole reply.
    """
    deadline_s = monotonic_s() + sender.timeout_s
    target = parse_target(outgoing.url, sender.allowed)
    addresses = resolve_target(
        target, sender.allowed, timeout_s=sender.timeout_s, resolver=sender.resolver
    )
    body = outgoing.payload.encode()
    event_id, timestamp_s = outgoing.claim.row_id, int(outgoing.sent_at_s)
    headers = {
        "Content-Type": "application/json",
        "User-Agent": _USER_AGENT,
        "Connection": "close",
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": sign(outgoing.secrets, event_id, timestamp_s, body),
    }
    left_s = max(0.0, deadline_s - monotonic_s())
    return post(target, addresses, headers=headers, body=body, timeout_s=left_s, tls=sender.tls)


def _judge(status: int) -> str | None:
    """Return why a reply does not count as received, or None."""
    if 200 <= status < _MULTIPLE_CHOICES:  # noqa: PLR2004
        return None
    if status < _BAD_REQUEST:
        return f"the receiver answered {status}; redirects are not followed, change the URL instead"
    return f"the receiver answered {status}"


def _write_down(sender: Sender, outgoing: Outgoing, outcome: Outcome) -> None:
    """Conclude the attempt; a database that stays away leaves it to the sweep, to be sent again."""
    event_id = outgoing.claim.row_id
    for left in reversed(range(_WRITE_TRIES)):
        try:
            with sender.database.write() as session:
                state = conclude(session, outgoing, outcome)
        except LeaseLostError as error:
            logger.warning("webhook %s: %s", event_id, error)
            return
        except TRANSIENT_ERRORS:
            if left == 0:
                raise
            time.sleep(1)
        else:
            # Without the URL, which may hold a secret of the receiver's.
            logger.log(
                logging.INFO if outcome.error is None else logging.WARNING,
                "webhook %s to %s, attempt %d: %s in %d ms, %s",
                event_id,
                outgoing.endpoint_id,
                outgoing.claim.attempt,
                outcome.error or outcome.status,
                outcome.duration_ms,
                state,
            )
            return

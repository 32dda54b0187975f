"""Webhooks through real processes: two workers, a receiver, and one event for each end."""

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest

from tests.e2e.stack import Stack, wait_until
from tests.fixtures.receivers import Receiver, Script, receiving

PATH = "/v1/webhook_endpoints"


def add_endpoint(stack: Stack, receiver: Receiver, *event_types: str) -> dict[str, Any]:
    response = stack.client.post(
        PATH, json={"url": receiver.url(), "event_types": event_types or ["*"]}
    )
    assert response.status_code == 201, response.text
    endpoint: dict[str, Any] = response.json()
    return endpoint


def told(receiver: Receiver) -> list[tuple[str, str]]:
    """Type and subject of every request that came."""
    with receiver.lock:
        bodies = [json.loads(received.body) for received in receiver.received]
    return [(body["type"], body["data"]["id"]) for body in bodies]


def assert_signed(receiver: Receiver, secret: str) -> None:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    for received in receiver.received:
        headers = received.headers
        stamp = f"{headers['webhook-id']}.{headers['webhook-timestamp']}."
        digest = hmac.new(key, stamp.encode() + received.body, hashlib.sha256).digest()
        assert headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"


@pytest.mark.slow
def test_every_end_is_told_once_to_each_endpoint(stack: Stack, archive: bytes) -> None:
    # The second receiver fails at first: its events come twice, under the same ids.
    with receiving() as steady, receiving(Script([500, 200])) as shaky:
        everything = add_endpoint(stack, steady)
        ends = add_endpoint(stack, shaky, "fine_tuning.job.succeeded", "fine_tuning.job.cancelled")
        for _ in range(2):
            stack.spawn("worker")
        dataset_id = stack.upload(archive, name="gratings")
        job_id = stack.submit(dataset_id, epochs=1)
        assert stack.wait_for_end(job_id)["status"] == "succeeded"
        expected = {("dataset.ready", dataset_id), ("fine_tuning.job.succeeded", job_id)}
        wait_until(lambda: set(told(steady)) == expected, what="both ends to be told")

        stack.end_workers()
        queued = stack.submit(dataset_id)
        assert stack.client.post(f"/v1/fine_tuning/jobs/{queued}/cancel").status_code == 200
        expected.add(("fine_tuning.job.cancelled", queued))
        assert len(told(steady)) == 2  # nobody is there to send

        stack.spawn("worker")
        wait_until(lambda: set(told(steady)) == expected, what="the cancellation to be told")
        wait_until(lambda: len(shaky.ids()) == 3, what="what failed to be sent again")
        wait_until(lambda: _is_settled(stack, ends["id"], 2), what="the deliveries to be concluded")

        assert len(steady.ids()) == len(set(steady.ids())) == 3
        assert len(set(shaky.ids())) == 2
        assert not set(shaky.ids()) & set(steady.ids())
        assert_signed(steady, everything["secret"])
        assert_signed(shaky, ends["secret"])
        for job in (job_id, queued):
            events = [kind for kind, subject in told(steady) if subject == job]
            assert len(events) == 1
        stack.end_workers()


def _is_settled(stack: Stack, endpoint_id: str, count: int) -> bool:
    page = stack.get(f"{PATH}/{endpoint_id}/deliveries?status=delivered")
    return len(page["data"]) == count

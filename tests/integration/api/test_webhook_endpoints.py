"""Webhook endpoints over HTTP: made, shown, changed, tested, rotated, deleted, and refused."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select, update

from core.platform.db.tables import WebhookDeliveryRow, WebhookEndpointRow
from core.platform.webhooks.addresses import AllowedHosts
from core.platform.webhooks.endpoints import MAX_ENDPOINTS
from tests.fixtures.receivers import receiving
from tests.integration.api.rig import Rig
from worker.deliver import Sender, send_due
from worker.runtime import Runtime
from worker.sweeper import sweep

PATH = "/v1/webhook_endpoints"
#: An address, so that no name service is asked.
URL = "https://93.184.216.34/hook"


def create(rig: Rig, **fields: Any) -> dict[str, Any]:
    answer = rig.client.post(PATH, json={"url": URL, **fields})
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


def deliver(rig: Rig) -> int:
    """Send what is due, as a worker would."""
    allowed = AllowedHosts.from_settings(["127.0.0.1"])
    sender = Sender(rig.database, owner="test", allowed=allowed)
    return send_due(sender, threads=2, should_stop=lambda: False)


class TestCreation:
    def test_the_secret_is_shown_once(self, rig: Rig) -> None:
        made = create(rig, event_types=["dataset.ready", "dataset.ready"], description="Zeit")
        secret = made.pop("secret")
        assert secret.startswith("whsec_")
        assert made["id"].startswith("whk_")
        assert made["event_types"] == ["dataset.ready"]
        assert (made["enabled"], made["failures"], made["description"]) == (True, 0, "Zeit")
        shown = rig.client.get(f"{PATH}/{made['id']}")
        assert shown.json() == made
        assert secret not in shown.text
        assert secret not in rig.client.get(PATH).text

    def test_everything_is_told_by_default(self, rig: Rig) -> None:
        assert create(rig)["event_types"] == ["*"]

    def test_it_is_created_once_under_its_key(self, rig: Rig) -> None:
        headers = {"Idempotency-Key": "once"}
        first = rig.client.post(PATH, json={"url": URL}, headers=headers)
        again = rig.client.post(PATH, json={"url": URL}, headers=headers)
        assert first.headers["Location"] == f"{PATH}/{first.json()['id']}"
        # The answer to one whose first answer was lost: the secret is in it.
        assert again.json() == first.json()
        assert again.headers["Idempotent-Replayed"] == "true"
        other = rig.client.post(PATH, json={"url": URL + "2"}, headers=headers)
        assert other.status_code == 422
        assert rig.count_rows()["webhook_endpoints"] == 1

    @pytest.mark.parametrize(
        "url",
        [
            "http://127.0.0.1/",
            "http://localhost:9000/",
            "http://169.254.169.254/latest",
            "http://[::1]/",
            "http://10.0.0.1/",
            "http://0x7f000001/",
            "http://2130706433/",
            "http://[::ffff:127.0.0.1]/",
            "file:///etc/passwd",
            "https://user:secret@93.184.216.34/",
            "https://93.184.216.34:25/",
        ],
    )
    def test_a_url_that_may_not_be_sent_to(self, rig: Rig, url: str) -> None:
        answer = rig.client.post(PATH, json={"url": url})
        assert answer.status_code == 422, answer.text
        problem = answer.json()
        assert problem["code"] == "webhook_url_not_allowed"
        assert [error["pointer"] for error in problem["errors"]] == ["/url"]
        assert rig.count_rows() == {}

    @pytest.mark.parametrize(
        ("body", "pointer"),
        [
            ({}, "/url"),
            ({"url": ""}, "/url"),
            ({"url": "a" * 2001}, "/url"),
            ({"url": 5}, "/url"),
            ({"url": URL, "event_types": []}, "/event_types"),
            ({"url": URL, "event_types": ["fine_tuning.job.paused"]}, "/event_types/0"),
            ({"url": URL, "event_types": "*"}, "/event_types"),
            ({"url": URL, "description": "d" * 201}, "/description"),
            ({"url": URL, "description": "a\0b"}, "/description"),
            ({"url": URL, "secret": "whsec_mine"}, "/secret"),
            ({"url": URL, "project_id": "other"}, "/project_id"),
        ],
    )
    def test_a_wrong_body(self, rig: Rig, body: dict[str, Any], pointer: str) -> None:
        answer = rig.client.post(PATH, json=body)
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["pointer"] == pointer
        assert rig.count_rows() == {}

    def test_a_host_that_nobody_knows_yet_is_taken(self, rig: Rig) -> None:
        create(rig, url="https://not-yet.invalid/hook")

    def test_what_the_operator_allows(self, start_rig: Callable[..., Rig]) -> None:
        rig = start_rig(webhook_allowed_hosts="10.0.0.0/8,127.0.0.1,localhost")
        for url in ("http://10.1.2.3:81/", "http://127.0.0.1:9/", "http://localhost:9/"):
            create(rig, url=url)
        assert rig.client.post(PATH, json={"url": "http://127.0.0.2/"}).status_code == 422

    def test_no_more_than_the_limit(self, rig: Rig) -> None:
        for _ in range(MAX_ENDPOINTS):
            create(rig)
        answer = rig.client.post(PATH, json={"url": URL})
        assert (answer.status_code, answer.json()["code"]) == (409, "too_many_webhook_endpoints")


class TestLists:
    def test_pages(self, rig: Rig) -> None:
        ids = [create(rig)["id"] for _ in range(3)]
        first = rig.client.get(PATH, params={"limit": 2, "order": "asc"}).json()
        assert ([row["id"] for row in first["data"]], first["has_more"]) == (ids[:2], True)
        rest = rig.client.get(PATH, params={"after": ids[1], "order": "asc"}).json()
        assert ([row["id"] for row in rest["data"]], rest["has_more"]) == (ids[2:], False)
        newest = rig.client.get(PATH).json()["data"]
        assert [row["id"] for row in newest] == ids[::-1]
        assert rig.client.get(PATH, params={"after": "whk_none"}).status_code == 404

    def test_what_is_deleted_is_gone_but_keeps_its_place(self, rig: Rig) -> None:
        ids = [create(rig)["id"] for _ in range(3)]
        for _ in range(2):
            status = rig.client.delete(f"{PATH}/{ids[1]}").status_code
            assert status in (204, 404)
        for method, path in (("GET", ""), ("PATCH", ""), ("GET", "/deliveries"), ("POST", "/test")):
            answer = rig.client.request(
                method, f"{PATH}/{ids[1]}{path}", json={} if method == "PATCH" else None
            )
            assert (answer.status_code, answer.json()["code"]) == (
                404,
                "webhook_endpoint_not_found",
            )
        page = rig.client.get(PATH, params={"after": ids[1], "order": "asc"}).json()
        assert [row["id"] for row in page["data"]] == ids[2:]


class TestChanges:
    def test_each_field(self, rig: Rig) -> None:
        made = create(rig)
        path = f"{PATH}/{made['id']}"
        for changes in (
            {"url": "https://93.184.216.34/other"},
            {"event_types": ["dataset.failed"]},
            {"description": "new"},
        ):
            answer = rig.client.patch(path, json=changes)
            assert answer.status_code == 200, answer.text
            assert "secret" not in answer.json()
            made |= changes
        del made["secret"]
        assert rig.client.get(path).json() == made
        assert rig.client.patch(path, json={}).json() == made

    @pytest.mark.parametrize(
        "changes",
        [{"url": "http://127.0.0.1/"}, {"url": None}, {"enabled": "yes"}, {"secret": "whsec_x"}],
    )
    def test_wrong_ones(self, rig: Rig, changes: dict[str, Any]) -> None:
        made = create(rig)
        assert rig.client.patch(f"{PATH}/{made['id']}", json=changes).status_code == 422
        assert rig.client.get(f"{PATH}/{made['id']}").json()["url"] == URL

    def test_disabled_and_enabled(self, rig: Rig) -> None:
        path = f"{PATH}/{create(rig)['id']}"
        assert rig.client.post(f"{path}/test").status_code == 202
        disabled = rig.client.patch(path, json={"enabled": False}).json()
        assert (disabled["enabled"], disabled["disabled_reason"]["code"]) == (False, "user")
        assert disabled["disabled_at"] > 0
        (given_up,) = rig.client.get(f"{path}/deliveries").json()["data"]
        assert (given_up["status"], given_up["next_attempt_at"]) == ("failed", None)
        refused = rig.client.post(f"{path}/test")
        assert (refused.status_code, refused.json()["code"]) == (409, "webhook_endpoint_disabled")
        enabled = rig.client.patch(path, json={"enabled": True}).json()
        assert (enabled["enabled"], enabled["disabled_reason"]) == (True, None)
        assert rig.client.post(f"{path}/test").status_code == 202

    def test_a_rotation(self, rig: Rig) -> None:
        made = create(rig)
        path = f"{PATH}/{made['id']}"
        headers = {"Idempotency-Key": "rotate"}
        rotated = rig.client.post(f"{path}/rotate_secret", headers=headers).json()
        assert rotated["secret"] not in ("", made["secret"])
        assert rotated["previous_secret_until"] > rotated["created_at"] + 86_000
        again = rig.client.post(f"{path}/rotate_secret", headers=headers)
        assert again.json()["secret"] == rotated["secret"]
        assert again.headers["Idempotent-Replayed"] == "true"
        with rig.database.read() as session:
            row = session.get_one(WebhookEndpointRow, made["id"])
        assert (row.secret, row.previous_secret) == (rotated["secret"], made["secret"])


class TestDeliveries:
    def test_a_test_event_comes_and_its_delivery_tells(self, start_rig: Callable[..., Rig]) -> None:
        rig = start_rig(webhook_allowed_hosts="127.0.0.1")
        with receiving() as receiver:
            path = f"{PATH}/{create(rig, url=receiver.url())['id']}"
            headers = {"Idempotency-Key": "test"}
            owed = rig.client.post(f"{path}/test", headers=headers)
            assert owed.status_code == 202
            assert owed.json()["status"] == "pending"
            assert rig.client.post(f"{path}/test", headers=headers).json() == owed.json()
            assert deliver(rig) == 1
        (delivery,) = rig.client.get(f"{path}/deliveries").json()["data"]
        assert delivery["id"] == owed.json()["id"] == receiver.ids()[0]
        assert (delivery["status"], delivery["type"]) == ("delivered", "webhook_endpoint.test")
        (attempt,) = delivery["attempts"]
        assert (attempt["status"], attempt["error"]) == (200, None)
        assert delivery["payload"]["data"]["id"] == delivery["endpoint_id"]

    def test_a_job_that_is_cancelled_over_http(self, start_rig: Callable[..., Rig]) -> None:
        rig = start_rig(webhook_allowed_hosts="127.0.0.1")
        with receiving(500) as receiver:
            wanted = ["fine_tuning.job.cancelled"]
            path = f"{PATH}/{create(rig, url=receiver.url(), event_types=wanted)['id']}"
            dataset_id = rig.upload()
            rig.finish_validation()
            body = {"dataset_id": dataset_id, "method": {"pair": "starter"}}
            job = rig.client.post("/v1/fine_tuning/jobs", json=body).json()
            rig.client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
            deliver(rig)
        (delivery,) = rig.client.get(f"{path}/deliveries", params={"status": "pending"}).json()[
            "data"
        ]
        told, shown = (
            delivery["payload"]["data"],
            rig.client.get(f"/v1/fine_tuning/jobs/{job['id']}"),
        )
        for name, value in told.items():
            if name not in ("links", "progress"):
                assert shown.json()[name] == value, name
        for link in told["links"].values():
            assert rig.client.get(link).status_code == 200, link
        assert delivery["next_attempt_at"] > delivery["created_at"]
        assert "answered 500" in delivery["attempts"][0]["error"]
        assert rig.client.get(path).json()["failures"] == 1

    def test_what_a_dataset_says(self, rig: Rig) -> None:
        create(rig)
        dataset_id = rig.upload()
        rig.finish_validation()
        with rig.database.read() as session:
            (row,) = session.scalars(select(WebhookDeliveryRow))
        assert (row.type, row.subject_id) == ("dataset.ready", dataset_id)

    def test_pages(self, rig: Rig) -> None:
        path = f"{PATH}/{create(rig)['id']}"
        ids = [rig.client.post(f"{path}/test").json()["id"] for _ in range(3)]
        page = rig.client.get(f"{path}/deliveries", params={"limit": 2}).json()
        assert ([row["id"] for row in page["data"]], page["has_more"]) == (ids[:0:-1], True)
        rest = rig.client.get(f"{path}/deliveries", params={"after": ids[1]}).json()
        assert [row["id"] for row in rest["data"]] == ids[:1]
        other = f"{PATH}/{create(rig)['id']}/deliveries"
        assert rig.client.get(other, params={"after": ids[1]}).status_code == 404
        assert rig.client.get(other).json()["data"] == []
        assert rig.client.get(other, params={"status": "lost"}).status_code == 422


def test_another_projects_endpoint_is_unknown(start_rig: Callable[..., Rig]) -> None:
    rig = start_rig(api_keys="one:first-key-of-many,two:other-key-of-many")
    one = {"Authorization": "Bearer first-key-of-many"}
    two = {"Authorization": "Bearer other-key-of-many"}
    made = rig.client.post(PATH, json={"url": URL}, headers=one).json()
    for method, path, body in (
        ("GET", "", None),
        ("PATCH", "", {"enabled": False}),
        ("DELETE", "", None),
        ("POST", "/test", None),
        ("POST", "/rotate_secret", None),
        ("GET", "/deliveries", None),
    ):
        target = f"{PATH}/{made['id']}{path}"
        answer = rig.client.request(method, target, json=body, headers=two)
        assert answer.status_code == 404, (method, path)
    assert rig.client.get(PATH, headers=two).json()["data"] == []
    assert rig.client.get(PATH, params={"after": made["id"]}, headers=two).status_code == 404
    shown = rig.client.get(f"{PATH}/{made['id']}", headers=one).json()
    assert shown["enabled"]
    # The same key of another project is another key.
    keyed = {"Idempotency-Key": "k"}
    ids = {
        rig.client.post(PATH, json={"url": URL}, headers={**who, **keyed}).json()["id"]
        for who in (one, two)
    }
    assert len(ids) == 2


def test_resends_are_counted_where_operators_look(rig: Rig) -> None:
    path = f"{PATH}/{create(rig)['id']}"
    rig.client.post(f"{path}/test")
    with rig.database.write() as session:
        lost = {"state": "sending", "attempt": 1, "lease_expires_at": 1.0}
        session.execute(update(WebhookDeliveryRow).values(lost))
    runtime = Runtime(rig.settings)
    sweep(runtime)
    runtime.database.dispose()
    (swept, *_) = rig.client.get("/v1/maintenance").json()["data"]
    assert swept["counts"]["webhook_resends"] == 1

"""Bodies that are wrong as a whole, in every protocol: in the protocol's form, never a 5xx."""

import json
from typing import Any

import httpx
import pytest

from tests.integration.inference.protocols import (
    CLASSIFY,
    EMBEDDINGS,
    INFER,
    INVOCATIONS,
    SENDERS,
    build_infer_binary,
    build_infer_json,
    check_refusal,
    encode,
)
from tests.integration.inference.published import draw

_PATHS = [CLASSIFY, EMBEDDINGS, INFER, INVOCATIONS]
_JSON = {"content-type": "application/json"}
_LENGTH = "Inference-Header-Content-Length"


def _infer(**changes: Any) -> dict[str, Any]:
    body = build_infer_json([draw(1)])
    return {**body, "inputs": [{**body["inputs"][0], **changes}]}


class TestJson:
    @pytest.mark.parametrize("path", _PATHS)
    @pytest.mark.parametrize(
        "body",
        [b"{", b"", b"\xff\xfe", b"{'inputs': 1}", b"[" * 100_000, b'"\\ud800"', b"1" * 9000],
        ids=lambda body: repr(body[:9]),
    )
    def test_what_cannot_be_read_is_400(self, client: httpx.Client, path: str, body: bytes) -> None:
        check_refusal(client.post(path, content=body, headers=_JSON), 400)

    @pytest.mark.parametrize("path", _PATHS)
    @pytest.mark.parametrize("body", [b"[]", b"7", b"null", b'"x"', b"NaN", b"{}"])
    def test_what_is_no_request_is_422(self, client: httpx.Client, path: str, body: bytes) -> None:
        check_refusal(client.post(path, content=body, headers=_JSON), 422)

    @pytest.mark.parametrize("path", _PATHS)
    @pytest.mark.parametrize("is_declared", [True, False], ids=["declared", "chunked"])
    def test_over_the_limit_is_413(
        self, client: httpx.Client, path: str, *, is_declared: bool
    ) -> None:
        body = b'{"inputs": "' + b"A" * (17 << 20) + b'"}'
        content = body if is_declared else iter([body[: 1 << 20]] * 17)
        try:
            answer = client.post(path, content=content, headers=_JSON)
        except httpx.TransportError:
            assert is_declared, "the server answers and closes while the client still sends"
            return
        check_refusal(answer, 413)


class TestClassify:
    @pytest.mark.parametrize(
        ("parameters", "pointer"),
        [
            ({"top_k": 0}, "/parameters/top_k"),
            ({"top_k": 1001}, "/parameters/top_k"),
            ({"top_k": "3"}, "/parameters/top_k"),
            ({"top_k": 2.5}, "/parameters/top_k"),
            ({"top_k": True}, "/parameters/top_k"),
            ({"function_to_apply": "tanh"}, "/parameters/function_to_apply"),
            ({"threshold": "high"}, "/parameters/threshold"),
            ({"threshold": 1e400}, "/parameters/threshold"),
            ({"candidate_labels": ["x"]}, "/parameters/candidate_labels"),
            ([], "/parameters"),
            ("x", "/parameters"),
        ],
        ids=repr,
    )
    def test_wrong_parameters_are_422_and_pointed_at(
        self, client: httpx.Client, parameters: object, pointer: str
    ) -> None:
        body = json.dumps({"inputs": encode(draw(1)), "parameters": parameters})
        answer = client.post(CLASSIFY, content=body.replace("Infinity", "1e400"), headers=_JSON)
        check_refusal(answer, 422)
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]

    @pytest.mark.parametrize(
        ("inputs", "pointer"),
        [
            ("****", "/inputs"),
            ("", "/inputs"),
            ("http://127.0.0.1:1/cat.png", "/inputs"),
            ("file:///etc/passwd", "/inputs"),
            (f"data:image/png;base64,{encode(b'x')}", "/inputs"),
            ("\x00", "/inputs"),
            ([encode(draw(1)), "****"], "/inputs/1"),
            ([encode(draw(1)), encode(b"no image")], "/inputs/1"),
            ([encode(draw(1)), 7], "/inputs"),
            (7, "/inputs"),
            ({"url": "http://x"}, "/inputs"),
        ],
        ids=lambda value: repr(value)[:40],
    )
    def test_wrong_inputs_are_422_and_pointed_at(
        self, client: httpx.Client, inputs: object, pointer: str
    ) -> None:
        answer = client.post(CLASSIFY, json={"inputs": inputs})
        check_refusal(answer, 422)
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]

    @pytest.mark.parametrize(
        "query",
        ["top_k=0", "top_k=x", "function_to_apply=tanh", "threshold=nan", "threshold=inf"],
    )
    def test_a_wrong_query_is_422(self, client: httpx.Client, query: str) -> None:
        headers = {"content-type": "image/png"}
        check_refusal(client.post(f"{CLASSIFY}?{query}", content=draw(1), headers=headers), 422)

    @pytest.mark.parametrize("content_type", ["text/plain", "text/html", "application/x-pickle"])
    @pytest.mark.parametrize("path", [CLASSIFY, EMBEDDINGS, INVOCATIONS])
    def test_another_type_is_415(self, client: httpx.Client, path: str, content_type: str) -> None:
        headers = {"content-type": content_type}
        check_refusal(client.post(path, content=b"x", headers=headers), 415)

    @pytest.mark.parametrize("path", [CLASSIFY, EMBEDDINGS])
    def test_broken_forms_are_400(self, client: httpx.Client, path: str) -> None:
        part = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\nA\r\n'
        huge = b'--x\r\nContent-Disposition: form-data; name="' + b"n" * 70_000
        for content_type, body in (
            ("multipart/form-data", part + b"--x--\r\n"),
            ("multipart/form-data; boundary=x", b"nothing of the kind"),
            ("multipart/form-data; boundary=x", part),
            ("multipart/form-data; boundary=x", huge),
        ):
            headers = {"content-type": content_type}
            check_refusal(client.post(path, content=body, headers=headers), 400)
        many = client.post(
            path,
            content=part * 10_000 + b"--x--\r\n",
            headers={"content-type": "multipart/form-data; boundary=x"},
        )
        assert many.status_code in (400, 413)
        check_refusal(many, many.status_code)


class TestInfer:
    @pytest.mark.parametrize(
        "body",
        [
            _infer(name="picture"),
            _infer(name=None),
            _infer(datatype="STRING"),
            _infer(shape=[2]),
            _infer(shape=[-1]),
            _infer(shape=[1, 1, 1]),
            _infer(shape=[0], data=[]),
            _infer(data=["****"]),
            _infer(data=["http://127.0.0.1/"]),
            _infer(data=[None]),
            _infer(data=None),
            _infer(parameters={"binary_data_size": 4}),
            _infer(parameters={"shared_memory_region": "x"}),
            _infer(name="pixel_values", datatype="FP32", shape=[1, 3, 8, 8], data=[0.0] * 192),
            _infer(name="pixel_values", datatype="FP32", shape=[1, 3, 64, 64], data=[0.0]),
            _infer(name="pixel_values", datatype="FP64", shape=[1, 3, 64, 64], data=[0.0]),
            {**_infer(), "outputs": [{"name": "loss"}]},
            {**_infer(), "outputs": [{"name": "logits"}, {"name": "logits"}]},
            {**_infer(), "id": 42},
            {**_infer(), "parameters": {"timeout": -1}},
            {"inputs": [_infer()["inputs"][0]] * 2},
            {"inputs": [_infer()["inputs"][0]] * 17},
        ],
        ids=lambda body: repr(body)[:60],
    )
    def test_what_does_not_fit_is_400(self, client: httpx.Client, body: dict[str, Any]) -> None:
        check_refusal(client.post(INFER, json=body), 422)

    @pytest.mark.parametrize("length", ["-1", "x", "99999999", "1", "0x1", "9" * 40])
    def test_a_wrong_length_of_the_json_is_400(self, client: httpx.Client, length: str) -> None:
        body, _ = build_infer_binary([draw(1)])
        check_refusal(client.post(INFER, content=body, headers={_LENGTH: length}), 400)

    @pytest.mark.parametrize("cut", [1, 100])
    def test_missing_or_further_bytes_are_400(self, client: httpx.Client, cut: int) -> None:
        body, headers = build_infer_binary([draw(1)])
        check_refusal(client.post(INFER, content=body[:-cut], headers=headers), 422)
        check_refusal(client.post(INFER, content=body + b"x" * cut, headers=headers), 422)

    def test_lengths_inside_that_lie_are_refused(self, client: httpx.Client) -> None:
        body, headers = build_infer_binary([draw(1)])
        start = int(headers[_LENGTH])
        for length, status in ((b"\xff\xff\xff\xff", 413), (b"\x00\x00\x00\x00", 422)):
            lying = body[:start] + length + body[start + 4 :]
            check_refusal(client.post(INFER, content=lying, headers=headers), status)

    def test_a_compressed_body_is_415(self, client: httpx.Client) -> None:
        headers = {**_JSON, "content-encoding": "gzip"}
        check_refusal(client.post(INFER, content=b"\x1f\x8b", headers=headers), 415)

    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", "/v2/nothing", 404),
            ("GET", "/v2/models", 404),
            ("GET", "/v2/models/nobody", 404),
            ("GET", "/v2/models/nobody/ready", 404),
            ("GET", "/v2/models/secrets", 404),
            ("GET", "/v2/models/animals/versions/7", 404),
            ("GET", "/v2/models/%00", 422),
            ("GET", "/v2/models/..%2f..%2fetc", 404),
            ("GET", f"/v2/models/{'x' * 10_000}", 422),
            ("GET", INFER, 405),
            ("POST", "/v2/health/live", 405),
            ("POST", "/v2/models/nobody/infer", 404),
            ("POST", "/v2/repository/models/nobody/load", 404),
            ("GET", "/v2/repository/index", 405),
        ],
    )
    def test_what_is_not_there_is_told_in_the_protocols_form(
        self, client: httpx.Client, method: str, path: str, status: int
    ) -> None:
        check_refusal(client.request(method, path), status)

    @pytest.mark.parametrize("path", ["/v2/repository/index", "/v2/repository/models/birds/load"])
    @pytest.mark.parametrize("body", [b"{", b"[]", b'{"ready": 1, "parameters": 1}'])
    def test_the_repository_reads_strictly(
        self, client: httpx.Client, path: str, body: bytes
    ) -> None:
        check_refusal(client.post(path, content=body), 400 if body == b"{" else 422)

    def test_an_id_comes_back_whatever_it_holds(self, client: httpx.Client) -> None:
        for request_id in ("", "\x00", "日本 😀", '"\\', "x" * 1000):
            answer = client.post(INFER, json={**_infer(), "id": request_id})
            assert (answer.status_code, answer.json()["id"]) == (200, request_id)


def test_the_server_is_unharmed(client: httpx.Client) -> None:
    for send in SENDERS.values():
        assert send(client, [draw(1)]).status_code == 200

"""The same images sent in every protocol, and the form of a failure in each."""

import base64
import json
import struct
from collections.abc import Callable
from typing import Any

import httpx

Sender = Callable[[httpx.Client, list[bytes]], httpx.Response]

CLASSIFY = "/v1/models/animals/classify"
EMBEDDINGS = "/v1/models/animals/embeddings"
INFER = "/v2/models/animals/infer"
INVOCATIONS = "/invocations"

_LENGTH = "Inference-Header-Content-Length"


def encode(image: bytes) -> str:
    """Return an image in base64."""
    return base64.b64encode(image).decode()


def build_infer_json(images: list[bytes]) -> dict[str, Any]:
    """Return an inference request with images in base64."""
    data = [encode(image) for image in images]
    tensor = {"name": "image", "shape": [len(images)], "datatype": "BYTES", "data": data}
    return {"inputs": [tensor], "outputs": [{"name": "probabilities"}]}


def build_infer_binary(images: list[bytes]) -> tuple[bytes, dict[str, str]]:
    """Return an inference request with images behind the JSON, and its headers."""
    data = b"".join(struct.pack("<I", len(image)) + image for image in images)
    parameters = {"binary_data_size": len(data)}
    tensor = {"name": "image", "shape": [len(images), 1], "datatype": "BYTES"}
    inputs = [{**tensor, "parameters": parameters}]
    header = json.dumps({"inputs": inputs, "outputs": [{"name": "probabilities"}]}).encode()
    return header + data, {_LENGTH: str(len(header))}


def _send_raw(client: httpx.Client, images: list[bytes]) -> httpx.Response:
    return client.post(CLASSIFY, content=images[-1], headers={"content-type": "image/jpeg"})


def _send_form(client: httpx.Client, images: list[bytes]) -> httpx.Response:
    files = [("file", (f"{index}.jpg", image)) for index, image in enumerate(images)]
    return client.post(CLASSIFY, files=files)


def _send_hugging_face(client: httpx.Client, images: list[bytes]) -> httpx.Response:
    return client.post(CLASSIFY, json={"inputs": [encode(image) for image in images]})


def _send_embeddings(client: httpx.Client, images: list[bytes]) -> httpx.Response:
    return client.post(EMBEDDINGS, json={"input": [encode(image) for image in images]})


def _send_infer_json(client: httpx.Client, images: list[bytes]) -> httpx.Response:
    return client.post(INFER, json=build_infer_json(images))


def _send_infer_binary(client: httpx.Client, images: list[bytes]) -> httpx.Response:
    body, headers = build_infer_binary(images)
    return client.post(INFER, content=body, headers=headers)


def _send_infer_raw(client: httpx.Client, images: list[bytes]) -> httpx.Response:
    return client.post(INFER, content=images[-1], headers={_LENGTH: "0"})


def _send_mlflow(client: httpx.Client, images: list[bytes]) -> httpx.Response:
    return client.post(INVOCATIONS, json={"instances": [encode(image) for image in images]})


#: Each sends its images, or the last where the form has room for one.
SENDERS: dict[str, Sender] = {
    "raw": _send_raw,
    "form": _send_form,
    "hugging face": _send_hugging_face,
    "embeddings": _send_embeddings,
    "infer json": _send_infer_json,
    "infer binary": _send_infer_binary,
    "infer raw": _send_infer_raw,
    "mlflow": _send_mlflow,
}
#: Those whose form has room for one image only.
SINGLE = frozenset({"raw", "infer raw"})


def check_refusal(answer: httpx.Response, status: int) -> str:
    """Fail unless an answer is a failure in the form of its protocol; return the sentence.

    Args:
        answer: of any protocol.
        status: under /v1; the Open Inference Protocol has 400 for 422.
    """
    if answer.request.url.path.startswith("/v2"):
        assert answer.status_code == (400 if status == 422 else status), answer.text
        assert answer.headers["content-type"] == "application/json"
        body = answer.json()
        assert body.keys() == {"error"}
        sentence = body["error"]
    else:
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        body = answer.json()
        assert body["status"] == status
        assert body["request_id"] == answer.headers["x-request-id"]
        sentence = body["detail"]
    assert isinstance(sentence, str)
    assert sentence
    return sentence

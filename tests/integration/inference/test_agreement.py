"""The same picture has the same numbers in every protocol."""

import httpx
import numpy as np
import pytest

from tests.integration.inference.conftest import Server
from tests.integration.inference.protocols import (
    CLASSIFY,
    EMBEDDINGS,
    INFER,
    INVOCATIONS,
    SENDERS,
    build_infer_json,
    encode,
)
from tests.integration.inference.published import draw, normalise

#: fp32 rounding, as pictures may meet others in a batch
_NEAR = {"rel": 1e-5, "abs": 1e-6}
_LENGTH = "Inference-Header-Content-Length"


def _collect(client: httpx.Client, picture: bytes, classes: list[str]) -> dict[str, list[float]]:
    """Return the probabilities, in the order of the classes, that each protocol gives."""

    def order(scores: list[dict[str, object]]) -> list[float]:
        by_label = {str(score["label"]): float(str(score["score"])) for score in scores}
        return [by_label[label] for label in classes]

    top = {"top_k": 7}
    infer_json = SENDERS["infer json"](client, [picture]).json()
    binary = SENDERS["infer binary"](client, [picture])
    raw = SENDERS["infer raw"](client, [picture])
    raw_numbers = np.frombuffer(raw.content[int(raw.headers[_LENGTH]) :], dtype="<f4")
    values = normalise(picture)[None]
    pixels = {"name": "pixel_values", "datatype": "FP32", "shape": list(values.shape)}
    wanted = [{"name": "probabilities"}]
    numbers = {"inputs": [{**pixels, "data": values.tolist()}], "outputs": wanted}
    named = build_infer_json([picture])
    named["outputs"] = [{"name": "probabilities", "parameters": {"classification": 7}}]
    texts = client.post(INFER, json=named).json()["outputs"][0]["data"]
    by_index = sorted((int(text.split(":")[1]), float(text.split(":")[0])) for text in texts)
    return {
        "raw": order(client.post(CLASSIFY, params=top, content=picture).json()),
        "form": order(client.post(CLASSIFY, params=top, files={"f": picture}).json()[0]),
        "hugging face": order(
            client.post(CLASSIFY, json={"inputs": encode(picture), "parameters": top}).json()
        ),
        "mlflow": order(
            client.post(INVOCATIONS, json={"inputs": encode(picture), "params": top}).json()[
                "predictions"
            ][0]
        ),
        "infer json": infer_json["outputs"][0]["data"],
        "infer binary": binary.json()["outputs"][0]["data"],
        "infer raw": raw_numbers[: len(classes)].tolist(),
        "infer pixels": client.post(INFER, json=numbers).json()["outputs"][0]["data"],
        "infer classification": [value for _, value in by_index],
    }


@pytest.mark.parametrize("seed", range(3))
def test_probabilities_agree(server: Server, client: httpx.Client, seed: int) -> None:
    picture = draw(seed)
    expected = list(server.new.compute_probabilities(picture).values())
    for protocol, numbers in _collect(client, picture, server.new.classes).items():
        assert numbers == pytest.approx(expected, **_NEAR), protocol


def test_features_agree(client: httpx.Client) -> None:
    picture = draw(1)
    embedding = client.post(EMBEDDINGS, content=picture).json()["data"][0]["embedding"]
    wanted = {**build_infer_json([picture]), "outputs": [{"name": "features"}]}
    (output,) = client.post(INFER, json=wanted).json()["outputs"]
    assert output["shape"] == [1, len(embedding)]
    assert output["data"] == pytest.approx(embedding, abs=1e-5)

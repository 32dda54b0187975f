"""NVIDIA's own client of the Open Inference Protocol against a running server."""

import base64
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.integration.inference.conftest import Server
from tests.integration.inference.published import PX, Published, draw, normalise

_CONCURRENCY = 8


@pytest.fixture
def remote(server: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(
        server.host, concurrency=_CONCURRENCY, connection_timeout=60, network_timeout=60
    ) as remote:
        yield remote


def _image_input(pictures: list[bytes], *, binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput("image", [len(pictures)], "BYTES")
    elements = pictures if binary else [base64.b64encode(picture) for picture in pictures]
    tensor.set_data_from_numpy(np.array(elements, dtype=np.object_), binary_data=binary)
    return tensor


def _pixel_input(pictures: list[bytes], *, binary: bool, dtype: type = np.float32) -> object:
    values = np.stack([normalise(picture) for picture in pictures]).astype(dtype)
    datatype = "FP32" if dtype is np.float32 else "FP16"
    tensor = triton.InferInput("pixel_values", list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=binary)
    return tensor


def _check_numbers(result: triton.InferResult, model: Published, pictures: list[bytes]) -> None:
    logits = result.as_numpy("logits")
    features = result.as_numpy("features")
    probabilities = result.as_numpy("probabilities")
    for index, picture in enumerate(pictures):
        expected_logits, expected_features = model.compute(picture)
        assert logits[index] == pytest.approx(expected_logits, abs=1e-4)
        assert features[index] == pytest.approx(expected_features, abs=1e-4)
        expected = model.compute_probabilities(picture)
        assert probabilities[index] == pytest.approx(list(expected.values()), abs=1e-5)


class TestServer:
    def test_is_live_and_ready(self, remote: triton.InferenceServerClient) -> None:
        assert remote.is_server_live()
        assert remote.is_server_ready()

    def test_names_itself_and_its_extensions(self, remote: triton.InferenceServerClient) -> None:
        metadata = remote.get_server_metadata()
        assert metadata["name"] == "idat"
        extensions = {"classification", "binary_tensor_data", "model_repository"}
        assert extensions <= set(metadata["extensions"])


class TestMetadata:
    @pytest.mark.parametrize(
        ("name", "versions"),
        [
            ("animals", ["mdl_old", "mdl_new"]),
            ("mdl_old", ["mdl_old"]),
            ("animals@production", ["mdl_old"]),
        ],
    )
    def test_tells_tensors_and_versions(
        self, remote: triton.InferenceServerClient, name: str, versions: list[str]
    ) -> None:
        metadata = remote.get_model_metadata(name)
        assert (metadata["name"], metadata["versions"]) == (name, versions)
        inputs = {t["name"]: (t["datatype"], t["shape"]) for t in metadata["inputs"]}
        assert inputs == {"image": ("BYTES", [-1]), "pixel_values": ("FP32", [-1, 3, PX, PX])}
        outputs = {t["name"]: (t["datatype"], t["shape"]) for t in metadata["outputs"]}
        assert outputs == {
            "probabilities": ("FP32", [-1, 7]),
            "logits": ("FP32", [-1, 7]),
            "features": ("FP32", [-1, 192]),
        }

    @pytest.mark.parametrize("version", ["mdl_old", "1"])
    def test_of_a_version(self, remote: triton.InferenceServerClient, version: str) -> None:
        assert remote.get_model_metadata("animals", version)["name"] == "animals"
        assert remote.is_model_ready("animals", version)

    @pytest.mark.parametrize("version", ["3", "0", "mdl_birds", "mdl_none", "x"])
    def test_a_version_of_another_name_is_not_there(
        self, remote: triton.InferenceServerClient, version: str
    ) -> None:
        with pytest.raises(InferenceServerException, match="404"):
            remote.get_model_metadata("animals", version)
        assert not remote.is_model_ready("animals", version)


class TestInfer:
    @pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
    def test_images(
        self, server: Server, remote: triton.InferenceServerClient, *, binary: bool
    ) -> None:
        pictures = [draw(1), draw(2, encoding="BMP")]
        result = remote.infer(
            "animals", [_image_input(pictures, binary=binary)], request_id="the 42nd"
        )
        _check_numbers(result, server.new, pictures)
        response = result.get_response()
        assert response["id"] == "the 42nd"
        assert (response["model_name"], response["model_version"]) == ("animals", "mdl_new")

    @pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
    def test_pixels(
        self, server: Server, remote: triton.InferenceServerClient, *, binary: bool
    ) -> None:
        pictures = [draw(1), draw(2)]
        result = remote.infer("animals", [_pixel_input(pictures, binary=binary)])
        _check_numbers(result, server.new, pictures)

    def test_pixels_in_half_precision(
        self, server: Server, remote: triton.InferenceServerClient
    ) -> None:
        pictures = [draw(1)]
        tensor = _pixel_input(pictures, binary=True, dtype=np.float16)
        result = remote.infer("animals", [tensor])
        expected = server.new.compute(pictures[0])[0]
        assert result.as_numpy("logits")[0] == pytest.approx(expected, abs=2e-2)

    @pytest.mark.parametrize(
        ("name", "version", "answers"),
        [
            ("animals", "", "mdl_new"),
            ("animals", "mdl_old", "mdl_old"),
            ("animals", "1", "mdl_old"),
            ("animals", "2", "mdl_new"),
            ("animals@production", "", "mdl_old"),
            ("animals@v1", "", "mdl_old"),
            ("mdl_old", "", "mdl_old"),
            ("mdl_old", "mdl_old", "mdl_old"),
        ],
    )
    def test_the_model_that_was_named_answers(
        self,
        server: Server,
        remote: triton.InferenceServerClient,
        name: str,
        version: str,
        answers: str,
    ) -> None:
        picture = draw(1)
        result = remote.infer(name, [_image_input([picture])], model_version=version)
        assert result.get_response()["model_version"] == answers
        model = server.old if answers == "mdl_old" else server.new
        _check_numbers(result, model, [picture])

    def test_only_the_outputs_that_were_asked_for_come_each_in_its_form(
        self, remote: triton.InferenceServerClient
    ) -> None:
        outputs = [
            triton.InferRequestedOutput("logits", binary_data=False),
            triton.InferRequestedOutput("probabilities", binary_data=True),
        ]
        result = remote.infer("animals", [_image_input([draw(1)])], outputs=outputs)
        given = result.get_response()["outputs"]
        assert [output["name"] for output in given] == ["logits", "probabilities"]
        assert ["data" in output for output in given] == [True, False]
        assert result.as_numpy("features") is None
        logits = result.as_numpy("logits").astype(np.float64)
        expected = np.exp(logits) / np.exp(logits).sum()
        assert result.as_numpy("probabilities") == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
    @pytest.mark.parametrize("count", [1, 3, 99])
    def test_classification_names_the_best_classes(
        self, server: Server, remote: triton.InferenceServerClient, count: int, *, binary: bool
    ) -> None:
        pictures = [draw(1), draw(2)]
        output = triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=count)
        result = remote.infer("birds", [_image_input(pictures)], outputs=[output])
        named = result.as_numpy("probabilities")
        assert named.shape == (2, min(count, 3))
        for row, picture in zip(named, pictures, strict=True):
            expected = server.birds.compute_probabilities(picture)
            best = sorted(expected, key=expected.__getitem__, reverse=True)[:count]
            texts = [text.decode() if isinstance(text, bytes) else text for text in row]
            for text, label in zip(texts, best, strict=True):
                value, index, named_label = text.split(":", 2)
                assert named_label == label
                assert server.birds.classes[int(index)] == label
                assert float(value) == pytest.approx(expected[label], abs=1e-5)

    def test_classification_of_logits_has_their_values(
        self, server: Server, remote: triton.InferenceServerClient
    ) -> None:
        output = triton.InferRequestedOutput("logits", class_count=1)
        result = remote.infer("birds", [_image_input([draw(3)])], outputs=[output])
        value = float(result.as_numpy("logits")[0, 0].decode().split(":")[0])
        assert value == pytest.approx(server.birds.compute(draw(3))[0].max(), abs=1e-4)

    def test_many_at_once_get_each_their_own_answer(
        self, server: Server, remote: triton.InferenceServerClient
    ) -> None:
        models = [server.old, server.new, server.birds]
        pending = []
        for seed in range(30):
            model = models[seed % 3]
            tensor = _image_input([draw(seed)])
            pending.append((seed, model, remote.async_infer(model.id, [tensor])))
        for seed, model, handle in pending:
            result = handle.get_result(timeout=60)
            assert result.get_response()["model_version"] == model.id
            _check_numbers(result, model, [draw(seed)])


class TestErrors:
    def test_reach_the_client_as_sentences(self, remote: triton.InferenceServerClient) -> None:
        with pytest.raises(InferenceServerException, match="no model nobody") as raised:
            remote.infer("nobody", [_image_input([draw(1)])])
        assert raised.value.status() == "404"
        assert not remote.is_model_ready("nobody")

    def test_name_the_image(self, remote: triton.InferenceServerClient) -> None:
        with pytest.raises(InferenceServerException, match="image 1: ") as raised:
            remote.infer("animals", [_image_input([draw(1), b"no image at all"])])
        assert raised.value.status() == "400"

    def test_a_foreign_model_is_not_there(
        self, server: Server, remote: triton.InferenceServerClient
    ) -> None:
        for name in (server.foreign_id, "secrets"):
            with pytest.raises(InferenceServerException, match="404"):
                remote.infer(name, [_image_input([draw(1)])])

    def test_a_broken_neighbour_harms_nobody(
        self, server: Server, remote: triton.InferenceServerClient
    ) -> None:
        good, bad = draw(5), draw(6)[:-400]
        pending = [
            remote.async_infer("animals", [_image_input([bad if turn % 2 else good])])
            for turn in range(16)
        ]
        for turn, handle in enumerate(pending):
            if turn % 2:
                with pytest.raises(InferenceServerException, match="400"):
                    handle.get_result(timeout=60)
            else:
                _check_numbers(handle.get_result(timeout=60), server.new, [good])


class TestRepository:
    def _states(self, remote: triton.InferenceServerClient) -> dict[str, str]:
        return {m["version"]: m["state"] for m in remote.get_model_repository_index()}

    def test_loads_unloads_and_tells(
        self, server: Server, remote: triton.InferenceServerClient
    ) -> None:
        remote.load_model("birds")
        assert self._states(remote)["mdl_birds"] == "READY"
        assert remote.is_model_ready("birds")
        remote.unload_model("birds")
        assert self._states(remote)["mdl_birds"] == "UNAVAILABLE"
        assert not remote.is_model_ready("birds")
        picture = draw(1)
        _check_numbers(remote.infer("birds", [_image_input([picture])]), server.birds, [picture])
        assert self._states(remote)["mdl_birds"] == "READY"
        assert remote.is_model_ready("birds")

    def test_lists_this_projects_models_only(
        self, server: Server, remote: triton.InferenceServerClient, client: httpx.Client
    ) -> None:
        index = remote.get_model_repository_index()
        assert {(m["name"], m["version"]) for m in index} == {
            ("animals", "mdl_old"),
            ("animals", "mdl_new"),
            ("birds", "mdl_birds"),
        }
        remote.load_model("mdl_old")
        remote.unload_model("mdl_new")
        ready = client.post("/v2/repository/index", json={"ready": True}).json()
        versions = {entry["version"] for entry in ready}
        assert "mdl_old" in versions
        assert "mdl_new" not in versions

    def test_refuses_what_would_change_a_model(self, remote: triton.InferenceServerClient) -> None:
        with pytest.raises(InferenceServerException, match="400"):
            remote.load_model("birds", config="{}")

    @pytest.mark.parametrize("name", ["nobody", "mdl_foreign"])
    def test_knows_no_others(self, remote: triton.InferenceServerClient, name: str) -> None:
        with pytest.raises(InferenceServerException, match="404"):
            remote.load_model(name)
        with pytest.raises(InferenceServerException, match="404"):
            remote.unload_model(name)

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from core.catalog.methods import AdapterKind, Precision
from core.errors import InvalidError
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from core.ml.backbones.load import WeightsMismatchError
from core.ml.backbones.normalise import normalise_images
from core.ml.export.bundle import save_bundle
from core.ml.inference.classifier import Classifier

CPU = torch.device("cpu")
KINDS = (AdapterKind.SEQUENTIAL, AdapterKind.PARALLEL, AdapterKind.PARALLEL_SHARED)


@pytest.fixture
def models(tiny_backbone):
    """Models of different kinds and class counts on one backbone."""
    backbone = tiny_backbone()
    built = []
    for seed, (kind, classes) in enumerate(zip(KINDS, (3, 5, 2), strict=True)):
        model = AdaptedModel(backbone, AdapterSpec(kind, 4, 0.5), classes, seed=seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(20)
        built.append(model)
    return built


@pytest.fixture
def bundles(models, tmp_path):
    return [
        save_bundle(
            tmp_path / str(index),
            model,
            classes=[f"c{i}" for i in range(model.head.out_features)],
            recipe={},
            metrics={},
            versions={},
        )
        for index, model in enumerate(models)
    ]


@pytest.fixture
def loads():
    return []


@pytest.fixture
def classifier(tiny_backbone, loads):
    def load(name):
        loads.append(name)
        return tiny_backbone()

    return Classifier(device=CPU, load=load)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


def expect(model, images):
    with torch.no_grad():
        logits = model(normalise_images(torch.from_numpy(images), model.backbone))
    return logits.softmax(dim=1).numpy()


class TestClassify:
    def test_probabilities_of_the_trained_model(self, classifier, models, bundles, images):
        for model, bundle in zip(models, bundles, strict=True):
            probabilities = classifier.classify(bundle, images)
            assert probabilities.dtype == np.float32
            assert np.allclose(probabilities, expect(model, images), atol=1e-6)
            assert np.allclose(probabilities.sum(axis=1), 1.0, atol=1e-6)

    def test_models_share_one_backbone(self, classifier, bundles, images, loads):
        for bundle in [*bundles, *bundles]:
            classifier.classify(bundle, images)
        assert loads == ["tiny_vit"]
        assert classifier.resident_backbones() == ["tiny_vit"]

    def test_many_threads_many_models(self, classifier, models, bundles, images, loads):
        barrier = threading.Barrier(6)

        def ask(index):
            barrier.wait(timeout=60)
            return [classifier.classify(bundles[index % 3], images) for _ in range(5)]

        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(ask, range(6)))
        assert len(loads) == 1
        for index, repeated in enumerate(answers):
            wanted = expect(models[index % 3], images)
            assert all(np.allclose(answer, wanted, atol=1e-6) for answer in repeated)

    def test_equal_tensors_under_another_scale_are_another_model(
        self, classifier, models, bundles, images, tmp_path
    ):
        parallel = next(m for m in models if m.spec.kind is AdapterKind.PARALLEL)
        first = bundles[models.index(parallel)]
        spec = AdapterSpec(AdapterKind.PARALLEL, 4, 2.0)
        louder = AdaptedModel(parallel.backbone, spec, parallel.head.out_features, seed=0)
        louder.load_adapter_state(first.state)
        second = save_bundle(
            tmp_path / "louder",
            louder,
            classes=list(first.classes),
            recipe={},
            metrics={},
            versions={},
        )
        assert first.sha256 == second.sha256
        answers = [classifier.classify(bundle, images) for bundle in (first, second)]
        assert np.abs(answers[0] - answers[1]).max() > 1e-3

    def test_more_images_than_a_batch(self, classifier, models, bundles, images):
        many = np.concatenate([images] * 30)
        answer = classifier.classify(bundles[0], many)
        assert answer.shape == (90, 3)
        assert np.allclose(answer, np.concatenate([expect(models[0], images)] * 30), atol=1e-5)

    def test_no_images(self, classifier, bundles, images):
        assert classifier.classify(bundles[1], images[:0]).shape == (0, 5)

    def test_bf16(self, tiny_backbone, models, bundles, images):
        narrow = Classifier(device=CPU, precision=Precision.BF16, load=lambda _: tiny_backbone())
        answer = narrow.classify(bundles[0], images)
        assert np.allclose(answer, expect(models[0], images), atol=0.1)


class TestRefusals:
    def test_other_weights(self, classifier, bundles, images):
        other = dataclasses.replace(bundles[0].backbone, weights_sha256="f" * 64)
        with pytest.raises(WeightsMismatchError, match="trained on tiny_vit with weights ffffff"):
            classifier.classify(dataclasses.replace(bundles[0], backbone=other), images)

    def test_images_of_another_size(self, classifier, bundles):
        with pytest.raises(InvalidError, match="32, 32, 3"):
            classifier.classify(bundles[0], np.zeros((1, 16, 16, 3), dtype=np.uint8))

    def test_images_that_are_not_bytes(self, classifier, bundles, images):
        with pytest.raises(InvalidError, match="float32"):
            classifier.classify(bundles[0], images.astype(np.float32))

    def test_a_failed_load_is_tried_again(self, tiny_backbone, bundles, images):
        attempts = []

        def load(name):
            attempts.append(name)
            if len(attempts) == 1:
                raise InvalidError("not yet")
            return tiny_backbone()

        classifier = Classifier(device=CPU, load=load)
        with pytest.raises(InvalidError, match="not yet"):
            classifier.classify(bundles[0], images)
        assert classifier.resident_backbones() == []
        assert classifier.classify(bundles[0], images).shape == (3, 3)


class TestCache:
    def test_the_least_recently_used_goes_first(self, tiny_backbone, bundles, images):
        room = bundles[0].size_bytes + bundles[1].size_bytes
        classifier = Classifier(device=CPU, cache_bytes=room, load=lambda _: tiny_backbone())
        for index in (0, 1, 0, 2):
            classifier.classify(bundles[index], images)
        kept = [sha for _, sha, _ in classifier._models]
        assert kept == [bundles[0].sha256, bundles[2].sha256]

    def test_a_model_larger_than_the_cache_still_answers(self, tiny_backbone, bundles, images):
        classifier = Classifier(device=CPU, cache_bytes=1, load=lambda _: tiny_backbone())
        assert classifier.classify(bundles[0], images).shape == (3, 3)

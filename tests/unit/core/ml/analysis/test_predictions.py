import numpy as np
import pytest
import torch

from core.ml.analysis.predictions import extract_features, extract_frozen_features, predict
from core.ml.backbones.normalise import normalise_images
from core.ml.training.evaluate import evaluate
from tests.unit.core.ml.analysis.made import PX, make_model

COUNT = 150  # more than one batch


@pytest.fixture
def model():
    return make_model(classes=4)


@pytest.fixture
def images():
    return torch.randint(0, 256, (COUNT, PX, PX, 3), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )


@pytest.fixture
def labels():
    return torch.arange(COUNT) % 4


def test_agrees_with_the_evaluation_of_training(model, images, labels):
    predictions = predict(model, images, labels)
    measured = evaluate(model, images, labels)
    assert predictions.correct.sum() == measured.correct
    own = predictions.probabilities[np.arange(COUNT), labels.numpy()]
    assert -np.log(own).mean() == pytest.approx(measured.loss, rel=1e-6)
    assert predictions.confidence == pytest.approx(predictions.probabilities.max(axis=1))
    assert predictions.probabilities.sum(axis=1) == pytest.approx(1)


def test_every_batch_is_reported(model, images, labels):
    seen = []
    predict(model, images, labels, on_batch=lambda done, total: seen.append((done, total)))
    assert seen == [(128, COUNT), (COUNT, COUNT)]


def test_the_head_turns_features_into_logits(model, images, labels):
    features = extract_features(model, images)
    assert features.shape == (COUNT, 12)
    with torch.no_grad():
        logits = model.head(torch.from_numpy(features)).numpy()
    assert logits == pytest.approx(predict(model, images, labels).logits, abs=1e-5)


def test_frozen_features_know_no_adapter(model, images):
    frozen = extract_frozen_features(model.backbone, images)
    with torch.no_grad():
        wanted = model.backbone.module(normalise_images(images, model.backbone)).numpy()
    assert frozen == pytest.approx(wanted, abs=1e-5)
    assert np.abs(frozen - extract_features(model, images)).max() > 1e-4

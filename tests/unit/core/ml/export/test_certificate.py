import hashlib
import json

import numpy as np
import pytest
import torch

from core.catalog.methods import AdapterKind, Precision
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from core.ml.export.bundle import InvalidBundleError, load_bundle, save_bundle
from core.ml.export.certificate import (
    GENERATOR,
    IMAGES,
    Certificate,
    CertificateError,
    build_golden_images,
)


@pytest.fixture
def model(tiny_backbone):
    return AdaptedModel(tiny_backbone(), AdapterSpec(AdapterKind.PARALLEL, 4, 0.25), 3, seed=1)


def write(folder, model):
    return save_bundle(
        folder, model, classes=["a", "b", "c"], recipe={}, metrics={}, versions={}, teacher=None
    )


class TestGoldenImages:
    def test_the_same_bytes_for_ever(self):
        # Certificates in the field were made with these; other bytes need another name.
        images = build_golden_images(64)
        assert GENERATOR == "shake256-blocks-1"
        digest = hashlib.sha256(images.tobytes()).hexdigest()
        assert digest == "68e0a5ea4152952967e4cfe65915f56fd6d258fe04d3dbe8ecf22876ee4155e2"

    @pytest.mark.parametrize("px", [7, 32, 224])
    def test_of_low_and_of_high_contrast(self, px):
        images = build_golden_images(px)
        assert images.shape == (IMAGES, px, px, 3)
        assert images.dtype == np.uint8
        flat = images.reshape(IMAGES, -1).astype(int)
        ranges = flat.max(axis=1) - flat.min(axis=1)
        assert ranges[1] <= 31
        assert set(flat[2]) == {0, 255}
        assert ranges[0] > 200
        assert len({image.tobytes() for image in images}) == IMAGES


class TestRoundTrip:
    def test_logits_of_the_model(self, tmp_path, model):
        write(tmp_path, model)
        certificate = load_bundle(tmp_path).certificate
        pixels = torch.from_numpy(build_golden_images(32)).double()
        mean = torch.tensor(model.backbone.mean).double()
        std = torch.tensor(model.backbone.std).double()
        images = ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)
        with torch.no_grad():
            logits = model(images.float())
        assert certificate.precision is Precision.FP32
        assert np.allclose(certificate.logits, logits.numpy(), rtol=1e-4, atol=1e-4)
        certificate.check(logits.numpy(), Precision.FP32)

    def test_a_bf16_run_says_so(self, tmp_path, model):
        model.backbone.module.bfloat16()
        assert write(tmp_path, model).certificate.precision is Precision.BF16

    def test_logits_that_overflow_give_none(self, tmp_path, model):
        with torch.no_grad():
            model.head.weight.fill_(3e38)
        assert write(tmp_path, model).certificate is None

    def test_bundles_of_earlier_releases_have_none(self, tmp_path, model):
        write(tmp_path, model)
        change(tmp_path, lambda config: config.pop("certificate"))
        assert load_bundle(tmp_path).certificate is None

    def test_images_of_a_later_release_are_not_known(self, tmp_path, model):
        write(tmp_path, model)
        change(tmp_path, lambda config: config["certificate"].update(generator="other-2"))
        assert load_bundle(tmp_path).certificate is None


def change(folder, how):
    config = json.loads((folder / "config.json").read_text())
    how(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "how",
    [
        lambda c: c.update(certificate=7),
        lambda c: c["certificate"].pop("logits"),
        lambda c: c["certificate"].update(precision="int4"),
        lambda c: c["certificate"].update(logits=[[1.0, 2.0, 3.0]]),
        lambda c: c["certificate"].update(logits=[["x"] * 3] * IMAGES),
        lambda c: c["certificate"].update(logits=[[float("nan")] * 3] * IMAGES),
    ],
)
def test_a_certificate_that_is_not_one(tmp_path, model, how):
    write(tmp_path, model)
    change(tmp_path, how)
    with pytest.raises(InvalidBundleError):
        load_bundle(tmp_path)


class TestCheck:
    def build(self, precision=Precision.FP32, largest=2.0):
        logits = np.zeros((IMAGES, 3), dtype=np.float32)
        logits[1, 2] = largest
        return Certificate(GENERATOR, 0, precision, logits)

    @pytest.mark.parametrize(
        ("there", "here", "difference", "passes"),
        [
            (Precision.FP32, Precision.FP32, 0.009, True),
            (Precision.FP32, Precision.FP32, 0.011, False),
            (Precision.FP32, Precision.BF16, 0.19, True),
            (Precision.BF16, Precision.FP32, 0.19, True),
            (Precision.BF16, Precision.BF16, 0.21, False),
            (Precision.FP32, Precision.FP32, float("nan"), False),
        ],
    )
    def test_tolerance_by_precision(self, there, here, difference, passes):
        certificate = self.build(there)
        logits = certificate.logits.copy()
        logits[0, 0] = difference
        if passes:
            certificate.check(logits, here)
        else:
            with pytest.raises(CertificateError, match=r"differs by (0\.\d+|nan)") as caught:
                certificate.check(logits, here)
            assert caught.value.code == "certificate_mismatch"

"""Dense targets: shapes, and values that can be worked out by hand."""

import math

import pytest
import torch

from pretraining import targets as target_module
from pretraining.targets import (
    BINS,
    CLASS_COMPONENTS,
    PATCH_COMPONENTS,
    TargetBuilder,
    fit_projection,
    fit_targets,
    gradient_bins,
)


@pytest.fixture(scope="module")
def images():
    noise = torch.rand(120, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(noise, size=(64, 64), mode="bicubic").clamp(0, 1)


#: Fewer than in earnest: the principal components of 2 x 24 x 16 features take no time.
ATOMS = 24


@pytest.fixture(scope="module")
def targets(images):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target_module, "ATOMS", ATOMS)
        return fit_targets(images, torch.Generator().manual_seed(0))


def ramp(angle: float) -> torch.Tensor:
    """An image whose lightness rises by 0.01 per pixel in direction `angle`."""
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    return (0.01 * (math.cos(angle) * columns + math.sin(angle) * rows)).expand(1, 3, 16, 16)


class TestGradientBins:
    @pytest.mark.parametrize("bin_index", range(BINS))
    def test_a_ramp_along_a_bins_centre_fills_that_bin_alone(self, bin_index):
        inner = gradient_bins(ramp(bin_index * math.pi / BINS))[0, :, 2:-2, 2:-2]
        expected = torch.zeros(BINS)
        expected[bin_index] = 0.01
        torch.testing.assert_close(inner.mean(dim=(1, 2)), expected, atol=1e-6, rtol=0)

    def test_a_ramp_between_two_centres_is_shared(self):
        inner = gradient_bins(ramp(0.25 * math.pi / BINS))[0, :, 2:-2, 2:-2].mean(dim=(1, 2))
        expected = torch.tensor([0.0075, 0.0025, 0, 0, 0, 0])
        torch.testing.assert_close(inner, expected, atol=1e-6, rtol=0)

    def test_the_first_and_the_last_bin_are_neighbours(self):
        inner = gradient_bins(ramp(-0.5 * math.pi / BINS))[0, :, 2:-2, 2:-2].mean(dim=(1, 2))
        expected = torch.tensor([0.005, 0, 0, 0, 0, 0.005])
        torch.testing.assert_close(inner, expected, atol=1e-6, rtol=0)

    def test_reversing_contrast_changes_nothing(self):
        image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(
            gradient_bins(image), gradient_bins(1 - image), atol=1e-5, rtol=0
        )


class TestTargets:
    def test_shapes(self, targets, images):
        whole, local = targets(images[:3])
        assert whole.shape == (3, CLASS_COMPONENTS + 16 * (BINS + 3) + 64)
        assert local.shape == (3, 64, 2 * PATCH_COMPONENTS + 5 * (BINS + 3))

    def test_are_centred_on_the_images_they_were_fitted_on(self, targets, images):
        whole, local = targets(images)
        torch.testing.assert_close(
            whole.mean(dim=0), torch.zeros(whole.shape[1]), atol=1e-3, rtol=0
        )
        assert 0.5 < whole.square().mean() < 1.5
        assert 0.3 < local.square().mean() < 1.5

    def test_a_patchs_target_depends_on_its_surroundings_only(self, targets, images):
        changed = images[:1].clone()
        changed[:, :, 40:, 40:] = 0.5
        _, before = targets(images[:1])
        _, after = targets(changed)
        difference = (before - after).abs().sum(dim=2).reshape(8, 8)
        assert difference[:3, :3].max() == 0
        assert difference[6, 6] > 0

    def test_patch_colours_are_those_of_the_patch(self):
        image = torch.zeros(1, 3, 64, 64)
        image[0, 1, 8:16, 24:32] = 1.0  # green patch in row 1, column 3
        features = TargetBuilder.patch_pixel_features(image)[0]
        inside = features[:, : 4 * (BINS + 3)].reshape(64, BINS + 3, 4)
        expected = torch.zeros(64, 3, 4)
        expected[8 + 3, 1] = 1.0
        torch.testing.assert_close(inside[:, BINS:], expected)

    def test_dictionary_ignores_lightness_but_not_pattern(self, targets, images):
        words = targets.dictionary(images[:2] * 0.5)
        lighter = targets.dictionary(images[:2] * 0.5 + 0.3)
        assert words.shape == (2, 2 * ATOMS, 8, 8)
        torch.testing.assert_close(words, lighter, atol=0.02, rtol=0.02)
        assert (words[0] - words[1]).abs().mean() > 0.02


class TestFitProjection:
    def test_components_are_uncorrelated_and_scaled_by_the_root_of_their_deviation(self):
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(4000, 6, generator=generator) * torch.tensor([8.0, 4, 2, 1, 0.5, 0.2])
        features = hidden @ torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
        projected = fit_projection(features, 4)(features)
        covariance = projected.T @ projected / len(projected)
        diagonal = covariance.diagonal()
        torch.testing.assert_close(covariance, diagonal.diag(), atol=2e-3, rtol=0)
        assert diagonal.mean().item() == pytest.approx(1, abs=0.02)
        assert (diagonal[:-1] > diagonal[1:]).all()

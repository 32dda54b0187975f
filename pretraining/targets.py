"""Dense targets: what a token should know of the pixels, computed without any network training.

Three descriptions of an image, each on the 8 x 8 grid of the models' patches:

* gradient-orientation histograms,
* mean colours,
* a dictionary: responses to whitened 6 x 6 patches found by spherical k-means on generated images
  (Coates & Ng 2012), rectified on both sides, pooled, square-rooted, reduced by PCA.

A linear classifier on the 4 x 4 pooled dictionary alone reaches 53 % on 1,000 CIFAR-10 images,
which is why the class token is asked to predict it.
Shapes: B batch, C channels, K atoms.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

GRID = 8
BINS = 6
ATOMS = 96
ATOM_PX = 6
#: Dictionary components that a patch token and the class token predict.
PATCH_COMPONENTS = 40
CLASS_COMPONENTS = 160
THRESHOLD = 0.5
#: Regularises patch contrast, on the scale of variances of pixels in [0, 1].
CONTRAST_FLOOR = 1e-3


def gradient_bins(images: Tensor) -> Tensor:
    """Return (B, BINS, height, width): gradient magnitude split over orientation in [0, π).

    Bin k is centred at k·π/BINS; a gradient between two centres is shared linearly.
    """
    grey = F.pad(images.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")[:, 0]
    across = (grey[:, 1:-1, 2:] - grey[:, 1:-1, :-2]) / 2
    down = (grey[:, 2:, 1:-1] - grey[:, :-2, 1:-1]) / 2
    position = torch.atan2(down, across).remainder(math.pi) * (BINS / math.pi)
    centres = torch.arange(BINS, dtype=images.dtype, device=images.device)[None, :, None, None]
    distance = (position[:, None] - centres).abs()
    distance = torch.minimum(distance, BINS - distance)
    return torch.hypot(across, down)[:, None] * (1 - distance).clamp(min=0)


@dataclass(frozen=True)
class Dictionary:
    """Filters (K, 3, 6, 6) acting on contrast-normalised patches, and their offsets (K,)."""

    filters: Tensor
    offsets: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Return pooled responses (B, 2K, 8, 8) to images (B, 3, 64, 64) in [0, 1]."""
        small = F.pad(F.avg_pool2d(images, 2), (2, 2, 2, 2), mode="reflect")
        mean = F.avg_pool2d(small, ATOM_PX, 2).mean(dim=1, keepdim=True)
        power = F.avg_pool2d(small * small, ATOM_PX, 2).mean(dim=1, keepdim=True)
        contrast = (power - mean * mean + CONTRAST_FLOOR).rsqrt()
        response = F.conv2d(small, self.filters, stride=2) * contrast
        response = response - self.offsets[:, None, None]
        both = torch.cat([F.relu(response - THRESHOLD), F.relu(-response - THRESHOLD)], dim=1)
        return F.avg_pool2d(both, 2).sqrt()


def fit_dictionary(images: Tensor, generator: torch.Generator) -> Dictionary:
    """Learn ATOMS atoms from random patches of images (B, 3, 64, 64)."""
    patches = F.unfold(F.avg_pool2d(images, 2), ATOM_PX).transpose(1, 2).flatten(0, 1)
    chosen = torch.randperm(len(patches), generator=generator)[:40000]
    patches = patches[chosen]
    centred = patches - patches.mean(dim=1, keepdim=True)
    variance = centred.square().mean(dim=1, keepdim=True)
    centred = centred * (variance + CONTRAST_FLOOR).rsqrt()
    mean = centred.mean(dim=0)
    covariance = (centred - mean).T @ (centred - mean) / len(centred)
    values, vectors = torch.linalg.eigh(covariance)
    whitener = vectors @ torch.diag((values + 0.1).rsqrt()) @ vectors.T
    white = (centred - mean) @ whitener
    atoms = F.normalize(white[:ATOMS], dim=1)
    for _ in range(8):
        similarity = white @ atoms.T
        nearest = similarity.argmax(dim=1)
        weights = similarity.gather(1, nearest[:, None])
        sums = torch.zeros_like(atoms).index_add_(0, nearest, white * weights)
        atoms = F.normalize(torch.where(sums.norm(dim=1, keepdim=True) > 0, sums, atoms), dim=1)
    filters = (whitener @ atoms.T).T
    offsets = filters @ mean
    # A filter of zero mean makes subtracting the patch's mean unnecessary.
    filters = filters - filters.mean(dim=1, keepdim=True)
    return Dictionary(filters.reshape(ATOMS, 3, ATOM_PX, ATOM_PX), offsets)


@dataclass(frozen=True)
class Projection:
    """Standardise features, keep leading principal components at comparable scales."""

    mean: Tensor
    scale: Tensor
    components: Tensor  # (features, kept)

    def __call__(self, features: Tensor) -> Tensor:
        """Project (…, features) to (…, kept)."""
        return ((features - self.mean) * self.scale) @ self.components


def fit_projection(features: Tensor, kept: int) -> Projection:
    """Fit on (samples, features); component k keeps the standard deviation's square root.

    Half-way between plain PCA, whose loss sees only a few components, and whitening, whose loss is
    mostly noise. Overall scale: mean square 1 over the kept components.
    """
    mean, deviation = features.mean(dim=0), features.std(dim=0)
    scale = 1 / (deviation + 0.1 * deviation.mean())
    standard = (features - mean) * scale
    values, vectors = torch.linalg.eigh(standard.T @ standard / len(standard))
    values, vectors = values.flip(0)[:kept].clamp(min=1e-6), vectors.flip(1)[:, :kept]
    halved = values**0.5
    return Projection(mean, scale, vectors * (values**-0.25) / halved.mean().sqrt())


@dataclass(frozen=True)
class Standardiser:
    """Shift and scale of each target dimension."""

    mean: Tensor
    scale: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Standardise (…, features)."""
        return (features - self.mean) * self.scale


def fit_standardiser(features: Tensor) -> Standardiser:
    """Fit on (samples, features)."""
    deviation = features.std(dim=0)
    return Standardiser(features.mean(dim=0), 1 / (deviation + 0.1 * deviation.mean()))


def _by_patch(maps: Tensor) -> Tensor:
    """Turn (B, C, 8m, 8m) into (B, 64, C·m²), patches in the row-major order of the tokens."""
    size = maps.shape[2] // GRID
    return F.unfold(maps, size, stride=size).transpose(1, 2)


@dataclass(frozen=True)
class TargetBuilder:
    """All targets of a batch; fitted once on generated images, then fixed."""

    dictionary: Dictionary
    class_words: Projection
    patch_words: Projection
    class_pixels: Standardiser
    patch_pixels: Standardiser

    @staticmethod
    def class_pixel_features(images: Tensor) -> Tensor:
        """Return (B, 208): 4 x 4 orientation histograms and colours, 8 x 8 lightness."""
        small = F.avg_pool2d(images, 2)
        bins = F.avg_pool2d(gradient_bins(small), 8).sqrt()
        grey = F.avg_pool2d(small.mean(dim=1, keepdim=True), 4)
        parts = [bins, F.avg_pool2d(small, 8), grey]
        return torch.cat([part.flatten(1) for part in parts], dim=1)

    @staticmethod
    def patch_pixel_features(images: Tensor) -> Tensor:
        """Return (B, 64, 45): 2 x 2 histograms and colours inside, one of each around a patch."""
        small = F.avg_pool2d(images, 2)
        fine = torch.cat([F.avg_pool2d(gradient_bins(small), 2).sqrt(), F.avg_pool2d(small, 2)], 1)
        coarse = F.avg_pool2d(fine, 2)
        around = F.avg_pool2d(coarse, 3, 1, 1, count_include_pad=False)
        return torch.cat([_by_patch(fine), _by_patch(around)], dim=2)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return class targets (B, D) and patch targets (B, 64, d) of images in [0, 1]."""
        words = self.dictionary(images)
        whole = [
            self.class_words(F.avg_pool2d(words, 2).flatten(1)),
            self.class_pixels(self.class_pixel_features(images)),
        ]
        around = F.avg_pool2d(words, 3, 1, 1, count_include_pad=False)
        local = [
            self.patch_words(_by_patch(words)),
            self.patch_words(_by_patch(around)),
            self.patch_pixels(self.patch_pixel_features(images)),
        ]
        return torch.cat(whole, dim=1), torch.cat(local, dim=2)


def fit_targets(images: Tensor, generator: torch.Generator) -> TargetBuilder:
    """Fit everything on images (B, 3, 64, 64) in [0, 1]; 2,000 are enough."""
    dictionary = fit_dictionary(images, generator)
    words = dictionary(images)
    patches = _by_patch(words).flatten(0, 1)
    pixels = TargetBuilder.patch_pixel_features(images).flatten(0, 1)
    return TargetBuilder(
        dictionary=dictionary,
        class_words=fit_projection(F.avg_pool2d(words, 2).flatten(1), CLASS_COMPONENTS),
        patch_words=fit_projection(patches, PATCH_COMPONENTS),
        class_pixels=fit_standardiser(TargetBuilder.class_pixel_features(images)),
        patch_pixels=fit_standardiser(pixels),
    )

"""What a camera, a scanner and a thumbnail do to a scene: exposure, colour loss, noise, blur.

Real tasks come as 8 x 8 digits and 32 x 32 photographs enlarged to 64 px, so most images go
through a small size and back.
"""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own convention

PX = 64
#: (size the image passes through in px, share of images); 64 means untouched.
SIZES = ((64, 0.24), (32, 0.44), (16, 0.1), (8, 0.1))
#: (standard deviation of a Gaussian blur in px, share of images).
BLURS = ((0.8, 0.07), (1.6, 0.05))
#: Share of images without colour.
GREY_SHARE = 0.12


def _through_size(size_px: int) -> Tensor:
    """Return the (64, 64) matrix of bicubic shrinking to size_px and bicubic enlarging."""
    columns = torch.eye(PX)[None, None]
    small = F.interpolate(columns, size=(size_px, PX), mode="bicubic", antialias=True)
    return F.interpolate(small, size=(PX, PX), mode="bicubic", align_corners=False)[0, 0]


def _blur(sigma_px: float) -> Tensor:
    distance = torch.arange(PX)[:, None] - torch.arange(PX)[None]
    weights = torch.exp(-0.5 * (distance / sigma_px) ** 2)
    return weights / weights.sum(dim=1, keepdim=True)


class Degrader:
    """Random degradations of a batch, all linear resampling done as two matrix products."""

    def __init__(self) -> None:
        kinds = [_through_size(size) if size < PX else torch.eye(PX) for size, _ in SIZES]
        self.matrices = torch.stack(kinds + [_blur(sigma) for sigma, _ in BLURS])
        self.shares = torch.tensor([share for _, share in SIZES + BLURS])

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return degraded images (batch, 3, 64, 64) in [0, 1]."""
        count = len(images)

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)

        images = images.clamp(0, 1) ** torch.exp(uniform(-0.35, 0.35))
        is_grey = uniform(0, 1) < GREY_SHARE
        images = torch.where(is_grey, images.mean(dim=1, keepdim=True), images)
        images = 0.5 + (images - 0.5) * uniform(0.6, 1.05) + uniform(-0.1, 0.1)
        level = GREY_SHARE * (uniform(0, 1) - 0.5).clamp(min=0)
        images = images + level * torch.randn(images.shape, generator=generator)
        choice = torch.multinomial(self.shares, count, replacement=True, generator=generator)
        matrix = self.matrices[choice][:, None]
        return (matrix @ images @ matrix.transpose(2, 3)).clamp(0, 1)

"""Turn uint8 images into what one network reads, on the network's own device."""

from functools import lru_cache

import torch
from torch import Tensor

from core.ml.backbones.load import LoadedBackbone

_Triple = tuple[float, float, float]


def normalise_images(images: Tensor, backbone: LoadedBackbone) -> Tensor:
    """Return `(images / 255 - mean) / std` in the backbone's number format.

    Training and serving both come through here, and each network gets its own statistics.

    Args:
        images: uint8, (batch, height, width, 3), on the backbone's device.
        backbone: whose mean, std and dtype apply.

    Returns:
        (batch, 3, height, width); computed in fp32, then rounded once.
    """
    mean, factor = _statistics(backbone.mean, backbone.std, images.device)
    # Colours become planes first: on a CPU, arithmetic on triples took four times as long or more.
    planes = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return planes.sub_(mean).mul_(factor).to(backbone.dtype)


@lru_cache(maxsize=32)
def _statistics(mean: _Triple, std: _Triple, device: torch.device) -> tuple[Tensor, Tensor]:
    # Kept per device: a fresh copy to a GPU would make every step wait for it.
    scaled_mean = torch.tensor(mean, dtype=torch.float64) * 255.0
    factor = 1.0 / (torch.tensor(std, dtype=torch.float64) * 255.0)
    return (
        scaled_mean.float().view(3, 1, 1).to(device),
        factor.float().view(3, 1, 1).to(device),
    )

"""From decoded pixels to the square that a network reads, the way of each preprocessing version.

Both ways are bicubic with the filter stretched to the scale (no aliasing), straight to the square.

1. Pillow's, of the first release. From Pillow 13 on it takes the steeper axis of some upright
   pictures first, which changes their pixels by up to tens of levels at sharp edges.
2. torch's vectorised kernel for uint8, made after Pillow's and always taking the width first, as
   Pillow did to version 12. From that it differs by at most 2 of 255 levels, in about 1 % of the
   pixels, and takes a fifth of the time (`benchmarks/decode.py`).
"""

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional

#: The versions whose pixels can be made here.
VERSIONS = (1, 2)

Pixels = npt.NDArray[np.uint8]


def resize_by_pillow(pixels: Pixels, image_px: int) -> Pixels:
    """Return (height, width, 3) pixels as (image_px, image_px, 3), by Pillow."""
    image = Image.fromarray(pixels).resize((image_px, image_px), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8)


def resize_by_torch(pixels: Pixels, image_px: int) -> Pixels:
    """Return (height, width, 3) pixels as (image_px, image_px, 3), by torch.

    One thread does it, whatever torch's number of threads is, and without the interpreter's lock.
    """
    # (1, 3, height, width) in the layout that is already there, which the fast kernel asks for.
    planes = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
    resized = functional.interpolate(
        planes, size=(image_px, image_px), mode="bicubic", antialias=True
    )
    square: Pixels = resized[0].permute(1, 2, 0).contiguous().numpy()
    return square

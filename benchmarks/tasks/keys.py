"""The direction of a key: a drawn task on cluttered grounds."""

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.tasks.base import SPLITS, U8, Task


def orientation(
    seed: int = 0, *, train: int = 800, val: int = 200, test: int = 1000, bins: int = 12
) -> Task:
    """Draw irregular keys on clutter; the class is the direction the key points in.

    Each image has its own key: a bow, a shaft and teeth of random proportions and colours.
    Bins are centred at k · 360°/bins, clockwise from pointing right.
    """
    rng = np.random.default_rng([seed, 512])
    counts = dict(zip(SPLITS, (train, val, test), strict=True))
    labels = {split: rng.permutation(np.arange(count) % bins) for split, count in counts.items()}
    width = 2 * np.pi / bins
    images = {
        split: np.stack(
            [_draw_key(rng, (k + rng.uniform(-0.4, 0.4)) * width) for k in labels[split]]
        )
        for split in SPLITS
    }
    classes = tuple(f"{round(k * 360 / bins):03d}deg" for k in range(bins))
    return Task("orientation", classes, images, labels)


def _draw_key(rng: np.random.Generator, angle: float) -> U8:
    """Draw at 128 px and shrink to 64 px, which smooths the edges."""
    blobs = rng.integers(0, 256, (rng.integers(2, 9), rng.integers(2, 9), 3))
    ground, contrast = rng.integers(0, 256, 3), rng.uniform(0.1, 0.6)
    coarse = np.round(ground + contrast * (blobs - ground)).astype(np.uint8)
    clutter = Image.fromarray(coarse).resize((128, 128), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(clutter)
    for _ in range(rng.integers(0, 6)):
        start, end = rng.integers(0, 128, 2), rng.integers(0, 128, 2)
        draw.line([*start.tolist(), *end.tolist()], _colour(rng), int(rng.integers(1, 6)))
    centre, size = rng.uniform(48, 80, 2), rng.uniform(28, 48)
    colour, thick = _colour(rng), rng.uniform(0.1, 0.22)
    shaft = [(-0.2, -thick), (1.0, -thick), (1.0, thick), (-0.2, thick)]
    teeth_x, tooth = rng.uniform(0.4, 0.85, rng.integers(1, 3)), rng.uniform(0.2, 0.45)
    polygons = [shaft]
    polygons += [[(x, 0), (x + 0.12, 0), (x + 0.12, tooth), (x, tooth)] for x in teeth_x]
    bow = rng.uniform(0.3, 0.5)
    corners = int(rng.integers(4, 10))
    ring = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    polygons.append([(bow * np.cos(a) - 0.5, bow * np.sin(a)) for a in ring])
    cosine, sine = np.cos(angle), np.sin(angle)
    for polygon in polygons:
        turned = [
            (centre[0] + size * (cosine * x - sine * y), centre[1] + size * (sine * x + cosine * y))
            for x, y in polygon
        ]
        draw.polygon([(float(x), float(y)) for x, y in turned], fill=colour)
    small = np.asarray(clutter.resize((64, 64), Image.Resampling.BOX), np.float64)
    noisy = small + rng.normal(0, rng.uniform(0, 14), small.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, 3).tolist()
    return red, green, blue

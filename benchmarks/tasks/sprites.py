"""Sprites: one flat shape on a flat ground; the class is where it is, or which way it points.

In the spirit of dSprites (Matthey et al. 2017), whose two VTAB tasks ask for the same: place and
angle, whatever the shape, its size, its colours and the other coordinate.
"""

from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.tasks.base import F64, U8, Task, add_noise, draw_task

PX = 64
_FINE = 4  # drawn so many times larger; the mean over the small pixels smooths the edges

#: The centre of a sprite stays this far from every border.
MARGIN_PX = 12.0
LOCATION_BINS = 8
ORIENTATION_BINS = 8
#: Places and angles keep this share of a bin's half width to their bin's centre.
_INSIDE = 0.85


def location(
    seed: int = 0, *, train: int = 800, val: int = 200, test: int = 1000, bins: int = LOCATION_BINS
) -> Task:
    """Draw squares, ellipses and hearts; the class is the bin of the centre of gravity's x.

    The bins cut the middle `PX - 2 · MARGIN_PX` pixels into equal parts, from left to right.
    """
    names = tuple(f"x{k}" for k in range(bins))
    draw = partial(_draw_location, bins=bins)
    return draw_task(
        "sprites-location", names, draw, seed=seed, salt=1301, counts=(train, val, test)
    )


def sprite_orientation(
    seed: int = 0,
    *,
    train: int = 800,
    val: int = 200,
    test: int = 1000,
    bins: int = ORIENTATION_BINS,
) -> Task:
    """Draw drops, kites, hearts and arrows; the class is the direction their tip points in.

    The tip is the point farthest from the centre of gravity, so no turn but a full one maps a shape
    onto itself. Bins are centred at k · 360°/bins, clockwise from pointing right.
    """
    names = tuple(f"{round(k * 360 / bins):03d}deg" for k in range(bins))
    draw = partial(_draw_orientation, bins=bins)
    return draw_task(
        "sprites-orientation", names, draw, seed=seed, salt=1303, counts=(train, val, test)
    )


def _draw_location(rng: np.random.Generator, label: int, *, bins: int) -> U8:
    width = (PX - 2 * MARGIN_PX) / bins
    x = MARGIN_PX + (label + 0.5 + 0.5 * _INSIDE * rng.uniform(-1, 1)) * width
    y = rng.uniform(MARGIN_PX, PX - MARGIN_PX)
    outline = [_square, _ellipse, _heart][rng.integers(3)]()
    radius = rng.uniform(5, MARGIN_PX - 1)
    return _render(rng, outline, (x, y), radius, rng.uniform(0, 2 * np.pi))


def _draw_orientation(rng: np.random.Generator, label: int, *, bins: int) -> U8:
    angle = (label + 0.5 * _INSIDE * rng.uniform(-1, 1)) * 2 * np.pi / bins
    outline = [_drop, _kite, _heart, _arrow][rng.integers(4)]()
    radius = rng.uniform(11, 19)
    centre = rng.uniform(radius + 1, PX - radius - 1, 2)
    return _render(rng, outline, (float(centre[0]), float(centre[1])), radius, angle)


def _render(
    rng: np.random.Generator, outline: F64, centre: tuple[float, float], radius: float, angle: float
) -> U8:
    """Paint an outline (points, 2) turned clockwise by `angle`, its centre of gravity at `centre`.

    `radius` is how far its farthest point is from there.
    """
    points = outline - _centroid(outline)
    points = points * (radius / np.linalg.norm(points, axis=1).max())
    cosine, sine = np.cos(angle), np.sin(angle)
    turned = points @ np.array([[cosine, sine], [-sine, cosine]]) + np.array(centre)
    mask = Image.new("L", (PX * _FINE, PX * _FINE))
    # A polygon's corner at (0, 0) is the middle of the first small pixel.
    corners = turned * _FINE - 0.5
    ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in corners], fill=255)
    share = np.asarray(mask, np.float64).reshape(PX, _FINE, PX, _FINE).mean(axis=(1, 3)) / 255
    ground, paint = _two_colours(rng)
    image = ground + share[..., None] * (paint - ground)
    return add_noise(rng, image, rng.uniform(0, 6))


def _two_colours(rng: np.random.Generator) -> tuple[F64, F64]:
    """Return two colours (3,) whose mean lightness differs by at least 60 of 255."""
    while True:
        first, second = rng.uniform(0, 255, (2, 3))
        if abs(first.mean() - second.mean()) >= 60:  # noqa: PLR2004 - see above
            return first, second


def _centroid(outline: F64) -> F64:
    """Return a simple polygon's centre of gravity (2,), by the shoelace formula."""
    x, y = outline.T
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    cross = x * next_y - next_x * y
    moments = np.stack([(x + next_x) * cross, (y + next_y) * cross]).sum(axis=1)
    centre: F64 = moments / (3 * cross.sum())
    return centre


def _square() -> F64:
    return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float64)


def _ellipse() -> F64:
    turn = _turn()
    return np.stack([np.cos(turn), 0.55 * np.sin(turn)], axis=1)


def _heart() -> F64:
    """Return a heart on its side, its tip to the right."""
    turn = _turn()
    across = 16 * np.sin(turn) ** 3
    along = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
    return np.stack([-along, 0.85 * across], axis=1)


def _drop() -> F64:
    """Return a drop: a circle drawn out to a tip on the right."""
    turn = _turn()
    return np.stack([np.cos(turn), 0.6 * np.sin(turn) * np.sin(turn / 2) ** 1.5], axis=1)


def _kite() -> F64:
    return np.array([[1.6, 0], [-0.2, 0.7], [-0.8, 0], [-0.2, -0.7]], np.float64)


def _arrow() -> F64:
    upper = [[1.9, 0.0], [0.2, 0.65], [0.2, 0.25], [-0.4, 0.25]]
    lower = [[x, -y] for x, y in reversed(upper[1:])]
    return np.array(upper + lower, np.float64)


def _turn() -> F64:
    return np.linspace(0, 2 * np.pi, 72, endpoint=False)

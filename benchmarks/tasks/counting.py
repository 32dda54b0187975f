"""How many objects are there: a drawn task in the spirit of Clevr/count.

Objects differ in form, size and colour and may overlap. The area that all of them cover together is
drawn without looking at their number, so the amount of paint does not give the answer away.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.tasks.base import F64, U8, Task, add_noise, draw_task

PX = 64
#: As in VTAB's Clevr/count: 3 to 10 objects, 8 classes.
FEWEST, MOST = 3, 10
#: Two objects' centres are at least this share of the sum of their radii apart.
_APART = 0.72
_FORMS = 3


@dataclass(frozen=True)
class Thing:
    """One object: its form (0 disc, 1 square, 2 triangle), place, radius in px, angle, colour."""

    form: int
    x: float
    y: float
    radius: float
    angle: float
    colour: F64


def count(seed: int = 0, *, train: int = 800, val: int = 200, test: int = 1000) -> Task:
    """Draw 3 to 10 objects on a soft ground; the class is their number."""
    names = tuple(f"{number:02d}" for number in range(FEWEST, MOST + 1))
    return draw_task("count", names, _draw, seed=seed, salt=1307, counts=(train, val, test))


def _draw(rng: np.random.Generator, label: int) -> U8:
    ground = rng.uniform(0, 255, 3)
    image, _ = paint(rng, ground, place_things(rng, FEWEST + label, ground))
    return add_noise(rng, image, rng.uniform(0, 6))


def place_things(rng: np.random.Generator, number: int, ground: F64) -> list[Thing]:
    """Return so many objects that overlap a little at most, in colours unlike the ground's."""
    while True:
        # Areas of very different objects, scaled so that their sum has nothing to do with `number`.
        shares = np.exp(rng.normal(0, 0.45, number))
        total = np.exp(rng.uniform(np.log(420), np.log(1100)))
        radii = np.clip(np.sqrt(total * shares / shares.sum() / np.pi), 2.6, 14.0)
        centres = _place(rng, radii)
        if centres is not None:
            break
    things = []
    for radius, (x, y) in zip(radii, centres, strict=True):
        form, angle = int(rng.integers(_FORMS)), rng.uniform(0, 2 * np.pi)
        things.append(Thing(form, x, y, float(radius), angle, _colour(rng, ground)))
    return things


def _place(rng: np.random.Generator, radii: F64) -> list[tuple[float, float]] | None:
    """Return a centre for every radius, inside the image; None if no room was found."""
    centres: list[tuple[float, float]] = []
    for index, radius in enumerate(radii):
        for _ in range(60):
            x, y = (float(v) for v in rng.uniform(radius + 1, PX - radius - 1, 2))
            gaps = [
                np.hypot(x - a, y - b) >= _APART * (radius + other)
                for (a, b), other in zip(centres, radii[:index], strict=True)
            ]
            if all(gaps):
                centres.append((x, y))
                break
        else:
            return None
    return centres


def _colour(rng: np.random.Generator, other: F64) -> F64:
    """Return a colour (3,) that is not near `other`."""
    while True:
        colour = rng.uniform(0, 255, 3)
        if np.abs(colour - other).sum() >= 150:  # noqa: PLR2004 - of 765
            return colour


def paint(
    rng: np.random.Generator, ground: F64, things: list[Thing]
) -> tuple[F64, NDArray[np.int64]]:
    """Return the image (PX, PX, 3) in 0..255, and whose pixel is whose: -1 for the ground."""
    y, x = np.mgrid[:PX, :PX] + 0.5
    slope = rng.normal(0, 0.35, 2)
    light = 1 + (slope[0] * (x - PX / 2) + slope[1] * (y - PX / 2)) / PX
    image = np.clip(ground * light[..., None], 0, 255)
    owners = np.full((PX, PX), -1)
    sun = rng.uniform(0, 2 * np.pi)
    for index, thing in enumerate(things):
        inside = -_distance(thing, x, y)
        cover = np.clip(inside + 0.5, 0, 1)
        toward = (x - thing.x) * np.cos(sun) + (y - thing.y) * np.sin(sun)
        shade = 1 + 0.3 * toward / thing.radius
        # A dark rim keeps two overlapping objects of one colour apart.
        rim = 0.55 + 0.45 * np.clip(inside - 0.5, 0, 1)
        own = np.clip(thing.colour * (shade * rim)[..., None], 0, 255)
        image = image + cover[..., None] * (own - image)
        owners[cover > 0.5] = index  # noqa: PLR2004 - more than half of the pixel
    return image, owners


def _distance(thing: Thing, x: F64, y: F64) -> F64:
    """Return how far (px) each pixel is outside the object; negative inside.

    Squares and triangles have the area of the disc of the same radius.
    """
    across, down = x - thing.x, y - thing.y
    if thing.form == 0:
        far: F64 = np.hypot(across, down) - thing.radius
        return far
    corners = 4 if thing.form == 1 else 3
    # A regular polygon of n corners with inradius r has the area n · r² · tan(π / n).
    inradius = thing.radius * np.sqrt(np.pi / (corners * np.tan(np.pi / corners)))
    normals = thing.angle + 2 * np.pi * np.arange(corners) / corners
    sides = [across * np.cos(a) + down * np.sin(a) - inradius for a in normals]
    return np.asarray(np.stack(sides).max(axis=0))

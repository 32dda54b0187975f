"""Surfaces: twelve kinds of pattern, compiled; each gives a value in [0, 1] for each pixel."""

# ruff: noqa: NPY002 - compiled code has only the legacy generator
# ruff: noqa: PLR0912, C901 - one branch per kind, its proportions in place

import math

import numba as nb
import numpy as np
from numpy.typing import NDArray

from pretraining.images.banks import NOISE_PX, NOISE_TILES

F32 = NDArray[np.float32]

KINDS = 12
#: Kinds whose look depends on their orientation; the others get the label "none".
SOLID, GRADIENT, SINE, STRIPES, CHECKER, DOTS = 0, 1, 2, 3, 4, 5
NOISE, FUR, CELLS, RINGS, BRICKS, SPOTS = 6, 7, 8, 9, 10, 11


@nb.njit(cache=True)
def is_oriented(kind: int) -> bool:
    """Tell whether the orientation label means anything for this kind."""
    return kind in (GRADIENT, SINE, STRIPES, FUR, BRICKS)


@nb.njit(cache=True)
def _noise(tile: F32, u: float, v: float) -> float:
    """Sample a tileable noise tile bilinearly at (u, v) in its own pixels."""
    u, v = u % NOISE_PX, v % NOISE_PX
    i, j = int(v), int(u)
    fv, fu = v - i, u - j
    i, j = i % NOISE_PX, j % NOISE_PX
    i2, j2 = (i + 1) % NOISE_PX, (j + 1) % NOISE_PX
    top = tile[i, j] * (1 - fu) + tile[i, j2] * fu
    bottom = tile[i2, j] * (1 - fu) + tile[i2, j2] * fu
    return float(top * (1 - fv) + bottom * fv)


@nb.njit(cache=True)
def _cells(u: float, v: float, salt: int) -> float:
    """Return a Voronoi pattern: distance to the nearest of one hashed point in each unit cell."""
    cell_x, cell_y = math.floor(u), math.floor(v)
    nearest = 9.0
    for i in range(-1, 2):
        for j in range(-1, 2):
            x, y = int(cell_x) + j, int(cell_y) + i
            code = (x * 73856093) ^ (y * 19349663) ^ (salt * 83492791)
            px = x + (code & 255) / 255.0
            py = y + ((code >> 8) & 255) / 255.0
            nearest = min(nearest, (u - px) ** 2 + (v - py) ** 2)
    return min(1.0, math.sqrt(nearest))


@nb.njit(cache=True)
def fill(out: F32, noise: F32, kind: int, angle: float, period: float) -> None:
    """Write pattern `kind` into out (height, width); period in px, angle in radians.

    Phase, noise tile and pattern details come from the current random state.
    """
    cosine, sine = math.cos(angle), math.sin(angle)
    shift_x, shift_y = np.random.random() * 100, np.random.random() * 100
    tile = noise[np.random.randint(NOISE_TILES)]
    salt = np.random.randint(1 << 20)
    duty = 0.3 + 0.4 * np.random.random()
    centre_x, centre_y = np.random.random() * 90 - 13, np.random.random() * 90 - 13
    warp = np.random.random() * 1.5
    grain = 10.0 / period
    soft = period / 2
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            u, v = cosine * j + sine * i, cosine * i - sine * j
            if kind == SOLID:
                value = 0.5 + 0.3 * (_noise(tile, u + shift_x, v + shift_y) - 0.5)
            elif kind == GRADIENT:
                value = 0.5 + (cosine * (j - 32) + sine * (i - 32)) / 80
            elif kind == SINE:
                value = 0.5 + 0.5 * math.sin(2 * math.pi * (u + shift_x) / period)
            elif kind == STRIPES:
                value = 0.5 + soft * (duty - abs((u + shift_x) / period % 1.0 * 2 - 1))
            elif kind == CHECKER:
                x = math.sin(math.pi * (u + shift_x) / period)
                value = 0.5 + 3 * x * math.sin(math.pi * (v + shift_y) / period)
            elif kind == DOTS:
                x = (u + shift_x) / period % 1.0 - 0.5
                y = (v + shift_y) / period % 1.0 - 0.5
                value = 0.5 + soft * (duty * 0.55 - math.sqrt(x * x + y * y)) * 2
            elif kind == NOISE:
                value = _noise(tile, u * grain + shift_x, v * grain + shift_y)
            elif kind == FUR:
                value = _noise(tile, u * grain * 2.5 + shift_x, v * grain * 0.4 + shift_y)
            elif kind == CELLS:
                value = _cells((u + shift_x) / period, (v + shift_y) / period, salt)
            elif kind == RINGS:
                x, y = j - centre_x, i - centre_y
                radius = math.sqrt(x * x + y * y) + 12 * warp * _noise(tile, x + shift_x, y)
                value = 0.5 + 0.5 * math.sin(2 * math.pi * radius / period)
            elif kind == BRICKS:
                row = math.floor((v + shift_y) / period)
                x = ((u + shift_x) / (2 * period) + 0.5 * (row % 2)) % 1.0
                y = (v + shift_y) / period % 1.0
                gap = min(2 * x, 2 - 2 * x, y, 1 - y)
                value = 0.5 + soft * (gap - 0.12) * 2
            else:
                value = 0.5 + 8 * (_noise(tile, u * grain + shift_x, v * grain + shift_y) - duty)
            out[i, j] = min(1.0, max(0.0, value))

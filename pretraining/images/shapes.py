"""Masks of the five shape families, compiled; a mask is float32 (64, 64), 1 inside, 0 outside.

Every function maps pixels into the shape's unit frame by an inverse affine map and writes an
antialiased inside test. A frame is (centre x, centre y in px, a, b, c, d) with
u = a·dx + b·dy, v = c·dx + d·dy; `soft` is the width of one pixel in the unit frame.
"""

# ruff: noqa: NPY002, PLR0917 - compiled code has only the legacy generator, positional arguments
# ruff: noqa: PLR2004, PLR0911, C901 - one branch per kind of figure, its proportions in place

import math

import numba as nb
import numpy as np
from numpy.typing import NDArray

from pretraining.images.banks import Banks

PX = 64

F32 = NDArray[np.float32]
Frame = tuple[float, float, float, float, float, float]


@nb.njit(cache=True)
def frame(
    centre_x: float, centre_y: float, radius: float, aspect: float, angle: float, shear: float
) -> Frame:
    """Return the inverse map of: scale by radius (px) and aspect, shear, rotate, move."""
    cosine, sine = math.cos(angle), math.sin(angle)
    along, across = 1.0 / (radius * aspect), aspect / radius
    # u belongs to the rotated x axis, v to the rotated y axis; shear mixes y into x.
    a, b = cosine * along, sine * along
    c, d = -sine * across, cosine * across
    return centre_x, centre_y, a - shear * c, b - shear * d, c, d


@nb.njit(cache=True)
def ramp(distance: float, soft: float) -> float:
    """Return 1 where distance is negative, 0 where positive, linear across one pixel."""
    value = 0.5 - distance / soft
    return min(1.0, max(0.0, value))


@nb.njit(cache=True)
def contour(mask: F32, place: Frame, coefficients: F32, soft: float) -> None:
    """Draw a radial outline given by its Fourier coefficients (HARMONICS, 2)."""
    centre_x, centre_y, a, b, c, d = place
    # The radius is tabulated: 128 angles cost far less than a Fourier sum for each pixel.
    table = np.empty(129, np.float32)
    largest = 0.0
    for k in range(129):
        theta = 2 * math.pi * k / 128
        value = 0.0
        for n in range(coefficients.shape[0]):
            value += coefficients[n, 0] * math.cos((n + 1) * theta)
            value += coefficients[n, 1] * math.sin((n + 1) * theta)
        table[k] = max(0.15, 0.7 + 0.6 * value)
        largest = max(largest, table[k])
    for i in range(PX):
        for j in range(PX):
            dx, dy = j - centre_x, i - centre_y
            u, v = a * dx + b * dy, c * dx + d * dy
            radius = math.sqrt(u * u + v * v)
            if radius > 1.1:
                mask[i, j] = 0.0
                continue
            position = (math.atan2(v, u) / (2 * math.pi) + 1.0) % 1.0 * 128
            k = min(127, int(position))
            edge = table[k] + (table[k + 1] - table[k]) * (position - k)
            mask[i, j] = ramp(radius - edge / largest, soft)


@nb.njit(cache=True)
def strokes(mask: F32, place: Frame, segments: F32, count: int, half: float, soft: float) -> None:
    """Draw line segments (n, 4) with round ends, `half` being half the stroke's width."""
    centre_x, centre_y, a, b, c, d = place
    for i in range(PX):
        for j in range(PX):
            dx, dy = j - centre_x, i - centre_y
            u, v = a * dx + b * dy, c * dx + d * dy
            if u * u + v * v > 2.6:
                mask[i, j] = 0.0
                continue
            nearest = 9.0
            for k in range(count):
                x0, y0 = segments[k, 0], segments[k, 1]
                ex, ey = segments[k, 2] - x0, segments[k, 3] - y0
                t = ((u - x0) * ex + (v - y0) * ey) / (ex * ex + ey * ey + 1e-6)
                t = min(1.0, max(0.0, t))
                px, py = u - x0 - t * ex, v - y0 - t * ey
                nearest = min(nearest, px * px + py * py)
            mask[i, j] = ramp(math.sqrt(nearest) - half, soft)


@nb.njit(cache=True)
def fractal(mask: F32, place: Frame, systems: F32, centre: F32, points: int) -> None:
    """Draw the attractor of an iterated function system (maps, 7) as a saturating density."""
    centre_x, centre_y, a, b, c, d = place
    mask[:] = 0.0
    determinant = a * d - b * c
    x = y = 0.0
    for step in range(points):
        r = np.random.random()
        k = 0
        while k < systems.shape[0] - 1 and systems[k, 6] < r:
            k += 1
        new_x = systems[k, 0] * x + systems[k, 1] * y + systems[k, 4]
        y = systems[k, 2] * x + systems[k, 3] * y + systems[k, 5]
        x = new_x
        if step < 20:
            continue
        u, v = (x - centre[0]) / centre[2], (y - centre[1]) / centre[2]
        i = round(centre_y + (a * v - c * u) / determinant)
        j = round(centre_x + (d * u - b * v) / determinant)
        if 0 <= i < PX and 0 <= j < PX:
            mask[i, j] = min(1.0, mask[i, j] + 0.4)


@nb.njit(cache=True)
def part_distance(kind: int, u: float, v: float, width: float, height: float) -> float:
    """Return a signed distance (negative inside): ellipse, rounded box, triangle, capsule."""
    if kind == 0:
        radius = math.sqrt((u / width) ** 2 + (v / height) ** 2)
        return (radius - 1.0) * min(width, height)
    if kind == 1:
        return max(abs(u) - width, abs(v) - height)
    if kind == 2:
        return max(v - height, abs(u) * height * 2 / width * 0.5 - (v + height) * 0.5)
    t = min(height, max(-height, v))
    return math.sqrt(u * u + (v - t) ** 2) - width


@nb.njit(cache=True)
def part(mask: F32, place: Frame, numbers: F32, soft: float) -> None:
    """Draw one part of an assembly, described by its PART_NUMBERS."""
    centre_x, centre_y, a, b, c, d = place
    kind = int(numbers[0])
    cosine, sine = math.cos(numbers[5]), math.sin(numbers[5])
    for i in range(PX):
        for j in range(PX):
            dx, dy = j - centre_x, i - centre_y
            u, v = a * dx + b * dy - numbers[1], c * dx + d * dy - numbers[2]
            turned_u, turned_v = cosine * u + sine * v, cosine * v - sine * u
            mask[i, j] = ramp(part_distance(kind, turned_u, turned_v, numbers[3], numbers[4]), soft)


@nb.njit(cache=True)
def sprite(mask: F32, place: Frame, kind: int, soft: float) -> None:
    """Draw one of twelve simple figures."""
    centre_x, centre_y, a, b, c, d = place
    for i in range(PX):
        for j in range(PX):
            dx, dy = j - centre_x, i - centre_y
            u, v = a * dx + b * dy, c * dx + d * dy
            mask[i, j] = ramp(sprite_distance(kind, u, v), soft)


@nb.njit(cache=True)
def sprite_distance(kind: int, u: float, v: float) -> float:
    """Return a signed distance to the figure `kind` of 12; only its sign near 0 is exact."""
    radius = math.sqrt(u * u + v * v)
    if kind == 0:  # disc
        return radius - 0.9
    if kind == 1:  # ring
        return abs(radius - 0.7) - 0.2
    if kind == 2:  # square
        return max(abs(u), abs(v)) - 0.75
    if kind == 3:  # frame
        return abs(max(abs(u), abs(v)) - 0.65) - 0.15
    if kind == 4:  # triangle
        return max(v - 0.7, abs(u) * 0.87 - (v + 0.9) * 0.5)
    if kind == 5:  # cross
        return min(max(abs(u) - 0.25, abs(v) - 0.9), max(abs(v) - 0.25, abs(u) - 0.9))
    if kind == 6:  # half disc
        return max(radius - 0.9, v)
    if kind == 7:  # crescent
        return max(radius - 0.9, 0.75 - math.sqrt((u - 0.45) ** 2 + v * v))
    if kind == 8:  # arrow
        head = max(abs(v) * 0.7 + u * 0.7 - 0.63, -u)
        return min(head, max(abs(v) - 0.2, u, -0.9 - u))
    if kind == 9:  # L
        return min(max(abs(u + 0.5) - 0.25, abs(v) - 0.85), max(abs(v - 0.6) - 0.25, abs(u) - 0.75))
    if kind == 10:  # star of five
        angle = math.atan2(u, -v)
        return radius - (0.62 + 0.3 * math.cos(5 * angle))
    return abs(u) + abs(v) * 0.6 - 0.55  # rhombus


@nb.njit(cache=True)
def draw(
    mask: F32, banks: Banks, family: int, member: int, place: Frame, soft: float, weight: float
) -> None:
    """Draw a whole shape of any family except assemblies, which the scene paints part by part."""
    if family == 0:
        contour(mask, place, banks.contours[member], soft)
    elif family == 1:
        strokes(mask, place, banks.glyphs[member], banks.glyph_lengths[member], weight, soft)
    elif family == 2:
        fractal(mask, place, banks.fractals[member], banks.fractal_frames[member], 6000)
    else:
        sprite(mask, place, member, soft)

"""Fixed parameters of every category: drawn once from one seed, shared by all images.

Owns what makes category 17 category 17. Does not know how anything is drawn.
Coordinates of shapes are in a unit frame: the shape lies within about [-1, 1]², y pointing down.
"""

# ruff: noqa: PLR2004 - probabilities, each beside its use

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

CONTOURS = 150
GLYPHS = 200
FRACTALS = 80
ASSEMBLIES = 200
SPRITES = 12
#: First category index of each family, in the order contour, glyph, fractal, assembly, sprite.
OFFSETS = (0, 150, 350, 430, 630)
CATEGORIES = 642

HARMONICS = 7
GLYPH_SEGMENTS = 24
FRACTAL_MAPS = 4
PARTS = 10
#: Numbers describing one part of an assembly: kind, x, y, half width, half height, angle, slot.
PART_NUMBERS = 7
NOISE_TILES = 64
NOISE_PX = 128


class Banks(NamedTuple):
    """Arrays that the compiled drawing code reads; shapes stand beside each."""

    contours: F32  # (CONTOURS, HARMONICS, 2) Fourier coefficients of the radius
    glyphs: F32  # (GLYPHS, GLYPH_SEGMENTS, 4) x0, y0, x1, y1
    glyph_lengths: NDArray[np.int64]  # (GLYPHS,) segments in use
    fractals: F32  # (FRACTALS, FRACTAL_MAPS, 7) affine map and cumulative probability
    fractal_frames: F32  # (FRACTALS, 3) centre x, centre y, radius
    assemblies: F32  # (ASSEMBLIES, PARTS, PART_NUMBERS), painted in order
    assembly_lengths: NDArray[np.int64]  # (ASSEMBLIES,) parts in use
    noise: F32  # (NOISE_TILES, NOISE_PX, NOISE_PX) tileable 1/f^alpha noise, roughly in [0, 1]


def build_banks(seed: int = 2026) -> Banks:
    """Draw the parameters of all categories."""
    rng = np.random.default_rng(seed)
    glyphs, glyph_lengths = _glyphs(rng)
    fractals, frames = _fractals(rng)
    assemblies, assembly_lengths = _assemblies(rng)
    return Banks(
        contours=_contours(rng),
        glyphs=glyphs,
        glyph_lengths=glyph_lengths,
        fractals=fractals,
        fractal_frames=frames,
        assemblies=assemblies,
        assembly_lengths=assembly_lengths,
        noise=_noise(rng),
    )


def _contours(rng: np.random.Generator) -> F32:
    decay = 1.0 / np.arange(1, HARMONICS + 1) ** 0.8
    coefficients = rng.normal(0, 0.3, (CONTOURS, HARMONICS, 2)) * decay[None, :, None]
    # A quarter of the harmonics is kept on average 60 % of the time, so that some outlines are
    # simple (leaf, drop) and some jagged.
    coefficients *= rng.random((CONTOURS, HARMONICS, 1)) < 0.6
    return coefficients.astype(np.float32)


def _glyphs(rng: np.random.Generator) -> tuple[F32, NDArray[np.int64]]:
    """Draw strokes between points of a 3 by 5 grid: lines and arcs, as in letters and digits."""
    glyphs = np.zeros((GLYPHS, GLYPH_SEGMENTS, 4), np.float32)
    lengths = np.zeros(GLYPHS, np.int64)
    for index in range(GLYPHS):
        segments: list[tuple[float, float, float, float]] = []
        x, y = rng.integers(0, 3) - 1.0, (rng.integers(0, 5) - 2.0) / 2
        for _ in range(rng.integers(2, 6)):
            if rng.random() < 0.25:
                x, y = rng.integers(0, 3) - 1.0, (rng.integers(0, 5) - 2.0) / 2
            next_x, next_y = x, y
            while (next_x - x) ** 2 + (next_y - y) ** 2 < 0.2:
                next_x, next_y = rng.integers(0, 3) - 1.0, (rng.integers(0, 5) - 2.0) / 2
            segments += _stroke(rng, 0.65 * x, 0.9 * y, 0.65 * next_x, 0.9 * next_y)
            x, y = next_x, next_y
        if rng.random() < 0.4:
            segments += _loop(rng)
        segments = segments[:GLYPH_SEGMENTS]
        glyphs[index, : len(segments)] = segments
        lengths[index] = len(segments)
    return glyphs, lengths


def _stroke(
    rng: np.random.Generator, x0: float, y0: float, x1: float, y1: float
) -> list[tuple[float, float, float, float]]:
    if rng.random() < 0.5:
        return [(x0, y0, x1, y1)]
    bend = rng.choice([-0.5, -0.3, 0.3, 0.5])
    middle_x, middle_y = (x0 + x1) / 2 - bend * (y1 - y0), (y0 + y1) / 2 + bend * (x1 - x0)
    control_x, control_y = 2 * middle_x - (x0 + x1) / 2, 2 * middle_y - (y0 + y1) / 2
    t = np.linspace(0, 1, 5)
    xs = (1 - t) ** 2 * x0 + 2 * t * (1 - t) * control_x + t**2 * x1
    ys = (1 - t) ** 2 * y0 + 2 * t * (1 - t) * control_y + t**2 * y1
    return [(xs[i], ys[i], xs[i + 1], ys[i + 1]) for i in range(4)]


def _loop(rng: np.random.Generator) -> list[tuple[float, float, float, float]]:
    """An ellipse or most of one: the bowls of 0, 6, 8, 9, a, b, c."""
    centre_y, half_height = rng.choice([(-0.45, 0.45), (0.45, 0.45), (0.0, 0.9)])
    start, sweep = rng.random() * 2 * np.pi, rng.choice([1.0, 1.0, 0.75, 0.5]) * 2 * np.pi
    angle = start + np.linspace(0, sweep, 9)
    xs, ys = 0.6 * np.cos(angle), centre_y + half_height * np.sin(angle)
    return [(xs[i], ys[i], xs[i + 1], ys[i + 1]) for i in range(8)]


def _fractals(rng: np.random.Generator) -> tuple[F32, F32]:
    """Iterated function systems with contracting maps, kept if their attractor has some area."""
    fractals = np.zeros((FRACTALS, FRACTAL_MAPS, 7), np.float32)
    frames = np.zeros((FRACTALS, 3), np.float32)
    index = 0
    while index < FRACTALS:
        maps = rng.integers(2, FRACTAL_MAPS + 1)
        systems = np.zeros((FRACTAL_MAPS, 7), np.float32)
        areas = np.zeros(FRACTAL_MAPS)
        for k in range(maps):
            first, second = rng.random(2) * 2 * np.pi
            stretch = np.diag(rng.uniform(0.25, 0.9, 2))
            matrix = _rotation(first) @ stretch @ _rotation(second)
            systems[k, :4] = matrix.ravel()
            systems[k, 4:6] = rng.uniform(-1, 1, 2)
            areas[k] = abs(np.linalg.det(matrix)) + 0.02
        systems[:, 6] = np.cumsum(areas / areas.sum())
        points = _orbit(rng, systems, 600)
        centre = np.median(points, axis=0)
        radius = np.quantile(np.abs(points - centre).max(axis=1), 0.95)
        cells = np.unique(np.clip(((points - centre) / radius * 8 + 8).astype(int), 0, 15), axis=0)
        if not np.isfinite(radius) or len(cells) < 50:
            continue
        fractals[index], frames[index] = systems, (centre[0], centre[1], radius)
        index += 1
    return fractals, frames


def _rotation(angle: float) -> NDArray[np.float64]:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _orbit(rng: np.random.Generator, systems: F32, steps: int) -> NDArray[np.float64]:
    point, points = np.zeros(2), np.zeros((steps, 2))
    for step in range(steps):
        system = systems[np.searchsorted(systems[:, 6], min(rng.random(), 0.9999))]
        point = system[:4].reshape(2, 2) @ point + system[4:6]
        points[step] = point
    return points[20:]


def _assemblies(rng: np.random.Generator) -> tuple[F32, NDArray[np.int64]]:
    """Things made of parts: a body, limbs or wheels under it, a head, a tail, wings, windows."""
    assemblies = np.zeros((ASSEMBLIES, PARTS, PART_NUMBERS), np.float32)
    lengths = np.zeros(ASSEMBLIES, np.int64)
    for index in range(ASSEMBLIES):
        parts: list[NDArray[np.float64]] = []
        width, height = rng.uniform(0.4, 0.9), rng.uniform(0.15, 0.55)
        body = np.array([rng.integers(0, 4), 0, 0, width, height, rng.normal(0, 0.1), 0])
        under = int(rng.choice([0, 0, 2, 2, 3, 4]))
        wheel, length = rng.random() < 0.4, rng.uniform(0.15, 0.4)
        for k in range(under):
            x = width * (2 * (k + 0.5) / under - 1) * rng.uniform(0.7, 1.0)
            if wheel:
                parts.append(np.array([0, x, height, length * 0.6, length * 0.6, 0, 1]))
            else:
                lean = rng.normal(0, 0.2)
                parts.append(
                    np.array([3, x, height + length * 0.6, 0.09, length, lean, rng.integers(0, 2)])
                )
        parts.insert(0 if wheel else len(parts), body)
        if rng.random() < 0.65:  # head or cabin
            x, y = width * rng.uniform(0.6, 1.1), -height * rng.uniform(0.2, 1.6)
            size = rng.uniform(0.15, 0.4)
            kind, slot = rng.integers(0, 4), rng.integers(0, 3)
            parts.append(
                np.array([kind, x, y, size, size * rng.uniform(0.6, 1.2), rng.normal(0, 0.3), slot])
            )
        if rng.random() < 0.5:  # superstructure, back
            x, y = width * rng.uniform(-0.5, 0.5), -height * rng.uniform(0.7, 1.4)
            kind, slot = rng.integers(0, 4), rng.integers(0, 3)
            parts.append(np.array([kind, x, y, width * 0.5, height * rng.uniform(0.4, 1), 0, slot]))
        if rng.random() < 0.5:  # tail
            x, y = -width * rng.uniform(0.8, 1.2), height * rng.uniform(-0.8, 0.3)
            parts.append(np.array([rng.choice([2, 3]), x, y, 0.1, 0.35, rng.uniform(-1.5, 1.5), 1]))
        if rng.random() < 0.4:  # wing, fin, window
            y, angle = height * rng.uniform(-0.5, 0.5), rng.uniform(-1.2, 1.2)
            parts.append(
                np.array([rng.integers(0, 4), 0, y, 0.12, rng.uniform(0.2, 0.7), angle, 2])
            )
        assemblies[index, : len(parts)] = parts
        lengths[index] = len(parts)
    return assemblies, lengths


def _noise(rng: np.random.Generator) -> F32:
    """Tileable noise with power spectra between 1/f and 1/f⁴, the range of natural textures."""
    frequency = np.fft.fftfreq(NOISE_PX)
    tiles = np.zeros((NOISE_TILES, NOISE_PX, NOISE_PX), np.float32)
    for index in range(NOISE_TILES):
        stretch = rng.choice([1.0, 1.0, 2.0, 5.0])
        radius = np.hypot(frequency[:, None] * stretch, frequency[None, :]) + 1.0 / NOISE_PX
        phase = np.fft.fft2(rng.normal(size=(NOISE_PX, NOISE_PX)))
        tile = np.fft.ifft2(phase / radius ** rng.uniform(0.5, 2.0)).real
        tiles[index] = np.clip(0.5 + 0.2 * (tile - tile.mean()) / tile.std(), 0, 1)
    return tiles

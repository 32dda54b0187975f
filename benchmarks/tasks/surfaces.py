"""Ten surfaces, in the spirit of the Describable Textures Dataset: the class is the pattern.

None is among the twelve patterns of the pretraining images (solid, gradient, sine, stripes,
checker, dots, value noise, fur, Voronoi cells, rings, bricks, spots). Every image has its own
scale, turn, colours, contrast, light and noise.
"""

from collections.abc import Callable

import numpy as np

from benchmarks.tasks.base import F64, U8, Task, add_noise, draw_task

PX = 64

#: A pattern: draws itself (PX, PX), in 0..1.
Pattern = Callable[[np.random.Generator], F64]


def textures(seed: int = 0, *, train: int = 800, val: int = 200, test: int = 1000) -> Task:
    """Draw one surface an image."""
    return draw_task(
        "textures", tuple(PATTERNS), _draw, seed=seed, salt=1319, counts=(train, val, test)
    )


def _draw(rng: np.random.Generator, label: int) -> U8:
    surface = list(PATTERNS.values())[label](rng)
    if rng.random() < 0.5:  # noqa: PLR2004 - as often dark on light as light on dark
        surface = 1 - surface
    while True:
        first, second = rng.uniform(0, 255, (2, 3))
        if np.abs(first - second).sum() >= 140:  # noqa: PLR2004 - of 765
            break
    across, down = (np.mgrid[:PX, :PX] - PX / 2) / PX
    slope = rng.normal(0, 0.4, 2)
    light = 1 + slope[0] * across + slope[1] * down
    image = (first + surface[..., None] * (second - first)) * light[..., None]
    return add_noise(rng, image, rng.uniform(0, 12))


def coordinates(rng: np.random.Generator) -> tuple[F64, F64]:
    """Return (PX, PX) coordinates in periods of 8 to 16 px, turned, stretched and shifted."""
    y, x = np.mgrid[:PX, :PX].astype(np.float64)
    angle, period = rng.uniform(0, 2 * np.pi), rng.uniform(8, 16)
    stretch = np.exp(rng.normal(0, 0.1))
    cosine, sine = np.cos(angle), np.sin(angle)
    u = (cosine * x + sine * y) / period * stretch + rng.uniform(0, 50)
    v = (cosine * y - sine * x) / period / stretch + rng.uniform(0, 50)
    return u, v


def _chevron(rng: np.random.Generator) -> F64:
    """Zigzag bands."""
    u, v = coordinates(rng)
    tall = rng.uniform(0.35, 0.8)
    phase = v + tall * np.abs(u % 1 - 0.5) * 2
    return _edge(np.abs(phase % 1 - 0.5) - 0.25, 0.05)


def _scales(rng: np.random.Generator) -> F64:
    """Rows of overlapping discs, each shaded towards its rim, the lower rows on top."""
    u, v = coordinates(rng)
    surface = np.zeros_like(u)
    reach = rng.uniform(0.62, 0.72)
    row = np.floor(2 * v)
    for step in range(-2, 1):
        centre_v = (row + step + 2) / 2
        centre_u = np.round(u - (centre_v % 1)) + (centre_v % 1)
        far = np.hypot(u - centre_u, v - centre_v) / reach
        surface = np.where((far < 1) & (v < centre_v + 0.7), far**3, surface)
    return np.clip(surface, 0, 1)


def _honeycomb(rng: np.random.Generator) -> F64:
    """The walls of a hexagonal grid."""
    u, v = coordinates(rng)
    tall = np.sqrt(3)
    wall = rng.uniform(0.06, 0.11)
    gaps = []
    for shift in (0.0, 0.5):
        x = (u + shift) % 1 - 0.5
        y = (v + shift * tall) % tall - tall / 2
        gaps.append(np.maximum(np.abs(x), np.abs(x) / 2 + np.abs(y) * tall / 2))
    return _edge(0.5 - wall - np.minimum(*gaps), 0.05)


def _woven(rng: np.random.Generator) -> F64:
    """Over and under: bands that run crosswise in turn, rounded by shading."""
    u, v = coordinates(rng)
    gap = rng.uniform(0.08, 0.16)
    over = (np.floor(u) + np.floor(v)) % 2 == 0
    across = np.where(over, u % 1, v % 1) - 0.5
    along = np.where(over, v % 1, u % 1) - 0.5
    round_ = np.sqrt(np.clip(1 - (across / (0.5 - gap)) ** 2, 0, 1))
    return np.asarray(round_ * (1 - 1.2 * along**2))


def _cracks(rng: np.random.Generator) -> F64:
    """Thin lines that wander and branch."""
    surface = np.zeros((PX, PX))
    tips = [(*rng.uniform(0, PX, 2), rng.uniform(0, 2 * np.pi)) for _ in range(rng.integers(3, 6))]
    y, x = np.mgrid[:PX, :PX]
    for _ in range(3):
        branches = []
        for start_x, start_y, start_angle in tips:
            at_x, at_y, angle = start_x, start_y, start_angle
            for _ in range(int(rng.integers(5, 11))):
                angle += rng.normal(0, 0.5)
                at_x, at_y = at_x + 5 * np.cos(angle), at_y + 5 * np.sin(angle)
                back = np.array([-5 * np.cos(angle), -5 * np.sin(angle)])
                surface = np.maximum(surface, _segment(x - at_x, y - at_y, back))
                if rng.random() < 0.2:  # noqa: PLR2004 - one step in five branches
                    branches.append((at_x, at_y, angle + rng.choice([-1.0, 1.0])))
        tips = branches
    return surface


def _bubbles(rng: np.random.Generator) -> F64:
    """Outlines of circles of many sizes, free to cross."""
    y, x = np.mgrid[:PX, :PX]
    surface = np.zeros((PX, PX))
    for _ in range(int(rng.integers(14, 30))):
        radius = 3 + 9 * rng.random() ** 2
        far = np.hypot(x - rng.uniform(-4, PX + 4), y - rng.uniform(-4, PX + 4))
        rim = np.clip(1.6 - np.abs(far - radius), 0, 1)
        surface = np.maximum(surface, rim)
    return surface


def _scratches(rng: np.random.Generator) -> F64:
    """Straight short strokes in every direction."""
    y, x = np.mgrid[:PX, :PX]
    surface = np.zeros((PX, PX))
    for _ in range(int(rng.integers(30, 60))):
        angle, length = rng.uniform(0, np.pi), rng.uniform(6, 20)
        end = np.array([length * np.cos(angle), length * np.sin(angle)])
        at = rng.uniform(-5, PX + 5, 2)
        surface = np.maximum(surface, rng.uniform(0.5, 1) * _segment(x - at[0], y - at[1], end))
    return surface


def _moire(rng: np.random.Generator) -> F64:
    """Two fine gratings at a small angle to each other."""
    u, v = coordinates(rng)
    turn, pace = rng.uniform(0.12, 0.35), rng.uniform(2.0, 3.0)
    other = np.cos(turn) * u + np.sin(turn) * v
    product = np.sin(2 * np.pi * pace * u) * np.sin(2 * np.pi * pace * 1.06 * other)
    return np.asarray(0.5 + 0.5 * product)


def _labyrinth(rng: np.random.Generator) -> F64:
    """Winding bands of one width, as of a reaction and diffusion: noise of one wavelength."""
    return _edge(_band_noise(rng, rng.uniform(6, 11), 0.12), 0.25)


def _contours(rng: np.random.Generator) -> F64:
    """Level lines of a smooth landscape, as on a map."""
    height = _band_noise(rng, rng.uniform(36, 56), 0.35) * rng.uniform(0.8, 1.4)
    slope = np.hypot(*np.gradient(height)) + 1e-3
    distance = np.abs((height + 0.5) % 1 - 0.5) / slope
    return np.asarray(np.clip(1.5 - distance, 0, 1))


#: Class name → pattern, in label order.
PATTERNS: dict[str, Pattern] = {
    "chevron": _chevron,
    "scales": _scales,
    "honeycomb": _honeycomb,
    "woven": _woven,
    "cracks": _cracks,
    "bubbles": _bubbles,
    "scratches": _scratches,
    "moire": _moire,
    "labyrinth": _labyrinth,
    "contours": _contours,
}


def _edge(signed: F64, soft: float) -> F64:
    """Return 1 where `signed` is below zero, 0 where above, with a ramp of width 2 · soft."""
    return np.clip(0.5 - signed / (2 * soft), 0, 1)


def _segment(x: F64, y: F64, end: F64) -> F64:
    """Return a stroke of about two pixels from the origin to `end` (2,), in 0..1."""
    along = np.clip((x * end[0] + y * end[1]) / (end @ end), 0, 1)
    far = np.hypot(x - along * end[0], y - along * end[1])
    return np.asarray(np.clip(1.5 - far, 0, 1))


def _band_noise(rng: np.random.Generator, wavelength: float, width: float) -> F64:
    """Return Gaussian noise (PX, PX) around one wavelength (px), mean 0 and deviation 1.

    `width` is the deviation of the frequencies that pass, as a share of the middle one.
    """
    large = 2 * PX  # cut from a larger field, which repeats and would join at the borders
    freq = np.hypot(*np.meshgrid(np.fft.fftfreq(large), np.fft.fftfreq(large)))
    passed = np.exp(-0.5 * ((freq * wavelength - 1) / width) ** 2)
    field = np.fft.ifft2(np.fft.fft2(rng.normal(size=(large, large))) * passed).real[:PX, :PX]
    return np.asarray((field - field.mean()) / field.std())

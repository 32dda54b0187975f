"""One scene: a background, one or more copies of one category's shape, light; with its labels."""

# ruff: noqa: NPY002, PLR0917 - compiled code has only the legacy generator, positional arguments
# ruff: noqa: PLR2004, FBT001 - probabilities, pixels and family numbers, each beside its use

import math

import numba as nb
import numpy as np
from numpy.typing import NDArray

from pretraining.images import shapes, textures
from pretraining.images.banks import CATEGORIES, OFFSETS, SPRITES, Banks
from pretraining.images.shapes import PX

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

#: Label columns and how many values each takes; the first is the category.
LABELS = {
    "category": CATEGORIES,
    "texture": 12,
    "background": 4,
    "x": 6,
    "y": 6,
    "size": 6,
    "rotation": 13,
    "count": 5,
    "hue": 9,
    "texture_angle": 7,
}

#: Sky, water, leaf, grass, earth, sand, bark, stone, snow, night: where half the colours start.
NATURAL = np.array(
    [
        [0.55, 0.7, 0.9], [0.2, 0.4, 0.6], [0.15, 0.35, 0.1], [0.4, 0.55, 0.25], [0.4, 0.3, 0.2],
        [0.8, 0.7, 0.5], [0.3, 0.2, 0.15], [0.5, 0.5, 0.5], [0.9, 0.92, 0.95], [0.07, 0.08, 0.12],
    ],
    np.float32,
)  # fmt: skip


@nb.njit(cache=True)
def _colour(out: F32) -> None:
    """Draw an RGB colour: near a natural one, of any hue, or grey."""
    choice = np.random.random()
    if choice < 0.45:
        base = NATURAL[np.random.randint(NATURAL.shape[0])]
        light = 0.6 + 0.8 * np.random.random()
        for k in range(3):
            out[k] = min(1.0, max(0.0, base[k] * light + 0.08 * np.random.randn()))
    elif choice < 0.8:
        hue, saturation = np.random.random() * 6, np.random.random() ** 0.7
        value = 0.2 + 0.8 * np.random.random()
        for k in range(3):
            position = abs((hue + 4.0 - 2.0 * k) % 6.0 - 3.0) - 1.0
            chroma = min(1.0, max(0.0, position))
            out[k] = value * (1 - saturation + saturation * chroma)
    else:
        out[:] = np.random.random()


@nb.njit(cache=True)
def _hue_label(colour: F32) -> int:
    """Return one of 8 hue sectors, or 8 for colours near grey or black."""
    high, low = max(colour[0], colour[1], colour[2]), min(colour[0], colour[1], colour[2])
    if high - low < 0.12:
        return 8
    chroma = high - low
    if high == colour[0]:
        hue = ((colour[1] - colour[2]) / chroma) % 6.0
    elif high == colour[1]:
        hue = (colour[2] - colour[0]) / chroma + 2
    else:
        hue = (colour[0] - colour[1]) / chroma + 4
    return int(hue / 6.0 * 8) % 8


@nb.njit(cache=True)
def _paint(image: F32, mask: F32, surface: F32, first: F32, second: F32) -> None:
    """Blend first → second by surface, over image by mask."""
    for i in range(PX):
        for j in range(PX):
            m = mask[i, j]
            if m > 0:
                for k in range(3):
                    value = first[k] + (second[k] - first[k]) * surface[i, j]
                    image[i, j, k] += m * (value - image[i, j, k])


@nb.njit(cache=True)
def _leaves(image: F32, surfaces: F32) -> None:
    """Cover the image with overlapping discs, boxes and triangles of power-law sizes."""
    first, second = np.empty(3, np.float32), np.empty(3, np.float32)
    for _ in range(12 + np.random.randint(40)):
        radius = min(34.0, 4.0 / math.sqrt(np.random.random() + 0.01))
        x, y = np.random.random() * 72 - 4, np.random.random() * 72 - 4
        kind = np.random.randint(3)
        aspect, angle = math.exp(0.3 * np.random.randn()), np.random.random() * 2 * math.pi
        place = shapes.frame(x, y, radius, aspect, angle, 0.0)
        _colour(first)
        _colour(second)
        blend, bank = np.random.random() * 0.7, np.random.randint(surfaces.shape[0])
        light_x, light_y = 0.25 * np.random.randn(), 0.25 * np.random.randn()
        reach = radius * max(aspect, 1 / aspect) * 1.3
        soft = 1.2 / radius
        for i in range(max(0, int(y - reach)), min(PX, int(y + reach) + 1)):
            for j in range(max(0, int(x - reach)), min(PX, int(x + reach) + 1)):
                dx, dy = j - x, i - y
                u, v = place[2] * dx + place[3] * dy, place[4] * dx + place[5] * dy
                if kind == 0:
                    distance = math.sqrt(u * u + v * v) - 0.9
                elif kind == 1:
                    distance = max(abs(u), abs(v)) - 0.8
                else:
                    distance = shapes.sprite_distance(4, u, v)
                m = shapes.ramp(distance, soft)
                if m > 0:
                    light = 1 + light_x * u + light_y * v
                    weight = blend * surfaces[bank, i, j]
                    for k in range(3):
                        value = (first[k] + (second[k] - first[k]) * weight) * light
                        image[i, j, k] += m * (value - image[i, j, k])


@nb.njit(cache=True)
def _background(image: F32, surfaces: F32, banks: Banks) -> int:
    """Paint the background and return its kind: plain, textured, horizon, leaves."""
    first, second = np.empty(3, np.float32), np.empty(3, np.float32)
    everywhere = np.ones((PX, PX), np.float32)
    _colour(first)
    _colour(second)
    for k in range(3):  # mostly low contrast, so that the object stays the thing to see
        second[k] = first[k] + (second[k] - first[k]) * np.random.random()
    choice = np.random.random()
    angle, period = np.random.random() * math.pi, 4 + 20 * np.random.random() ** 2
    if choice < 0.25:
        textures.fill(surfaces[0], banks.noise, np.random.randint(2), angle, period)
        _paint(image, everywhere, surfaces[0], first, second)
        return 0
    textures.fill(surfaces[0], banks.noise, np.random.randint(textures.KINDS), angle, period)
    _paint(image, everywhere, surfaces[0], first, second)
    if choice < 0.5:
        return 1
    kind = textures.NOISE if np.random.random() < 0.5 else np.random.randint(textures.KINDS)
    textures.fill(surfaces[1], banks.noise, kind, np.random.random() * math.pi, period)
    if choice < 0.75:
        _colour(first)
        _colour(second)
        level, slope = 20 + 30 * np.random.random(), 0.15 * np.random.randn()
        for i in range(PX):
            for j in range(PX):
                everywhere[i, j] = shapes.ramp(level + slope * (j - 32) - i, 1.5)
        _paint(image, everywhere, surfaces[1], first, second)
        return 2
    _leaves(image, surfaces)
    return 3


@nb.njit(cache=True)
def _light(image: F32, mask: F32, x: float, y: float, radius: float, strength: float) -> None:
    """Shade what the mask covers as if it were a ball lit from one side."""
    angle = np.random.random() * 2 * math.pi
    light_x, light_y = math.cos(angle) * strength / radius, math.sin(angle) * strength / radius
    for i in range(PX):
        for j in range(PX):
            if mask[i, j] > 0:
                gain = 1 + mask[i, j] * (light_x * (j - x) + light_y * (i - y))
                for k in range(3):
                    image[i, j, k] *= gain


@nb.njit(cache=True)
def _object(
    image: F32, surfaces: F32, colours: F32, banks: Banks, family: int, member: int,
    x: float, y: float, radius: float, angle: float, is_plain: bool,
) -> None:  # fmt: skip
    """Paint one copy of a shape; assemblies part by part, each part slot in its own colour."""
    mask = np.empty((PX, PX), np.float32)
    aspect = math.exp(0.12 * np.random.randn())
    place = shapes.frame(x, y, radius, aspect, angle, 0.15 * np.random.randn())
    soft = 1.2 / radius
    strength = 0.0 if is_plain else 0.5 * np.random.random()
    if family == 3:
        whole = np.zeros((PX, PX), np.float32)
        numbers = np.empty(7, np.float32)
        for k in range(banks.assembly_lengths[member]):
            numbers[:] = banks.assemblies[member, k]
            for n in range(1, 3):
                numbers[n] += 0.03 * np.random.randn()
            numbers[5] += 0.12 * np.random.randn()
            shapes.part(mask, place, numbers, soft)
            slot = int(numbers[6])
            _paint(image, mask, surfaces[slot % 2], colours[2 * slot], colours[2 * slot + 1])
            np.maximum(whole, mask, whole)
        mask = whole
    else:
        weight = 0.08 + 0.12 * np.random.random()
        shapes.draw(mask, banks, family, member, place, soft, weight)
        if not is_plain and np.random.random() < 0.3:  # a cast shadow
            shift_x, shift_y = np.random.randint(-4, 5), np.random.randint(1, 5)
            for i in range(PX):
                for j in range(PX):
                    si, sj = i - shift_y, j - shift_x
                    if 0 <= si < PX and 0 <= sj < PX:
                        for k in range(3):
                            image[i, j, k] *= 1 - 0.5 * mask[si, sj]
        _paint(image, mask, surfaces[0], colours[0], colours[1])
    if strength > 0.1:
        _light(image, mask, x, y, radius, strength)


@nb.njit(cache=True)
def _choose_category(banks: Banks) -> tuple[int, int]:
    """Draw a family (0 contour, 1 glyph, 2 fractal, 3 assembly, 4 figure) and a member of it."""
    choice = np.random.random()
    if choice < 0.2:
        return 0, np.random.randint(banks.contours.shape[0])
    if choice < 0.45:
        return 1, np.random.randint(banks.glyphs.shape[0])
    if choice < 0.53:
        return 2, np.random.randint(banks.fractals.shape[0])
    if choice < 0.85:
        return 3, np.random.randint(banks.assemblies.shape[0])
    return 4, np.random.randint(SPRITES)


@nb.njit(cache=True)
def _print_plainly(image: F32, colours: F32) -> None:
    """Make it look scanned or printed: near white on near black, or the reverse."""
    dark, bright = 0.12 * np.random.random(), 1 - 0.3 * np.random.random()
    is_inverse = np.random.random() < 0.3
    image[:] = bright if is_inverse else dark
    colours[:] = dark if is_inverse else bright


@nb.njit(cache=True)
def _choose_pose(family: int) -> tuple[int, float, float]:
    """Draw how many copies, their radius in px and their angle in radians."""
    count = 1
    if family == 4:
        count = 1 + np.random.randint(5)
    elif np.random.random() < 0.15:
        count = 2 + np.random.randint(2)
    largest = 33.0 if count == 1 else 17.0
    smallest = 13.0 if count == 1 and family != 4 else 7.0
    radius = smallest + (largest - smallest) * np.random.random()
    angle = np.random.random() * 2 * math.pi
    if np.random.random() < 0.55:  # most things stand upright
        angle = 0.25 * np.random.randn()
    return count, radius, angle


@nb.njit(cache=True)
def render(image: F32, labels: I64, seed: int, banks: Banks) -> None:
    """Paint one scene into image (64, 64, 3), values about 0…1, and write its labels."""
    np.random.seed(seed)
    image[:] = 0.0  # painting blends with what is there
    family, member = _choose_category(banks)
    surfaces = np.empty((2, PX, PX), np.float32)
    colours = np.empty((6, 3), np.float32)
    for k in range(6):
        _colour(colours[k])
    is_plain = np.random.random() < (0.35 if family == 1 else 0.06)
    background = 0
    if is_plain:
        _print_plainly(image, colours)
    else:
        background = _background(image, surfaces, banks)
    kind = 0 if is_plain else np.random.randint(textures.KINDS)
    texture_angle, period = np.random.random() * math.pi, 3 + 14 * np.random.random() ** 2
    textures.fill(surfaces[0], banks.noise, kind, texture_angle, period)
    surfaces[1] = surfaces[0]
    if family == 3:
        second_kind = np.random.randint(textures.KINDS)
        textures.fill(surfaces[1], banks.noise, second_kind, texture_angle, period)
    count, radius, angle = _choose_pose(family)
    room = max(6.0, 34.0 - radius)
    x = y = 32.0
    for _ in range(count):
        x = 31.5 + room * (2 * np.random.random() - 1)
        y = 31.5 + room * (2 * np.random.random() - 1)
        _object(image, surfaces, colours, banks, family, member, x, y, radius, angle, is_plain)
    labels[0] = OFFSETS[family] + member
    labels[1] = kind
    labels[2] = background
    # Place means nothing for several copies: the loss skips -1.
    labels[3] = min(5, max(0, int(x / 64 * 6))) if count == 1 else -1
    labels[4] = min(5, max(0, int(y / 64 * 6))) if count == 1 else -1
    labels[5] = min(5, int((radius - 7) / 26.01 * 6))
    # Discs and rings look alike at every angle.
    is_round = family == 4 and member < 2
    labels[6] = 12 if is_round else int((angle / (2 * math.pi) % 1.0) * 12 + 0.5) % 12
    labels[7] = count - 1
    labels[8] = _hue_label(colours[0])
    shows_angle = textures.is_oriented(kind) and family != 3
    labels[9] = int(texture_angle / math.pi * 6 + 0.5) % 6 if shows_angle else 6


@nb.njit(cache=True)
def render_many(images: F32, labels: I64, first_seed: int, banks: Banks) -> None:
    """Paint images (count, 64, 64, 3); image k depends on first_seed + k alone."""
    for k in range(images.shape[0]):
        render(images[k], labels[k], first_seed + k, banks)


def draw_batch(banks: Banks, seed: int, step: int, count: int) -> tuple[F32, I64]:
    """Return images (count, 64, 64, 3), about 0…1, and labels (count, len(LABELS)).

    The same (seed, step, count) gives the same batch, in whatever order batches are drawn.
    """
    first = int(np.random.SeedSequence([seed, step]).generate_state(1)[0]) >> 1
    images = np.empty((count, PX, PX, 3), np.float32)
    labels = np.empty((count, len(LABELS)), np.int64)
    render_many(images, labels, first, banks)
    return images, labels

"""How fast encoded images become pixels on one core, against Pillow: `python -m benchmarks.decode`.

Every row is one size of photograph-like JPEG. The ways take turns in one run and their CPU time is
compared: Pillow alone (as in preprocessing 1), Pillow's decoder with torch's resizing, and
preprocessing 2 as the service runs it. Beside the ratio stands how far its pixels are from
Pillow's, taken width first.
"""

import argparse
import io
import json
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import process_time

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from benchmarks.machine import describe_machine
from core.ml.data.preprocess import IMAGE_FORMATS, preprocess, resize_image

SIZES = ((256, 256), (500, 375), (375, 500), (1920, 1080), (4000, 3000))
BICUBIC = Image.Resampling.BICUBIC

Way = Callable[[bytes, int], npt.NDArray[np.uint8]]


def by_pillow(data: bytes, image_px: int) -> npt.NDArray[np.uint8]:
    """Decode and resize with Pillow alone."""
    image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    return np.asarray(image.resize((image_px, image_px), BICUBIC))


def by_pillow_and_torch(data: bytes, image_px: int) -> npt.NDArray[np.uint8]:
    """Decode with Pillow, resize with torch."""
    image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    return resize_image(np.array(image), image_px)


WAYS: dict[str, Way] = {
    "pillow": by_pillow,
    "pillow+torch": by_pillow_and_torch,
    "service": preprocess,
}


def draw_photograph(width: int, height: int) -> bytes:
    """Return a JPEG of quality 90 with detail at many scales, the same at every run."""
    draws = np.random.default_rng(width * height)
    picture = np.zeros((height, width, 3))
    for cell_px in (4, 16, 64):
        shape = (height // cell_px + 2, width // cell_px + 2, 3)
        coarse = Image.fromarray(draws.integers(0, 256, shape, dtype=np.uint8))
        picture += np.asarray(coarse.resize((width, height), BICUBIC), dtype=float) / 3
    buffer = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def measure(data: bytes, image_px: int, *, rounds: int, repeats: int) -> dict[str, list[float]]:
    """Return each way's CPU milliseconds an image, once for every round."""
    times: dict[str, list[float]] = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name, way in WAYS.items():
            started_s = process_time()
            for _ in range(repeats):
                way(data, image_px)
            times[name].append((process_time() - started_s) / repeats * 1000)
    return times


def compare(data: bytes, image_px: int) -> tuple[int, float]:
    """Return the largest difference to Pillow, width first, and the share of pixels that differ."""
    image = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS).convert("RGB")
    wide = image.resize((image_px, image.height), BICUBIC)
    expected = np.asarray(wide.resize((image_px, image_px), BICUBIC), dtype=int)
    difference = np.abs(preprocess(data, image_px) - expected)
    return int(difference.max()), float((difference > 0).mean())


def main() -> int:
    """Print the table; append it to a file if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decode", description=__doc__)
    parser.add_argument("--image-px", type=int, default=224, help="side of the square made of it")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way")
    parser.add_argument("--seconds", type=float, default=0.3, help="about, for each turn")
    parser.add_argument("--out", type=Path, help="append one JSON line for each size")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "CPU ms an image, medians; ratio = pillow / service, with least and largest of the rounds"
    )
    for width, height in SIZES:
        data = draw_photograph(width, height)
        started_s = process_time()
        by_pillow(data, args.image_px)
        repeats = max(1, round(args.seconds / max(process_time() - started_s, 1e-4)))
        times = measure(data, args.image_px, rounds=args.rounds, repeats=repeats)
        ratios = [a / b for a, b in zip(times["pillow"], times["service"], strict=True)]
        largest, share = compare(data, args.image_px)
        row = {
            "width": width,
            "height": height,
            "jpeg_bytes": len(data),
            "image_px": args.image_px,
            **{f"{name}_ms": round(median(values), 3) for name, values in times.items()},
            "ratio": round(median(ratios), 2),
            "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
            "largest_difference": largest,
            "share_different": round(share, 4),
        }
        shown = "  ".join(f"{name} {row[f'{name}_ms']:8.2f}" for name in WAYS)
        print(
            f"{width:>4} x {height:<4}  {shown}  ratio {row['ratio']:.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})  "
            f"differs by at most {largest}, in {share:.2%} of the values",
            flush=True,
        )
        if args.out is not None:
            _append(args.out, row)
    return 0


def _append(path: Path, row: dict[str, object]) -> None:
    packages = ("pillow", "simplejpeg", "torch", "numpy")
    about = {
        "benchmark": "decode",
        **describe_machine(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**about, **row}) + "\n")


if __name__ == "__main__":
    sys.exit(main())

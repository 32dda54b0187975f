"""Where in an image the class token looks, student and teacher, laid over the image."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch.nn import functional

from core.ml.analysis.arrays import rounded, rounded_list
from core.ml.analysis.attention import NoAttentionMapError, read_attention
from core.ml.analysis.figures.base import Data, NotAvailableError, Options
from core.ml.analysis.figures.style import Drawing, class_labels, new_figure, percent, shorten
from core.ml.analysis.inputs import AnalysisInputs, Role
from core.types import Split

#: Side of a picture in pixels; the images may be smaller.
_DRAWN_PX = 384
_COLOURS = "inferno"
_TITLES = {
    Role.STUDENT.value: "student",
    Role.TEACHER.value: "teacher",
    Role.BASELINE.value: "student without teacher",
}


@dataclass(frozen=True)
class _Place:
    """Where an image lies."""

    name: str
    split: Split
    row: int


def build(inputs: AnalysisInputs, options: Options) -> Drawing:
    """Return the attention of every trained model that has a class token.

    Args:
        inputs: the run.
        options: `item`, the name of an image in the dataset; by default the first of the test
            split, else of validation.

    Raises:
        NotAvailableError: there is no such image, or no network with a class token.
    """
    place = _find_place(inputs, options.get("item"))
    label = int(inputs.get_split(place.split).labels[place.row])
    maps: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for role, model in inputs.models.items():
        image = inputs.images(role, place.split)[place.row]
        try:
            attention = read_attention(model, image)
        except NoAttentionMapError as error:
            reasons[role.value] = str(error)
            continue
        predicted = int(attention.probabilities.argmax())
        maps[role.value] = {
            "predicted": inputs.classes[predicted],
            "confidence": rounded(attention.probabilities[predicted]),
            "heads": len(attention.heads),
            "patch_share": rounded(attention.mean.sum()),
            "weights": [rounded_list(row) for row in attention.mean],
        }
    if not maps:
        raise NotAvailableError("; ".join(dict.fromkeys(reasons.values())))
    data: Data = {
        "item": place.name,
        "split": place.split.value,
        "true": inputs.classes[label],
        "classes": list(inputs.classes),
        "networks": maps,
        "without_map": reasons,
    }
    pixels = {
        role.value: inputs.images(role, place.split)[place.row].cpu().numpy()
        for role in inputs.models
    }
    return Drawing(data, draw(data, pixels))


def draw(data: Data, pixels: dict[str, NDArray[np.uint8]]) -> Figure:
    """Draw the image and, beside it, what each network looks at.

    Args:
        data: the maps.
        pixels: the image as each network reads it, (px, px, 3), by role.
    """
    networks = data["networks"]
    names = dict(zip(data["classes"], class_labels(data["classes"]), strict=True))
    figure = new_figure(1.0 + 3.4 * (1 + len(networks)), 4.3)
    axes = figure.subplots(1, 1 + len(networks), squeeze=False)[0]
    for panel in axes:
        panel.set_axis_off()
    axes[0].imshow(_enlarge(pixels[Role.STUDENT.value]))
    axes[0].set_title(f"{shorten(data['item'], 36)}\ntrue class: {names[data['true']]}")
    for panel, (role, network) in zip(axes[1:], networks.items(), strict=True):
        panel.imshow(_enlarge(pixels[role]))
        heat = scale_map(np.array(network["weights"]), _DRAWN_PX)
        panel.imshow(heat, cmap=_COLOURS, vmin=0, vmax=1, alpha=0.55)
        panel.set_title(
            f"{_TITLES[role]}\n{names[network['predicted']]} ({percent(network['confidence'])})"
        )
    scale = ScalarMappable(Normalize(0, 1), _COLOURS)
    bar = figure.colorbar(scale, ax=list(axes), shrink=0.75, pad=0.02, ticks=[0, 1])
    bar.ax.set_yticklabels(["least", "most"])
    figure.suptitle(
        "Attention of the class token in the last block, mean over the heads "
        f"({data['split']} split)"
    )
    return figure


def scale_map(weights: NDArray[np.float64], size_px: int) -> NDArray[np.float64]:
    """Return a map enlarged to (size_px, size_px) by bicubic interpolation, stretched to 0..1.

    A map that is the same everywhere becomes 0.
    """
    small = torch.from_numpy(np.ascontiguousarray(weights, dtype=np.float64))[None, None]
    large = functional.interpolate(small, (size_px, size_px), mode="bicubic", align_corners=False)
    low, high = large.min(), large.max()
    stretched = (large - low) / (high - low) if high > low else torch.zeros_like(large)
    result: NDArray[np.float64] = stretched[0, 0].numpy()
    return result


def _enlarge(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the image at the size of the map, its pixels as squares where it is small."""
    rows = np.arange(_DRAWN_PX) * image.shape[0] // _DRAWN_PX
    enlarged: NDArray[np.uint8] = image[rows][:, rows]
    return enlarged


def _find_place(inputs: AnalysisInputs, item: str | None) -> _Place:
    """Find the image.

    Raises:
        NotAvailableError: the dataset has no image of that name.
    """
    if item is None:
        split = inputs.evaluated
        return _Place(inputs.items(split)[0].name, split, 0)
    for split in inputs.splits:
        for row, candidate in enumerate(inputs.items(split)):
            if candidate.name == item:
                return _Place(item, split, row)
    raise NotAvailableError(
        f"the dataset has no image called {item!r}; names are paths inside the archive, as in "
        "the evaluation's lists"
    )

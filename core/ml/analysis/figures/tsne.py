"""Images by their features: the frozen network, the trained student, the trained teacher."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from core.ml.analysis.arrays import rounded_list
from core.ml.analysis.embedding import (
    MAX_IMAGES,
    MIN_IMAGES,
    choose_stratified,
    embed,
    find_neighbours,
    find_perplexity,
    measure_separation,
)
from core.ml.analysis.figures.base import Data, NotAvailableError, Options
from core.ml.analysis.figures.style import Drawing, class_labels, new_figure, spread_colours
from core.ml.analysis.inputs import AnalysisInputs, Role
from core.ml.analysis.predictions import extract_features, extract_frozen_features
from core.ml.training.seeds import derive_seed
from core.types import Split

_FROZEN = "frozen"
_TITLES = {
    _FROZEN: "student's network before training",
    Role.STUDENT.value: "student",
    Role.TEACHER.value: "teacher",
    Role.BASELINE.value: "student without teacher",
}
_LEGEND_CLASSES = 20


def build(inputs: AnalysisInputs, _options: Options) -> Drawing:
    """Return the embeddings of the same images by every network.

    Raises:
        NotAvailableError: there are too few images.
    """
    split = inputs.evaluated
    labels = inputs.get_split(split).labels.cpu().numpy()
    if len(labels) < MIN_IMAGES:
        raise NotAvailableError(
            f"the {split.value} split has {len(labels)} images; t-SNE needs {MIN_IMAGES} or more"
        )
    seed = derive_seed(inputs.seed, "tsne")
    rows = choose_stratified(labels, MAX_IMAGES, seed=seed)
    features = _collect_features(inputs, split, rows)
    networks = {}
    for done, (name, points) in enumerate(features.items()):
        inputs.on_progress("t-SNE", done, len(features))
        coordinates = embed(points, seed=seed)
        networks[name] = {
            **measure_separation(points, labels[rows], seed=seed),
            "x": rounded_list(coordinates[:, 0]),
            "y": rounded_list(coordinates[:, 1]),
        }
    inputs.on_progress("t-SNE", len(features), len(features))
    items = inputs.items(split)
    data: Data = {
        "split": split.value,
        "images": len(rows),
        "images_in_split": len(labels),
        "perplexity": find_perplexity(len(rows)),
        "neighbours": find_neighbours(labels[rows]),
        "classes": list(inputs.classes),
        "labels": labels[rows].tolist(),
        "names": [items[row].name for row in rows],
        "networks": networks,
    }
    return Drawing(data, draw(data))


def _collect_features(
    inputs: AnalysisInputs, split: Split, rows: NDArray[np.int64]
) -> dict[str, NDArray[np.float32]]:
    def on_batch(done: int, total: int) -> None:
        inputs.on_progress("features", done, total)

    frozen = inputs.models[Role.STUDENT].backbone
    images = inputs.images(Role.STUDENT, split)[rows]
    features = {_FROZEN: extract_frozen_features(frozen, images, on_batch=on_batch)}
    for role in Role:
        if role in inputs.models:
            own = inputs.images(role, split)[rows]
            features[role.value] = extract_features(inputs.models[role], own, on_batch=on_batch)
    return features


def draw(data: Data) -> Figure:
    """Draw one panel for each network, one dot for each image, its colour the class."""
    networks = data["networks"]
    with_legend = len(data["classes"]) <= _LEGEND_CLASSES
    figure = new_figure(4.3 * len(networks), 6.0 if with_legend else 5.3)
    axes = figure.subplots(1, len(networks), squeeze=False)[0]
    for panel, (name, network) in zip(axes, networks.items(), strict=True):
        _draw_network(panel, data, network)
        panel.set_title(f"{_TITLES[name]}\n{_describe(network, data['neighbours'])}")
    if with_legend:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=min(len(labels), _fitting_columns(labels, figure.get_figwidth())),
            markerscale=2.0,
        )
    note = "" if with_legend else "; a colour for each class"
    figure.suptitle(f"t-SNE of {data['images']:,} images of the {data['split']} split{note}")
    return figure


def _fitting_columns(labels: list[str], width_in: float) -> int:
    """Return how many columns of a legend fit beside each other."""
    column_in = 0.6 + 0.085 * max(map(len, labels))
    return max(1, int(width_in / column_in))


def _draw_network(axes: Axes, data: Data, network: dict[str, Any]) -> None:
    labels = np.array(data["labels"])
    x, y = np.array(network["x"]), np.array(network["y"])
    size = 16 if len(labels) <= 500 else 6  # noqa: PLR2004
    colours = spread_colours(len(data["classes"]))
    for index, name in enumerate(class_labels(data["classes"])):
        mine = labels == index
        axes.scatter(x[mine], y[mine], s=size, color=colours[index], linewidths=0, label=name)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color("#BBBBBB")


def _describe(network: dict[str, Any], neighbours: int) -> str:
    if network["silhouette"] is None:
        return "one class only"
    return (
        f"{neighbours}-NN {100 * network['knn_accuracy']:.1f} %, "
        f"silhouette {network['silhouette']:.2f}, NMI {network['nmi']:.2f}"
    )

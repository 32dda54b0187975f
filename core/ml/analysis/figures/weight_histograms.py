"""How W_down and W_up are distributed in every layer, and measures of it (paper, Fig. 1 and 3)."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from core.ml.analysis.arrays import rounded, rounded_list
from core.ml.analysis.distributions import (
    DISPERSION,
    SHAPE_DISTANCES,
    compare_shapes,
    measure_dispersion,
)
from core.ml.analysis.figures.base import Data, NotAvailableError, Options
from core.ml.analysis.figures.style import COLOURS, LABELS, Drawing, new_figure
from core.ml.analysis.inputs import AnalysisInputs, Role
from core.ml.analysis.weights import (
    PARTS,
    LayerWeights,
    Part,
    find_layer_weights,
    rebuild_initial,
)

_BINS = 100
_RANGE_PERCENTILE = 99.9
_COLUMNS = 6
_MATRIX_NAMES = {"down": "W_down", "up": "W_up"}
_SUMMARIES = (
    ("std_sqrt_d", "std · √d"),
    ("excess_kurtosis", "excess kurtosis (normal: 0)"),
    ("drift", "drift |W - W₀| / |W₀|"),
)

Layers = dict[Role, list[LayerWeights]]


def build(inputs: AnalysisInputs, _options: Options) -> Drawing:
    """Return the distributions of every model whose adapters have down and up matrices.

    Raises:
        NotAvailableError: none has.
    """
    layers: Layers = {}
    kinds = {}
    for role, model in inputs.models.items():
        seeded = Role.TEACHER if role is Role.TEACHER else Role.STUDENT
        initial = rebuild_initial(model, seed=inputs.seed, role=seeded.value)
        kinds[role] = model.spec.kind.value
        found = find_layer_weights(model, initial)
        if found:
            layers[role] = found
    if not layers:
        names = ", ".join(sorted(set(kinds.values())))
        raise NotAvailableError(
            f"adapters of the kind {names} have no W_down and W_up in every layer"
        )
    data = build_data(layers)
    for role, model in inputs.models.items():
        if role in layers:
            data["models"][role.value]["backbone"] = model.backbone.name
            data["models"][role.value]["kind"] = kinds[role]
    return Drawing(data, draw(data))


def build_data(layers: Layers) -> Data:
    """Return densities in common bins, the measures of every matrix, and distances of models."""
    edges = {part: _common_edges(layers, part) for part in PARTS}
    distances = {}
    for other in (Role.TEACHER, Role.BASELINE):
        if other in layers and Role.STUDENT in layers:
            name = f"{other.value}_student"
            distances[name] = {
                part: _measure_distances(layers[other], layers[Role.STUDENT], part)
                for part in PARTS
            }
    return {
        "edges": {part: rounded_list(edges[part]) for part in PARTS},
        "models": {
            role.value: {
                part: _describe_model(_of_part(found, part), edges[part]) for part in PARTS
            }
            for role, found in layers.items()
        },
        "distances": distances,
    }


def _of_part(layers: list[LayerWeights], part: Part) -> list[LayerWeights]:
    return [layer for layer in layers if layer.part == part]


def _common_edges(layers: Layers, part: Part) -> NDArray[np.float64]:
    """Return bins over plus and minus the 99.9th percentile of the magnitude in all models."""
    values = [layer.trained for found in layers.values() for layer in _of_part(found, part)]
    if not values:
        return np.linspace(-1.0, 1.0, _BINS + 1)
    reach = float(np.percentile(np.abs(np.concatenate(values)), _RANGE_PERCENTILE))
    return np.linspace(-1.0, 1.0, _BINS + 1) * (reach or 1.0)


def _describe_model(layers: list[LayerWeights], edges: NDArray[np.float64]) -> dict[str, Any]:
    described = [_describe_layer(layer, edges) for layer in layers]
    return {"layers": described, "mean": _mean_of(described, DISPERSION)}


def _describe_layer(layer: LayerWeights, edges: NDArray[np.float64]) -> dict[str, Any]:
    counts, _ = np.histogram(layer.trained, edges)
    count = len(layer.trained)
    return {
        "layer": layer.layer,
        "width": layer.width,
        "hidden_dim": layer.hidden_dim,
        "matrices": layer.matrices,
        "entries": count,
        "share_outside": rounded(1 - counts.sum() / count),
        **measure_dispersion(layer.trained, layer.initial, width=layer.width),
        "density": rounded_list(counts / (count * np.diff(edges))),
    }


def _measure_distances(
    first: list[LayerWeights], second: list[LayerWeights], part: Part
) -> dict[str, Any]:
    """Compare layers at the same depth, as a share of the whole where depths differ."""
    others, ours = _of_part(first, part), _of_part(second, part)
    described = []
    for position, layer in enumerate(ours if others else []):
        share = position / max(len(ours) - 1, 1)
        other = others[round(share * (len(others) - 1))]
        described.append(
            {
                "layer": layer.layer,
                "other_layer": other.layer,
                **compare_shapes(other.trained, layer.trained),
            }
        )
    return {"layers": described, "mean": _mean_of(described, SHAPE_DISTANCES)}


def _mean_of(entries: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, float | None]:
    """Return the mean of each measure over the layers in which it is defined."""
    means = {}
    for name in names:
        known = [float(entry[name]) for entry in entries if entry[name] is not None]
        means[name] = rounded(np.mean(known)) if known else None
    return means


def draw(data: Data) -> Figure:
    """Draw measures by layer on top, then one small histogram for each layer and side."""
    depth = max(
        entry["layer"] + 1
        for model in data["models"].values()
        for part in PARTS
        for entry in model[part]["layers"]
    )
    rows = -(-depth // _COLUMNS)
    heights = (2.9, 0.5 + 1.35 * rows, 0.5 + 1.35 * rows)
    figure = new_figure(13, 1.0 + sum(heights))
    top, *grids = figure.subfigures(3, 1, height_ratios=heights, squeeze=False)[:, 0]
    _draw_summary(top, data)
    for part, grid in zip(PARTS, grids, strict=True):
        _draw_grid(grid, data, part, depth, rows)
    figure.suptitle("Weights of the adapters after training")
    return figure


def _draw_summary(figure: SubFigure, data: Data) -> None:
    panels = figure.subplots(1, len(_SUMMARIES))
    for axes, (measure, title) in zip(panels, _SUMMARIES, strict=True):
        for role in Role:
            model = data["models"].get(role.value)
            if model is None:
                continue
            for part, line, marker in (("down", "-", "o"), ("up", "--", "^")):
                entries = [e for e in model[part]["layers"] if e[measure] is not None]
                axes.plot(
                    [entry["layer"] + 1 for entry in entries],
                    [entry[measure] for entry in entries],
                    linestyle=line,
                    marker=marker,
                    markersize=4,
                    color=COLOURS[role],
                    label=f"{LABELS[role]}, {_MATRIX_NAMES[part]}",
                )
        axes.set_title(title)
        axes.set_xlabel("layer")
        axes.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def _draw_grid(figure: SubFigure, data: Data, part: Part, depth: int, rows: int) -> None:
    panels = figure.subplots(rows, min(depth, _COLUMNS), squeeze=False, sharex=True)
    edges = np.array(data["edges"][part])
    for layer, axes in enumerate(panels.flat):
        if layer >= depth:
            axes.set_axis_off()
            continue
        axes.set_title(f"layer {layer + 1}", fontsize=9)
        axes.set_yticks([])
        axes.tick_params(labelsize=7)
        for role in Role:
            model = data["models"].get(role.value)
            entries = model[part]["layers"] if model else []
            for entry in entries:
                if entry["layer"] == layer:
                    # Two bins as one: a small matrix has few entries a bin.
                    density = np.reshape(entry["density"], (-1, 2)).mean(axis=1)
                    if role is Role.STUDENT:
                        axes.stairs(density, edges[::2], color=COLOURS[role], fill=True, alpha=0.3)
                    axes.stairs(density, edges[::2], color=COLOURS[role], linewidth=1.2)
    figure.suptitle(f"Density of the entries of {_MATRIX_NAMES[part]}", fontsize=10)

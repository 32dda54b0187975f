"""The model card: what a person should know about a model, from its `config.json` alone."""

from collections.abc import Mapping
from typing import Any

from core.catalog.backbones import find_backbone

_SHOWN_CLASSES = 20


def build_card(name: str, config: Mapping[str, Any]) -> str:
    """Return the card of the model `name`.

    Args:
        name: what its owner calls it.
        config: the fields of its `config.json`.
    """
    how = (
        ", fine-tuned by inverse distillation adapter-tuning (arXiv 2403.15750)"
        if config["teacher"]
        else ""
    )
    intro = (
        f"An image classifier of {len(config['classes'])} classes: a frozen backbone, small "
        f"adapters in its blocks and a linear head{how}."
    )
    sections = [
        f"# {_escape(name)}",
        intro,
        "## What it is made of\n\n" + _table(_parts(config)),
        "## How well it does\n\n" + _metrics(config["metrics"]),
        "## Classes\n\n" + _classes(config["classes"]),
        "## How it was trained\n\n" + _table(_flatten(config["recipe"])),
        "## How to use it\n\n" + _usage(config),
        "## Software\n\n" + _table(sorted(config["versions"].items())),
    ]
    return "\n\n".join(sections) + "\n"


def _parts(config: Mapping[str, Any]) -> list[tuple[str, object]]:
    backbone, adapter, teacher = config["backbone"], config["adapter"], config["teacher"]
    rows: list[tuple[str, object]] = [
        ("backbone", f"`{backbone['name']}`, not included"),
        ("backbone weights, SHA-256", f"`{backbone['weights_sha256']}`"),
        ("adapter", _adapter(adapter)),
        ("trainable parameters", f"{config['trainable_parameters']:,}"),
    ]
    if teacher:
        rows.append(("teacher in training", f"`{teacher['name']}`"))
    rows.extend(_licences([backbone["name"], *([teacher["name"]] if teacher else [])]))
    return rows


def _adapter(adapter: Mapping[str, Any]) -> str:
    size = f", hidden dim {adapter['hidden_dim']}" if adapter["hidden_dim"] else ""
    return f"{adapter['kind']}{size}"


def _licences(names: list[str]) -> list[tuple[str, object]]:
    """Return what is known of the licences of the networks' weights, and what restricts them."""
    rows: list[tuple[str, object]] = []
    for name in dict.fromkeys(names):
        facts = find_backbone(name)
        if facts is not None:
            note = f": {facts.license_note}" if facts.license_note else ""
            rows.append((f"licence of the weights of `{name}`", f"{facts.license}{note}"))
    return rows


def _metrics(metrics: Mapping[str, Any]) -> str:
    rows = [(key.replace("_", " "), value) for key, value in _flatten(metrics)]
    if not rows:
        return "Nothing was measured."
    return (
        _table(rows)
        + "\n\nThe epoch was chosen on the validation split where there is one; the test split was "
        "used once, after that choice."
    )


def _classes(classes: list[str]) -> str:
    shown = ", ".join(_escape(name) for name in classes[:_SHOWN_CLASSES])
    hidden = len(classes) - _SHOWN_CLASSES
    return f"{shown} and {hidden} more" if hidden > 0 else shown


def _usage(config: Mapping[str, Any]) -> str:
    preprocessing = config["preprocessing"]
    px = preprocessing["image_px"]
    return (
        f"Decode to RGB, resize directly to {px}x{px} ({preprocessing['interpolation']}, the "
        f"aspect ratio is not kept), divide by 255, subtract {preprocessing['mean']} and divide by "
        f"{preprocessing['std']}. Load the backbone by its timm name, check the SHA-256 of its "
        "weights, attach `adapter.safetensors`."
    )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows.extend(_flatten(value, f"{prefix}{key} "))
        elif value is not None and not isinstance(value, list):
            rows.append((f"{prefix}{key}", value))  # lists are for machines: config.json has them
    return rows


def _table(rows: list[tuple[str, object]]) -> str:
    body = "\n".join(f"| {_escape(str(key))} | {_show(value)} |" for key, value in rows)
    return f"| | |\n|---|---|\n{body}"


def _show(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else _escape(str(value))


def _escape(text: str) -> str:
    """Keep a user's text from ending a table cell, a line, or becoming markup."""
    flat = " ".join(text.split())
    for character in "\\|<>[]*#":
        flat = flat.replace(character, f"\\{character}")
    return flat

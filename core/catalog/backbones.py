"""Facts about the timm networks that can be a student or a teacher, known without loading torch.

The table `backbones.json` is written from timm by `python -m core.ml.backbones.write_facts`. A
network that is not in it may still work; the worker finds out when it loads it.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from core.catalog.methods import AdapterKind
from core.errors import InvalidError

_BOTTLENECKS_PER_BLOCK = {
    AdapterKind.SEQUENTIAL: 1,
    AdapterKind.PARALLEL: 1,
    AdapterKind.PARALLEL_SHARED: 1,  # one, used twice
}

TABLE = Path(__file__).with_name("backbones.json")


class UnknownBackboneError(InvalidError):
    """The table has no network of that name."""

    code = "unknown_backbone"


@dataclass(frozen=True)
class BackboneFacts:
    """One network without its classifier.

    Attributes:
        name: exact timm name.
        family: timm's class of it.
        block_widths: width of the residual stream in every block, first to last.
        num_features: width of the pooled features that a head reads.
        parameters: of the network without a classifier; all frozen.
        image_px: side of the square input.
        mean: per-channel mean of the normalisation, of values in 0..1.
        std: per-channel standard deviation.
        interpolation: how its own training resized images.
        license: of the weights, as timm states it; empty where it states none.
    """

    name: str
    family: str
    block_widths: tuple[int, ...]
    num_features: int
    parameters: int
    image_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    license: str

    @property
    def depth(self) -> int:
        """Blocks, and so adapters."""
        return len(self.block_widths)


def get_backbone(name: str) -> BackboneFacts:
    """Return the facts of the network `name`.

    Raises:
        UnknownBackboneError: it is not in the table.
    """
    facts = find_backbone(name)
    if facts is None:
        raise UnknownBackboneError(
            f"{name!r} is not a backbone that is known here; list_backbones has {len(_table())}"
        )
    return facts


def find_backbone(name: str) -> BackboneFacts | None:
    """Return the facts of the network `name`, or None."""
    return _table().get(name)


def list_backbones() -> list[BackboneFacts]:
    """Return all facts in the order of the table."""
    return list(_table().values())


def adapter_parameters(facts: BackboneFacts, kind: AdapterKind, hidden_dim: int) -> int:
    """Return how many trainable numbers the adapters have: the sum over blocks of 2dh + h + d.

    A bottleneck has two matrices and both biases.
    """
    one_each = sum(2 * width * hidden_dim + hidden_dim + width for width in facts.block_widths)
    return _BOTTLENECKS_PER_BLOCK[kind] * one_each


def head_parameters(facts: BackboneFacts, num_classes: int) -> int:
    """Return how many trainable numbers the head has: C classes of F weights and a bias."""
    return num_classes * (facts.num_features + 1)


@cache
def _table() -> dict[str, BackboneFacts]:
    rows: dict[str, dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return {name: _read_row(name, row) for name, row in rows.items()}


def _read_row(name: str, row: dict[str, Any]) -> BackboneFacts:
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    return BackboneFacts(name=name, **values)

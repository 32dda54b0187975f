"""Facts about the timm networks that can be a student or a teacher, known without loading torch.

The table `backbones.json` is written from timm by `python -m core.ml.backbones.write_facts`: every
network with published weights that adapters have places in, and beside it why each of the others
has none.
"""

import json
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from core.catalog.licenses import find_license_note
from core.errors import InvalidError

TABLE = Path(__file__).with_name("backbones.json")
#: Reasons, each with the timm architectures that it keeps out.
UNSUPPORTED_TABLE = Path(__file__).with_name("unsupported_backbones.json")

_MOST_SUGGESTIONS = 5


class UnknownBackboneError(InvalidError):
    """The table has no network of that name."""

    code = "unknown_backbone"


class StreamLayout(StrEnum):
    """Shape of the tensors between the blocks of a network, with d channels."""

    TOKENS = "tokens"  #: (batch, tokens, d)
    GRID = "grid"  #: (batch, rows, columns, d)
    CHANNELS_FIRST = "channels_first"  #: (batch, d, rows, columns)


@dataclass(frozen=True)
class BackboneFacts:
    """One network without its classifier.

    Attributes:
        name: exact timm name.
        family: timm's class of it.
        block_widths: width of the residual stream at the end of every block, first to last.
        input_widths: width of what enters every block; differs from `block_widths` where a stage of
            Hiera or MViTv2 begins.
        heads: attention heads of every block; 0 where it has no attention.
        num_features: width of the pooled features that a head reads.
        parameters: of the network without a classifier; all frozen.
        bias_parameters: numbers in all of its biases, those of norms and convolutions included.
        ssf_parameters: numbers that SSF trains, a scale and a shift for each output channel of the
            patch projection, of norm1, qkv, projection, norm2, fc1 and fc2 in every block, and of
            the final norm; None where one of these cannot be hooked.
        lora_parameters_per_rank: inputs plus outputs of the qkv layers: LoRA of rank r has r times
            as many numbers; None without `has_qkv`.
        image_px: side of the square input.
        mean: per-channel mean of the normalisation, of values in 0..1.
        std: per-channel standard deviation.
        interpolation: how its own training resized images.
        license: of the weights, as timm states it; `not stated` where it states none.
        layout: of the tensors between blocks.
        prefix_tokens: class, distillation and register tokens in front of the patches.
        post_norm: whether norms close the residual branches instead of opening them.
        has_qkv: whether every block has one linear layer for queries, keys and values that is
            called as a module, and so can be hooked.
        has_fc: whether every MLP has linear layers `fc1` and `fc2` that are called as modules.
        has_attention_branch: whether every block has an attention branch that is added to the
            stream it reads, as the MLP branch is; false where a stage of Hiera or MViTv2 begins by
            pooling and widening the stream, and for ConvNeXt.
        prompts: whether further tokens may be put behind the prefix tokens.
        grid: whether rows and columns of the patch tokens are known at the end of every block.
        listed: whether `list_backbones` names it: a choice of each family, not every variant.
    """

    name: str
    family: str
    block_widths: tuple[int, ...]
    input_widths: tuple[int, ...]
    heads: tuple[int, ...]
    num_features: int
    parameters: int
    bias_parameters: int
    ssf_parameters: int | None
    lora_parameters_per_rank: int | None
    image_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    license: str
    layout: StreamLayout
    prefix_tokens: int
    post_norm: bool
    has_qkv: bool
    has_fc: bool
    has_attention_branch: bool
    prompts: bool
    grid: bool
    listed: bool

    @property
    def depth(self) -> int:
        """Blocks, and so adapters."""
        return len(self.block_widths)

    @property
    def pre_norm(self) -> bool:
        """Whether a norm opens the attention branch and another one the MLP branch."""
        return self.has_attention_branch and not self.post_norm

    @property
    def license_note(self) -> str | None:
        """What to mind about the licence of the weights; None where it is a permissive one."""
        return find_license_note(self.license)


def get_backbone(name: str) -> BackboneFacts:
    """Return the facts of the network `name`.

    Raises:
        UnknownBackboneError: it is not in the table; the message says why, as far as is known.
    """
    facts = find_backbone(name)
    if facts is None:
        raise UnknownBackboneError(explain_unknown(name))
    return facts


def find_backbone(name: str) -> BackboneFacts | None:
    """Return the facts of the network `name`, or None."""
    row = _rows().get(name)
    return None if row is None else _read_row(name, row)


def list_backbones() -> list[BackboneFacts]:
    """Return the facts of the listed networks in the order of the table."""
    return [_read_row(name, row) for name, row in _rows().items() if row.get("listed", False)]


def explain_unknown(name: str) -> str:
    """Return a sentence on why `find_backbone(name)` is None, and on the way out."""
    architecture = name.partition(".")[0]
    for reason, architectures in _unsupported().items():
        if architecture in architectures:
            return f"{name!r} cannot be used: {reason}"
    same = [other for other in _rows() if other.partition(".")[0] == architecture]
    similar = same or get_close_matches(name, _rows(), n=_MOST_SUGGESTIONS)
    if similar:
        some = ", ".join(similar[:_MOST_SUGGESTIONS])
        return f"there is no backbone {name!r}; similar names: {some}"
    return (
        f"there is no backbone {name!r}; {len(_rows())} networks of timm can be used, "
        f"for example {next(iter(_rows()))}"
    )


def head_parameters(facts: BackboneFacts, num_classes: int) -> int:
    """Return how many trainable numbers the head has: C classes of F weights and a bias."""
    return num_classes * (facts.num_features + 1)


@cache
def _rows() -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return rows


@cache
def _unsupported() -> dict[str, frozenset[str]]:
    reasons: dict[str, list[str]] = json.loads(UNSUPPORTED_TABLE.read_text(encoding="utf-8"))
    return {reason: frozenset(architectures) for reason, architectures in reasons.items()}


def _read_row(name: str, row: dict[str, Any]) -> BackboneFacts:
    """Read a row of the table, where runs of equal blocks are [value, blocks]."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}
    values["block_widths"] = _unroll(row["block_widths"])
    values["input_widths"] = _unroll(row.get("input_widths", row["block_widths"]))
    values["heads"] = _unroll(row["heads"])
    values["layout"] = StreamLayout(row["layout"])
    values["listed"] = row.get("listed", False)
    return BackboneFacts(name=name, **values)


def _unroll(runs: list[list[int]]) -> tuple[int, ...]:
    return tuple(value for value, blocks in runs for _ in range(blocks))

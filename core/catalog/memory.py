"""What a training job needs of a device's memory, from the table of backbone facts; no torch.

    weights of the backbones + batch · what a step keeps of one image + 16 bytes · trainable numbers
    + the images themselves + what every process needs

A step keeps some numbers for each place (token, or cell of a grid) and channel of a block: 9.6 to
11.7 were counted in ViT and Swin blocks with frozen weights, 15 to 19 where these learn, too. The
factors below lie above what was counted; `python -m benchmarks.training_memory` counts again.
"""

import re
from dataclasses import dataclass

from core.catalog.backbones import BackboneFacts
from core.catalog.methods import AdapterKind

#: Value, gradient and two moments of AdamW, all fp32.
TRAINABLE_BYTES = 16
#: What a process takes before it has any tensor: libraries, and on a GPU the context.
PROCESS_BYTES = 512 << 20
PIXEL_BYTES = 3

_KEPT_FROZEN = 12.0
_KEPT_LEARNING = 18.0
#: Places and channels that are worked on at once, beside what is kept.
_TRANSIENT = 8.0
#: Networks whose blocks keep more: gated or wider MLPs, pooled or windowed attention.
_FAMILY_FACTORS = {
    "Eva": 1.4,
    "Hiera": 1.35,
    "SwinTransformerV2": 1.35,
    "PyramidVisionTransformerV2": 1.65,
    "MultiScaleVit": 1.95,
    "MaxxVit": 2.4,
    "DaVit": 1.1,
}
_PATCH = re.compile(r"patch(\d+)|_[sp](\d+)_\d")
_USUAL_PATCH_PX = 16
_FIRST_STRIDE_PX = 4


@dataclass(frozen=True)
class Network:
    """One of the networks of a job, and what is put into it.

    Attributes:
        facts: of the backbone.
        kind: of its adapter.
        trainable: numbers that learn, its head's included.
    """

    facts: BackboneFacts
    kind: AdapterKind
    trainable: int


@dataclass(frozen=True)
class MemoryNeed:
    """An estimate, by what needs it, in bytes.

    Attributes:
        weights: of the backbones.
        activations: of one batch, kept for the backward or worked on.
        trainable: values, gradients and moments.
        images: the whole dataset, as uint8.
        process: everything else.
    """

    weights: int
    activations: int
    trainable: int
    images: int
    process: int = PROCESS_BYTES

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.activations + self.trainable + self.images + self.process


def estimate_memory(
    networks: list[Network], *, number_bytes: int, batch_size: int, images: int
) -> MemoryNeed:
    """Return what training these networks together needs.

    Args:
        networks: student and teacher, or the student alone.
        number_bytes: of a frozen weight and of an activation: 4 in fp32, 2 in bf16.
        batch_size: images in a step.
        images: of the dataset, in all splits.
    """
    activations = sum(
        batch_size
        * (
            estimate_activation_bytes(n.facts, n.kind, number_bytes=number_bytes)
            + int(_TRANSIENT * max(_count_numbers(n.facts)) * number_bytes)
        )
        for n in networks
    )
    sizes_px = {network.facts.image_px for network in networks}
    return MemoryNeed(
        weights=sum(n.facts.parameters for n in networks) * number_bytes,
        activations=activations,
        trainable=sum(n.trainable for n in networks) * TRAINABLE_BYTES,
        images=sum(px * px * PIXEL_BYTES for px in sizes_px) * images,
    )


def estimate_activation_bytes(facts: BackboneFacts, kind: AdapterKind, *, number_bytes: int) -> int:
    """Return what one image makes a training step keep for its backward, in one network."""
    numbers = _count_numbers(facts)
    if kind is AdapterKind.LINEAR_PROBE:
        numbers = []  # the gradient ends at the head
    kept = _KEPT_LEARNING if kind is AdapterKind.FULL else _KEPT_FROZEN
    return int(sum(numbers) * kept * _FAMILY_FACTORS.get(facts.family, 1.0) * number_bytes)


def count_places(facts: BackboneFacts) -> list[int]:
    """Return how many places every block works on, first to last: tokens, or cells of a grid.

    The table does not have them: a network of one width cuts patches whose size is in its name; one
    whose width grows begins with cells of 4 x 4 pixels and halves the grid wherever it does.
    """
    widths = facts.block_widths
    if len(set(widths)) == 1:
        match = _PATCH.search(facts.name)
        patch_px = int(match[1] or match[2]) if match else _USUAL_PATCH_PX
        return [(facts.image_px // patch_px) ** 2 + facts.prefix_tokens] * len(widths)
    places, stride_px = [], _FIRST_STRIDE_PX
    for before, width in zip((widths[0], *widths), widths, strict=False):
        stride_px *= 2 if width != before else 1
        places.append((facts.image_px // stride_px) ** 2)
    return places


def _count_numbers(facts: BackboneFacts) -> list[int]:
    places = count_places(facts)
    return [count * width for count, width in zip(places, facts.block_widths, strict=True)]

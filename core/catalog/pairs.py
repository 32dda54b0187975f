"""The named pairs of teacher and student, with the hyperparameters that `auto` stands for."""

from dataclasses import dataclass

from core.catalog.methods import AdapterKind


@dataclass(frozen=True)
class PairDefaults:
    """What a request leaves out.

    Attributes:
        adapter_kind: where the adapters sit.
        hidden_dim: bottleneck width h of every adapter.
        scale: factor s of the parallel adapters (the sequential one has none).
        learning_rate: peak learning rate of AdamW.
        weight_decay: decoupled weight decay of the matrices.
        epochs: passes over the training split.
        batch_size: images per step.
    """

    adapter_kind: AdapterKind = AdapterKind.SEQUENTIAL
    hidden_dim: int = 4
    scale: float = 0.1
    learning_rate: float = 5e-3
    weight_decay: float = 5e-5
    epochs: int = 100
    batch_size: int = 32


@dataclass(frozen=True)
class Pair:
    """A teacher and a student backbone that learn together.

    Attributes:
        name: what a request calls the pair.
        student: timm name of the student backbone.
        teacher: timm name of the teacher backbone.
        summary: one sentence for the methods page.
        defaults: what `auto` and absent fields mean.
    """

    name: str
    student: str
    teacher: str
    summary: str
    defaults: PairDefaults = PairDefaults()


#: Side length for which the image cache is made at upload: the starter pair's. Other sizes are made
#: when the first job needs them.
DEFAULT_IMAGE_PX = 64

STARTER_STUDENT = "vit_starter_student_patch8_64"
STARTER_TEACHER = "vit_starter_teacher_patch8_64"

_VIT = "vit_{}_patch16_224.augreg_in21k"
_SWIN = "swin_{}_patch4_window7_224.ms_in22k"

PAIRS: dict[str, Pair] = {
    pair.name: pair
    for pair in (
        Pair(
            "starter",
            STARTER_STUDENT,
            STARTER_TEACHER,
            "Two tiny ViTs whose weights ship with the service; 64x64 pixels, made for trying it.",
            PairDefaults(
                adapter_kind=AdapterKind.PARALLEL, hidden_dim=8, learning_rate=2e-2, epochs=30
            ),
        ),
        Pair(
            "vit-s16-b16-in21k",
            _VIT.format("base"),
            _VIT.format("small"),
            "The paper's main pair: ViT-S/16 improves ViT-B/16, both pretrained on ImageNet-21k.",
        ),
        Pair(
            "vit-b16-b16-in21k",
            _VIT.format("base"),
            _VIT.format("base"),
            "ViT-B/16 beside ViT-B/16.",
        ),
        Pair(
            "vit-l16-b16-in21k",
            _VIT.format("base"),
            _VIT.format("large"),
            "A larger teacher, ViT-L/16, beside ViT-B/16.",
        ),
        Pair(
            "vit-s16-l16-in21k",
            _VIT.format("large"),
            _VIT.format("small"),
            "ViT-S/16 improves ViT-L/16.",
        ),
        Pair(
            "vit-l16-l16-in21k",
            _VIT.format("large"),
            _VIT.format("large"),
            "ViT-L/16 beside ViT-L/16.",
        ),
        Pair(
            "swin-s-b-in22k",
            _SWIN.format("base"),
            _SWIN.format("small"),
            "Swin-S improves Swin-B, both pretrained on ImageNet-22k.",
        ),
    )
}

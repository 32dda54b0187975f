"""The method's vocabulary: adapter kinds, distillation losses, precisions, recipes."""

from enum import StrEnum


class MethodType(StrEnum):
    """How the student is trained."""

    IDAT = "idat"  #: with a teacher, both learning, their logits tied by a distillation loss
    ADAPTER = "adapter"  #: alone


class AdapterKind(StrEnum):
    """Where the adapter sits in a block (paper, Sec. 3.2)."""

    SEQUENTIAL = "sequential"  #: after the block, with its own residual
    PARALLEL = "parallel"  #: beside the MLP
    PARALLEL_SHARED = "parallel_shared"  #: one adapter beside attention and beside the MLP


class DistillationLoss(StrEnum):
    """How the logits of student and teacher are compared."""

    MSE = "mse"  #: mean squared difference of the raw logits
    KL = "kl"  #: KL(teacher ‖ student) of the tempered softmaxes


class Precision(StrEnum):
    """Number format of frozen weights and activations; trainable tensors are always fp32."""

    FP32 = "fp32"
    BF16 = "bf16"


class Recipe(StrEnum):
    """A named set of schedule choices."""

    DEFAULT = "default"  #: the epochs asked for, no cooldown, every image in every epoch
    OFFICIAL = "official"  #: the released code: 100 + 10 epochs, batch 64, the last batch dropped

"""The method's vocabulary: adapter kinds, distillation losses, precisions, recipes."""

from enum import StrEnum


class MethodType(StrEnum):
    """How the student is trained."""

    IDAT = "idat"  #: with a teacher, both learning, their logits tied by a distillation loss
    ADAPTER = "adapter"  #: alone


class AdapterKind(StrEnum):
    """What is trained inside the frozen network; facts about each: `core.catalog.adapters`."""

    SEQUENTIAL = "sequential"  #: bottleneck after the block, with its own residual (iDAT-S)
    PARALLEL = "parallel"  #: bottleneck beside the MLP (iDAT-P)
    PARALLEL_SHARED = "parallel_shared"  #: one bottleneck beside attention and MLP (iDAT-PS)
    ADAPTFORMER = "adaptformer"  #: bottleneck with ReLU and dropout beside the MLP
    ADAPTER_PLUS = "adapter_plus"  #: bottleneck after the block, scaled per channel
    LORA = "lora"  #: low-rank update of the fused query-key-value weight
    SSF = "ssf"  #: a scale and a shift per channel after every operation
    BITFIT = "bitfit"  #: every bias of the network
    VPT_DEEP = "vpt_deep"  #: learnt tokens in front of every block
    ARC = "arc"  #: projections shared by all blocks, re-scaled in each
    REPADAPTER = "repadapter"  #: linear bottlenecks before attention and MLP
    MOSA = "mosa"  #: sparse mixture of bottlenecks beside the MLP
    RES_ADAPTER = "res_adapter"  #: Res-Tuning's adapter beside the MLP
    MONA = "mona"  #: bottlenecks with depth-wise convolutions after both branches
    LINEAR_PROBE = "linear_probe"  #: nothing; only the head learns
    FULL = "full"  #: every weight of the network


class DistillationLoss(StrEnum):
    """How student and teacher are compared."""

    MSE = "mse"  #: mean squared difference of the raw logits
    KL = "kl"  #: KL divergence of the tempered softmaxes
    COSINE = "cosine"  #: one minus the cosine of the raw logits
    MAE = "mae"  #: mean absolute difference of the raw logits
    FEATURE = "feature"  #: mean squared difference of features, through a learnt bridge


class KlDirection(StrEnum):
    """Which distribution the `kl` loss takes its mean over."""

    TEACHER_STUDENT = "teacher_student"  #: KL(teacher ‖ student), the released code's
    STUDENT_TEACHER = "student_teacher"  #: KL(student ‖ teacher)


class FeatureTokens(StrEnum):
    """Which tokens of a block's output the `feature` loss compares."""

    CLS = "cls"  #: the class token, or the mean of all tokens where there is none
    ALL = "all"  #: every token; both networks need equally many


class Precision(StrEnum):
    """Number format of frozen weights and activations; trainable tensors are always fp32."""

    FP32 = "fp32"
    BF16 = "bf16"


class Recipe(StrEnum):
    """A named set of schedule choices; the 19 of the paper are in `core.catalog.recipes`."""

    DEFAULT = "default"  #: the epochs asked for, no cooldown, every image in every epoch
    OFFICIAL = "official"  #: the released code: 100 + 10 epochs, batch 64, the last batch dropped

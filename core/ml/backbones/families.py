"""The families of timm networks whose blocks are known here, and why others are refused.

A block with the right children may still add them up in another way, so nothing is guessed: a
network is served when its class and the class of its blocks are both listed, after reading their
`forward` in timm 1.0 and checking it against the written-out formula in the tests.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from core.catalog.backbones import StreamLayout

_TOKENS, _GRID, _NCHW = StreamLayout.TOKENS, StreamLayout.GRID, StreamLayout.CHANNELS_FIRST


@dataclass(frozen=True)
class BlockShape:
    """How the blocks of one class are made.

    Attributes:
        layout: of the tensor between blocks.
        branches_channels_first: whether the branches' ends, and the stream that they read, are
            (B, d, H, W).
        is_post_norm: whether norms close the branches instead of opening them.
        is_single: one residual branch (`norm`, `mlp`, `drop_path`) instead of two.
        reads_block_input: whether the stream that attention adds to is the block's own input.
            Otherwise it is what enters `norm1`.
        returns_tuple: whether the block returns (stream, something else).
        is_ordered: whether tokens lie row by row, as in the image.
        takes_prompts: whether further tokens may be put behind the prefix tokens: attention sees
            all tokens alike, unless the network gives it rotary positions.
    """

    layout: StreamLayout = _TOKENS
    branches_channels_first: bool = False
    is_post_norm: bool = False
    is_single: bool = False
    reads_block_input: bool = True
    returns_tuple: bool = False
    is_ordered: bool = True
    takes_prompts: bool = False


_VIT_BLOCKS = {
    "vision_transformer.Block": BlockShape(takes_prompts=True),
    "vision_transformer.ResPostBlock": BlockShape(is_post_norm=True, takes_prompts=True),
}
_EVA_BLOCKS = {
    "eva.EvaBlock": BlockShape(takes_prompts=True),
    "eva.EvaBlockPostNorm": BlockShape(is_post_norm=True, takes_prompts=True),
}
# In DaViT a convolution is added to the stream in front of each branch, within the block.
_DAVIT_SHAPE = BlockShape(_NCHW, reads_block_input=False)

#: For each class of networks, the classes of its blocks as `module.Class`, and their shapes.
FAMILIES: Mapping[str, Mapping[str, BlockShape]] = MappingProxyType(
    {
        # ViT, DeiT, DeiT III, MAE, DINO, DINOv2, CLIP, SigLIP, AIMv2
        "VisionTransformer": _VIT_BLOCKS,
        "VisionTransformerDistilled": _VIT_BLOCKS,
        "VisionTransformerRelPos": {
            "vision_transformer_relpos.RelPosBlock": BlockShape(),
            "vision_transformer_relpos.ResPostRelPosBlock": BlockShape(is_post_norm=True),
        },
        "NaFlexVit": _VIT_BLOCKS | _EVA_BLOCKS,
        "Beit": {"beit.Block": BlockShape()},  # BEiT, BEiT v2
        "Eva": _EVA_BLOCKS,  # EVA, EVA-02, DINOv3, ViTs with rotary positions
        "SwinTransformer": {"swin_transformer.SwinTransformerBlock": BlockShape(_GRID)},
        "SwinTransformerV2": {
            "swin_transformer_v2.SwinTransformerV2Block": BlockShape(_GRID, is_post_norm=True)
        },
        "PyramidVisionTransformerV2": {"pvt_v2.Block": BlockShape()},
        "Twins": {"twins.Block": BlockShape()},
        "DaVit": {"davit.SpatialBlock": _DAVIT_SHAPE, "davit.ChannelBlock": _DAVIT_SHAPE},
        "MaxxVit": {  # the convolutions between the attention blocks stay as they are
            "maxxvit.PartitionAttentionCl": BlockShape(_GRID),
            "maxxvit.PartitionAttention2d": BlockShape(_NCHW, branches_channels_first=True),
        },
        "Hiera": {"hiera.HieraBlock": BlockShape(is_ordered=False)},
        "MultiScaleVit": {"mvitv2.MultiScaleBlock": BlockShape(returns_tuple=True)},
        "ConvNeXt": {
            "convnext.ConvNeXtBlock": BlockShape(
                _NCHW, branches_channels_first=True, is_single=True
            )
        },
    }
)

_FUSED = "its blocks compute attention and MLP as one branch, so there is no place between them"
_OTHER_MIXER = "its blocks mix tokens without attention, and adapters are defined beside attention"
_CONVOLUTIONAL = "it is made of convolutions and has no blocks of attention and MLP"

#: Why classes of networks are refused; the sentences complete "FAMILY is not supported: ".
REFUSED_NETWORKS: Mapping[str, str] = MappingProxyType(
    {
        "Xcit": (
            "its blocks have a third branch (local patch interaction) besides attention and MLP, "
            "so an adapter's place in them is not defined"
        ),
        "Cait": (
            "one drop-path module ends both branches of a block, so the place beside the MLP "
            "cannot be told from the one beside attention; its last blocks see the class token only"
        ),
        "CrossVit": "it has two streams of tokens of different widths that exchange class tokens",
        "MlpMixer": _OTHER_MIXER,
        "FocalNet": _OTHER_MIXER,
        "MetaFormer": _OTHER_MIXER,
        "Sequencer2d": _OTHER_MIXER,
        "ResNet": _CONVOLUTIONAL,
        "ResNetV2": _CONVOLUTIONAL,
        "RegNet": _CONVOLUTIONAL,
        "EfficientNet": _CONVOLUTIONAL,
        "MobileNetV3": _CONVOLUTIONAL,
        "DenseNet": _CONVOLUTIONAL,
        "VGG": _CONVOLUTIONAL,
        "ByobNet": "it is made of convolutions, with attention in a few places at most",
        "EfficientVit": _OTHER_MIXER,
        "EfficientVitLarge": _OTHER_MIXER,
        "EfficientVitMsra": "its blocks feed one attention head into the next",
        "VOLO": "its first stage looks out instead of attending, and its last blocks see the class "
        "token only",
    }
)

#: Why classes of blocks inside of a known network are refused.
REFUSED_BLOCKS: Mapping[str, str] = MappingProxyType(
    {
        "vision_transformer.ParallelScalingBlock": _FUSED,
        "vision_transformer.DiffParallelScalingBlock": _FUSED,
        "vision_transformer.ParallelThingsBlock": (
            "its blocks have several attention branches side by side, and adapters are defined for "
            "one"
        ),
        "maxxvit.TransformerBlock2d": (
            "the blocks of CoAtNet pool and widen inside of the attention branch"
        ),
        "maxxvit.ParallelPartitionAttention": "its blocks have two attentions in one branch",
    }
)


def key_of(part: object) -> str:
    """Return `module.Class` of an object, the module without its packages."""
    kind = type(part)
    return f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"

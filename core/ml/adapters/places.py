"""What kinds that reach into attention and MLP need of a network, in the words of the catalog."""

from core.catalog.methods import AdapterKind
from core.ml.adapters.base import refuse_unless
from core.ml.backbones.load import LoadedBackbone


def require_qkv(kind: AdapterKind, backbone: LoadedBackbone) -> None:
    """Refuse a network without a hookable layer of queries, keys and values in every block.

    Raises:
        UnsupportedAdapterError: naming kind, family and reason.
    """
    refuse_unless(
        all(block.qkv is not None for block in backbone.blocks),
        kind,
        backbone,
        "it does not compute queries, keys and values by one linear layer that can be hooked",
    )


def require_norms_before_linears(kind: AdapterKind, backbone: LoadedBackbone) -> None:
    """Refuse a network whose blocks are not norm1, qkv, ... and norm2, fc1, ....

    Raises:
        UnsupportedAdapterError: naming kind, family and reason.
    """
    refuse_unless(
        all(b.attention_input is not None and not b.is_post_norm for b in backbone.blocks),
        kind,
        backbone,
        "it has no norm in front of both attention and MLP",
    )
    require_qkv(kind, backbone)
    refuse_unless(
        all(block.fc1 is not None and block.fc2 is not None for block in backbone.blocks),
        kind,
        backbone,
        "its MLP is not two plain linear layers",
    )

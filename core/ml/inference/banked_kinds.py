"""Which kinds of adapters are served from a bank, and how.

The others are served one model at a time: `full` has a network of its own, `mona` convolutions, and
prompts of `vpt_deep` cannot be padded, since attention would see the padding.
"""

from collections.abc import Mapping
from types import MappingProxyType

from torch.nn import functional

from core.catalog.methods import AdapterKind
from core.ml.inference.banked import BankedMethod
from core.ml.inference.banked_bottleneck import (
    BankedBottleneck,
    BankedExperts,
    BankedScaledBottleneck,
    after_block,
    beside_both,
    beside_mlp,
)
from core.ml.inference.banked_channels import BankedBitFit, BankedNothing, BankedSsf
from core.ml.inference.banked_linear import BankedArc, BankedLora, BankedRepAdapter

BANKED_METHODS: Mapping[AdapterKind, BankedMethod] = MappingProxyType(
    {
        AdapterKind.SEQUENTIAL: BankedBottleneck(after_block),
        AdapterKind.PARALLEL: BankedBottleneck(beside_mlp, scaled=True),
        AdapterKind.PARALLEL_SHARED: BankedBottleneck(beside_both, scaled=True),
        AdapterKind.ADAPTFORMER: BankedBottleneck(
            beside_mlp, activation=functional.relu, scaled=True
        ),
        AdapterKind.ADAPTER_PLUS: BankedScaledBottleneck(after_block),
        AdapterKind.RES_ADAPTER: BankedBottleneck(beside_mlp),
        AdapterKind.MOSA: BankedExperts(beside_mlp, scaled=True),
        AdapterKind.LORA: BankedLora(),
        AdapterKind.REPADAPTER: BankedRepAdapter(),
        AdapterKind.ARC: BankedArc(),
        AdapterKind.SSF: BankedSsf(),
        AdapterKind.BITFIT: BankedBitFit(),
        AdapterKind.LINEAR_PROBE: BankedNothing(),
    }
)

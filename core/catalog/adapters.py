"""Facts about the adapter kinds, known without torch: defaults, where they fit, what they train.

Definitions, initial values and counts follow each method's paper and public code; where a kind
differs from them, its file in `core.ml.adapters` says so.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import repeat
from types import MappingProxyType

from core.catalog.backbones import BackboneFacts
from core.catalog.methods import AdapterKind

#: Refuses a network: a reason that completes "… cannot be put into FAMILY: ", or None.
Refusal = Callable[[BackboneFacts], str | None]
#: Trainable numbers of the adapters in a network, for a hidden dimension.
Count = Callable[[BackboneFacts, int], int]

_GROUPS = 2  # of RepAdapter's second projection
_EXTRA_KERNEL_AREA = 3 * 3 + 5 * 5 + 7 * 7  # of Mona's depth-wise convolutions


@dataclass(frozen=True)
class AdapterFacts:
    """One kind of adapter.

    Attributes:
        kind: its name.
        summary: one sentence for the methods page.
        source: paper, and public code where there is any.
        hidden_dim_means: what `hidden_dim` sets, None where the kind has no size.
        hidden_dim: the default size, the one of its paper; 0 where it has none.
        scale: the default factor, None where the kind has no fixed one.
        is_bottleneck: whether the size must not exceed the width of the narrowest block.
        multiple_of: the size and every block's width must be multiples of this.
        mergeable: whether it can be written into the network's weights.
        learning_rate: the default peak rate with AdamW, None to take the pair's.
        weight_decay: likewise.
        count: trainable numbers.
        refuse: why a network cannot have it.
    """

    kind: AdapterKind
    summary: str
    source: str
    count: Count
    hidden_dim_means: str | None = None
    hidden_dim: int = 0
    scale: float | None = None
    is_bottleneck: bool = True
    multiple_of: int = 1
    mergeable: bool = False
    learning_rate: float | None = None
    weight_decay: float | None = None
    refuse: Refusal = lambda _: None


def find_refusal(kind: AdapterKind, backbone: BackboneFacts) -> str | None:
    """Return a sentence on why `kind` cannot be put into `backbone`, naming both, or None."""
    reason = ADAPTERS[kind].refuse(backbone)
    if reason is None:
        return None
    return f"{kind.value} cannot be put into {backbone.family} ({backbone.name}): {reason}"


def adapter_parameters(backbone: BackboneFacts, kind: AdapterKind, hidden_dim: int) -> int:
    """Return how many trainable numbers the adapters have, the head not counted."""
    return ADAPTERS[kind].count(backbone, hidden_dim)


def _per_block(count: Callable[[int, int], int]) -> Count:
    return lambda backbone, h: sum(map(count, backbone.block_widths, repeat(h)))


def _bottleneck(d: int, h: int) -> int:
    return 2 * d * h + h + d


def _mona_module(d: int, h: int) -> int:
    norm_and_gates = 4 * d
    convolutions = _EXTRA_KERNEL_AREA * h + 3 * h + h * h + h
    return norm_and_gates + _bottleneck(d, h) + convolutions


def _arc(backbone: BackboneFacts, h: int) -> int:
    # Blocks of one width share their two projections; a network of several widths has two for each.
    shared = sum(width * h for width in set(backbone.block_widths))
    return 2 * (shared + sum(h + width for width in backbone.block_widths))


def _known(number: int | None) -> int:
    assert number is not None, "refused where it is not known"
    return number


def _needs_two_branches(backbone: BackboneFacts) -> str | None:
    if backbone.has_attention_branch:
        return None
    return "its blocks have no attention branch beside the MLP whose width is the MLP's"


def _needs_qkv(backbone: BackboneFacts) -> str | None:
    if backbone.has_qkv and backbone.lora_parameters_per_rank is not None:
        return None
    return "it does not compute queries, keys and values by one linear layer that can be hooked"


def _needs_pre_norm(backbone: BackboneFacts) -> str | None:
    if backbone.pre_norm:
        return None
    return "it has no norm in front of both attention and MLP"


def _needs_qkv_and_fc(backbone: BackboneFacts) -> str | None:
    reason = _needs_pre_norm(backbone) or _needs_qkv(backbone)
    if reason is None and not backbone.has_fc:
        reason = "its MLP is not two plain linear layers"
    return reason


def _needs_ssf_sites(backbone: BackboneFacts) -> str | None:
    if backbone.ssf_parameters is not None:
        return None
    return "its operations cannot all be hooked one by one"


def _needs_prompts(backbone: BackboneFacts) -> str | None:
    if backbone.prompts:
        return None
    return "there is no place for further tokens (windows, grids or rotary positions)"


def _needs_grid(backbone: BackboneFacts) -> str | None:
    reason = _needs_two_branches(backbone)
    if reason is None and not backbone.grid:
        reason = "its tokens have no known height and width"
    return reason


_FACTS = (
    AdapterFacts(
        AdapterKind.SEQUENTIAL,
        "A bottleneck after each block, with a residual of its own (iDAT-S).",
        "Houlsby et al. 2019; placement of the iDAT code",
        _per_block(_bottleneck),
        hidden_dim_means="bottleneck width",
        hidden_dim=4,
    ),
    AdapterFacts(
        AdapterKind.PARALLEL,
        "A bottleneck beside the MLP of each block (iDAT-P).",
        "iDAT, arXiv 2403.15750, after AdaptFormer",
        _per_block(_bottleneck),
        hidden_dim_means="bottleneck width",
        hidden_dim=4,
        scale=0.1,
    ),
    AdapterFacts(
        AdapterKind.PARALLEL_SHARED,
        "One bottleneck beside attention and beside the MLP of each block (iDAT-PS).",
        "iDAT, arXiv 2403.15750",
        _per_block(_bottleneck),
        hidden_dim_means="bottleneck width",
        hidden_dim=4,
        scale=0.1,
        refuse=_needs_two_branches,
    ),
    AdapterFacts(
        AdapterKind.ADAPTFORMER,
        "A bottleneck with ReLU and dropout beside the MLP; starts at zero.",
        "Chen et al. 2022, ShoufaChen/AdaptFormer",
        _per_block(_bottleneck),
        hidden_dim_means="bottleneck width",
        hidden_dim=64,
        scale=0.1,
        learning_rate=1e-3,
    ),
    AdapterFacts(
        AdapterKind.ADAPTER_PLUS,
        "A bottleneck after each block, with a learnt scale for each channel.",
        "Steitz and Roth 2024, visinf/adapter_plus",
        _per_block(lambda d, h: _bottleneck(d, h) + d),
        hidden_dim_means="bottleneck width",
        hidden_dim=8,
        learning_rate=1e-3,
        weight_decay=1e-4,
    ),
    AdapterFacts(
        AdapterKind.LORA,
        "A low-rank update of the fused query-key-value weight.",
        "Hu et al. 2022; on the fused layer as in NOAH",
        lambda backbone, rank: rank * _known(backbone.lora_parameters_per_rank),
        hidden_dim_means="rank",
        hidden_dim=8,
        scale=1.0,
        mergeable=True,
        learning_rate=1e-3,
        weight_decay=1e-4,
        refuse=_needs_qkv,
    ),
    AdapterFacts(
        AdapterKind.SSF,
        "A scale and a shift for each channel after every operation.",
        "Lian et al. 2022, dongzelian/SSF",
        lambda backbone, _: _known(backbone.ssf_parameters),
        mergeable=True,
        learning_rate=5e-3,
        refuse=_needs_ssf_sites,
    ),
    AdapterFacts(
        AdapterKind.BITFIT,
        "Every bias of the network.",
        "Ben Zaken et al. 2022",
        lambda backbone, _: backbone.bias_parameters,
        mergeable=True,
        learning_rate=1e-3,
    ),
    AdapterFacts(
        AdapterKind.VPT_DEEP,
        "Learnt tokens behind the class token, other ones in front of every block.",
        "Jia et al. 2022, KMnP/vpt",
        _per_block(lambda d, p: p * d),
        hidden_dim_means="prompt tokens in front of each block",
        hidden_dim=10,
        is_bottleneck=False,
        learning_rate=5e-3,
        refuse=_needs_prompts,
    ),
    AdapterFacts(
        AdapterKind.ARC,
        "Projections shared by all blocks and re-scaled in each, before attention and MLP.",
        "Dong et al. 2023, DavidYanAnDe/ARC",
        _arc,
        hidden_dim_means="dimensions of the shared projections",
        hidden_dim=50,
        mergeable=True,
        learning_rate=1e-2,
        weight_decay=1e-4,
        refuse=_needs_qkv_and_fc,
    ),
    AdapterFacts(
        AdapterKind.REPADAPTER,
        "Linear bottlenecks before attention and MLP, the second half in two groups.",
        "Luo et al. 2023, luogen1996/RepAdapter",
        _per_block(lambda d, h: 2 * (d * h + h + d * h // _GROUPS + d)),
        hidden_dim_means="bottleneck width",
        hidden_dim=8,
        scale=1.0,
        multiple_of=_GROUPS,
        mergeable=True,
        learning_rate=1e-3,
        weight_decay=1e-4,
        refuse=_needs_qkv_and_fc,
    ),
    AdapterFacts(
        AdapterKind.MOSA,
        "A bottleneck beside the MLP whose second half is split at random between four experts.",
        "Zhang et al. 2023, Theia-4869/MoSA",
        _per_block(lambda d, h: _bottleneck(d, h) + 2 * d),
        hidden_dim_means="bottleneck width",
        hidden_dim=16,
        scale=0.1,
        learning_rate=5e-3,
        weight_decay=1e-2,
    ),
    AdapterFacts(
        AdapterKind.RES_ADAPTER,
        "Res-Tuning's adapter beside the MLP; its prefix and prompt tuners are not public.",
        "Jiang et al. 2023, as in modelscope/ms-swift",
        _per_block(_bottleneck),
        hidden_dim_means="bottleneck width",
        hidden_dim=32,
        learning_rate=1e-3,
    ),
    AdapterFacts(
        AdapterKind.MONA,
        "Bottlenecks with depth-wise convolutions after attention and after the MLP.",
        "Yin et al. 2023, Leiyi-Hu/mona",
        _per_block(lambda d, h: 2 * _mona_module(d, h)),
        hidden_dim_means="bottleneck width",
        hidden_dim=64,
        learning_rate=1e-3,
        refuse=_needs_grid,
    ),
    AdapterFacts(
        AdapterKind.LINEAR_PROBE,
        "Nothing inside of the network; only the head learns.",
        "the usual baseline",
        lambda _, __: 0,
        mergeable=True,
        learning_rate=1e-2,
    ),
    AdapterFacts(
        AdapterKind.FULL,
        "Every weight of the network; the exported file is as large as the network.",
        "the usual baseline",
        lambda backbone, _: backbone.parameters,
        mergeable=True,
        learning_rate=1e-4,
        weight_decay=1e-4,
    ),
)

#: All kinds, in the order of `AdapterKind`.
ADAPTERS: Mapping[AdapterKind, AdapterFacts] = MappingProxyType(
    {facts.kind: facts for facts in _FACTS}
)

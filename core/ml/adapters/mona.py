"""Mona: bottlenecks that also look at the neighbours of a token, after attention and after the MLP.

Yin et al., "5%>100%: Breaking Performance Shackles of Full Fine-Tuning on Visual Recognition Tasks"
(2023); Leiyi-Hu/mona, which has it for Swin alone.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from core.ml.adapters.base import AdapterSpec, BlockMethod, refuse_unless
from core.ml.adapters.bottleneck import drop, rounded_linear
from core.ml.adapters.rounded import rounded_norm
from core.ml.adapters.stream import change_attention_branch, change_output
from core.ml.backbones.blocks import ResidualBlock
from core.ml.backbones.load import LoadedBackbone

_DROPOUT = 0.1
_NORM_GAIN = 1e-6
_KERNELS = (3, 5, 7)
_LARGEST = _KERNELS[-1]


class MonaModule(nn.Module):
    """What one of the two modules of a block adds to the stream x:

        u = gain_norm * LN(x) + gain * x
        p = W_down u + b_down
        p <- p + (DW3 p + DW5 p + DW7 p) / 3, depth-wise convolutions over rows and columns
        p <- p + conv1x1(p)
        added = W_up drop(GELU(p)) + b_up

    A ViT has tokens that lie on no grid: class, distillation and registers. Each of them is taken
    as an image of one pixel, whose neighbours are all zero padding, as Convpass (Jie and Deng 2022)
    does with the class token: it passes the middle of each kernel and nothing else. So every token
    is adapted by the same weights, and none reads another one across the edge of the grid.

    Args:
        width: channels d.
        hidden_dim: h, the channels of the convolutions.
    """  # noqa: D415 - a formula follows

    def __init__(self, width: int, hidden_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gain_norm = nn.Parameter(torch.full((width,), _NORM_GAIN))
        self.gain = nn.Parameter(torch.ones(width))
        self.down = nn.Linear(width, hidden_dim)
        self.depthwise = nn.ModuleList(
            nn.Conv2d(hidden_dim, hidden_dim, kernel, padding=kernel // 2, groups=hidden_dim)
            for kernel in _KERNELS
        )
        self.pointwise = nn.Conv2d(hidden_dim, hidden_dim, 1)
        self.up = nn.Linear(hidden_dim, width)

    def forward(
        self,
        x: Tensor,
        draws: torch.Generator | None = None,
        *,
        prefix: int,
        grid: tuple[int, int],
    ) -> Tensor:
        """Return what is added to the stream, in its shape.

        Args:
            x: (batch, rows, columns, d), or (batch, tokens, d) with the patches row by row.
            draws: as in `AdapterMethod.attach`.
            prefix: tokens in front of the patches. A block that is run for its class token alone
                gives that one only.
            grid: rows and columns of the patches.
        """
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        gain_norm, gain = self.gain_norm.to(x.dtype), self.gain.to(x.dtype)
        hidden = rounded_linear(
            rounded_norm(tokens, self.norm) * gain_norm + tokens * gain, self.down
        )
        hidden = hidden + self._mean_of_convolutions(hidden, prefix, grid)
        pointwise = self.pointwise.weight.flatten(1).to(x.dtype)
        assert self.pointwise.bias is not None, "built with one"
        hidden = hidden + functional.linear(hidden, pointwise, self.pointwise.bias.to(x.dtype))
        hidden = drop(functional.gelu(hidden), _DROPOUT, draws)
        return rounded_linear(hidden, self.up).reshape(x.shape)

    def _mean_of_convolutions(self, hidden: Tensor, prefix: int, grid: tuple[int, int]) -> Tensor:
        """Return the mean of the depth-wise convolutions of (batch, tokens, h), likewise.

        It is one convolution, by the mean of the kernels in a frame of zeros.
        """
        convolutions = cast(list[nn.Conv2d], list(self.depthwise))
        kernel = torch.stack([_frame(conv.weight) for conv in convolutions]).mean(0)
        bias = torch.stack([_bias(conv) for conv in convolutions]).mean(0)
        kernel, bias = kernel.to(hidden.dtype), bias.to(hidden.dtype)
        middle = kernel[:, 0, _LARGEST // 2, _LARGEST // 2]
        alone = hidden[:, :prefix] * middle + bias
        patches = hidden[:, prefix:].transpose(1, 2)
        if not patches.numel():
            return alone
        patches = patches.reshape(*patches.shape[:2], *grid)
        convolved = functional.conv2d(
            patches, kernel, bias, padding=_LARGEST // 2, groups=patches.shape[1]
        )
        return torch.cat((alone, convolved.flatten(2).transpose(1, 2)), dim=1)


class MonaBlock(nn.Module):
    """The two modules of a block."""

    def __init__(self, width: int, hidden_dim: int) -> None:
        super().__init__()
        self.after_attention = MonaModule(width, hidden_dim)
        self.after_mlp = MonaModule(width, hidden_dim)


class Mona(BlockMethod):
    """y = M_1(x + DropPath(attention)), z = M_2(y + DropPath(mlp branch)), M(x) = x + added(x).

    Weights and biases start as torch draws those of linear layers and convolutions, gains at 1e-6
    and 1, as in the paper's code. So W_up is not 0, and the network is not the pretrained one at
    the start.
    """

    allows_trimming = True  # the class token reads no patch outside of attention
    is_random = True

    def check(self, backbone: LoadedBackbone, spec: AdapterSpec) -> None:
        """Refuse networks without an attention branch, or whose tokens form no known grid."""
        blocks = backbone.blocks
        refuse_unless(
            all(block.attention_input is not None for block in blocks),
            spec.kind,
            backbone,
            "its blocks have no attention branch beside the MLP whose width is the MLP's",
        )
        refuse_unless(
            all(block.grid is not None for block in blocks),
            spec.kind,
            backbone,
            "its tokens have no known height and width",
        )

    def build_block(self, width: int, spec: AdapterSpec) -> nn.Module:
        """Return the two modules of one block."""
        return MonaBlock(width, spec.hidden_dim)

    def initialise(
        self,
        adapters: nn.Module,
        backbone: LoadedBackbone,  # noqa: ARG002 - nothing of it is needed
        generator: torch.Generator,
    ) -> None:
        """Draw weights and biases from U(-1/√n, 1/√n), n the inputs of one output."""
        for module in adapters.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                bound = module.weight[0].numel() ** -0.5
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                nn.init.uniform_(_bias(module), -bound, bound, generator=generator)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
            elif isinstance(module, MonaModule):
                nn.init.constant_(module.gain_norm, _NORM_GAIN)
                nn.init.ones_(module.gain)

    def attach_block(
        self,
        block: ResidualBlock,
        adapter: nn.Module,
        spec: AdapterSpec,  # noqa: ARG002 - this kind has no scale
        draws: torch.Generator | None,
    ) -> list[RemovableHandle]:
        """Hook the end of the attention branch and the block's output."""
        modules = cast(MonaBlock, adapter)
        assert block.grid is not None, "refused by `check`"
        place = {"prefix": block.prefix_tokens, "grid": block.grid}

        def after_attention(x: Tensor, branch: Tensor) -> Tensor:
            added: Tensor = modules.after_attention(x + branch, draws, **place)
            return branch + added

        def after_mlp(z: Tensor) -> Tensor:
            added: Tensor = modules.after_mlp(z, draws, **place)
            return z + added

        return [*change_attention_branch(block, after_attention), change_output(block, after_mlp)]


def _frame(kernel: Tensor) -> Tensor:
    """Put zeros around a square kernel (h, 1, k, k), up to the size of the largest."""
    return functional.pad(kernel, [(_LARGEST - kernel.shape[-1]) // 2] * 4)


def _bias(layer: nn.Linear | nn.Conv2d) -> Tensor:
    assert layer.bias is not None, "built with one"
    return layer.bias

"""Features of student and teacher compared through a learnt bridge (FitNets, Romero et al. 2015).

The paper's Table 4 names a feature loss without saying which; this one is a re-implementation of
FitNets on transformer blocks: a linear map from the student's width to the teacher's, trained with
the rest and thrown away afterwards.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from core.catalog.layers import match_layer
from core.catalog.methods import FeatureTokens
from core.errors import FieldError, InvalidError
from core.ml.adapters.base import initialise_linears
from core.ml.backbones.blocks import ResidualBlock
from core.ml.backbones.load import LoadedBackbone


class FeatureBridge(nn.Module):
    """D = mean over layers of mean((r_l(F_s) - F_t)²), with a linear r_l for each layer.

    Args:
        student: backbone of the student.
        teacher: backbone of the teacher.
        layers: indices of the student's blocks, from 0; None for the last. A block is compared
            with the teacher's block at the same share of the depth.
        tokens: which tokens are compared.
        seed: of the bridges' initial weights, N(0, 0.02²) with bias 0.

    Raises:
        InvalidError: a layer that the student does not have.
    """

    def __init__(
        self,
        student: LoadedBackbone,
        teacher: LoadedBackbone,
        *,
        layers: Sequence[int] | None,
        tokens: FeatureTokens,
        seed: int,
    ) -> None:
        super().__init__()
        depth = len(student.blocks)
        chosen = (depth - 1,) if layers is None else tuple(layers)
        beyond = [layer for layer in chosen if layer >= depth]
        if beyond:
            message = f"{student.name} has blocks 0 to {depth - 1}, not {beyond[0]}"
            field = FieldError("/method/distillation/layers", message, "out_of_range")
            raise InvalidError(message, fields=(field,))
        self.student_layers = chosen
        self.teacher_layers = tuple(match_layer(k, depth, len(teacher.blocks)) for k in chosen)
        self._tokens = tokens
        self._student_blocks = [student.blocks[k] for k in self.student_layers]
        self._teacher_blocks = [teacher.blocks[k] for k in self.teacher_layers]
        self._has_class_token = [_has_class_token(student), _has_class_token(teacher)]
        self.bridges = nn.ModuleList(
            nn.Linear(own.width, other.width)
            for own, other in zip(self._student_blocks, self._teacher_blocks, strict=True)
        )
        initialise_linears(self.bridges, torch.Generator().manual_seed(seed))
        self.to(student.device)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the loss of the hidden states of both networks, one tensor a layer.

        Raises:
            InvalidError: every token is to be compared and the networks have different numbers.
        """
        losses = []
        for index, bridge in enumerate(self.bridges):
            own = self._select(student[index], self._student_blocks[index], role=0)
            other = self._select(teacher[index], self._teacher_blocks[index], role=1)
            if own.shape[:-1] != other.shape[:-1]:
                message = (
                    f"the student has {own.shape[1]} tokens in this layer and the teacher "
                    f"{other.shape[1]}; compare the class token alone, with tokens 'cls'"
                )
                field = FieldError("/method/distillation/tokens", message, "incompatible_pair")
                raise InvalidError(message, fields=(field,))
            losses.append(functional.mse_loss(bridge(own), other))
        return torch.stack(losses).mean()

    def _select(self, hidden: Tensor, block: ResidualBlock, *, role: int) -> Tensor:
        """Return (batch, width), or (batch, tokens, width), in fp32."""
        tokens = as_tokens(hidden.float(), block)
        if self._tokens is FeatureTokens.ALL:
            return tokens
        return tokens[:, 0] if self._has_class_token[role] else tokens.mean(dim=1)


def as_tokens(hidden: Tensor, block: ResidualBlock) -> Tensor:
    """Return a block's output as (batch, tokens, width), whatever its layout."""
    if block.channels_first:
        return hidden.flatten(2).transpose(1, 2)
    return hidden.flatten(1, -2) if hidden.ndim > 3 else hidden  # noqa: PLR2004 - a grid


def _has_class_token(backbone: LoadedBackbone) -> bool:
    # Prefix tokens alone do not tell: some networks have registers and no class token.
    names = (name for name, _ in backbone.module.named_parameters())
    return any(name.rpartition(".")[2] == "cls_token" for name in names)

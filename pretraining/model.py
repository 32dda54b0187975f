"""A starter ViT with pretraining heads; the heads are thrown away afterwards."""

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from core.ml.backbones.starter import STARTER_STUDENT, STARTER_TEACHER
from pretraining.images.scenes import LABELS

NAMES = {"teacher": STARTER_TEACHER, "student": STARTER_STUDENT}

CATEGORY_SMOOTHING = 0.05
#: Weights of the losses beside category cross-entropy, whose weight is 1.
AUXILIARY_WEIGHT = 0.15
CLASS_WEIGHT = 2.0
PATCH_WEIGHT = 1.0


class Pretrainer(nn.Module):
    """Backbone, one linear head for all labels, one for each kind of dense target."""

    def __init__(self, role: str, class_targets: int, patch_targets: int) -> None:
        super().__init__()
        backbone = timm.create_model(NAMES[role], pretrained=False, num_classes=0)
        if not isinstance(backbone, VisionTransformer):
            raise TypeError(f"{NAMES[role]} is not a VisionTransformer")
        self.backbone = backbone
        width = backbone.embed_dim
        self.labels = nn.Linear(width, sum(LABELS.values()))
        self.whole = nn.Linear(width, class_targets)
        self.local = nn.Linear(width, patch_targets)

    def tokens(self, images: Tensor, kept: Tensor | None) -> Tensor:
        """Return normalised tokens (batch, 1 + patches, dim), class token first.

        Args:
            images: (batch, 3, 64, 64) in [-1, 1].
            kept: indices (batch, patches) of the patches to look at, or None for all 64.
        """
        backbone = self.backbone
        place, token = backbone.pos_embed, backbone.cls_token
        assert place is not None
        assert token is not None
        x = backbone.patch_embed(images) + place[:, 1:]
        if kept is not None:
            x = x.gather(1, kept[:, :, None].expand(-1, -1, x.shape[2]))
        first = (token + place[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([first.to(x.dtype), x], dim=1)
        normalised: Tensor = backbone.norm(backbone.blocks(x))
        return normalised

    def forward(
        self, images: Tensor, kept: Tensor | None, labels: Tensor, whole: Tensor, local: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total loss and its parts.

        Args:
            images: (batch, 3, 64, 64) in [-1, 1].
            kept: see `tokens`.
            labels: (batch, len(LABELS)); -1 where a label has no meaning.
            whole: (batch, class targets).
            local: (batch, 64, patch targets).
        """
        x = self.tokens(images, kept)
        logits = self.labels(x[:, 0]).float().split(list(LABELS.values()), dim=1)
        category = F.cross_entropy(logits[0], labels[:, 0], label_smoothing=CATEGORY_SMOOTHING)
        auxiliary = torch.stack(
            [
                F.cross_entropy(logits[k], labels[:, k], ignore_index=-1)
                for k in range(1, len(logits))
            ]
        ).sum()
        class_error = F.mse_loss(self.whole(x[:, 0]).float(), whole)
        if kept is not None:
            local = local.gather(1, kept[:, :, None].expand(-1, -1, local.shape[2]))
        patch_error = F.mse_loss(self.local(x[:, 1:]).float(), local)
        total = (
            category
            + AUXILIARY_WEIGHT * auxiliary
            + CLASS_WEIGHT * class_error
            + PATCH_WEIGHT * patch_error
        )
        parts = {"category": category, "auxiliary": auxiliary}
        parts |= {"class": class_error, "patch": patch_error}
        parts["accuracy"] = (logits[0].argmax(dim=1) == labels[:, 0]).float().mean()
        return total, {name: part.detach() for name, part in parts.items()}

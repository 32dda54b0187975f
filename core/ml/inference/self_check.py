"""Try a bank on its network before it answers anybody."""

from contextlib import ExitStack

import torch
from torch import Tensor

from core.catalog.methods import AdapterKind, Precision
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from core.ml.backbones.load import LoadedBackbone
from core.ml.backbones.normalise import normalise_images
from core.ml.export.certificate import TOLERANCES, build_golden_images
from core.ml.inference.bank import Bank

_SEED = 0
_SCALE = 0.5
#: Moves every weight of a new adapter, many of which begin at 0, without blowing the network up.
_NOISE_STD = 0.02


def golden_batch(backbone: LoadedBackbone) -> Tensor:
    """Return the images of certificates as the network reads them, on its device."""
    images = torch.from_numpy(build_golden_images(backbone.image_px)).to(backbone.device)
    return normalise_images(images, backbone)


def is_exact(bank: Bank, backbone: LoadedBackbone, kind: AdapterKind, bucket: int) -> bool:
    """Say whether a mixed batch gives the features of a random model and of the bare network.

    The network must be at rest, with nothing attached to it. The bank is left as it was.
    """
    images = golden_batch(backbone)
    model = _build_model(backbone, kind, bucket)
    with torch.no_grad():
        wanted = torch.stack((backbone.module(images).float(), model.features(images)))
        slot = bank.take(model.spec, {n: t.cpu() for n, t in model.state_dict().items()})
        try:
            with ExitStack() as stack:
                bank.mount(stack)
                mixed = [slot if image % 2 else 0 for image in range(len(images))]
                turned = [0 if image % 2 else slot for image in range(len(images))]
                given = [bank.run(slots, images).float() for slots in (mixed, turned)]
        finally:
            bank.slots.give_back(slot)
    return all(
        _agree(given[turn][image], wanted[(image + turn) % 2][image], backbone)
        for turn in range(2)
        for image in range(len(images))
    )


def _build_model(backbone: LoadedBackbone, kind: AdapterKind, bucket: int) -> AdaptedModel:
    model = AdaptedModel(backbone, AdapterSpec(kind, bucket, _SCALE), 1, seed=_SEED)
    generator = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_((_NOISE_STD * noise).to(parameter.device))
    return model


def _agree(given: Tensor, wanted: Tensor, backbone: LoadedBackbone) -> bool:
    precision = Precision.FP32 if backbone.dtype == torch.float32 else Precision.BF16
    allowed = TOLERANCES[precision] * max(1.0, float(wanted.abs().max()))
    return bool((given - wanted).abs().max() <= allowed)

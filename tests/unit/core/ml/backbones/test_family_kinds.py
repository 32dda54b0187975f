"""Every kind of adapter in every family: refused alike by catalog and builder, or learning."""

import pytest
import torch

from core.catalog.adapters import adapter_parameters, find_refusal
from core.catalog.backbones import _read_row
from core.catalog.methods import AdapterKind
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec, UnsupportedAdapterError
from core.ml.backbones.digest import compute_tensors_sha256
from core.ml.backbones.load import wrap_backbone
from core.ml.backbones.write_facts import describe_network

#: Kinds that every family takes.
EVERYWHERE = {
    AdapterKind.SEQUENTIAL,
    AdapterKind.PARALLEL,
    AdapterKind.ADAPTFORMER,
    AdapterKind.ADAPTER_PLUS,
    AdapterKind.BITFIT,
    AdapterKind.MOSA,
    AdapterKind.RES_ADAPTER,
    AdapterKind.LINEAR_PROBE,
    AdapterKind.FULL,
}
LORA, SSF, PS, MONA = (AdapterKind(k) for k in ("lora", "ssf", "parallel_shared", "mona"))
ARC, REPADAPTER, VPT = (AdapterKind(k) for k in ("arc", "repadapter", "vpt_deep"))
ALL = {LORA, SSF, PS, MONA, ARC, REPADAPTER, VPT}
#: What each family takes beside them, by reading its code.
FURTHER = {
    "vit": ALL,
    "vit_post_norm": ALL - {ARC, REPADAPTER},
    "aimv2": ALL - {SSF, ARC, REPADAPTER},  # its MLP is a SwiGLU
    "naflex": ALL,
    "beit": {PS, MONA},  # qkv is applied by hand
    "eva02": {PS, MONA},  # three layers instead of one
    "dinov3": ALL - {VPT},
    "swin": ALL - {VPT},
    "swinv2": {PS, MONA},
    "pvtv2": {PS, MONA},
    "twins_svt": {PS, MONA},
    "davit": {LORA, PS, MONA, ARC, REPADAPTER},  # a stem of several layers
    "maxvit": {LORA, PS, MONA, ARC, REPADAPTER},
    "maxvit_nchw": {PS, MONA},
    "hiera": {LORA, SSF},
    "mvitv2": {LORA, SSF},
    "convnext": set(),
}


@pytest.fixture(scope="module")
def backbone(network, family):
    return wrap_backbone(network.float(), f"tiny_{family}")


@pytest.fixture(scope="module")
def images(expected):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 3, expected.image_px, expected.image_px, generator=generator)


@pytest.mark.parametrize("kind", list(AdapterKind))
@pytest.mark.parametrize("family", FURTHER, scope="module")
def test_is_refused_with_a_reason_or_learns(backbone, images, family, kind):
    facts = _read_row(backbone.name, describe_network(backbone.module))
    refusal = find_refusal(kind, facts)
    spec = AdapterSpec(kind, 4)
    assert (refusal is None) == (kind in EVERYWHERE | FURTHER[family])
    if refusal is not None:
        assert refusal.startswith(f"{kind.value} cannot be put into {facts.family}")
        with pytest.raises(UnsupportedAdapterError, match=f"{kind.value} cannot .*{facts.family}"):
            AdaptedModel(backbone, spec, 3, seed=0)
        return
    before = compute_tensors_sha256(backbone.module.state_dict())
    model = AdaptedModel(backbone, spec, 3, seed=0)
    trainable = model.trainable_parameters()
    adapters = {name: p for name, p in trainable.items() if not name.startswith("head.")}
    assert sum(p.numel() for p in adapters.values()) == adapter_parameters(facts, kind, 4)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        plain = model(images)
        for parameter in adapters.values():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    logits = model(images)
    torch.autograd.backward(logits.square().sum())
    assert torch.isfinite(logits).all()
    if adapters:
        assert (logits - plain).abs().max() > 1e-5
    silent = {name for name, p in trainable.items() if p.grad is None or not p.grad.any()}
    assert silent == set()
    assert compute_tensors_sha256(backbone.module.state_dict()) == before

"""What every kind of adapter promises, on every family that it can be put into."""

import re

import pytest
import safetensors.torch
import torch

from core.catalog.adapters import adapter_parameters, find_refusal
from core.catalog.methods import AdapterKind, Precision
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec, UnsupportedAdapterError
from core.ml.adapters.drop_path import sample_drop_path
from core.ml.adapters.registry import ADAPTER_METHODS
from core.ml.backbones.digest import compute_tensors_sha256
from core.ml.export.bundle import ADAPTER_FILE, CONFIG_FILE, parse_bundle, save_bundle

K = AdapterKind
KINDS = list(ADAPTER_METHODS)
FAMILIES = ["vit", "vit_avg", "swin", "swinv2"]
CLASSES = 3

#: Why a kind has no place in a family.
REFUSED = {
    (K.VPT_DEEP, "swin"): "no place for further tokens",
    (K.VPT_DEEP, "swinv2"): "no place for further tokens",
    (K.LORA, "swinv2"): "queries, keys and values",
    (K.SSF, "swinv2"): "cannot all be hooked",
    (K.ARC, "swinv2"): "no norm in front of both attention and MLP",
    (K.REPADAPTER, "swinv2"): "no norm in front of both attention and MLP",
}
SERVED = [(kind, family) for kind in KINDS for family in FAMILIES if (kind, family) not in REFUSED]
every_pair = pytest.mark.parametrize(
    ("kind", "family"), SERVED, ids=[f"{kind.value}-{family}" for kind, family in SERVED]
)

#: Kinds with which the network is the pretrained one at the start.
IDENTITY = {
    K.ADAPTFORMER,
    K.LORA,
    K.BITFIT,
    K.REPADAPTER,
    K.MOSA,
    K.LINEAR_PROBE,
    K.FULL,
}

_BOTTLENECK = r"adapters\.\d+\.(down|up)\.(weight|bias)"
#: Names of everything trainable but the head.
NAMES = {
    K.SEQUENTIAL: _BOTTLENECK,
    K.PARALLEL: _BOTTLENECK,
    K.PARALLEL_SHARED: _BOTTLENECK,
    K.ADAPTFORMER: _BOTTLENECK,
    K.RES_ADAPTER: _BOTTLENECK,
    K.ADAPTER_PLUS: rf"{_BOTTLENECK}|adapters\.\d+\.scale",
    K.MOSA: rf"{_BOTTLENECK}|adapters\.\d+\.norm\.(weight|bias)",
    K.VPT_DEEP: r"adapters\.\d+\.tokens",
    K.MONA: r"adapters\.\d+\.after_(attention|mlp)\.(gain_norm|gain"
    r"|(norm|down|up|pointwise|depthwise\.[012])\.(weight|bias))",
    K.BITFIT: r"adapters\..+bias",
    K.SSF: r"adapters\..+\.(scale|shift)",
}


@pytest.fixture
def backbone(tiny_backbone, family):
    return tiny_backbone(family)


@pytest.fixture
def model(backbone, kind):
    return AdaptedModel(backbone, AdapterSpec(kind, 4, 0.5), CLASSES, seed=1)


def start_draws(seed=5):
    return torch.Generator().manual_seed(seed)


def take_steps(model, images, steps=3):
    """Train on a random linear function of the logits, with all random draws of training."""
    optimizer = torch.optim.AdamW(model.trainable_parameters().values(), lr=1e-2)
    generator = torch.Generator().manual_seed(7)
    target = torch.randn(len(images), CLASSES, generator=generator)
    for step in range(steps):
        keep = sample_drop_path(0.3, len(model.backbone.blocks), len(images), generator)
        logits = model(images, keep, start_draws(step))
        optimizer.zero_grad()
        torch.autograd.backward((logits * target).sum())
        optimizer.step()
    return model


def photograph(backbone):
    """Everything about a network that an adapter could change."""
    module = backbone.module
    parts = dict(module.named_modules())
    return {
        "weights": compute_tensors_sha256(module.state_dict()),
        "buffers": {name: buffer.clone() for name, buffer in module.named_buffers()},
        "tensors": {name: id(tensor) for name, tensor in module.named_parameters()},
        "gradients": [tensor.grad for tensor in module.parameters()],
        "trainable": [tensor.requires_grad for tensor in module.parameters()],
        "training": {name: part.training for name, part in parts.items()},
        "hooks": {
            name: len(part._forward_hooks)
            + len(part._forward_pre_hooks)
            + len(part._backward_hooks)
            + len(part._backward_pre_hooks)
            for name, part in parts.items()
        },
        "attributes": {name: set(part.__dict__) for name, part in parts.items()},
        "classes": {name: type(part) for name, part in parts.items()},
        "sha256": backbone.weights_sha256,
    }


def assert_same(first, second):
    buffers = first.pop("buffers"), second.pop("buffers")
    assert buffers[0].keys() == buffers[1].keys()
    assert all(torch.equal(buffers[0][name], buffers[1][name]) for name in buffers[0])
    assert first == second


def test_every_kind_is_here():
    assert set(KINDS) == set(AdapterKind)
    assert all(kind in KINDS for kind, _ in REFUSED)


class TestRefusal:
    @pytest.mark.parametrize(
        ("kind", "family"), REFUSED, ids=[f"{kind.value}-{family}" for kind, family in REFUSED]
    )
    def test_names_kind_family_and_reason(self, backbone, kind, family, read_facts):
        with pytest.raises(UnsupportedAdapterError, match=REFUSED[kind, family]) as refusal:
            AdaptedModel(backbone, AdapterSpec(kind, 4), CLASSES, seed=1)
        message = str(refusal.value)
        assert refusal.value.code == "unsupported_adapter"
        assert kind.value in message
        assert type(backbone.module).__name__ in message
        assert message == find_refusal(kind, read_facts(backbone))

    @every_pair
    def test_is_not_expected_elsewhere(self, backbone, kind, read_facts):
        assert find_refusal(kind, read_facts(backbone)) is None


@every_pair
class TestParameters:
    def test_are_as_many_as_the_catalog_says(self, model, kind, read_facts):
        count = sum(p.numel() for p in model.trainable_parameters().values())
        adapters = adapter_parameters(read_facts(model.backbone), kind, model.spec.hidden_dim)
        assert count == adapters + CLASSES * (24 + 1)

    def test_are_fp32_and_the_only_ones_that_learn(self, model, kind):
        own = model.trainable_parameters()
        for name, parameter in own.items():
            assert parameter.requires_grad, name
            assert parameter.dtype == torch.float32, name
            assert torch.isfinite(parameter).all(), name
        assert not any(p.requires_grad for p in model.backbone.module.parameters())
        shared = {p.data_ptr() for p in model.backbone.module.parameters()}
        assert not shared & {p.data_ptr() for p in own.values()}
        assert set(model.state_dict()) == set(own)

    def test_have_their_names(self, model, kind):
        names = set(model.trainable_parameters()) - {"head.weight", "head.bias"}
        assert (not names) == (kind is K.LINEAR_PROBE)
        pattern = NAMES.get(kind, r"adapters\..+")
        assert all(re.fullmatch(pattern, name) for name in names)


@every_pair
class TestBackbone:
    def test_is_unchanged_by_all_that_a_model_does(self, backbone, kind, read_images):
        images = read_images()
        before, plain = photograph(backbone), backbone.module(images)
        model = AdaptedModel(backbone, AdapterSpec(kind, 4, 0.5), CLASSES, seed=1)
        with torch.no_grad():
            model(images)
            model.forward_with_hidden(images, layers=(0,), all_tokens=True)
        take_steps(model, images)
        with pytest.raises(AssertionError):
            model(torch.zeros(1, 3, 40, 40))  # timm checks the size
        del model
        assert_same(before, photograph(backbone))
        assert torch.equal(backbone.module(images), plain)

    def test_at_the_start_is_there_where_promised(self, model, kind, read_images):
        images = read_images()
        with torch.no_grad():
            features, plain = model.features(images), model.backbone.module(images)
        difference = float((features - plain).abs().max())
        assert (difference < 2e-6) if kind in IDENTITY else (difference > 1e-4)


@every_pair
class TestState:
    def test_goes_through_a_file(self, model, kind, read_images):
        images = read_images()
        take_steps(model, images)
        data = safetensors.torch.save(model.state_dict())
        other = AdaptedModel(model.backbone, model.spec, CLASSES, seed=9)
        other.load_adapter_state(safetensors.torch.load(data))
        assert safetensors.torch.save(other.state_dict()) == data
        with torch.no_grad():
            assert torch.equal(other(images), model(images))

    def test_exported_is_the_live_model(self, model, kind, read_images, tmp_path):
        images = read_images()
        take_steps(model, images)
        save_bundle(tmp_path, model, classes=["a", "b", "c"], recipe={}, metrics={}, versions={})
        files = ((tmp_path / name).read_bytes() for name in (ADAPTER_FILE, CONFIG_FILE))
        bundle = parse_bundle(*files)
        assert bundle.spec == model.spec
        other = AdaptedModel(model.backbone, bundle.spec, len(bundle.classes), seed=9)
        other.load_adapter_state(bundle.state)
        with torch.no_grad():
            assert torch.equal(other(images), model(images))
            assert torch.equal(other.features(images), model.features(images))

    def test_depends_on_the_seed_alone(self, backbone, kind):
        """Kinds that draw nothing at the start still have a random head."""
        states = []
        for seed, noise in ((1, 0), (1, 1), (2, 0)):
            torch.manual_seed(noise)
            model = AdaptedModel(backbone, AdapterSpec(kind, 4, 0.5), CLASSES, seed=seed)
            states.append(safetensors.torch.save(model.state_dict()))
        assert states[0] == states[1]
        assert states[0] != states[2]


@every_pair
class TestTraining:
    def test_reaches_every_tensor(self, model, kind, read_images):
        images = read_images()
        take_steps(model, images, steps=4)  # off the zeros at which some start
        model.zero_grad()
        weights = torch.randn(len(images), CLASSES, generator=torch.Generator().manual_seed(8))
        for seed in range(4):  # of MoSA's experts one is drawn at a time
            logits = model(images, None, start_draws(seed))
            torch.autograd.backward((logits * weights).sum())
        for name, parameter in model.trainable_parameters().items():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.any(), name

    def test_draws_from_its_generator_alone(self, model, kind, read_images):
        images = read_images()
        take_steps(model, images)
        draws, fresh = start_draws(), start_draws()
        torch.manual_seed(0)
        before = torch.get_rng_state()
        with torch.no_grad():
            first, second = model(images, None, draws), model(images, None, draws)
            again = model(images, None, start_draws())
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(first, again)
        is_random = ADAPTER_METHODS[kind].is_random
        assert torch.equal(draws.get_state(), fresh.get_state()) is not is_random
        assert torch.equal(first, second) is not is_random

    def test_draws_nothing_in_evaluation(self, model, kind, read_images):
        images = read_images()
        take_steps(model, images)
        model.train()  # the module's flag decides nothing
        with torch.no_grad():
            first = model(images)
            model.eval()
            torch.manual_seed(4)
            assert torch.equal(model(images), first)

    def test_works_on_bf16(self, backbone, kind, read_images):
        model = AdaptedModel(backbone, AdapterSpec(kind, 4, 0.5), CLASSES, seed=1)
        exact = model(read_images()).detach()
        backbone.place(device=torch.device("cpu"), precision=Precision.BF16)
        images = read_images().bfloat16()
        logits = model(images, None, start_draws())
        assert logits.dtype == torch.float32
        torch.autograd.backward(logits.square().sum())
        for name, parameter in model.trainable_parameters().items():
            assert parameter.dtype == parameter.grad.dtype == torch.float32, name
            assert torch.isfinite(parameter.grad).all(), name
        with torch.no_grad():
            assert torch.allclose(model(images), exact, rtol=0.1, atol=0.1)

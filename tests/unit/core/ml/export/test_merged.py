"""Merged checkpoints: plain timm networks that answer as the adapted models do."""

import json
import logging
import subprocess
import sys

import pytest
import safetensors
import safetensors.torch
import timm
import torch

from core.catalog.adapters import ADAPTERS
from core.catalog.methods import AdapterKind, Precision
from core.errors import InvalidError
from core.ml.adapters.adapted import AdaptedModel, AdapterStateError
from core.ml.adapters.base import AdapterSpec, UnsupportedAdapterError
from core.ml.adapters.registry import ADAPTER_METHODS
from core.ml.backbones.digest import compute_tensors_sha256
from core.ml.backbones.load import WeightsMismatchError, load_backbone, wrap_backbone
from core.ml.backbones.starter import STARTER_STUDENT
from core.ml.export.bundle import load_bundle, save_bundle
from core.ml.export.merged import (
    METADATA_KEY,
    build_merged,
    encode_merged,
    main,
    merge_bundle,
    save_merged,
)

K = AdapterKind
MERGEABLE = [kind for kind, facts in ADAPTERS.items() if facts.mergeable]
OTHERS = [kind for kind in ADAPTER_METHODS if kind not in MERGEABLE]
CLASSES = ["daisy", "rose", "Löwenzahn"]
PX = 32

_VIT = {"img_size": PX, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
_SWIN = {
    "img_size": PX,
    "patch_size": 2,
    "window_size": 4,
    "embed_dim": 12,
    "depths": (2, 2),
    "num_heads": (2, 4),
}
#: Small networks that timm builds by name: its name and arguments.
NETWORKS = {
    "vit": ("vit_tiny_patch16_224", _VIT | {"init_values": 0.5}),
    "vit_avg": ("vit_tiny_patch16_224", _VIT | {"global_pool": "avg"}),
    "swin": ("swin_tiny_patch4_window7_224", _SWIN),
    "two_heads": ("deit_tiny_distilled_patch16_224", _VIT),
    "post_norm": ("swinv2_tiny_window8_256", _SWIN),
    "no_qkv_bias": ("vit_small_patch16_dinov3", _VIT | {"init_values": 0.5}),
    "convolutions": ("convnext_tiny", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}),
    "padded": ("swin_tiny_patch4_window7_224", _SWIN | {"window_size": 3}),
}


def build_network(family, num_classes, seed=0):
    """A network that timm itself makes, every weight off its initial value."""
    name, options = NETWORKS[family]
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = timm.create_model(name, num_classes=num_classes, **options).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    network.pretrained_cfg = {"input_size": (3, PX, PX), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return network


def build_model(backbone, kind, size=0.1):
    """A model whose adapters are far from their initial values."""
    model = AdaptedModel(backbone, AdapterSpec(kind, 4, 0.7), len(CLASSES), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def build():
    def make(family, kind):
        return build_model(wrap_backbone(build_network(family, 0), f"tiny_{family}"), kind)

    return make


def read_images(px=PX):
    return torch.randn(4, 3, px, px, generator=torch.Generator().manual_seed(3))


def assert_answers_alike(network, state, model, px=PX):
    network.load_state_dict(state, strict=True)
    with torch.no_grad():
        merged, adapted = network.eval()(read_images(px)), model(read_images(px))
        bare = model.head(model.backbone.module(read_images(px)))
    assert (merged - adapted).abs().max() < 1e-5
    if model.spec.kind is not K.LINEAR_PROBE:
        assert (adapted - bare).abs().max() > 1e-3  # there was something to merge


class TestEquality:
    @pytest.mark.parametrize("kind", MERGEABLE, ids=lambda kind: kind.value)
    @pytest.mark.parametrize("family", ["vit", "vit_avg", "swin", "two_heads"])
    def test_plain_network_gives_the_same_logits(self, build, family, kind):
        model = build(family, kind)
        assert_answers_alike(build_network(family, 3, seed=9), build_merged(model), model)

    @pytest.mark.parametrize(
        ("family", "kind"),
        [
            ("post_norm", K.BITFIT),  # biases that are no part of a layer
            ("post_norm", K.FULL),
            ("no_qkv_bias", K.LORA),
            ("no_qkv_bias", K.BITFIT),
            ("convolutions", K.BITFIT),
            ("convolutions", K.FULL),
            ("padded", K.LORA),
            ("padded", K.SSF),
        ],
    )
    def test_in_other_families(self, build, family, kind):
        model = build(family, kind)
        assert_answers_alike(build_network(family, 3, seed=9), build_merged(model), model)

    @pytest.mark.parametrize("kind", MERGEABLE, ids=lambda kind: kind.value)
    def test_starter_student(self, kind):
        model = build_model(load_backbone(STARTER_STUDENT), kind, size=0.03)
        network = timm.create_model(STARTER_STUDENT, num_classes=3)
        assert_answers_alike(network, build_merged(model), model, px=64)

    def test_leaves_model_and_network_alone(self, build):
        model = build("swin", K.SSF)
        module = model.backbone.module
        before = compute_tensors_sha256(module.state_dict())
        own = compute_tensors_sha256(model.state_dict())
        state = build_merged(model)
        assert compute_tensors_sha256(module.state_dict()) == before
        assert compute_tensors_sha256(model.state_dict()) == own
        assert module.num_classes == 0
        assert not any(part._forward_hooks for part in module.modules())
        kept = {p.data_ptr() for p in module.state_dict().values()}
        assert not kept & {tensor.data_ptr() for tensor in state.values()}


class TestRefusal:
    @pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: kind.value)
    def test_kinds_with_a_non_linearity(self, build, kind):
        with pytest.raises(UnsupportedAdapterError, match=kind.value) as refusal:
            build_merged(build("vit", kind))
        assert refusal.value.code == "not_mergeable"

    @pytest.mark.parametrize(
        ("family", "kind", "reason"),
        [
            ("no_qkv_bias", K.SSF, r"blocks\.0\.attn\.qkv has no bias"),
            ("no_qkv_bias", K.ARC, r"blocks\.0\.attn\.qkv has no bias"),
            ("no_qkv_bias", K.REPADAPTER, r"blocks\.0\.attn\.qkv has no bias"),
            ("padded", K.ARC, r"layers\.0\.blocks\.0 pads its tokens"),
            ("padded", K.REPADAPTER, r"layers\.0\.blocks\.0 pads its tokens"),
        ],
    )
    def test_networks_without_a_place_for_a_part(self, build, family, kind, reason):
        with pytest.raises(UnsupportedAdapterError, match=reason) as refusal:
            build_merged(build(family, kind))
        assert refusal.value.code == "not_mergeable"

    def test_padding_is_a_reason(self, build, monkeypatch):
        """Without the refusal, the merged network would answer otherwise."""
        monkeypatch.setattr("core.ml.adapters.arc.refuse_padding", lambda *_: None)
        model = build("padded", K.ARC)
        network = build_network("padded", 3)
        network.load_state_dict(build_merged(model))
        with torch.no_grad():
            assert (network(read_images()) - model(read_images())).abs().max() > 1e-4

    def test_weights_that_were_rounded(self, build):
        model = build("vit", K.LORA)
        model.backbone.place(device=torch.device("cpu"), precision=Precision.BF16)
        with pytest.raises(InvalidError, match="fp32"):
            build_merged(model)


class TestFile:
    def test_says_what_to_build_and_how_to_prepare_images(self, build, tmp_path):
        model = build("vit", K.LORA)
        path = tmp_path / "new" / "model.safetensors"
        save_merged(path, model, CLASSES)
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        assert set(metadata) == {METADATA_KEY}
        fields = json.loads(metadata[METADATA_KEY])
        assert fields["architecture"] == "tiny_vit"
        assert fields["num_classes"] == 3
        assert fields["label_names"] == CLASSES
        assert fields["pretrained_cfg"]["input_size"] == [3, PX, PX]
        assert fields["pretrained_cfg"]["crop_mode"] == "squash"
        assert fields["merged_from"] == {
            "adapter": "lora",
            "weights_sha256": model.backbone.weights_sha256,
        }
        assert [entry.name for entry in path.parent.iterdir()] == ["model.safetensors"]
        network = build_network("vit", 3, seed=9)
        assert_answers_alike(network, safetensors.torch.load_file(path), model)

    def test_names_the_licence_of_the_weights(self):
        model = build_model(load_backbone(STARTER_STUDENT), K.LINEAR_PROBE)
        data = encode_merged(build_merged(model), model, CLASSES)
        length = int.from_bytes(data[:8], "little")
        fields = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][METADATA_KEY])
        assert fields["pretrained_cfg"]["license"] == "apache-2.0"

    def test_class_names_that_do_not_fit(self, build, tmp_path):
        with pytest.raises(InvalidError, match="2 class names do not fit 3 logits"):
            save_merged(tmp_path / "m.safetensors", build("vit", K.LORA), CLASSES[:2])
        assert not list(tmp_path.iterdir())


class TestBundle:
    @pytest.fixture
    def bundle(self, build, tmp_path):
        self.model = build("swin", K.REPADAPTER)
        parts = {"recipe": {}, "metrics": {}, "versions": {}}
        save_bundle(tmp_path, self.model, classes=CLASSES, **parts)
        return load_bundle(tmp_path)

    def test_gives_what_the_live_model_gives(self, bundle):
        state = merge_bundle(bundle, self.model.backbone)
        live = build_merged(self.model)
        assert state.keys() == live.keys()
        assert all(torch.equal(state[name], live[name]) for name in live)
        assert encode_merged(state, bundle, bundle.classes) == encode_merged(
            live, self.model, CLASSES
        )

    def test_refuses_other_weights(self, bundle):
        other = wrap_backbone(build_network("swin", 0, seed=1), "tiny_swin")
        with pytest.raises(WeightsMismatchError, match="install the file"):
            merge_bundle(bundle, other)

    def test_refuses_tensors_that_fit_another_network(self, build, tmp_path):
        """Names and shapes of `full` are known by its network alone, so they are checked there."""
        model = build("vit", K.FULL)
        parts = {"recipe": {}, "metrics": {}, "versions": {}}
        save_bundle(tmp_path, model, classes=CLASSES, **parts)
        path = tmp_path / "adapter.safetensors"
        tensors = safetensors.torch.load_file(path)
        del tensors["adapters.blocks.1.attn.qkv.bias"]
        path.write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
        with pytest.raises(AdapterStateError, match=r"no adapters\.blocks\.1\.attn\.qkv\.bias"):
            merge_bundle(load_bundle(tmp_path), model.backbone)


class TestCommand:
    @pytest.fixture
    def folder(self, tmp_path):
        self.model = build_model(load_backbone(STARTER_STUDENT), K.LORA)
        parts = {"recipe": {}, "metrics": {}, "versions": {}}
        save_bundle(tmp_path / "bundle", self.model, classes=CLASSES, **parts)
        return tmp_path

    @pytest.mark.slow
    def test_writes_the_same_bytes_in_every_process(self, folder):
        command = [sys.executable, "-m", "core.ml.export.merged", str(folder / "bundle")]
        out = folder / "model.safetensors"
        subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
        data = encode_merged(build_merged(self.model), self.model, CLASSES)
        assert out.read_bytes() == data
        network = timm.create_model(STARTER_STUDENT, num_classes=3)
        network.load_state_dict(safetensors.torch.load(data), strict=True)

    def test_says_what_was_written(self, folder, caplog):
        caplog.set_level(logging.INFO)
        out = folder / "model.safetensors"
        assert main([str(folder / "bundle"), "--out", str(out)]) == 0
        assert out.is_file()
        assert "create_model('vit_starter_student_patch8_64', num_classes=3)" in caplog.text

    def test_asks_no_hub_for_a_network_that_cannot_be_merged_into(self, build, tmp_path, caplog):
        model = build("vit", K.PARALLEL)  # of a name that timm does not know
        parts = {"recipe": {}, "metrics": {}, "versions": {}}
        save_bundle(tmp_path, model, classes=CLASSES, **parts)
        assert main([str(tmp_path), "--out", str(tmp_path / "model.safetensors")]) == 1
        assert "this parallel cannot be merged into the backbone" in caplog.text
        assert "repadapter" in caplog.text

    def test_says_what_is_wrong(self, folder, caplog):
        out = folder / "model.safetensors"
        assert main([str(folder), "--out", str(out)]) == 1
        assert "the bundle has no adapter.safetensors" in caplog.text
        assert not out.exists()

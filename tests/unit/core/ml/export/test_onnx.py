"""ONNX files: they answer as the adapted models do, whatever the batch."""

import json
import logging

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from core.catalog.adapters import ADAPTERS
from core.catalog.methods import AdapterKind
from core.errors import InvalidError, TooLargeError
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec, UnsupportedAdapterError
from core.ml.backbones.digest import compute_tensors_sha256
from core.ml.backbones.load import load_backbone
from core.ml.backbones.starter import STARTER_STUDENT
from core.ml.export import onnx as module
from core.ml.export.bundle import load_bundle, save_bundle
from core.ml.export.onnx import OnnxMismatchError, build_onnx, export_bundle, main

CLASSES = ["daisy", "rose", "Löwenzahn"]
#: What users have most, on every family; the others on one: an export takes seconds.
COMMON = (AdapterKind.SEQUENTIAL, AdapterKind.PARALLEL, AdapterKind.LORA)


def build_model(backbone, kind):
    """A model whose adapters are far from their initial values."""
    model = AdaptedModel(backbone, AdapterSpec(kind, 4, 0.7), len(CLASSES), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.requires_grad_(requires_grad=False)


def answer(data, images):
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"pixel_values": images})
    return logits


def assert_answers_alike(data, model):
    # Batches and images of its own: not those that the exporter has seen.
    for batch in (1, 5):
        images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch + 50))
        with torch.no_grad():
            expected = model(images).numpy()
            bare = model.head(model.backbone.module(images)).numpy()
        assert np.abs(answer(data, images.numpy()) - expected).max() < 1e-5
        if model.spec.kind is not AdapterKind.LINEAR_PROBE:
            assert np.abs(expected - bare).max() > 1e-4  # the adapters are in it


class TestEquality:
    @pytest.mark.parametrize("kind", list(ADAPTERS), ids=lambda kind: kind.value)
    def test_every_kind_in_a_vit(self, tiny_backbone, kind):
        model = build_model(tiny_backbone("vit", depth=1), kind)
        exported = build_onnx(model)
        assert exported.max_delta < 1e-5
        assert_answers_alike(exported.data, model)

    @pytest.mark.parametrize("kind", COMMON, ids=lambda kind: kind.value)
    @pytest.mark.parametrize("family", ["vit_avg", "swin"])
    def test_other_families(self, tiny_backbone, family, kind):
        model = build_model(tiny_backbone(family, depth=1), kind)
        assert_answers_alike(build_onnx(model).data, model)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "kind", [kind for kind in ADAPTERS if kind not in COMMON], ids=lambda kind: kind.value
    )
    @pytest.mark.parametrize("family", ["vit_avg", "swin"])
    def test_other_families_and_rarer_kinds(self, tiny_backbone, family, kind):
        try:
            model = build_model(tiny_backbone(family, depth=1), kind)
        except UnsupportedAdapterError:
            assert (family, kind) == ("swin", AdapterKind.VPT_DEEP)
            return
        assert_answers_alike(build_onnx(model).data, model)


@pytest.fixture
def folder(tmp_path):
    """A stored model of the starter student."""
    model = build_model(load_backbone(STARTER_STUDENT), AdapterKind.PARALLEL)
    save_bundle(tmp_path / "b", model, classes=CLASSES, recipe={}, metrics={}, versions={})
    return tmp_path / "b"


class TestFile:
    def test_says_what_it_is_and_nothing_of_where_it_was_made(self, folder):
        bundle = load_bundle(folder)
        exported = export_bundle(bundle)
        graph = onnx.load_from_string(exported.data)
        onnx.checker.check_model(graph)
        entries = {entry.key: entry.value for entry in graph.metadata_props}
        assert json.loads(entries["classes"]) == CLASSES
        preprocessing = json.loads(entries["preprocessing"])
        assert (preprocessing["image_px"], preprocessing["mean"]) == (64, [0.5, 0.5, 0.5])
        assert entries["adapter_sha256"] == bundle.sha256
        assert entries["backbone_weights_sha256"] == bundle.backbone.weights_sha256
        assert float(entries["max_abs_delta"]) == pytest.approx(exported.max_delta, rel=1e-3)
        for trace in (b".py", b"/core/ml", b"site-packages"):
            assert trace not in exported.data

    def test_is_the_same_every_time_and_leaves_the_model_alone(self, tiny_backbone):
        model = build_model(tiny_backbone("vit", depth=1), AdapterKind.PARALLEL)
        before = compute_tensors_sha256(model.backbone.module.state_dict())
        first, second = (
            build_onnx(model, {"b": "1", "a": "2"}),
            build_onnx(model, {"a": "2", "b": "1"}),
        )
        assert first.data == second.data
        assert compute_tensors_sha256(model.backbone.module.state_dict()) == before
        assert not any(part._forward_hooks for part in model.backbone.module.modules())


class TestRefusals:
    def test_a_backbone_that_was_cast(self, tiny_backbone):
        model = build_model(tiny_backbone("vit", depth=1), AdapterKind.PARALLEL)
        model.backbone.module.bfloat16()
        with pytest.raises(InvalidError, match="fp32"):
            build_onnx(model)

    def test_weights_beyond_the_format(self, tiny_backbone, monkeypatch):
        monkeypatch.setattr(module, "_MAX_WEIGHT_BYTES", 1000)
        with pytest.raises(TooLargeError, match="bytes of weights"):
            build_onnx(build_model(tiny_backbone("vit", depth=1), AdapterKind.PARALLEL))

    def test_a_file_that_answers_otherwise(self, tiny_backbone, monkeypatch):
        model = build_model(tiny_backbone("vit", depth=1), AdapterKind.PARALLEL)
        trace = module._trace

        def spoil(whole, image_px):
            graph = trace(whole, image_px)
            bias = next(t for t in graph.graph.initializer if t.name == "head.bias")
            bias.raw_data = (np.frombuffer(bias.raw_data, "<f4") + np.float32(0.01)).tobytes()
            return graph

        monkeypatch.setattr(module, "_trace", spoil)
        with pytest.raises(OnnxMismatchError, match=r"differ by up to 1\.0e-02"):
            build_onnx(model)


class TestCommand:
    def test_writes_the_file(self, folder, tmp_path, caplog):
        caplog.set_level(logging.INFO)
        out = tmp_path / "new" / "model.onnx"
        assert main([str(folder), str(out)]) == 0
        assert answer(out.read_bytes(), np.zeros((2, 3, 64, 64), np.float32)).shape == (2, 3)
        assert f"wrote {out}" in caplog.text

    def test_says_in_a_sentence_what_is_wrong(self, tmp_path, caplog):
        assert main([str(tmp_path), str(tmp_path / "x.onnx")]) == 1
        assert "the bundle has no adapter.safetensors" in caplog.text
        assert not (tmp_path / "x.onnx").exists()

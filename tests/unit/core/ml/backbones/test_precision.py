import pytest
import torch
from torch.nn import functional

from core.catalog.methods import Precision
from core.ml.backbones import packed_linear
from core.ml.backbones import precision as precision_module
from core.ml.backbones.frozen_linear import FastFrozenLinears, _works, fast_frozen_linears
from core.ml.backbones.precision import resolve_device, resolve_precision

CPU = torch.device("cpu")


class TestResolvePrecision:
    @pytest.mark.parametrize(
        ("capabilities", "expected"),
        [
            ({"avx512_bf16": True}, Precision.BF16),
            ({"amx_bf16": True}, Precision.BF16),
            ({"bf16": True}, Precision.BF16),
            ({"avx2": True, "avx512_f": True}, Precision.FP32),
        ],
    )
    def test_auto_follows_the_hardware(self, monkeypatch, capabilities, expected):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
        assert resolve_precision("auto", CPU) is expected

    @pytest.mark.parametrize("has_bf16", [True, False])
    def test_a_torch_without_the_public_query(self, monkeypatch, has_bf16):
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
        expected = Precision.BF16 if has_bf16 else Precision.FP32
        assert resolve_precision("auto", CPU) is expected

    def test_an_explicit_choice_is_kept(self):
        assert resolve_precision("fp32", CPU) is Precision.FP32
        assert resolve_precision("bf16", CPU) is Precision.BF16

    def test_an_accelerator_nobody_tested_gets_fp32(self):
        assert resolve_precision("auto", torch.device("meta")) is Precision.FP32


class TestResolveDevice:
    def test_auto(self):
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        assert resolve_device("auto").type == kind

    def test_named(self):
        assert resolve_device("cuda:1") == torch.device("cuda", 1)


class TestPlaceBackbone:
    def test_plain_attention_for_bf16_on_a_cpu_only(self, tiny_backbone):
        backbone = tiny_backbone()
        attention = backbone.module.blocks[0].attn
        assert attention.fused_attn
        backbone.place(device=CPU, precision=Precision.FP32)
        assert attention.fused_attn
        backbone.place(device=CPU, precision=Precision.BF16)
        assert not attention.fused_attn
        assert (backbone.dtype, backbone.device) == (torch.bfloat16, CPU)

    @pytest.mark.parametrize(
        ("capabilities", "is_fused"),
        [
            ({"avx512_bf16": True}, False),
            ({"avx512_bf16": True, "amx_bf16": True}, True),
            ({}, True),
        ],
    )
    def test_fused_attention_where_it_gains_when_nothing_is_trained(
        self, tiny_backbone, monkeypatch, capabilities, is_fused
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
        for precision, expected in ((Precision.FP32, True), (Precision.BF16, is_fused)):
            backbone = tiny_backbone()
            backbone.place(device=CPU, precision=precision, for_training=False)
            assert backbone.module.blocks[0].attn.fused_attn is expected

    def test_weights_are_packed_where_nothing_is_trained(self, tiny_backbone):
        for for_training in (True, False):
            backbone = tiny_backbone()
            backbone.place(device=CPU, precision=Precision.FP32, for_training=for_training)
            is_packed = "forward" in backbone.module.blocks[0].attn.qkv.__dict__
            assert is_packed is (packed_linear._works(torch.float32) and not for_training)

    def test_bf16_features_are_close(self, tiny_backbone):
        backbone = tiny_backbone()
        images = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            wide = backbone.module(images)
            precision_module.place_backbone(backbone.module, device=CPU, precision=Precision.BF16)
            narrow = backbone.module(images.bfloat16())
        assert torch.cosine_similarity(wide, narrow.float()).min() > 0.999


@pytest.mark.skipif(not _works(), reason="this torch has no oneDNN linear operator")
class TestFastFrozenLinears:
    @pytest.mark.parametrize("shape", [(7, 24), (2, 5, 24), (2, 3, 4, 24)])
    @pytest.mark.parametrize("has_bias", [True, False])
    def test_same_values_and_gradients(self, shape, has_bias):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(shape, generator=generator, requires_grad=True)
        weight = torch.randn(10, 24, generator=generator)
        bias = torch.randn(10, generator=generator) if has_bias else None
        grad = torch.randn(*shape[:-1], 10, generator=generator)
        expected = functional.linear(x, weight, bias)
        (expected_grad,) = torch.autograd.grad(expected, x, grad)
        with FastFrozenLinears():
            fast = functional.linear(x, weight, bias)
        assert "FrozenLinear" in type(fast.grad_fn).__name__
        (fast_grad,) = torch.autograd.grad(fast, x, grad)
        assert torch.allclose(fast, expected, atol=1e-5)
        assert torch.allclose(fast_grad, expected_grad, atol=1e-5)

    def test_trainable_weights_keep_their_gradient(self):
        x, weight = torch.randn(3, 4), torch.randn(2, 4, requires_grad=True)
        with FastFrozenLinears():
            torch.autograd.backward(functional.linear(x, weight).sum())
        assert torch.allclose(weight.grad, x.sum(dim=0).expand(2, 4))

    def test_sliced_and_strided_input(self):
        x, weight = torch.randn(2, 5, 6).transpose(0, 1)[:, :1], torch.randn(3, 6)
        with FastFrozenLinears():
            assert torch.allclose(functional.linear(x, weight), x @ weight.t(), atol=1e-5)

    def test_not_for_bf16(self, tiny_backbone):
        backbone = tiny_backbone()
        assert isinstance(fast_frozen_linears(backbone), FastFrozenLinears)
        backbone.place(device=CPU, precision=Precision.BF16)
        assert not isinstance(fast_frozen_linears(backbone), FastFrozenLinears)

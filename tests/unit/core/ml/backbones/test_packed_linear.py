"""Linear layers with packed weights give what layers give, whoever calls them."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from core.ml.backbones import packed_linear
from core.ml.backbones.packed_linear import pack_linears, release_unread_weights

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}

needs_packing = pytest.mark.skipif(
    not packed_linear._works(torch.float32), reason="this torch cannot pack weights here"
)


def make(dtype=torch.float32, *, bias=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 10, bias=bias), nn.GELU(), nn.Linear(10, 7)).to(dtype).eval()


@pytest.fixture
def products(monkeypatch):
    """Count the products with packed weights."""
    calls = []
    multiply = packed_linear._multiply

    def count(*arguments):
        calls.append(arguments)
        return multiply(*arguments)

    monkeypatch.setattr(packed_linear, "_multiply", count)
    return calls


@needs_packing
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(24,), (7, 24), (2, 5, 24), (2, 3, 4, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_same_values(products, dtype, shape, bias):
    if not packed_linear._works(dtype):
        pytest.skip("not in this format")
    layers, x = make(dtype, bias=bias), torch.randn(shape).to(dtype)
    with torch.no_grad():
        wanted = layers(x)
        pack_linears(layers)
        products.clear()
        given = layers(x)
    assert len(products) == 2
    assert given.shape == wanted.shape
    assert torch.allclose(given.float(), wanted.float(), atol=TOLERANCES[dtype])


@needs_packing
@pytest.mark.parametrize("has_hook", [True, False])
def test_hooks_and_strides(products, has_hook):
    layers = make()
    if has_hook:
        layers[0].register_forward_hook(lambda _module, _inputs, output: output + 1)
    x = torch.randn(5, 2, 24).transpose(0, 1)[:, :1]
    with torch.no_grad():
        wanted = layers(x)
        pack_linears(layers)
        assert torch.allclose(layers(x), wanted, atol=1e-5)
    assert products


@needs_packing
def test_another_weight_in_its_place_is_used(products):
    layers, x = make(), torch.randn(3, 24)
    other = {name: torch.randn_like(tensor) for name, tensor in layers.named_parameters()}
    with torch.no_grad():
        wanted = functional_call(layers, other, (x,))
        pack_linears(layers)
        products.clear()
        assert torch.equal(functional_call(layers, other, (x,)), wanted)
        assert not products
        # A bias in place of the layer's own leaves the packed weight in use.
        biases = {name: tensor for name, tensor in other.items() if name.endswith("bias")}
        given = functional_call(layers, biases, (x,))
        assert len(products) == 2
        assert torch.allclose(given, functional_call(make(), biases, (x,)), atol=1e-5)


@needs_packing
def test_a_weight_that_was_written_to_is_used():
    layers, x = make(), torch.randn(3, 24)
    pack_linears(layers)
    with torch.no_grad():
        before = layers(x)
        layers[0].weight.mul_(2)
        layers[0].bias.mul_(2)
        given = layers[0](x)
        assert torch.allclose(given, x @ layers[0].weight.t() + layers[0].bias, atol=1e-5)
        assert not torch.allclose(layers(x), before)


@needs_packing
def test_a_packed_network_cannot_be_copied():
    layers = make()
    pack_linears(layers)
    with pytest.raises(TypeError, match="cannot be copied"):
        copy.deepcopy(layers)


@needs_packing
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_called_needs_no_weight_and_what_is_read_keeps_it(products, dtype):
    if not packed_linear._works(dtype):
        pytest.skip("not in this format")

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.called, self.read = make(dtype), nn.Linear(7, 5).to(dtype)

        def forward(self, x):
            return nn.functional.linear(self.called(x), self.read.weight, self.read.bias)

    network, x = Reads().eval(), torch.randn(3, 24).to(dtype)
    with torch.no_grad():
        wanted = network(x)
        pack_linears(network)
        release_unread_weights(network, lambda: network(x))
        products.clear()
        given = network(x)
    assert len(products) == 2
    assert torch.allclose(given.float(), wanted.float(), atol=TOLERANCES[dtype])
    assert network.called[0].weight.shape == (10, 24)
    assert network.called[0].weight.dtype is dtype
    assert network.called[0].weight.untyped_storage().nbytes() == dtype.itemsize
    assert network.called[0].weight.isnan().all()
    assert network.read.weight.isfinite().all()
    assert "forward" not in network.read.__dict__
    # With gradients, and with another weight, it is as if nothing had been freed.
    y = x.clone().requires_grad_()
    assert torch.allclose(network(y).float(), wanted.float(), atol=TOLERANCES[dtype])
    (grad,) = torch.autograd.grad(network(y).float().sum(), y)
    assert grad.isfinite().all()
    other = {name: torch.ones_like(tensor) for name, tensor in network.named_parameters()}
    assert functional_call(network, other, (x,)).isfinite().all()


def test_nothing_is_run_where_nothing_is_packed():
    layers = make()
    release_unread_weights(layers, lambda: pytest.fail("run"))
    assert layers[0].weight.isfinite().all()


@needs_packing
def test_with_gradients_it_is_torchs_own():
    layers, x = make(), torch.randn(3, 24, requires_grad=True)
    (wanted,) = torch.autograd.grad(layers(x).sum(), x)
    pack_linears(layers)
    (given,) = torch.autograd.grad(layers(x).sum(), x)
    assert torch.equal(given, wanted)


@needs_packing
def test_what_is_no_plain_linear_layer_is_left_alone():
    class Odd(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    layers = nn.Sequential(Odd(4, 4), nn.Linear(4, 4))
    pack_linears(layers)
    assert "forward" not in layers[0].__dict__
    assert "forward" in layers[1].__dict__


@pytest.mark.parametrize("fault", [AttributeError, RuntimeError, NotImplementedError])
def test_a_torch_that_cannot_pack(monkeypatch, fault):
    def refuse(_weight):
        raise fault("no such operator")

    monkeypatch.setattr(packed_linear, "_pack", refuse)
    _assert_untouched()


def test_a_torch_that_packs_wrongly(monkeypatch):
    monkeypatch.setattr(packed_linear, "_pack", lambda weight: weight)
    monkeypatch.setattr(
        packed_linear, "_multiply", lambda x, packed, bias: 1.01 * (x @ packed.t() + bias)
    )
    _assert_untouched()


def _assert_untouched():
    packed_linear._works.cache_clear()
    try:
        layers = make()
        pack_linears(layers)
        assert not any("forward" in layer.__dict__ for layer in layers)
    finally:
        packed_linear._works.cache_clear()

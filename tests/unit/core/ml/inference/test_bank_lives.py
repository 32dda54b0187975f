"""Models come and go in any order, and those that are there answer as if they were alone."""

from contextlib import ExitStack
from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.catalog.methods import AdapterKind
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from core.ml.backbones.load import wrap_backbone
from core.ml.inference.bank import Bank
from core.ml.inference.graphs import GraphedBank, choose_batch_bucket
from tests.unit.core.ml.conftest import build_tiny

K = AdapterKind
MODELS = 24


@pytest.fixture(scope="module")
def network():
    """A network, models of many sizes for it, images, and each model's features of them."""
    backbone = wrap_backbone(build_tiny("vit"), "tiny_vit")
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    models, wanted = [], []
    for seed in range(MODELS):
        spec = AdapterSpec(K.PARALLEL, 1 + seed % 8, 0.2 + 0.1 * seed)
        model = AdaptedModel(backbone, spec, 2, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            wanted.append(model.features(images))
        models.append(model)
    with torch.no_grad():
        bare = backbone.module(images)
    return backbone, models, images, torch.stack([*wanted, bare])


steps = st.lists(
    st.one_of(
        st.tuples(st.just("in"), st.integers(0, MODELS - 1)),
        st.tuples(st.just("out"), st.integers(0, 40)),
        st.tuples(st.just("ask"), st.lists(st.integers(0, 40), min_size=1, max_size=6)),
    ),
    min_size=1,
    max_size=60,
)


@settings(max_examples=25, deadline=None)
@given(life=steps)
def test_any_life(network, life):
    backbone, models, images, wanted = network
    bank = Bank(backbone, K.PARALLEL, 8)
    resident = [(0, MODELS)]  # slot and model; the bare network is always there
    with ExitStack() as stack, torch.no_grad():
        bank.mount(stack)
        for step, what in life:
            if step == "in":
                slot = bank.take(models[what].spec, models[what].state_dict())
                assert slot not in [taken for taken, _ in resident]
                resident.append((slot, what))
            elif step == "out" and len(resident) > 1:
                slot, _ = resident.pop(1 + what % (len(resident) - 1))
                bank.slots.give_back(slot)
                assert not bank.slots.read()[slot].any()
            elif step == "ask":
                chosen = [resident[number % len(resident)] for number in what]
                which = [number % len(images) for number in what]
                given_features = bank.run([slot for slot, _ in chosen], images[which])
                for features, (_, model), image in zip(given_features, chosen, which, strict=True):
                    assert torch.allclose(features, wanted[model][image], rtol=1e-4, atol=1e-4)
            assert bank.slots.taken == len(resident) - 1


def test_a_bank_that_has_grown_keeps_its_models(network):
    backbone, models, images, wanted = network
    bank = Bank(backbone, K.PARALLEL, 8)
    before = bank.slots.size_bytes
    slots = [bank.take(model.spec, model.state_dict()) for model in models]
    assert bank.slots.size_bytes == 2 * before
    with ExitStack() as stack, torch.no_grad():
        bank.mount(stack)
        features = bank.run(slots, images[:1].expand(MODELS, -1, -1, -1))
    assert torch.allclose(features, wanted[:MODELS, 0], rtol=1e-4, atol=1e-4)


def test_rows_are_zero_where_nobody_is(network):
    backbone, models, _, _ = network
    bank = Bank(backbone, K.PARALLEL, 8)
    slot = bank.take(models[0].spec, models[0].state_dict())
    rest = np.delete(np.arange(len(bank.slots.read())), slot)
    assert bank.slots.read()[slot].any()
    assert not bank.slots.read()[rest].any()


def test_unmounting_leaves_the_network_as_it_was(network):
    backbone, models, images, wanted = network
    bank = Bank(backbone, K.PARALLEL, 8)
    bank.take(models[0].spec, models[0].state_dict())
    with ExitStack() as stack:
        bank.mount(stack)
        with pytest.raises(AssertionError, match="within `run`"):
            backbone.module(images)
    with torch.no_grad():
        assert torch.equal(backbone.module(images), wanted[MODELS])


class Unrecordable(GraphedBank):
    """A bank on a device that records nothing."""

    def _record(self, bucket, table, like):
        raise RuntimeError("no such operation")


class TestGraphs:
    def test_where_nothing_can_be_recorded_the_bank_runs_and_says_so_once(self, network, caplog):
        backbone, models, images, wanted = network
        bank = Unrecordable(backbone, K.PARALLEL, 8)
        slot = bank.take(models[3].spec, models[3].state_dict())
        with ExitStack() as stack, torch.no_grad():
            bank.mount(stack)
            for _ in range(2):
                features = bank.run([slot, 0, slot], images)
        assert torch.allclose(features[2], wanted[3][2], rtol=1e-4, atol=1e-4)
        assert torch.allclose(features[1], wanted[MODELS][1], rtol=1e-4, atol=1e-4)
        assert caplog.text.count("without CUDA graphs: no such operation") == 1

    @pytest.mark.parametrize(
        ("batch", "bucket"), [(1, 1), (3, 4), (17, 24), (33, 48), (64, 64), (65, 96), (128, 128)]
    )
    def test_buckets(self, batch, bucket):
        assert choose_batch_bucket(batch) == bucket

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
    def test_a_recording_serves_every_mix(self, network):
        _, models, images, wanted = network
        backbone = wrap_backbone(deepcopy(network[0].module), "tiny_vit")
        backbone.module.cuda()
        bank = GraphedBank(backbone, K.PARALLEL, 8)
        slots = []
        with ExitStack() as stack, torch.no_grad():
            bank.mount(stack)
            for model in models:  # grows on the way
                slots.append(bank.take(model.spec, model.state_dict()))
                chosen = [slots[-1], 0, slots[0]]
                features = bank.run(chosen, images.cuda()).cpu()
                number = len(slots) - 1
                for row, (index, image) in zip(
                    features, ((number, 0), (MODELS, 1), (0, 2)), strict=True
                ):
                    assert torch.allclose(row, wanted[index][image], rtol=1e-3, atol=1e-3)
        assert not bank._is_broken
        assert list(bank._recordings) == [4]

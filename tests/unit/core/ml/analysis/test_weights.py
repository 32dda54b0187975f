import numpy as np
import pytest
import torch
from torch import nn

from core.catalog.methods import AdapterKind, MethodType
from core.ml.adapters.adapted import AdaptedModel
from core.ml.adapters.base import AdapterSpec
from core.ml.adapters.registry import ADAPTER_METHODS
from core.ml.analysis.weights import find_layer_weights, read_layer_weights, rebuild_initial
from core.ml.training.loop import train
from tests.unit.core.ml.analysis.made import make_backbone

#: Kinds with a bottleneck in every block; the others' weights have other shapes.
BOTTLENECKS = {
    AdapterKind.SEQUENTIAL,
    AdapterKind.PARALLEL,
    AdapterKind.PARALLEL_SHARED,
    AdapterKind.ADAPTFORMER,
    AdapterKind.ADAPTER_PLUS,
    AdapterKind.LORA,
    AdapterKind.REPADAPTER,
    AdapterKind.MOSA,
    AdapterKind.RES_ADAPTER,
    AdapterKind.MONA,
}


def parameters(**shapes):
    return {
        name.replace("__", "."): nn.Parameter(torch.arange(float(np.prod(shape))).reshape(shape))
        for name, shape in shapes.items()
    }


class TestRead:
    def test_matrices_by_layer_and_side_without_biases(self):
        trained = parameters(
            adapters__0__down__weight=(2, 6),
            adapters__0__down__bias=(2,),
            adapters__0__up__weight=(6, 2),
            adapters__10__down__weight=(2, 6),
            adapters__2__down__weight=(2, 6),
            head__weight=(3, 6),
        )
        found = read_layer_weights(trained, trained)
        assert [(w.layer, w.part) for w in found] == [
            (0, "down"),
            (0, "up"),
            (2, "down"),
            (10, "down"),
        ]
        assert {(w.width, w.hidden_dim, w.matrices, len(w.trained)) for w in found} == {
            (6, 2, 1, 12)
        }

    def test_several_matrices_of_a_layer_count_as_one(self):
        trained = parameters(
            adapters__1__attention__up__weight=(6, 2), adapters__1__mlp__up__weight=(6, 2)
        )
        (found,) = read_layer_weights(trained, trained)
        assert (found.matrices, len(found.trained)) == (2, 24)

    def test_a_pointwise_convolution_is_a_matrix_and_a_wider_one_is_not(self):
        trained = parameters(
            adapters__0__down__weight=(2, 6, 1, 1), adapters__0__up__weight=(6, 2, 3, 3)
        )
        (found,) = read_layer_weights(trained, trained)
        assert (found.part, found.width, found.hidden_dim) == ("down", 6, 2)

    def test_names_that_only_look_alike_are_left_out(self):
        trained = parameters(
            adapters__blocks__0__mlp__weight=(6, 2),
            adapters__0__downsample__weight=(6, 2),
            adapters__down__12=(6, 2),
            adapters__0__up__bias=(6, 2),
        )
        assert read_layer_weights(trained, trained) == []


class TestInitial:
    def test_is_what_a_run_started_from(self, pair, tiny_plan, tiny_data):
        """At learning rate 0 nothing moves: both models still have their initial weights."""
        plan = tiny_plan(learning_rate=0.0, weight_decay=0.0, epochs=1, method=MethodType.IDAT)
        student, teacher = pair
        result = train(
            plan, tiny_data(), student=student, teacher=teacher, device=torch.device("cpu")
        )
        for role, model in (("student", result.student), ("teacher", result.teacher)):
            initial = rebuild_initial(model, seed=plan.seed, role=role)
            for name, parameter in model.trainable_parameters().items():
                assert torch.equal(parameter, initial.trainable_parameters()[name]), name
            for weights in find_layer_weights(model, initial):
                assert (weights.trained == weights.initial).all()

    def test_moved_weights_differ_from_it(self, pair, tiny_plan, tiny_data):
        plan = tiny_plan(epochs=1, method=MethodType.ADAPTER)
        result = train(plan, tiny_data(), student=pair[0], teacher=None, device=torch.device("cpu"))
        initial = rebuild_initial(result.student, seed=plan.seed, role="student")
        weights = find_layer_weights(result.student, initial)
        assert len(weights) == 2 * len(pair[0].blocks)
        assert all((w.trained != w.initial).any() for w in weights)


@pytest.mark.parametrize("kind", sorted(ADAPTER_METHODS))
def test_every_kind_has_matrices_in_each_layer_or_none_at_all(kind):
    model = AdaptedModel(make_backbone(), AdapterSpec(kind, 2), 3, seed=0)
    found = find_layer_weights(model, rebuild_initial(model, seed=0, role="student"))
    wanted = 2 * len(model.backbone.blocks) if kind in BOTTLENECKS else 0
    assert len(found) == wanted
    for weights in found:
        assert np.isfinite(weights.trained).all()
        assert weights.width > weights.hidden_dim

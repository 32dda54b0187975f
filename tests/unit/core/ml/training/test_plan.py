import pytest

from core.catalog.methods import Precision, Recipe
from core.errors import InvalidError
from core.ml.training.plan import InvalidPlanError, build_plan

BASE = {
    "num_classes": 10,
    "learning_rate": 5e-3,
    "weight_decay": 5e-5,
    "precision": Precision.FP32,
}


class TestRecipes:
    def test_default(self):
        plan = build_plan(**BASE)
        assert (plan.epochs, plan.warmup_epochs, plan.cooldown_epochs) == (100, 10, 0)
        assert (plan.batch_size, plan.drop_last) == (32, False)
        assert plan.steps_per_epoch(1000) == 32

    def test_official(self):
        plan = build_plan(**BASE, recipe=Recipe.OFFICIAL)
        assert (plan.total_epochs, plan.warmup_epochs) == (110, 10)
        assert (plan.batch_size, plan.drop_last) == (64, True)
        assert plan.steps_per_epoch(1000) == 15
        assert plan.total_epochs * plan.steps_per_epoch(1000) == 1650

    @pytest.mark.parametrize("name", ["epochs", "batch_size", "warmup_epochs"])
    def test_official_refuses_what_it_sets_itself(self, name):
        with pytest.raises(InvalidPlanError, match=name) as caught:
            build_plan(**BASE, recipe=Recipe.OFFICIAL, **{name: 7})
        assert caught.value.fields[0].pointer == f"/hyperparameters/{name}"

    @pytest.mark.parametrize(("epochs", "warmup"), [(1, 0), (9, 0), (30, 3), (300, 10)])
    def test_warm_up_is_a_tenth(self, epochs, warmup):
        assert build_plan(**BASE, epochs=epochs).warmup_epochs == warmup


class TestValidation:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("num_classes", 1),
            ("epochs", 0),
            ("warmup_epochs", 101),
            ("batch_size", 0),
            ("learning_rate", float("nan")),
            ("learning_rate", -1e-3),
            ("weight_decay", float("inf")),
            ("drop_path", 1.0),
        ],
    )
    def test_names_the_field(self, name, value):
        with pytest.raises(InvalidPlanError, match=name) as caught:
            build_plan(**(BASE | {name: value}))
        assert [f.pointer for f in caught.value.fields] == [f"/hyperparameters/{name}"]

    def test_adapter_out_of_range(self):
        with pytest.raises(InvalidError, match="hidden_dim"):
            build_plan(**BASE, hidden_dim=0)

    def test_official_needs_a_full_batch(self):
        with pytest.raises(InvalidPlanError, match="63 training images"):
            build_plan(**BASE, recipe=Recipe.OFFICIAL).steps_per_epoch(63)


class TestFingerprint:
    def test_depends_on_plan_and_parts(self):
        plan = build_plan(**BASE)
        names = {
            plan.fingerprint("a"),
            plan.fingerprint("b"),
            plan.fingerprint("a", "b"),
            build_plan(**BASE, seed=1).fingerprint("a"),
        }
        assert len(names) == 4
        assert build_plan(**BASE).fingerprint("a") == plan.fingerprint("a")

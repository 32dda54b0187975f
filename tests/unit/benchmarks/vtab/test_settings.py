"""Settings: the released code's schedule, grids, and plans that end early."""

import dataclasses

import pytest

from benchmarks.vtab.methods import METHODS, find_methods
from benchmarks.vtab.options import build_parser, build_settings, parse_only
from benchmarks.vtab.settings import Mode, Schedule, Settings, Tuning, shorten_plan
from core.catalog.methods import AdapterKind, DistillationLoss, MethodType, Precision, Recipe
from core.catalog.recipes import DATASET_RECIPES, get_recipe
from core.errors import InvalidError

EUROSAT = get_recipe("vtab-eurosat")


def parse(*arguments):
    return build_settings(build_parser().parse_args(["run", "x", "--out", "y", *arguments]))


def plan_of(settings, method="iDAT-PS-kl", recipe=EUROSAT):
    return settings.build_plan(
        METHODS[method],
        recipe,
        num_classes=recipe.num_classes,
        learning_rate=recipe.learning_rate,
        seed=42,
        precision=Precision.FP32,
    )


class TestPlan:
    def test_default_is_the_released_codes(self):
        plan = plan_of(parse())
        assert (plan.epochs, plan.warmup_epochs, plan.total_epochs) == (100, 10, 110)
        assert (plan.batch_size, plan.drop_last, plan.recipe) == (64, True, Recipe.OFFICIAL)
        assert (plan.learning_rate, plan.weight_decay, plan.drop_path) == (3e-3, 5e-2, 0.2)
        assert (plan.adapter.kind, plan.adapter.hidden_dim) == (AdapterKind.PARALLEL_SHARED, 4)
        assert (plan.adapter.scale, plan.teacher_adapter) == (0.1, plan.adapter)
        distillation = plan.distillation
        assert (distillation.loss, distillation.weight) == (DistillationLoss.KL, 1)
        assert (distillation.temperature, distillation.squared_temperature) == (5.0, False)
        assert (plan.method, plan.seed) == (MethodType.IDAT, 42)
        # 960 of the 1,000 images in each epoch.
        assert plan.steps_per_epoch(1000) == 15

    def test_other_epochs_shrink_warmup_and_cooldown(self):
        plan = plan_of(parse("--epochs", "20"))
        assert (plan.epochs, plan.warmup_epochs, plan.total_epochs) == (20, 2, 22)
        assert plan.recipe is Recipe.DEFAULT
        plan = plan_of(parse("--epochs", "20", "--warmup-epochs", "0", "--cooldown-epochs", "3"))
        assert (plan.warmup_epochs, plan.total_epochs) == (0, 23)

    def test_plain_adapters_have_no_teacher(self):
        assert plan_of(parse(), "S").method is MethodType.ADAPTER

    def test_the_probe_has_no_drop_path(self):
        assert plan_of(parse(), "linear_probe").drop_path == 0

    def test_out_of_range(self):
        with pytest.raises(InvalidError, match="epochs"):
            plan_of(parse("--epochs", "0"))


class TestShortened:
    def test_ends_early_and_changes_nothing_else(self):
        whole = plan_of(parse())
        short = shorten_plan(whole, 7)
        assert short.total_epochs == 7
        own = dataclasses.asdict(short)
        assert own.pop("run_epochs") == 7
        assert own == dataclasses.asdict(whole)
        assert short.fingerprint() != whole.fingerprint() != shorten_plan(whole, 8).fingerprint()

    @pytest.mark.parametrize("epochs", [0, 111])
    def test_cannot_end_outside(self, epochs):
        with pytest.raises(InvalidError, match="110 epochs"):
            shorten_plan(plan_of(parse()), epochs)


class TestRates:
    def test_grid_around_the_recipe(self):
        assert parse().rates(EUROSAT) == (3e-4, 9e-4, 3e-3, 9e-3)
        # The rate that lets adapters diverge on Clevr/distance has lower ones beside it.
        assert parse().rates(get_recipe("vtab-clevr_dist")) == (5e-3, 1.5e-2, 5e-2, 0.15)

    def test_own_rates_are_sorted_and_distinct(self):
        settings = parse("--learning-rates", "0.01", "0.001", "0.01")
        assert all(settings.rates(recipe) == (0.001, 0.01) for recipe in DATASET_RECIPES.values())

    def test_common_tuning_knows_no_dataset(self):
        settings = parse("--tuning", "common")
        method = METHODS["S"]
        chosen = {
            (settings.rates(r), settings.weight_decay(r), settings.drop_path(r, method))
            for r in DATASET_RECIPES.values()
        }
        assert len(chosen) == 1

    @pytest.mark.parametrize("rate", ["0", "-1", "2", "nan", "inf"])
    def test_out_of_range(self, rate):
        with pytest.raises(InvalidError, match="learning rate"):
            parse("--learning-rates", rate)

    @pytest.mark.parametrize("options", [("--learning-rates", "0.1"), ("--tuning", "common")])
    def test_paper_takes_no_choice(self, options):
        with pytest.raises(InvalidError, match="'paper' takes every setting from the recipes"):
            parse("--mode", "paper", *options)


class TestDescribe:
    def test_only_what_matters_to_the_method(self):
        settings = parse("--temperature", "3", "--hidden-dim", "8", "--scale", "0.5")
        names = {name: set(settings.describe(m, "fp32")) for name, m in METHODS.items()}
        shared = names["linear_probe"]
        assert shared >= {"student", "precision", "epochs", "learning_rates", "tuning"}
        assert names["S"] - shared == {"hidden_dim"}
        assert names["P"] - shared == {"hidden_dim", "scale"}
        assert names["iDAT-S-mse"] - shared == {"hidden_dim", "teacher", "loss_weight"}
        assert names["iDAT-PS-kl"] - names["iDAT-S-mse"] == {"scale", "temperature"}

    def test_paper_says_nothing_of_a_grid(self):
        described = parse("--mode", "paper").describe(METHODS["S"], "fp32")
        assert not {"learning_rates", "tuning", "selection_seed"} & set(described)


class TestNetworks:
    def test_default_pair(self):
        settings = parse()
        assert settings.pair == "vit-s16-b16-in21k"
        assert settings.student == "vit_base_patch16_224.augreg_in21k"
        assert settings.teacher == "vit_small_patch16_224.augreg_in21k"

    def test_by_name(self):
        settings = parse("--student", "a", "--teacher", "b")
        assert (settings.pair, settings.student, settings.teacher) == ("", "a", "b")
        assert parse("--student", "a").teacher == ""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--pair", "nobody"), "there is no pair 'nobody'; allowed: starter"),
            (("--teacher", "b"), "--teacher goes with --student"),
            (("--pair", "starter", "--student", "a"), "--pair names the student already"),
        ],
    )
    def test_contradictions(self, options, message):
        with pytest.raises(InvalidError, match=message):
            parse(*options)


class TestNames:
    def test_methods_in_any_case_and_order(self):
        assert [m.name for m in find_methods(["idat-s-MSE", "ps", "s"])] == [
            "S",
            "iDAT-S-mse",
            "PS",
        ]
        assert len(find_methods(None)) == 10

    def test_unknown_method(self):
        with pytest.raises(InvalidError, match=r"'lora'; allowed: linear_probe, S, iDAT-S-kl"):
            find_methods(["lora"])

    def test_only(self):
        assert parse_only(["hidden_dim=8", "a=b=c"]) == {"hidden_dim": "8", "a": "b=c"}
        with pytest.raises(InvalidError, match="NAME=VALUE"):
            parse_only(["hidden_dim"])

    def test_defaults_are_the_settings_own(self):
        assert parse() == Settings()
        assert Settings().mode is Mode.STRICT
        assert Settings().tuning is Tuning.RECIPE
        assert Schedule().is_official

"""Methods over HTTP: every kind, loss, recipe and option; counts of a dry run; what is refused."""

from typing import Any

import pytest

from core.catalog.adapters import ADAPTERS
from core.catalog.backbones import list_backbones
from core.catalog.methods import AdapterKind, DistillationLoss
from core.catalog.recipes import DATASET_RECIPES
from tests.integration.api.rig import Rig

_JOBS = "/v1/fine_tuning/jobs"
_VIT = "vit_{}_patch16_224.augreg_in21k"


@pytest.fixture
def dataset_id(rig: Rig) -> str:
    """A dataset that is ready: 2 classes, 40 training images."""
    dataset_id = rig.upload(name="flowers")
    rig.finish_validation()
    return dataset_id


def _ask(rig: Rig, dataset_id: str, method: dict[str, Any], **changes: Any) -> Any:
    body = {"dataset_id": dataset_id, "method": method, **changes}
    return rig.client.post(f"{_JOBS}?dry_run=true", json=body)


def _refused(answer: Any) -> dict[str, str]:
    assert answer.status_code == 422, answer.text
    error: dict[str, str] = answer.json()["errors"][0]
    return error


class TestCounts:
    @pytest.mark.parametrize(
        ("kind", "hidden_dim", "student", "teacher"),
        [
            ("sequential", 7, 12 * (2 * 768 * 7 + 7 + 768), 12 * (2 * 384 * 7 + 7 + 384)),
            ("adapter_plus", 5, 12 * (2 * 768 * 5 + 5 + 2 * 768), 12 * (2 * 384 * 5 + 5 + 768)),
            ("lora", 3, 12 * 3 * 4 * 768, 12 * 3 * 4 * 384),
            ("vpt_deep", 20, 12 * 20 * 768, 12 * 20 * 384),
            ("mosa", 12, 12 * (24 * 768 + 12 + 3 * 768), 12 * (24 * 384 + 12 + 3 * 384)),
            ("repadapter", 6, 24 * (9 * 768 + 6 + 768), 24 * (9 * 384 + 6 + 384)),
        ],
    )
    def test_adapter_and_head_of_both(
        self, rig: Rig, dataset_id: str, *, kind: str, hidden_dim: int, student: int, teacher: int
    ) -> None:
        method = {
            "pair": "vit-s16-b16-in21k",
            "adapter": {"kind": kind, "hidden_dim": hidden_dim},
        }
        counts = _ask(rig, dataset_id, method).json()["trainable_parameters"]
        heads = 2 * 769, 2 * 385  # two classes
        assert counts["student"] == {
            "adapter": student,
            "head": heads[0],
            "total": student + heads[0],
        }
        assert counts["teacher"]["adapter"] == teacher
        assert counts["total"] == student + teacher + sum(heads)

    def test_different_kinds_for_teacher_and_student(self, rig: Rig, dataset_id: str) -> None:
        method = {
            "pair": "vit-s16-b16-in21k",
            "adapter": {"kind": "ssf"},
            "teacher_adapter": {"kind": "bitfit"},
        }
        estimate = _ask(rig, dataset_id, method).json()
        counts = estimate["trainable_parameters"]
        assert counts["student"]["adapter"] == 12 * 22 * 768 + 4 * 768
        assert counts["teacher"]["adapter"] == (12 * 11 + 2) * 384
        assert estimate["spec"]["teacher_adapter_kind"] == "bitfit"

    def test_bridges_of_the_feature_loss(self, rig: Rig, dataset_id: str) -> None:
        method = {
            "pair": "vit-s16-b16-in21k",
            "distillation": {"loss": "feature", "layers": [5, 11]},
        }
        counts = _ask(rig, dataset_id, method).json()["trainable_parameters"]
        assert counts["distillation"] == 2 * (768 * 384 + 384)
        parts = counts["student"]["total"] + counts["teacher"]["total"] + counts["distillation"]
        assert counts["total"] == parts

    def test_steps_of_search_twin_and_seeds(self, rig: Rig, dataset_id: str) -> None:
        answer = _ask(
            rig,
            dataset_id,
            {"pair": "starter"},
            hyperparameters={"epochs": 50, "learning_rate": "auto", "batch_size": 10},
            compare_baseline=True,
            seeds=3,
        )
        search = 2 * 4 * 5  # twin too, four rates, a tenth of the epochs
        assert answer.json()["steps"] == 4 * (2 * 3 * 50 + search)


class TestDefaults:
    @pytest.mark.parametrize("kind", list(AdapterKind))
    def test_every_kind_runs_on_its_own_defaults(
        self, rig: Rig, dataset_id: str, kind: AdapterKind
    ) -> None:
        answer = _ask(rig, dataset_id, {"pair": "starter", "adapter": {"kind": kind}})
        assert answer.status_code == 200, answer.text
        spec = answer.json()["spec"]
        assert (spec["hidden_dim"] == 0) == (ADAPTERS[kind].hidden_dim_means is None)
        assert spec["hidden_dim"] <= 96
        assert spec["learning_rate"] == (ADAPTERS[kind].learning_rate or 2e-2)

    def test_auto_asks_for_a_search_and_leaving_it_out_does_not(
        self, rig: Rig, dataset_id: str
    ) -> None:
        for given, searched in (({"learning_rate": "auto"}, True), ({}, False)):
            answer = _ask(rig, dataset_id, {"pair": "starter"}, hyperparameters=given)
            spec = answer.json()["spec"]
            assert (spec["search_learning_rate"], spec["learning_rate"]) == (searched, 2e-2)

    @pytest.mark.parametrize("name", list(DATASET_RECIPES))
    def test_the_recipes_of_the_paper(self, rig: Rig, dataset_id: str, name: str) -> None:
        body = {
            "dataset_id": dataset_id,
            "method": {"pair": "vit-s16-b16-in21k"},
            "recipe": name,
        }
        answer = rig.client.post(f"{_JOBS}?dry_run=true", json=body)
        if answer.status_code == 422:  # 40 images do not fill a batch of 64: said, and why
            assert answer.json()["errors"][0]["code"] == "dataset_too_small"
        body["dataset_id"] = rig.upload(name="pending")
        spec = rig.client.post(f"{_JOBS}?dry_run=true", json=body).json()["spec"]
        recipe = DATASET_RECIPES[name]
        assert (spec["learning_rate"], spec["weight_decay"], spec["drop_path"]) == (
            recipe.learning_rate,
            recipe.weight_decay,
            recipe.drop_path,
        )
        assert (spec["epochs"], spec["batch_size"], spec["warmup_epochs"]) == (100, 64, 10)

    def test_every_option_of_kl(self, rig: Rig, dataset_id: str) -> None:
        distillation = {
            "loss": "kl",
            "weight": 0.5,
            "temperature": 2.0,
            "squared_temperature": True,
            "direction": "student_teacher",
            "detach_teacher": True,
        }
        method = {"pair": "starter", "distillation": distillation}
        spec = _ask(rig, dataset_id, method).json()["spec"]
        assert {name: spec[name] for name in ("loss", "direction", "squared_temperature")} == {
            "loss": "kl",
            "direction": "student_teacher",
            "squared_temperature": True,
        }
        assert (spec["loss_weight"], spec["detach_teacher"]) == (0.5, True)

    def test_licences_are_shown(self, rig: Rig, dataset_id: str) -> None:
        method = {
            "student": "vit_base_patch16_dinov3.lvd1689m",
            "teacher": _VIT.format("small"),
        }
        estimate = _ask(rig, dataset_id, method).json()
        assert estimate["licenses"][_VIT.format("small")] == "apache-2.0"
        assert "DINOv3" in estimate["license_notes"][0]
        assert len(estimate["license_notes"]) == 1


_BAD = {
    "unknown kind": ({"adapter": {"kind": "prefix"}}, "/method/adapter/kind"),
    "no width": ({"adapter": {"hidden_dim": 0}}, "/method/adapter/hidden_dim"),
    "wider than the block": ({"adapter": {"hidden_dim": 385}}, "/method/adapter/hidden_dim"),
    "a size that the kind has not": (
        {"adapter": {"kind": "ssf", "hidden_dim": 4}},
        "/method/adapter/hidden_dim",
    ),
    "a scale that the kind has not": (
        {"adapter": {"kind": "mona", "scale": 0.5}},
        "/method/adapter/scale",
    ),
    "odd groups": (
        {"adapter": {"kind": "repadapter", "hidden_dim": 7}},
        "/method/adapter/hidden_dim",
    ),
    "teacher's width": (
        {"adapter": {"hidden_dim": 500}, "teacher_adapter": {"hidden_dim": 500}},
        "/method/teacher_adapter/hidden_dim",
    ),
    "unknown loss": ({"distillation": {"loss": "hinge"}}, "/method/distillation/loss"),
    "cold": (
        {"distillation": {"loss": "kl", "temperature": 0}},
        "/method/distillation/temperature",
    ),
    "unknown direction": (
        {"distillation": {"loss": "kl", "direction": "up"}},
        "/method/distillation/direction",
    ),
    "an option of another loss": (
        {"distillation": {"loss": "mse", "squared_temperature": True}},
        "/method/distillation/squared_temperature",
    ),
    "layer beyond": (
        {"distillation": {"loss": "feature", "layers": [12]}},
        "/method/distillation/layers",
    ),
    "layer twice": (
        {"distillation": {"loss": "feature", "layers": [3, 3]}},
        "/method/distillation/layers",
    ),
}


class TestRefusals:
    @pytest.mark.parametrize("case", list(_BAD))
    def test_points_at_the_field(self, rig: Rig, dataset_id: str, case: str) -> None:
        changes, pointer = _BAD[case]
        error = _refused(_ask(rig, dataset_id, {"pair": "vit-s16-b16-in21k", **changes}))
        assert error["pointer"] == pointer
        assert error["message"]

    @pytest.mark.parametrize(
        ("kind", "family"),
        [
            ("vpt_deep", "SwinTransformer"),
            ("lora", "SwinTransformerV2"),
            ("arc", "SwinTransformerV2"),
            ("parallel_shared", "ConvNeXt"),
            ("mona", "ConvNeXt"),
            ("lora", "Beit"),
        ],
    )
    def test_a_kind_on_a_family_names_both(
        self, rig: Rig, dataset_id: str, kind: str, family: str
    ) -> None:
        name = next(facts.name for facts in list_backbones() if facts.family == family)
        method = {"type": "adapter", "student": name, "adapter": {"kind": kind}}
        error = _refused(_ask(rig, dataset_id, method))
        assert (error["pointer"], error["code"]) == ("/method/adapter/kind", "unsupported_adapter")
        assert kind in error["message"]
        assert family in error["message"]

    def test_only_the_teacher_cannot_have_it(self, rig: Rig, dataset_id: str) -> None:
        swin = "swin_small_patch4_window7_224.ms_in22k"
        method = {
            "student": _VIT.format("base"),
            "teacher": swin,
            "adapter": {"kind": "vpt_deep"},
        }
        assert swin in _refused(_ask(rig, dataset_id, method))["message"]
        method["teacher_adapter"] = {"kind": "sequential"}
        assert _ask(rig, dataset_id, method).status_code == 200

    def test_the_papers_literal_equation_is_refused_with_a_reason(
        self, rig: Rig, dataset_id: str
    ) -> None:
        method = {"pair": "starter", "distillation": {"loss": "kl", "direction": "literal"}}
        error = _refused(_ask(rig, dataset_id, method))
        assert "can be negative" in error["message"]
        assert "'teacher_student', 'student_teacher'" in error["message"]

    def test_plain_adapters_have_no_teacher_and_no_baseline(
        self, rig: Rig, dataset_id: str
    ) -> None:
        alone = {"type": "adapter", "pair": "starter"}
        other = {**alone, "teacher_adapter": {"kind": "lora"}}
        assert _refused(_ask(rig, dataset_id, other))["pointer"] == "/method/teacher_adapter"
        error = _refused(_ask(rig, dataset_id, alone, compare_baseline=True))
        assert error["pointer"] == "/compare_baseline"

    @pytest.mark.parametrize("seeds", [0, 11, 1.5, "3"])
    def test_seeds_out_of_range(self, rig: Rig, dataset_id: str, seeds: Any) -> None:
        error = _refused(_ask(rig, dataset_id, {"pair": "starter"}, seeds=seeds))
        assert error["pointer"] == "/seeds"

    @pytest.mark.parametrize("rate", ["fast", 0, -1, 1.5, True])
    def test_learning_rates(self, rig: Rig, dataset_id: str, rate: Any) -> None:
        answer = _ask(rig, dataset_id, {"pair": "starter"}, hyperparameters={"learning_rate": rate})
        error = _refused(answer)
        assert error["pointer"] == "/hyperparameters/learning_rate"
        assert "auto" in error["message"]

    def test_a_recipes_schedule_is_fixed(self, rig: Rig, dataset_id: str) -> None:
        answer = _ask(
            rig,
            dataset_id,
            {"pair": "vit-s16-b16-in21k"},
            recipe="vtab-dtd",
            hyperparameters={"epochs": 5},
        )
        assert _refused(answer)["pointer"] == "/hyperparameters/epochs"


class TestMethodsPage:
    def test_lists_every_kind_loss_and_recipe(self, rig: Rig) -> None:
        page = rig.client.get("/v1/fine_tuning/methods").json()
        assert [row["kind"] for row in page["adapters"]] == list(AdapterKind)
        assert [row["loss"] for row in page["distillation_losses"]] == list(DistillationLoss)
        assert set(page["recipes"]) == {"default", "official", *DATASET_RECIPES}
        assert page["recipes"]["vtab-clevr_dist"]["learning_rate"] == 5e-2
        mergeable = {row["kind"] for row in page["adapters"] if row["mergeable"]}
        assert {"lora", "ssf", "arc", "repadapter"} <= mergeable
        assert "tsne" in page["figures"]

    def test_counts_for_any_classes_and_size(self, rig: Rig) -> None:
        url = "/v1/fine_tuning/methods?num_classes=37&hidden_dim=16"
        pairs = {row["name"]: row for row in rig.client.get(url).json()["pairs"]}
        counts = pairs["vit-s16-b16-in21k"]["trainable_parameters"]
        assert counts["parallel"]["student"] == {
            "adapter": 12 * (2 * 768 * 16 + 16 + 768),
            "head": 37 * 769,
            "total": 12 * (2 * 768 * 16 + 16 + 768) + 37 * 769,
        }
        assert counts["full"]["teacher"]["adapter"] == 21_665_664
        assert pairs["swin-s-b-in22k"]["trainable_parameters"]["vpt_deep"] is None

    def test_backbones_say_what_they_refuse_and_their_licence(self, rig: Rig) -> None:
        page = rig.client.get("/v1/fine_tuning/methods").json()
        rows = {row["name"]: row for row in page["backbones"]}
        swin = rows["swin_base_patch4_window7_224.ms_in22k"]
        assert swin["mean"] == [0.485, 0.456, 0.406]
        assert set(swin["unsupported_adapters"]) == {"vpt_deep"}
        assert rows["vit_base_patch16_dinov3.lvd1689m"]["license_note"]
        assert rows[_VIT.format("base")]["license_note"] is None

    @pytest.mark.parametrize("query", ["num_classes=1", "hidden_dim=0", "num_classes=x"])
    def test_nonsense_is_refused(self, rig: Rig, query: str) -> None:
        assert rig.client.get(f"/v1/fine_tuning/methods?{query}").status_code == 422

import json
import math
import struct

import pytest
import safetensors.torch
import torch

from core.catalog.methods import AdapterKind
from core.errors import TooLargeError
from core.ml.adapters.adapted import AdaptedModel, AdapterStateError
from core.ml.adapters.base import AdapterSpec
from core.ml.data.preprocess import PREPROCESS_VERSION
from core.ml.export import bundle as bundle_module
from core.ml.export.bundle import InvalidBundleError, load_bundle, save_bundle
from core.ml.export.card import build_card

CLASSES = ["daisy", "rose | <b>", "Löwenzahn"]


@pytest.fixture
def model(tiny_backbone):
    return AdaptedModel(tiny_backbone(), AdapterSpec(AdapterKind.PARALLEL, 4, 0.25), 3, seed=1)


def write(folder, model, **changes):
    options = {
        "classes": CLASSES,
        "recipe": {"epochs": 3, "seed": 7, "learning_rate": 0.005},
        "metrics": {"test": {"accuracy": 0.9375, "images": 32}},
        "versions": {"torch": "2.14.1"},
        "teacher": {"name": "tiny_teacher", "weights_sha256": "0" * 64},
    }
    return save_bundle(folder, model, **(options | changes))


class TestRoundTrip:
    def test_everything_comes_back(self, tmp_path, model):
        written = write(tmp_path, model)
        bundle = load_bundle(tmp_path)
        assert bundle.spec == model.spec
        assert bundle.classes == tuple(CLASSES)
        assert bundle.sha256 == written.sha256
        assert bundle.backbone.weights_sha256 == model.backbone.weights_sha256
        assert (bundle.backbone.image_px, bundle.backbone.std) == (32, (0.5, 0.4, 0.3))
        assert bundle.state.keys() == model.state_dict().keys()
        for name, tensor in model.state_dict().items():
            assert torch.equal(bundle.state[name], tensor)
        assert bundle.config["recipe"]["seed"] == 7
        assert bundle.config["metrics"]["test"]["accuracy"] == 0.9375

    def test_names_the_preprocessing_that_the_images_went_through(self, tmp_path, model):
        assert write(tmp_path / "now", model).backbone.preprocess_version == PREPROCESS_VERSION
        write(tmp_path, model, preprocess_version=1)
        assert load_bundle(tmp_path).backbone.preprocess_version == 1

    def test_a_bundle_of_the_first_release_went_through_the_first(self, tmp_path, model):
        write(tmp_path, model)
        config = json.loads((tmp_path / "config.json").read_text())
        del config["preprocessing"]["version"]
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert load_bundle(tmp_path).backbone.preprocess_version == 1

    def test_same_bytes_every_time(self, tmp_path, model):
        for folder in ("a", "b"):
            write(tmp_path / folder, model)
        for name in ("adapter.safetensors", "config.json"):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()

    def test_adapters_and_head_and_nothing_else(self, tmp_path, model):
        bundle = write(tmp_path, model)
        numbers = 3 * (2 * 24 * 4 + 4 + 24) + 3 * 25
        assert bundle.config["trainable_parameters"] == numbers
        assert bundle.size_bytes == 4 * numbers
        assert {path.name for path in tmp_path.iterdir()} == {"adapter.safetensors", "config.json"}
        header_bytes = struct.unpack("<Q", (tmp_path / "adapter.safetensors").read_bytes()[:8])[0]
        size = (tmp_path / "adapter.safetensors").stat().st_size
        assert size == 8 + header_bytes + 4 * numbers

    def test_a_bf16_run_exports_fp32(self, tmp_path, model):
        model.backbone.module.bfloat16()
        assert {t.dtype for t in write(tmp_path, model).state.values()} == {torch.float32}


class TestRefusals:
    def test_weights_that_are_not_finite_are_never_written(self, tmp_path, model):
        with torch.no_grad():
            model.adapters[1].up.weight[0, 0] = math.nan
        with pytest.raises(AdapterStateError, match=r"adapters\.1\.up\.weight"):
            write(tmp_path / "new", model)
        assert not (tmp_path / "new").exists()

    def test_metrics_that_are_not_finite(self, tmp_path, model):
        with pytest.raises(ValueError, match="Out of range"):
            write(tmp_path, model, metrics={"loss": math.nan})

    @pytest.mark.parametrize("classes", [["a", "b"], ["a", "b", "a"], ["a"]])
    def test_class_names_that_do_not_fit(self, tmp_path, model, classes):
        with pytest.raises((InvalidBundleError, AdapterStateError)):
            write(tmp_path, model, classes=classes)

    def read_config(self, folder):
        return json.loads((folder / "config.json").read_text())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda c: c.update(format_version=2), "format_version 2"),
            (lambda c: c.pop("adapter"), "malformed.*adapter"),
            (lambda c: c["adapter"].update(kind="magic"), "malformed.*magic"),
            (lambda c: c["adapter"].update(hidden_dim="many"), "malformed"),
            (lambda c: c["preprocessing"].update(mean=[0.5]), "malformed"),
            (lambda c: c["preprocessing"].update(version=99), "preprocessing 99"),
            (lambda c: c["backbone"].update(block_widths=7), "malformed"),
            (
                lambda c: c["backbone"].update(name="vit_starter_student_patch8_64"),
                "describes vit_starter_student_patch8_64 as it is not",
            ),
        ],
    )
    def test_a_changed_config(self, tmp_path, model, change, message):
        write(tmp_path, model)
        config = self.read_config(tmp_path)
        change(config)
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(InvalidBundleError, match=message):
            load_bundle(tmp_path)

    @pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000])
    def test_a_config_that_is_not_one(self, tmp_path, model, text):
        write(tmp_path, model)
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InvalidBundleError):
            load_bundle(tmp_path)

    def test_adapter_of_another_shape(self, tmp_path, model):
        write(tmp_path, model)
        config = self.read_config(tmp_path)
        config["adapter"]["hidden_dim"] = 8
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(AdapterStateError, match=r"is \(4, 24\), this model needs \(8, 24\)"):
            load_bundle(tmp_path)

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"1234",
            b"\xff" * 64,
            struct.pack("<Q", 2**40) + b"{}",
            struct.pack("<Q", 2) + b"{}",
        ],
    )
    def test_an_adapter_file_that_is_not_one(self, tmp_path, model, data):
        write(tmp_path, model)
        (tmp_path / "adapter.safetensors").write_bytes(data)
        with pytest.raises((InvalidBundleError, AdapterStateError)):
            load_bundle(tmp_path)

    def test_a_giant_header_is_not_parsed(self, tmp_path, model):
        write(tmp_path, model)
        header = b'{"__metadata__":{"x":"' + b"a" * (2 * 2**20) + b'"}}'
        path = tmp_path / "adapter.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header)
        with pytest.raises(InvalidBundleError, match="header of"):
            load_bundle(tmp_path)

    def test_numbers_of_another_width(self, tmp_path, model):
        write(tmp_path, model)
        halves = {name: tensor.half() for name, tensor in model.state_dict().items()}
        safetensors.torch.save_file(halves, tmp_path / "adapter.safetensors")
        with pytest.raises(InvalidBundleError, match="not float32"):
            load_bundle(tmp_path)

    @pytest.mark.parametrize("name", ["adapter.safetensors", "config.json"])
    def test_a_missing_file(self, tmp_path, model, name):
        write(tmp_path, model)
        (tmp_path / name).unlink()
        with pytest.raises(InvalidBundleError, match=name):
            load_bundle(tmp_path)

    def test_a_file_beyond_any_size(self, tmp_path, model, monkeypatch):
        write(tmp_path, model)
        monkeypatch.setattr(bundle_module, "_MAX_CONFIG_BYTES", 10)
        with pytest.raises(TooLargeError, match=r"config\.json"):
            load_bundle(tmp_path)


class TestCard:
    def test_says_what_a_user_needs(self, tmp_path, model):
        card = build_card("flowers", write(tmp_path, model).config)
        assert card.startswith("# flowers\n")
        assert model.backbone.weights_sha256 in card
        assert "| test accuracy | 0.9375 |" in card
        assert "resize directly to 32x32 (bicubic" in card
        assert "`tiny_teacher`" in card
        assert "rose \\| \\<b\\>" in card

    def test_without_a_teacher(self, tmp_path, model):
        card = build_card("plain", write(tmp_path, model, teacher=None, metrics={}).config)
        assert "distillation" not in card
        assert "Nothing was measured." in card

    def test_many_classes_are_cut(self, tmp_path, tiny_backbone):
        many = AdaptedModel(tiny_backbone(), AdapterSpec(AdapterKind.PARALLEL, 2), 50, seed=0)
        names = [f"class {index}" for index in range(50)]
        assert "and 30 more" in build_card("m", write(tmp_path, many, classes=names).config)

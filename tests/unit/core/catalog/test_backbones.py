"""The table against timm itself, and the parameter counts against the paper's tables."""

import json
import subprocess
import sys

import pytest
import timm
import torch

from core.catalog.adapters import adapter_parameters
from core.catalog.backbones import (
    TABLE,
    UNSUPPORTED_TABLE,
    UnknownBackboneError,
    find_backbone,
    get_backbone,
    head_parameters,
    list_backbones,
)
from core.catalog.methods import AdapterKind
from core.catalog.pairs import PAIRS
from core.ml.backbones.write_facts import list_names, read_facts

ROWS = json.loads(TABLE.read_text(encoding="utf-8"))
SEQUENTIAL = AdapterKind.SEQUENTIAL
VIT_S, VIT_B, VIT_L = (
    f"vit_{size}_patch16_224.augreg_in21k" for size in ("small", "base", "large")
)
SWIN_S, SWIN_B = (f"swin_{size}_patch4_window7_224.ms_in22k" for size in ("small", "base"))


def count(name, hidden_dim=4, classes=100):
    facts = get_backbone(name)
    return adapter_parameters(facts, SEQUENTIAL, hidden_dim) + head_parameters(facts, classes)


class TestTable:
    @pytest.mark.parametrize("name", list_names())
    def test_listed_networks_agree_with_timm(self, name):
        assert ROWS[name] == {**read_facts(name), "listed": True}

    @pytest.mark.parametrize(
        "name",
        [*sorted(set(ROWS) - set(list_names()))[::25], "vit_so400m_patch14_siglip_384.webli"],
    )
    def test_a_sample_of_the_others_agrees_with_timm(self, name):
        assert ROWS[name] == read_facts(name)

    def test_lists_a_choice(self):
        assert [facts.name for facts in list_backbones()] == list_names()
        assert {get_backbone(name).family for name in ROWS} == {
            facts.family for facts in list_backbones()
        }

    def test_every_network_with_weights_is_in_it_or_has_a_reason_not_to_be(self):
        unsupported = json.loads(UNSUPPORTED_TABLE.read_text(encoding="utf-8"))
        refused = [name for names in unsupported.values() for name in names]
        assert len(refused) == len(set(refused))
        registered = {name for name in timm.list_pretrained() if "starter" not in name}
        assert registered - set(ROWS) == {
            name for name in registered if name.partition(".")[0] in refused
        }
        assert {name for name in ROWS if "starter" not in name} <= registered

    def test_finds_what_it_does_not_list(self):
        facts = get_backbone("eva02_large_patch14_448.mim_m38m_ft_in22k_in1k")
        assert not facts.listed
        assert (facts.image_px, facts.depth, facts.num_features) == (448, 24, 1024)

    def test_has_both_sides_of_every_pair(self):
        for pair in PAIRS.values():
            assert get_backbone(pair.student).parameters > 0
            assert get_backbone(pair.teacher).parameters > 0

    def test_needs_neither_torch_nor_timm(self):

        code = (
            "import sys, core.catalog.backbones as b; b.list_backbones(); "
            "assert not {'torch', 'timm', 'numpy'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class TestUnknown:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("resnet50.a1_in1k", "'resnet50.a1_in1k' cannot be used: ResNet .* convolutions"),
            ("xcit_nano_12_p16_224", "cannot be used: Xcit .* third branch"),
            ("cait_s24_224.fb_dist_in1k", "cannot be used: Cait .* one drop-path module"),
            ("vit_base_patch16_sapiens2.fb", "cannot be used: .* 1024 x 768 pixels"),
            ("eva02_tiny_patch14_224", r"similar names: eva02_tiny_patch14_224\.mim_in22k$"),
            ("vit_base_patch16_224.augreg_in21", r"similar names: .*\.augreg_in21k,"),
            ("swin_small_patch4_windw7_224.ms_in22k", "similar names: swin_small_patch4_window7"),
            ("https://example.org/w", r"no backbone 'https.*'; \d+ networks of timm can be used"),
        ],
    )
    def test_says_why_and_what_else(self, name, message):
        assert find_backbone(name) is None
        with pytest.raises(UnknownBackboneError, match=message):
            get_backbone(name)


class TestFrozenParameters:
    """Sizes of the networks without a classifier, as published."""

    @pytest.mark.parametrize(
        ("name", "parameters"),
        [
            (VIT_S, 21_665_664),
            (VIT_B, 85_798_656),
            (VIT_L, 303_301_632),
            (SWIN_S, 48_837_258),
            (SWIN_B, 86_743_224),
        ],
    )
    def test_backbone(self, name, parameters):
        assert get_backbone(name).parameters == parameters

    def test_swin_widths_by_stage(self):
        facts = get_backbone(SWIN_S)
        assert facts.block_widths == (96,) * 2 + (192,) * 2 + (384,) * 18 + (768,) * 2
        assert (facts.depth, facts.num_features) == (24, 768)
        assert facts.mean == (0.485, 0.456, 0.406)


class TestTrainableParameters:
    @pytest.mark.parametrize(
        ("hidden_dim", "vit_s", "vit_b", "vit_l"),
        [
            (4, 80_020, 159_892, 323_780),
            (8, 116_932, 233_668, 520_484),
            (16, 190_756, 381_220, 913_892),
            (32, 338_404, 676_324, 1_700_708),
            (64, 633_700, 1_266_532, 3_274_340),
        ],
    )
    def test_table_6(self, hidden_dim, vit_s, vit_b, vit_l):
        """Adapters and head of CIFAR-100 by bottleneck width; in millions as the table rounds."""
        assert count(VIT_S, hidden_dim) == vit_s
        assert count(VIT_B, hidden_dim) == vit_b
        assert count(VIT_L, hidden_dim) == vit_l

    def test_table_6_in_millions(self):
        millions = [round(count(VIT_B, h) / 1e6, 2) for h in (8, 16, 32, 64)]
        assert millions == [0.23, 0.38, 0.68, 1.27]
        pairs = [round((count(VIT_S, h) + count(VIT_B, h)) / 1e6, 2) for h in (8, 16, 32, 64)]
        assert pairs == [0.35, 0.57, 1.01, 1.90]

    def test_table_7(self):
        assert round(count(VIT_S) / 1e6, 2) == 0.08
        assert round(count(VIT_L) / 1e6, 2) == 0.32
        assert count(VIT_S) + count(VIT_L) == 403_800

    def test_table_8(self):
        assert (count(SWIN_S), count(SWIN_B)) == (158_212, 210_884)
        assert count(SWIN_S) + count(SWIN_B) == 369_096

    def test_any_number_of_classes(self):
        for classes in (2, 10, 397):
            assert count(VIT_S, 4, classes) + count(VIT_B, 4, classes) == 124_512 + 1_154 * classes

    def test_head_is_timms_own(self):
        with torch.device("meta"):
            head = timm.create_model(VIT_B, num_classes=100).get_classifier()
        assert sum(p.numel() for p in head.parameters()) == head_parameters(
            get_backbone(VIT_B), 100
        )

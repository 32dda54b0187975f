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
    UnknownBackboneError,
    find_backbone,
    get_backbone,
    head_parameters,
    list_backbones,
)
from core.catalog.methods import AdapterKind
from core.catalog.pairs import PAIRS
from core.ml.backbones.write_facts import list_names, read_facts

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
    def test_agrees_with_timm(self, name):
        rows = json.loads(TABLE.read_text(encoding="utf-8"))
        assert rows[name] == read_facts(name)

    def test_has_no_other_rows(self):
        assert [facts.name for facts in list_backbones()] == list_names()

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

    def test_unknown(self):
        assert find_backbone("vit_unheard_of") is None
        with pytest.raises(UnknownBackboneError, match="vit_unheard_of"):
            get_backbone("vit_unheard_of")


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

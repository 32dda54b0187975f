"""The starter pair as timm sees it, and the weights that ship."""

import pytest
import timm
import torch
from safetensors.torch import load_file

from core.ml.backbones.starter import (
    STARTER_STUDENT,
    STARTER_TEACHER,
    WIDTHS,
    weights_path,
)

NAMES = (STARTER_TEACHER, STARTER_STUDENT)


class TestRegistration:
    @pytest.mark.parametrize("name", NAMES)
    def test_timm_knows_the_name_and_its_licence(self, name):
        assert name in timm.list_models(pretrained=True, filter=f"{name}*") or any(
            known.startswith(name) for known in timm.list_pretrained(f"{name}*")
        )
        assert timm.get_pretrained_cfg(name).license == "apache-2.0"

    def test_the_pair_has_the_same_depth_and_the_teacher_half_the_width(self):
        teacher, student = (timm.create_model(name, num_classes=0) for name in NAMES)
        assert len(teacher.blocks) == len(student.blocks) == 6
        assert teacher.embed_dim * 2 == student.embed_dim == WIDTHS[STARTER_STUDENT]

    def test_a_head_can_be_asked_for(self):
        model = timm.create_model(STARTER_TEACHER, num_classes=7)
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 7)


class TestWeights:
    def test_both_files_together_stay_under_twelve_megabytes(self):
        assert sum(weights_path(name).stat().st_size for name in NAMES) < 12e6

    @pytest.mark.parametrize("name", NAMES)
    def test_load_strictly_and_are_finite(self, name):
        state = load_file(weights_path(name))
        timm.create_model(name, num_classes=0).load_state_dict(state, strict=True)
        assert {tensor.dtype for tensor in state.values()} == {torch.float16}
        assert all(tensor.isfinite().all() for tensor in state.values())

    @pytest.mark.parametrize("name", NAMES)
    def test_pretrained_reads_the_shipped_file(self, name):
        model = timm.create_model(name, pretrained=True, num_classes=0)
        shipped = load_file(weights_path(name))
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, shipped[key].float()), key

    def test_student_features_tell_orientations_apart(self):
        """Features of trained weights change with the picture; collapsed ones would not."""
        model = timm.create_model(STARTER_STUDENT, pretrained=True, num_classes=0).eval()
        stripes = (torch.arange(64) // 4 % 2).float() * 2 - 1
        upright = stripes.expand(1, 3, 64, 64)
        with torch.no_grad():
            first, second = model(upright)[0], model(upright.transpose(2, 3).contiguous())[0]
        assert torch.cosine_similarity(first, second, dim=0) < 0.9

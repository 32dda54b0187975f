"""The columns that decide on adapters and count them, against formulas from the architectures."""

import pytest

from core.catalog.backbones import StreamLayout, get_backbone, list_backbones

VIT_B, VIT_L = (f"vit_{size}_patch16_224.augreg_in21k" for size in ("base", "large"))
SWIN_S = "swin_small_patch4_window7_224.ms_in22k"
BEIT_B = "beit_base_patch16_224.in22k_ft_in22k"
DINOV3_S = "vit_small_patch16_dinov3.lvd1689m"
HIERA_T, MVIT_T, CONVNEXT_T = "hiera_tiny_224.mae", "mvitv2_tiny.fb_in1k", "convnext_tiny.fb_in22k"


class TestBiases:
    @pytest.mark.parametrize(
        ("name", "count"),
        [
            # 11 widths a block: two norms, 3 of qkv, projection, 4 of fc1, fc2; then the patch
            # projection and the final norm
            (VIT_B, 12 * 11 * 768 + 2 * 768),
            (VIT_L, 24 * 11 * 1024 + 2 * 1024),
            (BEIT_B, 12 * 10 * 768 + 2 * 768),  # keys have none
            (DINOV3_S, 12 * 8 * 384 + 2 * 384),  # nor have queries and values
            # 7 widths a block, stem and its norm, three norms with convolutions, the final norm
            (
                CONVNEXT_T,
                7 * (3 * 96 + 3 * 192 + 9 * 384 + 3 * 768)
                + 2 * 96
                + (96 + 192)
                + (192 + 384)
                + (384 + 768)
                + 768,
            ),
        ],
    )
    def test_count(self, name, count):
        assert get_backbone(name).bias_parameters == count

    def test_of_vit_b_is_the_published_one(self):
        assert get_backbone(VIT_B).bias_parameters == 102_912


class TestScalesAndShifts:
    def test_vit(self):
        assert get_backbone(VIT_B).ssf_parameters == 205_824 == 12 * 2 * 11 * 768 + 4 * 768
        assert get_backbone(VIT_L).ssf_parameters == 24 * 2 * 11 * 1024 + 4 * 1024

    def test_swin(self):
        widths = 2 * 96 + 2 * 192 + 18 * 384 + 2 * 768
        assert get_backbone(SWIN_S).ssf_parameters == 2 * (11 * widths + 96 + 768)

    def test_hiera_counts_both_widths_of_a_block(self):
        """norm1 is as wide as what enters, all else follows what leaves."""
        entering = 96 + 96 + 192 + 192 + 384 * 6 + 384 + 768
        leaving = 96 + 2 * 192 + 7 * 384 + 2 * 768
        assert get_backbone(HIERA_T).ssf_parameters == 2 * (entering + 10 * leaving + 96 + 768)

    @pytest.mark.parametrize("name", [BEIT_B, CONVNEXT_T, "pvt_v2_b0.in1k"])
    def test_is_unknown_where_an_operation_cannot_be_hooked(self, name):
        assert get_backbone(name).ssf_parameters is None


class TestLowRank:
    def test_of_rank_8_on_vit_b_is_noahs(self):
        assert 8 * get_backbone(VIT_B).lora_parameters_per_rank == 294_912

    def test_hiera_makes_queries_of_the_new_width_from_the_old_one(self):
        facts = get_backbone(HIERA_T)
        expected = sum(facts.input_widths) + 3 * sum(facts.block_widths)
        assert facts.lora_parameters_per_rank == expected

    def test_is_known_exactly_where_qkv_can_be_hooked(self):
        for facts in list_backbones():
            assert (facts.lora_parameters_per_rank is not None) == facts.has_qkv, facts.name


class TestWidths:
    @pytest.mark.parametrize("name", [HIERA_T, MVIT_T])
    def test_a_stage_begins_with_the_width_of_the_one_before(self, name):
        facts = get_backbone(name)
        assert facts.input_widths == (facts.block_widths[0], *facts.block_widths[:-1])
        assert facts.input_widths != facts.block_widths
        assert not facts.has_attention_branch

    def test_are_equal_elsewhere(self):
        for facts in list_backbones():
            if facts.family not in {"Hiera", "MultiScaleVit"}:
                assert facts.input_widths == facts.block_widths, facts.name

    def test_divide_into_heads(self):
        for facts in list_backbones():
            assert len(facts.heads) == facts.depth
            if facts.family == "ConvNeXt":
                assert set(facts.heads) == {0}
                continue
            for width, heads in zip(facts.block_widths, facts.heads, strict=True):
                assert width % heads == 0, facts.name


class TestTokens:
    @pytest.mark.parametrize(
        ("name", "prefix", "layout"),
        [
            (VIT_B, 1, "tokens"),
            ("deit_tiny_distilled_patch16_224.fb_in1k", 2, "tokens"),
            ("vit_small_patch14_dinov2.lvd142m", 1, "tokens"),
            ("vit_small_patch14_reg4_dinov2.lvd142m", 5, "tokens"),
            (DINOV3_S, 5, "tokens"),
            ("vit_base_patch16_clip_224.openai", 1, "tokens"),
            ("vit_base_patch16_siglip_224.webli", 0, "tokens"),
            ("aimv2_large_patch14_224.apple_pt", 0, "tokens"),
            ("naflexvit_base_patch16_gap.e300_s576_in1k", 4, "tokens"),
            (BEIT_B, 1, "tokens"),
            (SWIN_S, 0, "grid"),
            ("maxvit_tiny_tf_224.in1k", 0, "grid"),
            ("davit_tiny.msft_in1k", 0, "channels_first"),
            (CONVNEXT_T, 0, "channels_first"),
            ("pvt_v2_b0.in1k", 0, "tokens"),
            ("mvitv2_base_cls.fb_inw21k", 1, "tokens"),
        ],
    )
    def test_prefix_and_layout(self, name, prefix, layout):
        facts = get_backbone(name)
        assert (facts.prefix_tokens, facts.layout) == (prefix, StreamLayout(layout))

    @pytest.mark.parametrize(
        ("name", "image_px"),
        [
            ("vit_small_patch14_dinov2.lvd142m", 518),
            ("vit_base_patch16_siglip_256.webli", 256),
            (DINOV3_S, 256),
            ("naflexvit_base_patch16_gap.e300_s576_in1k", 384),
            ("swinv2_base_window12_192.ms_in22k", 192),
            ("hiera_small_abswin_256.sbb2_e200_in12k", 256),
        ],
    )
    def test_images_have_the_size_that_the_weights_were_made_for(self, name, image_px):
        assert get_backbone(name).image_px == image_px


class TestPlaces:
    def test_by_family(self):
        """One row a family: qkv, fc, attention branch, post-norm, prompts, grid."""
        found = {}
        for facts in list_backbones():
            flags = "".join(
                letter if flag else "-"
                for letter, flag in (
                    ("q", facts.has_qkv),
                    ("f", facts.has_fc),
                    ("a", facts.has_attention_branch),
                    ("n", facts.post_norm),
                    ("p", facts.prompts),
                    ("g", facts.grid),
                )
            )
            found.setdefault(facts.family, set()).add(flags)
        assert found == {
            "VisionTransformer": {"qfa-pg", "q-a-pg"},  # the latter AIMv2
            "VisionTransformerDistilled": {"qfa-pg"},
            "VisionTransformerRelPos": {"qfa--g", "qfan-g"},
            "NaFlexVit": {"qfa-pg"},
            "Beit": {"-fa--g"},
            "Eva": {"qfa--g", "q-a--g", "-fa--g", "--a--g"},
            "SwinTransformer": {"qfa--g"},
            "SwinTransformerV2": {"-fan-g"},
            "PyramidVisionTransformerV2": {"-fa--g"},
            "Twins": {"-fa--g"},
            "DaVit": {"qfa--g"},
            "MaxxVit": {"qfa--g"},
            "Hiera": {"qf----"},
            "MultiScaleVit": {"qf---g"},
            "ConvNeXt": {"-f---g"},
        }

    def test_pre_norm_needs_two_branches(self):
        assert get_backbone(VIT_B).pre_norm
        assert not get_backbone(CONVNEXT_T).pre_norm
        assert not get_backbone("swinv2_tiny_window8_256.ms_in1k").pre_norm


class TestLicenses:
    @pytest.mark.parametrize(
        ("name", "note"),
        [
            ("vit_base_patch16_224.mae", "non-commercial"),
            ("hiera_tiny_224.mae", "non-commercial"),
            (DINOV3_S, "DINOv3 License"),
            ("convnext_tiny.dinov3_lvd1689m", "DINOv3 License"),
            ("aimv2_large_patch14_224.apple_pt", "Apple"),
        ],
    )
    def test_what_restricts_is_said(self, name, note):
        assert note in get_backbone(name).license_note

    @pytest.mark.parametrize("name", [VIT_B, SWIN_S, BEIT_B, CONVNEXT_T])
    def test_permissive_ones_need_no_note(self, name):
        assert get_backbone(name).license_note is None

    def test_every_network_states_one_or_says_that_it_does_not(self):
        assert all(facts.license for facts in list_backbones())

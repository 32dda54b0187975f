"""The recipes against the counts that follow from the real networks, and against VTAB's sizes."""

import subprocess
import sys
from collections import Counter
from statistics import fmean

import pytest

from core.catalog.adapters import adapter_parameters
from core.catalog.backbones import get_backbone, head_parameters
from core.catalog.methods import AdapterKind
from core.catalog.pairs import PAIRS
from core.catalog.recipes import DATASET_RECIPES, DatasetGroup, UnknownRecipeError, get_recipe
from core.errors import InvalidError

PAIR = PAIRS["vit-s16-b16-in21k"]

#: Trainable numbers at h = 4, adapters and head: student ViT-B/16, teacher ViT-S/16.
COUNTS = {
    "vtab-cifar100": (159_892, 80_020),
    "vtab-caltech101": (161_430, 80_790),
    "vtab-dtd": (119_135, 59_615),
    "vtab-flowers102": (161_430, 80_790),
    "vtab-pets": (111_445, 55_765),
    "vtab-svhn": (90_682, 45_370),
    "vtab-sun397": (388_285, 194_365),
    "vtab-patch_camelyon": (84_530, 42_290),
    "vtab-eurosat": (90_682, 45_370),
    "vtab-resisc45": (117_597, 58_845),
    "vtab-diabetic_retinopathy": (86_837, 43_445),
    "vtab-clevr_count": (89_144, 44_600),
    "vtab-clevr_dist": (87_606, 43_830),
    "vtab-dmlab": (87_606, 43_830),
    "vtab-kitti": (86_068, 43_060),
    "vtab-dsprites_loc": (95_296, 47_680),
    "vtab-dsprites_ori": (95_296, 47_680),
    "vtab-smallnorb_azi": (96_834, 48_450),
    "vtab-smallnorb_ele": (89_913, 44_985),
}


def count(recipe, network):
    facts = get_backbone(network)
    adapters = adapter_parameters(facts, AdapterKind.SEQUENTIAL, 4)
    return adapters + head_parameters(facts, recipe.num_classes)


class TestTrainableParameters:
    @pytest.mark.parametrize(("name", "counts"), COUNTS.items())
    def test_of_every_dataset(self, name, counts):
        recipe = get_recipe(name)
        assert (count(recipe, PAIR.student), count(recipe, PAIR.teacher)) == counts

    def test_by_the_formula_for_any_number_of_classes(self):
        # Twelve blocks of 2 * 768 * 4 + 4 + 768 numbers, and 768 weights and a bias a class.
        for recipe in DATASET_RECIPES.values():
            assert count(recipe, PAIR.student) == 82_992 + 769 * recipe.num_classes
            assert count(recipe, PAIR.teacher) == 41_520 + 385 * recipe.num_classes

    def test_means(self):
        means = {
            role: fmean(count(recipe, network) for recipe in DATASET_RECIPES.values())
            for role, network in (("student", PAIR.student), ("teacher", PAIR.teacher))
        }
        assert means["student"] == pytest.approx(121_037.3, abs=0.05)
        assert means["teacher"] == pytest.approx(60_567.4, abs=0.05)


class TestTable:
    def test_has_the_nineteen_in_the_papers_order(self):
        assert list(DATASET_RECIPES) == list(COUNTS)
        assert all(name == recipe.name for name, recipe in DATASET_RECIPES.items())

    def test_groups(self):
        recipes = list(DATASET_RECIPES.values())
        assert Counter(recipe.group for recipe in recipes) == {
            DatasetGroup.NATURAL: 7,
            DatasetGroup.SPECIALIZED: 4,
            DatasetGroup.STRUCTURED: 8,
        }
        order = list(DatasetGroup)
        assert [r.group for r in recipes] == sorted((r.group for r in recipes), key=order.index)

    def test_sums(self):
        recipes = DATASET_RECIPES.values()
        assert sum(recipe.num_classes for recipe in recipes) == 940
        # What one pass over all test splits costs, and so why to test once.
        assert sum(recipe.test_images for recipe in recipes) == 387_904

    def test_the_common_settings_are_common(self):
        recipes = DATASET_RECIPES.values()
        usual = [r for r in recipes if (r.learning_rate, r.weight_decay) == (5e-3, 5e-5)]
        assert len(usual) == 9
        assert sum(recipe.drop_path == 0 for recipe in usual) == 6

    def test_values_lie_in_their_ranges(self):
        for recipe in DATASET_RECIPES.values():
            assert 1e-3 <= recipe.learning_rate <= 5e-2
            assert recipe.weight_decay in (5e-5, 5e-2)
            assert recipe.drop_path in (0.0, 0.1, 0.2)

    def test_folders_and_names_are_distinct(self):
        assert len({recipe.folder for recipe in DATASET_RECIPES.values()}) == 19
        assert get_recipe("vtab-cifar100").folder == "cifar"
        assert get_recipe("vtab-pets").folder == "oxford_iiit_pet"
        assert get_recipe("vtab-flowers102").folder == "oxford_flowers102"
        assert get_recipe("vtab-patch_camelyon").code_name == "patch_camelyon"

    def test_needs_neither_torch_nor_numpy(self):
        code = (
            "import sys, core.catalog.recipes; "
            "assert not {'torch', 'timm', 'numpy', 'PIL'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class TestGetRecipe:
    def test_unknown_lists_the_names(self):
        with pytest.raises(UnknownRecipeError) as caught:
            get_recipe("vtab-imagenet")
        assert isinstance(caught.value, InvalidError)
        assert caught.value.code == "unknown_recipe"
        assert "'vtab-imagenet'" in caught.value.message
        assert all(repr(name) in caught.value.message for name in DATASET_RECIPES)

    def test_the_folder_is_not_a_name(self):
        with pytest.raises(UnknownRecipeError):
            get_recipe("cifar")

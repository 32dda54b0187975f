"""The 19 per-dataset settings of the released code, as named recipes.

Source: the training script of github.com/JCruan519/iDAT at commit a12406a. Learning rate, weight
decay and stochastic depth there are those of the 19 scripts of github.com/dongzelian/SSF, whose
training loop measures the test split after every epoch; they were not tuned for iDAT's adapters.
Everything else is the same for all of them: the schedule of `Recipe.OFFICIAL`.
"""

from dataclasses import dataclass
from enum import StrEnum

from core.errors import InvalidError


class DatasetGroup(StrEnum):
    """The three groups of VTAB."""

    NATURAL = "natural"  #: photographs of things
    SPECIALIZED = "specialized"  #: from special cameras: remote sensing, medicine
    STRUCTURED = "structured"  #: counting, distances, poses, most of them drawn by a computer


class UnknownRecipeError(InvalidError):
    """There is no dataset recipe of that name."""

    code = "unknown_recipe"


@dataclass(frozen=True)
class DatasetRecipe:
    """The settings for one dataset of VTAB-1k.

    Attributes:
        name: what a request calls it, `vtab-` and the released code's name of the dataset.
        folder: its folder in the usual layout of VTAB-1k.
        group: of the three that VTAB averages.
        num_classes: labels 0 to this minus one.
        learning_rate: peak, of student and teacher.
        weight_decay: decoupled, of the matrices of both.
        drop_path: stochastic depth of the last block of both.
        test_images: lines of its test list.
    """

    name: str
    folder: str
    group: DatasetGroup
    num_classes: int
    learning_rate: float
    weight_decay: float
    drop_path: float
    test_images: int

    @property
    def code_name(self) -> str:
        """The released code's name of the dataset."""
        return self.name.removeprefix(_PREFIX)


def get_recipe(name: str) -> DatasetRecipe:
    """Return the recipe called `name`.

    Raises:
        UnknownRecipeError: there is none; the message lists the names.
    """
    recipe = DATASET_RECIPES.get(name)
    if recipe is None:
        allowed = ", ".join(repr(known) for known in DATASET_RECIPES)
        raise UnknownRecipeError(f"there is no dataset recipe {name!r}; allowed: {allowed}")
    return recipe


_PREFIX = "vtab-"
_NATURAL, _SPECIALIZED, _STRUCTURED = DatasetGroup

# fmt: off
_ROWS: tuple[tuple[str, str, DatasetGroup, int, float, float, float, int], ...] = (
    # code name            folder                group         C    lr    wd    dp   test images
    ("cifar100",             "cifar",                _NATURAL,     100, 5e-3, 5e-5, 0.0, 10_000),
    ("caltech101",           "caltech101",           _NATURAL,     102, 1e-3, 5e-2, 0.1, 6_084),
    ("dtd",                  "dtd",                  _NATURAL,      47, 5e-3, 5e-5, 0.0, 1_880),
    ("flowers102",           "oxford_flowers102",    _NATURAL,     102, 5e-3, 5e-5, 0.0, 6_149),
    ("pets",                 "oxford_iiit_pet",      _NATURAL,      37, 5e-3, 5e-5, 0.0, 3_669),
    ("svhn",                 "svhn",                 _NATURAL,      10, 1e-2, 5e-5, 0.0, 26_032),
    ("sun397",               "sun397",               _NATURAL,     397, 5e-3, 5e-5, 0.0, 21_750),
    ("patch_camelyon",       "patch_camelyon",       _SPECIALIZED,   2, 5e-3, 5e-5, 0.0, 32_768),
    ("eurosat",              "eurosat",              _SPECIALIZED,  10, 3e-3, 5e-2, 0.2, 5_400),
    ("resisc45",             "resisc45",             _SPECIALIZED,  45, 2e-3, 5e-5, 0.1, 6_300),
    ("diabetic_retinopathy", "diabetic_retinopathy", _SPECIALIZED,   5, 5e-3, 5e-5, 0.2, 42_670),
    ("clevr_count",          "clevr_count",          _STRUCTURED,    8, 2e-3, 5e-2, 0.1, 15_000),
    ("clevr_dist",           "clevr_dist",           _STRUCTURED,    6, 5e-2, 5e-2, 0.1, 15_000),
    ("dmlab",                "dmlab",                _STRUCTURED,    6, 5e-3, 5e-5, 0.1, 22_735),
    ("kitti",                "kitti",                _STRUCTURED,    4, 1e-2, 5e-5, 0.0, 711),
    ("dsprites_loc",         "dsprites_loc",         _STRUCTURED,   16, 1e-2, 5e-5, 0.0, 73_728),
    ("dsprites_ori",         "dsprites_ori",         _STRUCTURED,   16, 5e-3, 5e-5, 0.2, 73_728),
    ("smallnorb_azi",        "smallnorb_azi",        _STRUCTURED,   18, 2e-2, 5e-5, 0.1, 12_150),
    # The paper's Table 12 says 18 classes of elevation; the code and VTAB have 9.
    ("smallnorb_ele",        "smallnorb_ele",        _STRUCTURED,    9, 5e-3, 5e-2, 0.2, 12_150),
)
# fmt: on

#: By name, in the order of the paper's Table 3.
DATASET_RECIPES: dict[str, DatasetRecipe] = {
    f"{_PREFIX}{row[0]}": DatasetRecipe(f"{_PREFIX}{row[0]}", *row[1:]) for row in _ROWS
}

import matplotlib as mpl
import pytest

from core.ml.analysis.figures.style import (
    class_label,
    class_labels,
    new_figure,
    shorten,
    spread_colours,
    styled,
    to_png,
)


class TestNames:
    @pytest.mark.parametrize(
        ("name", "label"),
        [
            ("rose", "rose"),
            ("  a\n rose ", "a rose"),
            ("Größe é ж Ω", "Größe é ж Ω"),
            ("薔薇", "class 7"),  # the font has no such letters
            ("", "class 7"),
            ("exactly twenty chars", "exactly twenty chars"),
            ("just twenty-one chars", "just twen…-one chars"),
        ],
    )
    def test_can_be_drawn(self, name, label):
        assert class_label(name, 7) == label

    def test_the_middle_is_left_out(self):
        assert shorten("abcdefghij", 5) == "ab…ij"
        assert class_labels(["a", "薔"]) == ["a", "class 1"]

    @pytest.mark.parametrize("name", ["$\\frac{", "5$ and 6$", "薔薇", "a_b^c", "\\alpha"])
    def test_none_breaks_a_picture(self, name):
        with styled():
            figure = new_figure(3, 2)
            figure.subplots().set_title(class_label(name, 0))
            assert to_png(figure)


@pytest.mark.parametrize("count", [1, 10, 11, 20, 21, 300])
def test_every_class_has_a_colour_of_its_own(count):
    assert len(set(spread_colours(count))) == count


def test_the_style_ends_with_its_context_and_ignores_the_users():
    with mpl.rc_context({"axes.titlesize": 33}):
        with styled():
            assert mpl.rcParams["axes.titlesize"] == 10
        assert mpl.rcParams["axes.titlesize"] == 33

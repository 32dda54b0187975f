"""Whether a picture can be read: what a person would see at once, checked by the numbers."""

from itertools import combinations
from typing import Any
from unittest.mock import patch

from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

#: Pixels that two texts may share: the boxes are a little larger than the letters.
_SLACK_PX = 1.5
_SMALLEST_PT = 6.0


def drawn_texts(figure: Figure) -> list[tuple[str, Bbox]]:
    """Every text that really is drawn, with the pixels that it covers."""
    drawn: list[Text] = []
    draw = Text.draw

    def watch(self: Text, renderer: Any) -> None:
        if self.get_visible() and self.get_text().strip() and self not in drawn:
            drawn.append(self)
        draw(self, renderer)

    figure.canvas.draw()  # settles the layout
    with patch.object(Text, "draw", watch):
        figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    for text in drawn:
        assert text.get_fontsize() >= _SMALLEST_PT, text.get_text()
    return [(text.get_text(), text.get_window_extent(renderer)) for text in drawn]


def assert_readable(figure: Figure, *, least: int) -> list[str]:
    """No text leaves the picture or lies on another; return the texts.

    Args:
        figure: the picture.
        least: texts that there are at least, so that an empty picture does not pass.
    """
    texts = drawn_texts(figure)
    assert len(texts) >= least
    width, height = figure.canvas.get_width_height()
    for text, box in texts:
        assert box.x0 >= -_SLACK_PX, text
        assert box.y0 >= -_SLACK_PX, text
        assert box.x1 <= width + _SLACK_PX, text
        assert box.y1 <= height + _SLACK_PX, text
    for (first, one), (second, other) in combinations(texts, 2):
        across = min(one.x1, other.x1) - max(one.x0, other.x0)
        down = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert min(across, down) <= _SLACK_PX, (first, second)
    return [text for text, _ in texts]

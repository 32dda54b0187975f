"""The sprite in the image is where, and points where, the label says."""

import numpy as np

from benchmarks.tasks import location, sprite_orientation


def find_sprite(image):
    """Return a mask of the sprite: what is not like the corners' colour, noise apart."""
    grey = image.astype(float).mean(axis=2)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    return np.abs(grey - np.median(border)) > 30


class TestLocation:
    def test_the_centre_of_gravity_is_in_the_labels_bin(self):
        task = location(2, train=160, val=8, test=8)
        edges = np.linspace(12, 52, 9)

        for image, label in zip(task.images["train"], task.labels["train"], strict=True):
            x = np.nonzero(find_sprite(image))[1].mean() + 0.5
            assert edges[label] - 0.3 <= x <= edges[label + 1] + 0.3

    def test_the_other_coordinate_and_the_size_do_not_follow_the_label(self):
        task = location(2, train=400, val=8, test=8)
        masks = [find_sprite(image) for image in task.images["train"]]
        y = [np.nonzero(mask)[0].mean() for mask in masks]
        area = [mask.sum() for mask in masks]

        assert abs(np.corrcoef(y, task.labels["train"])[0, 1]) < 0.15
        assert abs(np.corrcoef(area, task.labels["train"])[0, 1]) < 0.15


class TestOrientation:
    def test_the_point_farthest_from_the_centre_is_in_the_labels_direction(self):
        task = sprite_orientation(2, train=160, val=8, test=8)

        for image, label in zip(task.images["train"], task.labels["train"], strict=True):
            y, x = np.nonzero(find_sprite(image))
            across, down = x - x.mean(), y - y.mean()
            far = np.hypot(across, down)
            tip = far >= far.max() - 0.5
            angle = np.degrees(np.arctan2(down[tip].mean(), across[tip].mean()))
            # Half a bin is 22.5 degrees; a pixel is up to 5 of them at the smallest sprite's tip.
            assert abs((angle - 45 * label + 180) % 360 - 180) < 22.5 + 5

    def test_names_say_the_angle(self):
        assert sprite_orientation(0, train=8, val=8, test=8).classes[:3] == (
            "000deg",
            "045deg",
            "090deg",
        )

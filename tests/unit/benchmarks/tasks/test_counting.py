"""As many objects as the label says can be seen, and paint alone does not tell their number."""

import numpy as np
import pytest

from benchmarks.tasks import count
from benchmarks.tasks.counting import Thing, paint, place_things

GROUND = np.array([90.0, 90.0, 90.0])


class TestScene:
    @pytest.mark.parametrize("number", [3, 6, 10])
    def test_most_of_every_object_is_seen(self, number):
        rng = np.random.default_rng(5)
        for _ in range(20):
            things = place_things(rng, number, GROUND)
            _, owners = paint(rng, GROUND, things)

            assert sorted(set(owners.ravel().tolist()) - {-1}) == list(range(number))
            for index, thing in enumerate(things):
                seen = (owners == index).sum() / (np.pi * thing.radius**2)
                assert seen > 0.5

    def test_an_object_has_its_area_whatever_its_form(self):
        rng = np.random.default_rng(0)
        for form in range(3):
            thing = Thing(form, 32.0, 32.0, 12.0, 0.3, np.full(3, 255.0))
            _, owners = paint(rng, GROUND, [thing])

            assert (owners == 0).sum() == pytest.approx(np.pi * 144, rel=0.03)

    def test_the_area_of_all_of_them_says_little_about_their_number(self):
        rng = np.random.default_rng(1)
        numbers = np.arange(400) % 8 + 3
        areas = []
        for number in numbers:
            things = place_things(rng, int(number), GROUND)
            areas.append((paint(rng, GROUND, things)[1] >= 0).mean())

        assert abs(np.corrcoef(areas, numbers)[0, 1]) < 0.2


class TestTask:
    def test_classes_are_three_to_ten(self):
        assert count(0, train=8, val=8, test=8).classes == (
            *("03", "04", "05", "06"),
            *("07", "08", "09", "10"),
        )

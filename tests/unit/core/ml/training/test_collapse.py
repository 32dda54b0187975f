"""When a run counts as collapsed."""

import math

import pytest
import torch

from core.ml.training.collapse import find_collapse, label_entropy

H = math.log(4)


class TestEntropy:
    def test_balanced(self):
        assert label_entropy(torch.arange(40) % 4) == pytest.approx(H)

    def test_three_to_one(self):
        labels = torch.tensor([0, 0, 0, 2])
        wanted = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
        assert label_entropy(labels) == pytest.approx(wanted)


class TestFindCollapse:
    @pytest.mark.parametrize(
        ("losses", "warmup", "epoch"),
        [
            ([H, H, H], 0, 2),  # never learnt anything
            ([H, 0.5, 0.4, 3.0, H, H, H], 0, 6),  # not before: it was coming down
            ([50.0, 20.0, 9.0], 0, 2),  # coming down from nonsense
            ([H, H, H, 0.9 * H], 0, 2),
            ([H, H, H], 1, None),  # the warm-up proves nothing
            ([H, H, H, H], 1, 3),
            ([1.1 * H, 1.05 * H, 1.0 * H, 0.95 * H], 0, None),  # slow, but learning
            ([H, 0.97 * H, H, H], 0, None),  # one good epoch within the window
            ([0.1, 0.1, 0.1, 0.1], 0, None),  # done learning is not collapsed
            ([H, 0.5, math.nan], 0, 2),
            ([], 0, None),
        ],
    )
    def test_cases(self, losses, warmup, epoch):
        assert find_collapse(losses, entropy=H, num_classes=4, warmup_epochs=warmup) == epoch

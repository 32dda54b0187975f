import numpy as np
import pytest
import torch

from core.ml.inference.heads import NO_HEAD, Heads, choose_class_bucket

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("classes", "bucket"),
    [(1, 16), (16, 16), (17, 128), (129, 1024), (1024, 1024), (1025, 2048), (5000, 8192)],
)
def test_buckets(classes, bucket):
    assert choose_class_bucket(classes) == bucket


def draw(classes, features, seed):
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((classes, features)).astype(np.float32)
    return weight, rng.standard_normal(classes).astype(np.float32)


class TestMixed:
    def test_each_image_gets_the_logits_of_its_own_head(self):
        heads = Heads(12, CPU)
        sizes = (2, 16, 20, 200, 1, 1500)
        numbers = [draw(classes, 12, seed) for seed, classes in enumerate(sizes)]
        slots = [heads.take(torch.from_numpy(w), torch.from_numpy(b)) for w, b in numbers]
        which = [3, 0, 5, 5, 1, 2, 4, 0, 3]
        features = np.random.default_rng(9).standard_normal((len(which) + 1, 12))
        features = features.astype(np.float32)
        logits = heads.run([*(slots[i] for i in which), NO_HEAD], torch.from_numpy(features))
        for image, index in enumerate(which):
            weight, bias = numbers[index]
            assert logits[image].shape == (sizes[index],)
            assert np.allclose(logits[image], features[image] @ weight.T + bias, atol=1e-4)
        assert logits[-1].shape == (0,)

    def test_a_head_that_left_leaves_nothing_to_the_next(self):
        heads = Heads(4, CPU)
        first = heads.take(torch.ones(16, 4), torch.ones(16))
        heads.give_back(first)
        second = heads.take(torch.zeros(3, 4), torch.zeros(3))
        assert second.index == first.index
        assert heads.run([second], torch.ones(1, 4))[0].tolist() == [0.0, 0.0, 0.0]
        assert heads._tables[16][1].read().abs().sum() == 0

import numpy as np
import pytest
from sklearn.metrics import silhouette_samples

from core.ml.analysis.embedding import (
    choose_stratified,
    embed,
    find_neighbours,
    find_perplexity,
    knn_accuracy,
    measure_separation,
)


def clouds(classes, each, *, distance, seed=0, width=12):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    centres = rng.normal(size=(classes, width))
    centres *= distance / np.linalg.norm(centres, axis=1, keepdims=True)
    points = centres[labels] + rng.normal(size=(len(labels), width)) / np.sqrt(width)
    return points.astype(np.float32), labels


class TestChoice:
    def test_a_small_split_is_taken_whole(self):
        assert list(choose_stratified(np.array([1, 0, 1]), 3, seed=0)) == [0, 1, 2]

    def test_classes_keep_their_shares(self):
        labels = np.random.default_rng(0).choice(4, 5000, p=[0.5, 0.3, 0.15, 0.05])
        rows = choose_stratified(labels, 400, seed=1)
        assert len(set(rows.tolist())) == 400
        assert (np.diff(rows) > 0).all()
        wanted = 400 * np.bincount(labels) / 5000
        assert np.abs(np.bincount(labels[rows]) - wanted).max() <= 1

    def test_depends_on_the_seed_alone(self):
        labels = np.arange(1000) % 3
        first = choose_stratified(labels, 50, seed=1)
        assert (first == choose_stratified(labels, 50, seed=1)).all()
        assert (first != choose_stratified(labels, 50, seed=2)).any()


class TestEmbed:
    def test_gives_the_same_bytes_again(self):
        points, _ = clouds(3, 12, distance=6)
        first, second = (embed(points, seed=2**40 + 7) for _ in range(2))
        assert first.shape == (36, 2)
        assert first.tobytes() == second.tobytes()

    def test_keeps_far_classes_apart(self):
        points, labels = clouds(3, 20, distance=20)
        assert silhouette_samples(embed(points, seed=0), labels).mean() > 0.5

    @pytest.mark.parametrize(("images", "wanted"), [(10, 3.0), (91, 30.0), (2000, 30.0)])
    def test_perplexity_fits_the_images(self, images, wanted):
        assert find_perplexity(images) == wanted

    def test_the_fewest_images_work(self):
        points, _ = clouds(2, 5, distance=5)
        assert np.isfinite(embed(points, seed=0)).all()

    def test_images_that_all_look_the_same_lie_in_one_place(self):
        assert (embed(np.ones((10, 4), np.float32), seed=0) == 0).all()


class TestSeparation:
    def test_far_classes_against_none(self):
        apart = measure_separation(*clouds(4, 30, distance=20), seed=0)
        assert apart["silhouette"] > 0.8
        assert (apart["knn_accuracy"], apart["nmi"]) == (1, 1)
        points, labels = clouds(4, 30, distance=0)
        mixed = measure_separation(points, labels, seed=0)
        assert abs(mixed["silhouette"]) < 0.1
        assert 0.1 < mixed["knn_accuracy"] < 0.45
        assert mixed["nmi"] < 0.2

    @pytest.mark.parametrize("labels", [[0] * 12, list(range(12))])
    def test_is_open_where_there_is_nothing_to_separate(self, labels):
        points = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
        assert set(measure_separation(points, np.array(labels), seed=0).values()) == {None}

    def test_fewer_points_than_clusters_are_no_accident(self):
        points = np.repeat(np.eye(2, 3, dtype=np.float32), 6, axis=0)
        found = measure_separation(points, np.arange(12) % 3, seed=0)
        assert found["knn_accuracy"] is not None

    @pytest.mark.parametrize(("each", "wanted"), [(1, 1), (2, 1), (5, 4), (21, 20), (500, 20)])
    def test_as_many_neighbours_as_a_class_has(self, each, wanted):
        assert find_neighbours(np.repeat(np.arange(3), each)) == wanted


class TestNeighbours:
    def test_against_a_search_by_hand(self):
        points, labels = clouds(3, 15, distance=1.0, seed=4)
        right = 0
        for row, point in enumerate(points):
            distances = np.linalg.norm(points - point, axis=1)
            distances[row] = np.inf
            nearest = labels[np.argsort(distances)[:7]]
            votes = np.bincount(nearest, minlength=3)
            tied = [label for label in nearest if votes[label] == votes.max()]
            if len(set(tied)) > 1:  # the sum of ranks decides
                ranks = {c: sum(7 - r for r, n in enumerate(nearest) if n == c) for c in set(tied)}
                right += max(sorted(ranks), key=ranks.get) == labels[row]
            else:
                right += tied[0] == labels[row]
        assert knn_accuracy(points.astype(float), labels, neighbours=7) == right / 45

    def test_of_equally_many_the_nearer_win(self):
        points = np.array([[0.0], [1.0], [-2.0]])
        # Of the first point's two neighbours the nearer has its class, of the others' only one.
        assert knn_accuracy(points, np.array([0, 0, 1]), neighbours=2) == pytest.approx(2 / 3)

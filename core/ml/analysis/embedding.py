"""How well features tell the classes apart: t-SNE to look at, and figures that do not depend on it.

t-SNE: van der Maaten and Hinton, "Visualizing Data using t-SNE", JMLR 2008.
"""

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.manifold import TSNE
from sklearn.metrics import normalized_mutual_info_score, silhouette_score
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from core.ml.analysis.arrays import rounded_or_none

MAX_IMAGES = 2000
MIN_IMAGES = 10
PERPLEXITY = 30.0
NEIGHBOURS = 20

_SEED_BITS = 32


def choose_stratified(labels: NDArray[np.int64], limit: int, *, seed: int) -> NDArray[np.int64]:
    """Return rows, ascending: all of them, or `limit` in the classes' proportions.

    Args:
        labels: class of every row.
        limit: most rows.
        seed: of the choice within a class.
    """
    if len(labels) <= limit:
        return np.arange(len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    # Every k-th of a list that is sorted by class takes from each class its share, to within one.
    picks = (np.arange(limit) * len(labels) // limit).astype(np.int64)
    return np.sort(by_class[picks])


def embed(features: NDArray[np.float32], *, seed: int) -> NDArray[np.float64]:
    """Return t-SNE coordinates (n, 2), the same ones for the same features.

    Args:
        features: (n, F), n at least `MIN_IMAGES`.
        seed: of the start.
    """
    points = features.astype(np.float64)
    if (points == points[0]).all():  # a model that has collapsed; PCA would divide by zero
        return np.zeros((len(points), 2))
    tsne = TSNE(
        perplexity=find_perplexity(len(points)),
        init="pca",
        learning_rate="auto",
        random_state=seed % 2**_SEED_BITS,
    )
    # One thread: the sums of several would be rounded in another order each time.
    with threadpool_limits(limits=1):
        coordinates: NDArray[np.float64] = tsne.fit_transform(points).astype(np.float64)
    return coordinates


def find_perplexity(images: int) -> float:
    """Return 30, or less where there are not three times as many images."""
    return min(PERPLEXITY, (images - 1) / 3)


def find_neighbours(labels: NDArray[np.int64]) -> int:
    """Return how many neighbours vote: 20, or fewer where a class has not so many images.

    Otherwise the other classes' images would outvote those of a small class wherever they lie.
    """
    mean = len(labels) // len(np.unique(labels))
    return max(1, min(NEIGHBOURS, mean - 1))


def measure_separation(
    features: NDArray[np.float32], labels: NDArray[np.int64], *, seed: int
) -> dict[str, Any]:
    """Return how well the classes are separated in the features' own space (not in t-SNE's).

    Args:
        features: (n, F).
        labels: (n,).
        seed: of the clusters' start.

    Returns:
        `silhouette`: mean over the images, -1 to 1, by Euclidean distance; `knn_accuracy`: share
        of images whose nearest others, by majority, have their class; `nmi`: normalised mutual
        information of the classes and as many k-means clusters. None where there are not two
        classes with images.
    """
    there = len(np.unique(labels))
    if there < 2 or there >= len(labels):  # noqa: PLR2004 - two classes, and two images of one
        return {"silhouette": None, "knn_accuracy": None, "nmi": None}
    points = features.astype(np.float64)
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # Fewer distinct points than clusters: the clusters are as good as they can be.
        warnings.simplefilter("ignore", ConvergenceWarning)
        clusters = KMeans(there, n_init=4, random_state=seed % 2**_SEED_BITS).fit_predict(points)
        silhouette = silhouette_score(points, labels)
        knn = knn_accuracy(points, labels, neighbours=find_neighbours(labels))
    nmi = normalized_mutual_info_score(labels, clusters)
    return {
        "silhouette": rounded_or_none(silhouette),
        "knn_accuracy": rounded_or_none(knn),
        "nmi": rounded_or_none(nmi),
    }


def knn_accuracy(
    points: NDArray[np.float64], labels: NDArray[np.int64], *, neighbours: int
) -> float:
    """Return the share of points whose nearest others, by majority, have their class.

    Among classes with equally many neighbours the one whose neighbours are nearer wins.

    Args:
        points: (n, F).
        labels: (n,).
        neighbours: how many are asked, below n.
    """
    nearest = NearestNeighbors(n_neighbors=neighbours).fit(points).kneighbors(return_distance=False)
    # All ranks together weigh less than one vote: they only decide between equals.
    weights = 1 + np.arange(neighbours, 0, -1) / (neighbours + 1) ** 2
    votes = np.zeros((len(points), int(labels.max()) + 1))
    np.add.at(votes, (np.arange(len(points))[:, None], labels[nearest]), weights)
    return float((votes.argmax(axis=1) == labels).mean())

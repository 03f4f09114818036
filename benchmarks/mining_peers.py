"""What else one could do with a pool: the arms that `benchmarks.mining` compares ours with.

Each takes embeddings and gives rows of frames, the first to label first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workbench.curation.embedding.embeddings import Embeddings

Rows = NDArray[np.int64]
_BLOCK = 2048


def fiftyone_uniqueness(pool: Embeddings) -> Rows:
    """FiftyOne Brain 0.25's ``compute_uniqueness`` of the detector's vectors.

    Its own default model needs a download.
    """
    return _descending(fiftyone_values(pool.vectors))


def fiftyone_values(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """What FiftyOne Brain 0.25 calls uniqueness, in (0, 1], its arithmetic written out.

    Vectors are centred; cosine distances to the four nearest others, the nearest of them left out
    (as it does), weighted 0.6, 0.3 and 0.1; divided by the largest. A contract test compares it
    with the real one on a real mongod.

    Args:
        vectors: Floats ``[n, d]``; up to 15,000 of them, above which it is Euclidean distance.
    """
    distances = _neighbour_distances(_centred(vectors), 4)
    weighted = distances[:, 1:] @ np.array([0.6, 0.3, 0.1])
    values: NDArray[np.float64] = weighted / weighted.max()
    return values


def fiftyone_representativeness(vectors: NDArray[np.floating]) -> NDArray[np.float64]:
    """What FiftyOne Brain 0.25 calls representativeness, its arithmetic written out.

    Twenty clusters by k-means; the distance to a frame's own centre over the largest of its
    cluster. (So the highest are farthest from a centre.)
    """
    from sklearn.cluster import KMeans

    values = np.asarray(vectors, np.float64)
    clusters = KMeans(n_clusters=min(20, len(values)), random_state=1234).fit(values)
    distance = np.linalg.norm(values - clusters.cluster_centers_[clusters.labels_], axis=1)
    largest = np.zeros(len(clusters.cluster_centers_))
    np.maximum.at(largest, clusters.labels_, distance)
    share: NDArray[np.float64] = distance / np.maximum(largest, 1e-12)[clusters.labels_]
    return share


def corrected_uniqueness(pool: Embeddings) -> Rows:
    """The same idea without its fault: distance to the nearest other frame, vectors centred."""
    return _descending(_neighbour_distances(_centred(pool.vectors), 1)[:, 0])


def entropy(pool: Embeddings) -> Rows:
    """How unsure the detector is, summed over its boxes."""
    return _descending(pool.entropy)


def k_centre(pool: Embeddings, labelled: Embeddings | None, count: int) -> Rows:
    """Greedy k-centre, the core-set of Sener and Savarese 2018, with the labelled as centres.

    Each choice is the frame farthest from all that is labelled or chosen; the first one is the
    first frame where nothing is labelled.
    """
    vectors = np.asarray(pool.vectors, np.float32)
    known = vectors[:0] if labelled is None else np.asarray(labelled.vectors, np.float32)
    nearest = np.full(len(vectors), np.inf, np.float32)
    lengths = (vectors**2).sum(1)
    for start in range(0, len(known), _BLOCK):
        part = known[start : start + _BLOCK]
        squares = lengths[:, None] + (part**2).sum(1) - 2 * vectors @ part.T
        nearest = np.minimum(nearest, squares.min(1))
    chosen = np.empty(count, np.int64)
    for number in range(count):
        chosen[number] = row = int(nearest.argmax())
        squares = lengths + lengths[row] - 2 * vectors @ vectors[row]
        nearest = np.minimum(nearest, squares)
        nearest[row] = -np.inf
    return chosen


def _centred(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    values = np.asarray(vectors, np.float32)
    centred: NDArray[np.float32] = values - values.mean(0)
    return centred


def _neighbour_distances(vectors: NDArray[np.floating], count: int) -> NDArray[np.float32]:
    """Cosine distances to the ``count`` nearest others, nearest first, ``[n, count]``."""
    values = np.asarray(vectors, np.float32)
    unit = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    found = np.empty((len(unit), count), np.float32)
    for start in range(0, len(unit), _BLOCK):
        distance = 1 - unit[start : start + _BLOCK] @ unit.T
        rows = np.arange(len(distance))
        distance[rows, start + rows] = np.inf
        found[start : start + _BLOCK] = np.sort(np.partition(distance, count, axis=1)[:, :count], 1)
    return found


def _descending(values: NDArray[np.floating]) -> Rows:
    order: Rows = np.argsort(-values, kind="stable")
    return order

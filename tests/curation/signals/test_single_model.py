"""Novelty and doubt: novel objects, whatever their class."""

from __future__ import annotations

import numpy as np
import pytest

from tests.curation.signals.synthetic import SIZE, embeddings
from workbench.core.errors import DataError
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.signals import rarity
from workbench.curation.signals.single_model import _uncropped, doubt, novelty

WIDTH, COUNT = 12, 40
BOX = (40.0, 20.0, 80.0, 60.0)


def _objects(seed: int, count: int = COUNT) -> np.ndarray:
    """One object a frame, of two kinds."""
    rng = np.random.default_rng(seed)
    kinds = 5 * np.eye(WIDTH)[:2]
    found: np.ndarray = kinds[np.arange(count) % 2] + 0.4 * rng.normal(size=(count, WIDTH))
    return found


def _embeddings(vectors: np.ndarray, boxes: np.ndarray | None = None) -> Embeddings:
    count = len(vectors)
    return embeddings(
        np.ones((count, 2)),
        objects=[(frame, vector, 0.9) for frame, vector in enumerate(vectors.tolist())],
        boxes=np.tile(BOX, (count, 1)) if boxes is None else boxes,
        tiles=np.ones((count, 2, WIDTH)),
    )


def test_an_object_unlike_all_labelled_ones_is_novel() -> None:
    shown = _objects(1)
    shown[13] = -4 * np.eye(WIDTH)[5]
    value, most_novel = novelty(_embeddings(shown), _embeddings(_objects(2)))
    assert int(np.argmax(value)) == 13 and most_novel[13] == 13
    scores = rarity.score_rarity(_embeddings(shown), _embeddings(_objects(2)), ["all"] * COUNT)
    assert int(np.argmax(scores.fused)) == 13 and scores.oddest[13] == 13


def test_objects_common_in_other_drives_are_not_novel() -> None:
    """A third kind, never labelled: on every drive but once; a fourth on one drive
    without_drives."""
    shown = _objects(1)
    rng = np.random.default_rng(3)
    shown[3::5] = -4 * np.eye(WIDTH)[5] + 0.4 * rng.normal(size=(8, WIDTH))
    shown[20] = -4 * np.eye(WIDTH)[7]
    shown[21] = shown[20]
    drives = [f"drive-{frame // 4}" for frame in range(COUNT)]
    without_drives, _ = novelty(_embeddings(shown), _embeddings(_objects(2)))
    compared, _ = novelty(_embeddings(shown), _embeddings(_objects(2)), drives)
    assert compared[3::5].max() < without_drives[3::5].min() / 2
    assert {20, 21} <= set(np.argsort(-compared)[:6]), "frames of the same drive are no evidence"
    assert min(compared[20:22]) > 3 * compared[3::5].max()


def test_small_and_cropped_boxes_are_ignored() -> None:
    shown = _objects(1)
    shown[[4, 6]] = -4 * np.eye(WIDTH)[5]
    boxes = np.tile(BOX, (COUNT, 1))
    boxes[4] = (40, 20, 50, 30)
    boxes[6] = (SIZE[0] - 40, 20, SIZE[0], 60)
    pool = _embeddings(shown, boxes)
    assert np.flatnonzero(~_uncropped(pool)).tolist() == [6]
    value, most_novel = novelty(pool, _embeddings(_objects(2)))
    assert value[[4, 6]].tolist() == [0, 0] and most_novel[[4, 6]].tolist() == [-1, -1]


def test_a_large_box_with_a_low_score_raises_doubt() -> None:
    boxes = np.array([BOX, BOX, (40, 20, 50, 30), BOX])
    pool = embeddings(
        np.ones((4, 2)),
        objects=[(0, [1.0], 0.9), (1, [1.0], 0.2), (2, [1.0], 0.2), (3, [1.0], 0.06)],
        boxes=boxes,
    )
    assert np.argsort(-doubt(pool)).tolist()[:2] == [1, 2]
    assert doubt(pool)[[0, 3]].tolist() == [0, 0]


def test_without_references_nothing_is_novel() -> None:
    value, most_novel = novelty(_embeddings(_objects(1)), None)
    assert not value.any() and set(most_novel.tolist()) == {-1}
    one, _ = novelty(_embeddings(_objects(1)), None, ["only"] * COUNT)
    assert np.unique(one).size == 1, "without other drives all distances are equal"
    same = np.ones((COUNT, WIDTH))
    value, _ = novelty(_embeddings(same), _embeddings(same))
    assert np.unique(value).size == 1
    with pytest.raises(DataError, match="3 drives"):
        rarity.score_rarity(_embeddings(_objects(1)), None, ["all"] * COUNT, drives=["a"] * 3)
    bare = rarity.score_rarity(embeddings(np.ones((5, 2))), None, ["all"] * 5)
    assert np.unique(bare.fused).tolist() == [0.5]

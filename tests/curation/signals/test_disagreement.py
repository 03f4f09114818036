"""Disagreement between models, and typicality while nothing is labelled."""

from __future__ import annotations

import numpy as np
import pytest

from tests.curation.signals.synthetic import embeddings
from workbench.core.errors import DataError
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.signals import rarity, single_model

A, B = (0.0, 0.0, 40.0, 40.0), (100.0, 0.0, 140.0, 40.0)


def _embeddings(
    rows: list[tuple[int, tuple[float, ...], float, int]], frames: int = 4
) -> Embeddings:
    """Boxes as (frame, xyxy, score, class)."""
    return embeddings(
        np.ones((frames, 2)),
        objects=[(frame, [1.0, 0.0], score) for frame, _, score, _ in rows],
        boxes=np.array([box for _, box, _, _ in rows]),
        classes=[cls for *_, cls in rows],
    )


def test_equal_boxes_agree() -> None:
    same = _embeddings([(0, A, 0.9, 0), (2, B, 0.5, 1)])
    result = rarity.disagreement(same, [same, same])
    assert result.value.tolist() == [0.0] * 4 and result.unmatched.tolist() == [0] * 4


def test_unmatched_boxes_count_by_their_score() -> None:
    production = _embeddings([(0, A, 0.9, 0), (1, A, 0.8, 0), (2, A, 0.8, 0), (3, A, 0.1, 0)])
    shifted = (3.0, 0.0, 43.0, 40.0)
    candidate = _embeddings([(0, shifted, 0.6, 0), (2, A, 0.7, 1)])
    result = rarity.disagreement(production, [candidate])
    np.testing.assert_allclose(result.value, [0.3, 0.8, 1.5, 0.1], atol=1e-6)
    assert result.unmatched.tolist() == [0, 1, 2, 0], "boxes with a low score do not count"
    back = rarity.disagreement(candidate, [production])
    np.testing.assert_allclose(back.value, result.value)


def test_a_third_model_counts_every_pair() -> None:
    one, none = _embeddings([(1, A, 0.9, 0)]), _embeddings([])
    np.testing.assert_allclose(rarity.disagreement(one, [none, none]).value[1], 2 * 0.9 / 3)


def test_other_models_join_the_score() -> None:
    pool = _embeddings([(2, A, 0.9, 0)])
    scores = rarity.score_rarity(pool, None, ["all"] * 4, other_models=[_embeddings([])])
    assert scores.names[-1] == "disagreement"
    assert np.argmax(scores.ranks[:, -1]) == 2 and scores.unmatched.tolist() == [0, 0, 1, 0]


def test_models_with_other_frames_or_classes_are_rejected() -> None:
    pool = _embeddings([])
    with pytest.raises(DataError, match="different frames"):
        rarity.disagreement(pool, [_embeddings([], frames=3)])
    import dataclasses

    with pytest.raises(DataError, match="different classes"):
        rarity.disagreement(pool, [dataclasses.replace(pool, class_names=("bus",))])


def test_the_middle_of_a_cluster_is_typical_and_every_cluster_has_one() -> None:
    rng = np.random.default_rng(0)
    axis = 10 * np.eye(6)
    vectors = np.concatenate([axis[k] + rng.normal(size=(40, 6)) for k in range(3)])
    vectors[55] = axis[1] * 0.2 - axis[5]
    pool = embeddings(vectors)
    value = single_model.typicality(pool, ["all"] * 120, clusters=3)
    assert value[55] < 0.1
    best = np.argsort(-value)[:3]
    assert {int(row) // 40 for row in best} == {0, 1, 2}
    again = single_model.typicality(pool, ["all"] * 120, clusters=3)
    np.testing.assert_array_equal(value, again)


def test_typicality_of_identical_frames_and_small_conditions() -> None:
    pool = embeddings(np.ones((30, 4)))
    assert np.unique(single_model.typicality(pool, ["day"] * 28 + ["fog"] * 2)).size <= 2
    scores = rarity.score_rarity(pool, None, ["day"] * 30, signals=["typicality"])
    assert np.unique(scores.fused).tolist() == [0.5]

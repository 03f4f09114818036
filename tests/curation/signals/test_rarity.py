from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.curation.signals.synthetic import embeddings
from workbench.core.errors import DataError, ParameterError
from workbench.curation.signals import rarity, single_model
from workbench.curation.signals.single_model import fuse_ranks, nearest_euclidean


@given(
    arrays.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e6, 1e6)),
    st.integers(1, 3),
)
def test_ranks_keep_order_within_a_group_and_stay_in_bounds(
    values: np.ndarray, groups: int
) -> None:
    names = [str(number % groups) for number in range(len(values))]
    ranks = single_model.rank_within(values, names)
    assert ((ranks > 0) & (ranks < 1)).all()
    for name in set(names):
        rows = [row for row, own in enumerate(names) if own == name]
        assert np.mean(ranks[rows]) == pytest.approx(0.5)
        for a in rows:
            for b in rows:
                assert (values[a] < values[b]) == (ranks[a] < ranks[b])


def test_a_condition_does_not_make_a_frame_rare() -> None:
    """Night lies far from what is labelled, yet the odd frames are those odd for their kind."""
    rng = np.random.default_rng(1)
    axis = np.eye(8)
    day = axis[0] + 0.05 * rng.normal(size=(40, 8))
    night = axis[1] + 0.05 * rng.normal(size=(30, 8))
    night[7] = axis[1] + 0.8 * axis[5]
    day[11] = axis[0] + 0.8 * axis[6]
    labelled = np.repeat(axis[:2], [20, 3], axis=0) + 0.05 * rng.normal(size=(23, 8))
    conditions = ["day"] * 40 + ["night"] * 30
    scores = rarity.score_rarity(
        embeddings(np.concatenate([day, night])),
        embeddings(labelled),
        conditions,
        signals=["frame"],
    )
    assert set(np.argsort(-scores.fused)[:2]) == {11, 47}
    assert scores.fused[:40].mean() == pytest.approx(scores.fused[40:].mean())


def test_the_odd_object_is_found_and_named() -> None:
    objects = [(frame, [1.0, 0.1 * frame, 0.0], 0.9) for frame in range(6)]
    objects[3] = (3, [0.0, 0.0, 1.0], 0.9)
    known = embeddings(np.ones((6, 2)), objects=[(f, [1.0, 0.1 * f, 0.0], 0.9) for f in range(6)])
    pool = embeddings(np.ones((6, 2)), objects=objects)
    scores = rarity.score_rarity(pool, known, ["all"] * 6, signals=["objects"])
    assert np.argmax(scores.ranks[:, 0]) == 3
    assert scores.oddest[3] == 3


def test_a_box_with_a_low_score_counts_less() -> None:
    odd = [0.0, 1.0]
    objects = [(0, odd, 0.9), (1, odd, 0.06), (2, [1.0, 0.0], 0.9)]
    known = embeddings(np.ones((1, 2)), objects=[(0, [1.0, 0.0], 0.9)])
    pool = embeddings(np.ones((3, 2)), objects=objects)
    by_object = rarity.score_rarity(pool, known, ["all"] * 3, signals=["objects"]).ranks[:, 0]
    assert by_object[0] > by_object[1]


def test_identical_frames_and_nothing_labelled_tie() -> None:
    scores = rarity.score_rarity(embeddings(np.ones((5, 4))), None, ["all"] * 5)
    assert np.unique(scores.fused).tolist() == [0.5]


def test_small_groups_are_compared_together() -> None:
    assert (
        single_model.merge_small_groups(["day"] * 25 + ["fog"] * 2 + ["snow"])
        == ["day"] * 25 + ["other"] * 3
    )
    assert single_model.merge_small_groups(["fog"] * 2 + ["snow"]) == ["all"] * 3


def test_a_tile_is_an_outlier_for_its_position_without_any_box() -> None:
    """The left is always varied, the right never: a small change on the right stands out."""
    rng = np.random.default_rng(2)

    def tiles(count: int) -> np.ndarray:
        made = np.ones((count, 2, 6))
        made[:, 0] += rng.normal(size=(count, 6))
        made[:, 1] += 0.02 * rng.normal(size=(count, 6))
        return made

    shown, known = tiles(60), tiles(60)
    shown[17, 1, 2] += 0.8
    pool, labelled = (embeddings(np.ones((60, 2)), tiles=values) for values in (shown, known))
    scores = rarity.score_rarity(pool, labelled, ["all"] * 60, signals=["tiles"])
    assert int(np.argmax(scores.fused)) == 17
    assert scores.oddest_tile[17] == 2 * 17 + 1
    assert scores.oddest.tolist() == [-1] * 60
    plain = embeddings(np.ones((60, 2)))
    nothing = rarity.score_rarity(plain, labelled, ["all"] * 60, signals=["tiles"])
    assert np.unique(nothing.fused).tolist() == [0.5]


def test_frames_are_compared_with_labelled_ones_of_their_condition() -> None:
    """At night there is no labelled frame like this one, whatever the days hold."""
    rng = np.random.default_rng(3)
    axis = np.eye(6)
    pool = np.concatenate([axis[0] + 0.05 * rng.normal(size=(40, 6)) for _ in range(1)])
    pool[5] = axis[2] + 0.05 * rng.normal(size=6)
    known = np.repeat(axis[[0, 2]], 40, axis=0) + 0.05 * rng.normal(size=(80, 6))
    light = ["night"] * 40 + ["day"] * 40
    scores = rarity.score_rarity(
        embeddings(pool),
        embeddings(known),
        ["night"] * 40,
        known_conditions=light,
        signals=["frame"],
    )
    without_conditions = rarity.score_rarity(
        embeddings(pool), embeddings(known), ["night"] * 40, signals=["frame"]
    )
    assert int(np.argmax(scores.fused)) == 5
    assert without_conditions.fused[5] < scores.fused[5]


def test_signals_and_weights_can_be_chosen() -> None:
    pool = embeddings(np.ones((4, 2)), entropy=np.array([1.0, 3.0, 2.0, 0.0]))
    scores = rarity.score_rarity(pool, None, ["all"] * 4, signals=["entropy"])
    assert scores.names == ("entropy",) and scores.weights == (1.0,)
    assert scores.ranks.shape == (4, 1) and np.argsort(-scores.fused).tolist() == [1, 2, 0, 3]
    only = rarity.score_rarity(
        pool, None, ["all"] * 4, signals=["frame", "entropy"], weights={"frame": 0.0}
    )
    np.testing.assert_array_equal(only.fused, scores.fused)
    with pytest.raises(ParameterError, match="unknown signal glamour"):
        rarity.score_rarity(pool, None, ["all"] * 4, signals=["glamour"])
    with pytest.raises(ParameterError, match="needs another model"):
        rarity.score_rarity(pool, None, ["all"] * 4, signals=["disagreement"])
    with pytest.raises(ParameterError, match="weights"):
        rarity.score_rarity(pool, None, ["all"] * 4, weights={"novelty": -1.0})


def test_invalid_input_is_reported() -> None:
    pool = embeddings(np.ones((4, 2)))
    with pytest.raises(DataError, match="3 conditions for 4 frames"):
        rarity.score_rarity(pool, None, ["all"] * 3)
    with pytest.raises(DataError, match="different models"):
        rarity.score_rarity(pool, embeddings(np.ones((4, 2)), model="1" * 64), ["all"] * 4)
    with pytest.raises(DataError, match="labelled frames"):
        rarity.score_rarity(pool, pool, ["all"] * 4, known_conditions=["all"])
    broken = np.ones((4, 2))
    broken[2, 0] = np.nan
    with pytest.raises(DataError, match="NaN or infinity"):
        rarity.score_rarity(embeddings(broken), pool, ["all"] * 4, signals=["frame"])


def test_no_objects_and_an_empty_labelled_set_rank_nobody_first() -> None:
    empty = embeddings(np.empty((0, 2)))
    scores = rarity.score_rarity(embeddings(np.ones((5, 2))), empty, ["all"] * 5)
    assert np.unique(scores.fused).tolist() == [0.5]
    assert scores.oddest.tolist() == [-1] * 5


def test_fusion_keeps_a_frame_that_is_first_everywhere_first() -> None:
    rng = np.random.default_rng(0)
    ranks = rng.uniform(0.01, 0.98, (50, 3))
    ranks[7] = 0.99
    assert int(np.argmax(fuse_ranks(ranks, [1, 2, 1]))) == 7


def test_fusion_prefers_frames_that_stand_out_in_one_signal() -> None:
    ranks = np.array([[0.999, 0.5], [0.8, 0.8]])
    assert np.argmax(fuse_ranks(ranks, [1, 1])) == 0


def test_euclidean_distances_equal_brute_force() -> None:
    rng = np.random.default_rng(0)
    queries, known = rng.normal(size=(30, 5)) + 50, rng.normal(size=(40_000, 5)) + 50
    gaps = np.sort(np.linalg.norm(queries[:, None] - known[None], axis=2), axis=1)
    np.testing.assert_allclose(nearest_euclidean(queries, known, 3), gaps[:, :3].mean(1), rtol=1e-3)
    with pytest.raises(DataError, match="width 5"):
        nearest_euclidean(queries, known[:, :4])

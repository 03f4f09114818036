from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from workbench.curation.embedding.one_pass import Embeddings
from workbench.curation.embedding.quality import QualityGate, measure
from workbench.curation.finding import rarity
from workbench.curation.neighbours.exact import directions, nearest_distance
from workbench.errors import DataError


def embeddings(
    vectors: np.ndarray,
    entropy: np.ndarray | None = None,
    objects: list[tuple[int, list[float], float]] | None = None,
) -> Embeddings:
    """Frames with vectors; objects as (frame, vector, score), all one class and size."""
    count = len(vectors)
    objects = objects or []
    return Embeddings(
        frames=tuple(f"{number:064x}" for number in range(count)),
        vectors=vectors.astype(np.float16),
        entropy=np.zeros(count, np.float32) if entropy is None else entropy.astype(np.float32),
        quality=np.full((count, 3), 0.3, np.float32),
        owner=np.array([frame for frame, _, _ in objects], np.int64),
        object_vectors=np.array([v for _, v, _ in objects] or np.empty((0, 2)), np.float16),
        boxes=np.tile(np.array([0, 0, 30, 30], np.float32), (len(objects), 1)),
        scores=np.array([score for _, _, score in objects], np.float32),
        classes=np.zeros(len(objects), np.int64),
        class_names=("car",),
        model="0" * 64,
        preprocessing="0" * 64,
    )


def test_nearest_distance_is_that_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    queries = directions(rng.normal(size=(40, 6)))
    known = directions(rng.normal(size=(70_000, 6)).astype(np.float32))
    expected = 1 - np.sort(queries @ known.T, axis=1)[:, -3:].mean(axis=1)
    np.testing.assert_allclose(nearest_distance(queries, known, 3), expected, atol=1e-5)
    order = rng.permutation(40)
    np.testing.assert_allclose(nearest_distance(queries[order], known), expected[order], atol=1e-5)


def test_vectors_of_another_model_are_refused() -> None:
    with pytest.raises(DataError, match="different models"):
        nearest_distance(np.ones((2, 3), np.float32), np.ones((2, 4), np.float32))


def test_nan_vectors_are_refused() -> None:
    with pytest.raises(DataError, match="1 of 2 vectors are not finite"):
        directions(np.array([[1.0, np.nan], [0.0, 1.0]]))


@given(
    arrays.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e6, 1e6)),
    st.integers(1, 3),
)
def test_ranks_keep_order_within_a_group_and_stay_in_bounds(
    values: np.ndarray, groups: int
) -> None:
    names = [str(number % groups) for number in range(len(values))]
    ranks = rarity.rank_within(values, names)
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
    scores = rarity.score(
        embeddings(np.concatenate([day, night])), embeddings(labelled), conditions
    )
    assert set(np.argsort(-scores.fused)[:2]) == {11, 47}
    assert scores.fused[:40].mean() == pytest.approx(scores.fused[40:].mean())


def test_the_odd_object_is_found_and_named() -> None:
    objects = [(frame, [1.0, 0.1 * frame, 0.0], 0.9) for frame in range(6)]
    objects[3] = (3, [0.0, 0.0, 1.0], 0.9)
    known = embeddings(np.ones((6, 2)), objects=[(f, [1.0, 0.1 * f, 0.0], 0.9) for f in range(6)])
    scores = rarity.score(embeddings(np.ones((6, 2)), objects=objects), known, ["all"] * 6)
    assert np.argmax(scores.ranks[:, rarity.SIGNALS.index("objects")]) == 3
    assert scores.oddest[3] == 3


def test_a_box_that_is_hardly_believed_counts_less() -> None:
    odd = [0.0, 1.0]
    objects = [(0, odd, 0.9), (1, odd, 0.06), (2, [1.0, 0.0], 0.9)]
    known = embeddings(np.ones((1, 2)), objects=[(0, [1.0, 0.0], 0.9)])
    scores = rarity.score(embeddings(np.ones((3, 2)), objects=objects), known, ["all"] * 3)
    by_object = scores.ranks[:, rarity.SIGNALS.index("objects")]
    assert by_object[0] > by_object[1]


def test_identical_frames_and_nothing_labelled_tie() -> None:
    scores = rarity.score(embeddings(np.ones((5, 4))), None, ["all"] * 5)
    assert np.unique(scores.fused).tolist() == [0.5]


def test_small_groups_are_compared_together() -> None:
    assert rarity.merged(["day"] * 25 + ["fog"] * 2 + ["snow"]) == ["day"] * 25 + ["other"] * 3
    assert rarity.merged(["fog"] * 2 + ["snow"]) == ["all"] * 3


def test_the_quality_gate_tells_rare_from_broken() -> None:
    rng = np.random.default_rng(0)
    scene = np.kron(rng.integers(0, 255, (12, 16, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    gate = QualityGate()
    assert gate.verdict(measure(scene)) == ""
    assert gate.verdict(measure(scene // 12)) == ""  # a real night is dark, but not broken
    assert gate.verdict(measure(np.zeros_like(scene))) == "dark"
    assert gate.verdict(measure(np.full_like(scene, 255))) == "bright"
    assert gate.verdict(measure(np.full_like(scene, 90))) == "flat"
    assert gate.verdict(measure(rng.integers(0, 255, scene.shape).astype(np.uint8))) == "noisy"
    assert gate.verdict(np.array([np.nan, 0.2, 0.1], np.float32)) == "unmeasured"
    ramp = np.tile(np.linspace(90, 130, 400).astype(np.uint8)[:, None, None], (1, 400, 3))
    assert gate.verdict(measure(ramp)) == "blurred"


def test_measures_of_a_known_picture() -> None:
    half = np.zeros((10, 10, 3), np.uint8)
    half[:, 5:] = 255
    brightness, contrast, sharpness = measure(half)
    assert brightness == pytest.approx(0.5, abs=0.01)
    assert contrast == pytest.approx(0.5, abs=0.01)
    assert sharpness == pytest.approx(2 / 8, abs=0.01)  # two of eight inner columns, |1| each

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.detection import boxes
from workbench.detection.boxes import UNMATCHED, match_greedy, match_optimal

COORDINATES = st.integers(-50, 50)
BOX = st.tuples(COORDINATES, COORDINATES, st.integers(0, 40), st.integers(0, 40))


def array(*values: tuple[float, float, float, float]) -> np.ndarray:
    return boxes.as_boxes(list(values))


def test_overlap_of_known_boxes() -> None:
    first = array((0, 0, 10, 10), (0, 0, 0, 0))
    second = array((0, 0, 10, 10), (5, 0, 15, 10), (20, 20, 30, 30), (0, 0, 0, 0))
    expected = [[1.0, 50 / 150, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    assert boxes.iou_matrix(first, second) == pytest.approx(np.array(expected))


@given(st.lists(BOX, min_size=1, max_size=6))
def test_corners_lie_a_size_apart_and_overlap_is_symmetric(values: list[tuple[int, ...]]) -> None:
    sized = np.array(values, np.float64)
    corners = boxes.xywh_to_xyxy(sized)
    assert (corners[:, 2:] - corners[:, :2] == sized[:, 2:]).all()
    overlap = boxes.iou_matrix(corners, corners)
    assert (overlap == overlap.T).all()
    assert (overlap >= 0).all()
    assert (overlap <= 1).all()
    assert np.diag(overlap)[boxes.box_area(corners) > 0] == pytest.approx(1)


def test_clip_and_area_of_an_inverted_box() -> None:
    assert boxes.clip_boxes(array((-5, -5, 50, 50)), 20, 10).tolist() == [[0, 0, 20, 10]]
    assert boxes.box_area(array((5, 5, 2, 9))).tolist() == [0]


def test_suppression_is_within_a_class_and_breaks_ties_by_order() -> None:
    same = array((0, 0, 10, 10), (1, 0, 11, 10), (0, 0, 10, 10), (40, 0, 50, 10))
    scores = np.array([0.5, 0.9, 0.5, 0.5])
    kept = boxes.non_maximum_suppression(same, scores, np.array([0, 0, 1, 0]), 0.5)
    assert kept.tolist() == [1, 2, 3]


def test_suppressed_box_does_not_suppress_others() -> None:
    chain = array((0, 0, 10, 10), (4, 0, 14, 10), (8, 0, 18, 10))
    kept = boxes.non_maximum_suppression(chain, np.array([0.9, 0.8, 0.7]), np.zeros(3, int), 0.3)
    assert kept.tolist() == [0, 2]


def test_suppression_without_boxes() -> None:
    none = boxes.as_boxes([])
    assert boxes.non_maximum_suppression(none, np.zeros(0), np.zeros(0, int), 0.5).tolist() == []


def test_greedy_matching_follows_the_score_where_optimal_follows_the_overlap() -> None:
    truth = array((0, 0, 10, 10), (6, 0, 16, 10))
    # The confident box lies between both and takes the truth that the other one needs.
    found = array((2, 0, 12, 10), (0, 0, 10, 10))
    assert match_greedy(found, np.array([0.9, 0.8]), truth, iou=0.3).tolist() == [0, UNMATCHED]
    assert match_optimal(found, truth, iou=0.3).tolist() == [[0, 1], [1, 0]]


def test_matching_keeps_to_classes_and_to_the_threshold() -> None:
    same = array((0, 0, 10, 10))
    score = np.array([1.0])
    car, truck = np.array([0]), np.array([1])
    assert match_greedy(same, score, same, classes=car, truth_classes=truck).tolist() == [UNMATCHED]
    assert match_greedy(same, score, same, classes=car, truth_classes=car).tolist() == [0]
    assert match_optimal(same, same, classes=car, second_classes=truck).tolist() == []
    shifted = array((5, 0, 15, 10))
    assert match_greedy(shifted, score, same, iou=0.4).tolist() == [UNMATCHED]


def test_matching_with_an_empty_side() -> None:
    none, one = boxes.as_boxes([]), array((0, 0, 1, 1))
    assert match_greedy(none, np.zeros(0), one).tolist() == []
    assert match_greedy(one, np.ones(1), none).tolist() == [UNMATCHED]
    assert match_optimal(none, one).shape == (0, 2)

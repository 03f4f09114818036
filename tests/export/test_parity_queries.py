"""Queries of detection transformers are compared one to one, and only those that become boxes."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.core.workspace import Workspace
from workbench.detection import families
from workbench.detection.config import HUGGING_FACE, DetectorConfig
from workbench.detection.preprocessing import Preprocessing
from workbench.export import parity
from workbench.records.dataset import Dataset
from workbench.records.frames import Role

CONFIG = DetectorConfig(
    classes=("car", "pedestrian", "cyclist"),
    architecture=HUGGING_FACE,
    network={"size": [96, 64], "scoring": "sigmoid", "config": "{}"},
)
ORDER = np.array([3, 0, 5, 1, 4, 2])


class Queries:
    """A set of six queries for each frame, the last one of background."""

    config = CONFIG
    preprocessing = Preprocessing(width=96, height=64)

    def raw(self, batch: np.ndarray) -> list[np.ndarray]:
        rng = np.random.default_rng(int(abs(batch).sum()) % 1000)
        logits = rng.normal(size=(len(batch), 6, 3)).astype(np.float32)
        logits[:, -1] = -9
        boxes = rng.uniform(0.2, 0.8, size=(len(batch), 6, 4)).astype(np.float32)
        return [logits, boxes]


class Shuffled(Queries):
    """The same in another order, as rounded scores give it; ``moved`` shifts one query's box."""

    def __init__(self, moved: int | None = None) -> None:
        self.moved = moved

    def raw(self, batch: np.ndarray) -> list[np.ndarray]:
        logits, boxes = super().raw(batch)
        if self.moved is not None:
            boxes[:, self.moved] += 0.15
        return [logits[:, ORDER], boxes[:, ORDER]]


def report(kept: Workspace, dataset: Dataset, other: Queries) -> dict:
    frames = dataset.role(Role.VAL).frames
    return parity.compare_models(kept, Queries(), {"fp32.onnx": other}, frames)


def test_another_order_of_queries_is_equal(kept: Workspace, dataset: Dataset) -> None:
    batch = np.ones((2, 3, 64, 96), np.float32)
    apart = [
        np.abs(one - other).max()
        for one, other in zip(Queries().raw(batch), Shuffled().raw(batch), strict=True)
    ]
    assert min(apart) > 0.1  # in the order given, nothing would agree
    found = report(kept, dataset, Shuffled())
    same = found["targets"]["fp32.onnx"]
    assert (same["max_abs_diff"], same["agreement"]) == (0, 1)
    assert same["queries"] == 5 * found["frames"]
    parity.require_float_parity(found)


def test_a_moved_query_is_reported_and_a_background_query_is_not(
    kept: Workspace, dataset: Dataset
) -> None:
    moved = report(kept, dataset, Shuffled(moved=2))["targets"]["fp32.onnx"]
    assert moved["max_abs_diff"] == pytest.approx(0.15, rel=0.01)
    background = report(kept, dataset, Shuffled(moved=5))["targets"]["fp32.onnx"]
    assert background["max_abs_diff"] == 0


def test_a_frame_without_boxes_is_compared_by_its_best_query() -> None:
    logits = np.full((1, 6, 3), -9, np.float32)
    logits[0, 4, 1] = -5
    boxes = np.full((1, 6, 4), 0.5, np.float32)
    right, wrong = parity.match_outputs(
        [logits, boxes], [logits[:, ORDER], boxes[:, ORDER]], CONFIG
    )
    assert right[0].shape == (1, 3)
    assert np.array_equal(right[0], wrong[0])
    assert families.query_scores(right[0], "sigmoid").max() == pytest.approx(1 / (1 + np.exp(5)))


def test_a_duplicated_and_a_lost_query_are_reported() -> None:
    logits, boxes = Queries().raw(np.ones((1, 3, 64, 96), np.float32))
    twice = np.array([0, 1, 1, 3, 4, 5])
    right, wrong = parity.match_outputs(
        [logits, boxes], [logits[:, twice], boxes[:, twice]], CONFIG
    )
    assert max(np.abs(a - b).max() for a, b in zip(right, wrong, strict=True)) > 0.05


def test_cell_maps_are_unchanged() -> None:
    config = DetectorConfig(classes=("car",))
    maps = [np.zeros((1, 1, 2, 2), np.float32)]
    assert parity.match_outputs(maps, maps, config) == (maps, maps)

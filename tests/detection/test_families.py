from __future__ import annotations

import numpy as np
import pytest

from workbench.core.errors import DataError
from workbench.detection.config import DetectorConfig, from_onnx_metadata, to_onnx_metadata
from workbench.detection.families import box_distances, cell_centres, decode
from workbench.detection.preprocessing import Preprocessing

CONFIG = DetectorConfig(classes=("car", "cyclist"))
WIDTH, HEIGHT = 64, 32


def silence() -> list[np.ndarray]:
    """Raw maps of one frame in which nothing is found."""
    maps: list[np.ndarray] = []
    for stride in CONFIG.strides:
        rows, columns = HEIGHT // stride, WIDTH // stride
        maps.append(np.full((1, 2, rows, columns), -20, np.float32))
        maps.append(np.zeros((1, 4, rows, columns), np.float32))
    return maps


def test_one_cell_decodes_to_its_box() -> None:
    maps = silence()
    maps[2][0, 1, 0, 1] = 2.0  # stride 16, class cyclist, centre (24, 8)
    maps[3][0, :, 0, 1] = [1.0, -0.5, 0.0, 0.25]
    (found,) = decode(maps, CONFIG)
    reach = 16 * np.array([1.5, np.expm1(-0.5), 0.0, 0.25 + 0.03125])
    expected = [24 - reach[0], 8 - reach[1], 24 + reach[2], 8 + reach[3]]
    # Its top lies below its bottom's cell: a box turned inside out would be dropped.
    assert found.boxes.tolist() == ([] if expected[1] >= expected[3] else [pytest.approx(expected)])
    maps[3][0, 1, 0, 1] = 0.5 - 0.125
    reach[1] = 16 * (0.375 + 0.5 * 0.375**2)
    (found,) = decode(maps, CONFIG)
    assert found.boxes[0] == pytest.approx([24 - reach[0], 8 - reach[1], 24, 8 + reach[3]])
    assert found.scores == pytest.approx(1 / (1 + np.exp(-2.0)))
    assert found.classes.tolist() == [1]


def test_no_detections_are_empty_typed_arrays() -> None:
    (found,) = decode(silence(), CONFIG)
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)
    assert (found.boxes.dtype, found.classes.dtype) == (np.float32, np.int64)


def test_thresholds_limit_and_order() -> None:
    maps = silence()
    maps[0][0, 0] = np.linspace(-3, 3, 32).reshape(4, 8)
    maps[1][:] = 0.2  # boxes of 0.22 strides to each side: none touch
    (all_of_them,) = decode(maps, CONFIG, score_threshold=0.05)
    (half,) = decode(maps, CONFIG, score_threshold=0.5)
    assert len(all_of_them) == 31  # the lowest score is 0.047
    assert len(half) == 16
    assert (np.diff(all_of_them.scores) <= 0).all()
    assert len(all_of_them.above(0.5)) == 16
    (few,) = decode(maps, CONFIG.model_copy(update={"max_detections": 3}))
    assert few.scores.tolist() == all_of_them.scores[:3].tolist()


def test_frames_of_a_batch_do_not_mix() -> None:
    one, two = silence(), silence()
    one[0][0, 0, 1, 1] = two[4][0, 1, 0, 0] = 3.0
    for maps in (one, two):
        for box in maps[1::2]:
            box[:] = 1.0
    together = [np.concatenate(pair) for pair in zip(one, two, strict=True)]
    for alone, found in zip((one, two), decode(together, CONFIG), strict=True):
        assert found.boxes.tolist() == decode(alone, CONFIG)[0].boxes.tolist()
        assert len(found) == 1


def test_boxes_are_clipped_to_the_input() -> None:
    maps = silence()
    maps[4][0, 0, 0, 0] = 3.0
    maps[5][:] = 4.0
    (found,) = decode(maps, CONFIG)
    assert found.boxes.tolist() == [[0, 0, WIDTH, HEIGHT]]


def test_candidates_are_limited_best_first() -> None:
    config = DetectorConfig(classes=tuple(f"c{number}" for number in range(40)))
    rng = np.random.default_rng(0)
    maps = [
        np.zeros((1, 40 if index % 2 == 0 else 4, 32 // s, 64 // s), np.float32)
        for s in config.strides
        for index in range(2)
    ]
    maps[0][:] = rng.normal(size=maps[0].shape)
    for box in maps[1::2]:
        box[:] = 1.0
    (found,) = decode(maps, config)
    assert len(found) == config.max_detections
    assert found.scores[0] == pytest.approx(1 / (1 + np.exp(-maps[0].max())))


def test_wrong_number_of_maps() -> None:
    with pytest.raises(DataError, match="6 raw outputs, got 4"):
        decode(silence()[:4], CONFIG)


def test_distances_are_smooth_at_zero_and_bounded_below() -> None:
    raw = np.array([-50.0, -1e-4, 0.0, 1e-4, 3.0])
    assert box_distances(raw) == pytest.approx([-1, -1e-4, 0, 1e-4, 7.5], rel=1e-3)


def test_cell_centres_are_row_by_row() -> None:
    assert cell_centres(48, 32, 16).tolist() == [
        [8, 8], [24, 8], [40, 8], [8, 24], [24, 24], [40, 24],
    ]  # fmt: skip


def test_contract_round_trip_through_a_model_file() -> None:
    spec = Preprocessing(width=640, height=384, mean=(0.1, 0.2, 0.3))
    metadata = to_onnx_metadata(CONFIG, spec)
    assert from_onnx_metadata(metadata, where="test") == (CONFIG, spec)
    assert to_onnx_metadata(*from_onnx_metadata(metadata, where="test")) == metadata


@pytest.mark.parametrize("damage", ["missing", "not json", "unknown field"])
def test_model_file_without_contract_is_rejected(damage: str) -> None:
    metadata = to_onnx_metadata(CONFIG, Preprocessing())
    key = "workbench.preprocessing"
    if damage == "missing":
        del metadata[key]
    else:
        metadata[key] = "{" if damage == "not json" else '{"channel_order": "BGR"}'
    with pytest.raises(DataError, match="contract"):
        from_onnx_metadata(metadata, where="model.onnx")

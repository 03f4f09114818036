"""Boxes in equal boxes out, and everything that is no box is refused with its reason."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.labeling.regions import Drawn, corners, read_result, to_regions
from workbench.records.frames import ANY_CLASS, Box

EXPORTS = "labelstudio_samples/tests/custom/converter/data"
CLASSES = ("car", "truck")


def region(**changes: Any) -> dict[str, Any]:
    made = to_regions(Drawn("r", "car", Box(x=10, y=20, w=30, h=40)), 317, 211)[0]
    value = {**made["value"], **changes.pop("value", {})}
    return {**made, "value": value, **changes}


@settings(max_examples=300, deadline=None)
@given(
    width=st.integers(2, 7681),
    height=st.integers(2, 4321),
    corner=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    size=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_a_box_moves_less_than_a_millionth_of_a_pixel(
    width: int, height: int, corner: tuple[float, float], size: tuple[float, float]
) -> None:
    w, h = 1 + size[0] * (width - 1), 1 + size[1] * (height - 1)
    box = Box(x=corner[0] * (width - w), y=corner[1] * (height - h), w=w, h=h)
    sent = json.loads(json.dumps(to_regions(Drawn("r", "car", box), width, height)))
    drawn, refused = read_result(sent, width, height, CLASSES)
    assert not refused
    moved = [abs(a - b) for a, b in zip(drawn[0].box.xyxy, box.xyxy, strict=True)]
    assert max(moved) < 1e-6


def test_attributes_come_back() -> None:
    first = Drawn("a", "car", Box(x=1, y=2, w=3, h=4), occluded=0.75, truncated=0.0, ignore=True)
    second = Drawn("b", "truck", Box(x=5, y=6, w=7, h=8))
    area = Drawn("c", ANY_CLASS, Box(x=0, y=0, w=9, h=9), ignore=True)
    regions = [part for one in (first, second, area) for part in to_regions(one, 99, 51)]
    drawn, refused = read_result(regions, 99, 51, CLASSES)
    assert not refused
    assert [(d.cls, d.occluded, d.truncated, d.ignore) for d in drawn] == [
        ("car", 0.75, 0.0, True),
        ("truck", None, None, False),
        (ANY_CLASS, None, None, True),
    ]


@pytest.mark.parametrize(
    ("changes", "reason", "told"),
    [
        ({"value": {"x": 150.0}}, "out-of-bounds", "317x211"),
        ({"value": {"y": -0.01}}, "out-of-bounds", "leaves"),
        ({"value": {"width": 0.1}}, "degenerate", "pixels"),
        ({"value": {"width": -5}}, "degenerate", "pixels"),
        ({"value": {"x": None}}, "mislabelled", "not a number"),
        ({"value": {"rectanglelabels": ["bus"]}}, "unknown-class", "bus"),
        ({"value": {"rectanglelabels": []}}, "unknown-class", "none"),
        ({"value": {"rotation": 12.0}}, "mislabelled", "turned"),
        ({"image_rotation": 90}, "mislabelled", "turned"),
        ({"original_width": 211, "original_height": 317}, "mislabelled", "211x317"),
        ({"type": "polygonlabels"}, "mislabelled", "polygonlabels"),
    ],
)
def test_what_is_no_usable_box_is_refused(changes: Any, reason: str, told: str) -> None:
    drawn, refused = read_result([region(**changes)], 317, 211, CLASSES)
    assert not drawn
    assert refused[0].reason == reason
    assert told in refused[0].detail


def test_rounding_at_the_edge_is_no_mistake() -> None:
    edge = region(value={"x": -1e-12, "width": 100.00000000000001})
    drawn, refused = read_result([edge], 317, 211, CLASSES)
    assert len(drawn) == 1 and not refused


@settings(max_examples=50, deadline=None)
@given(turns=st.sampled_from([90, 180, 270, -90, 450]), width=st.integers(300, 900))
def test_quarter_turns_pivot_on_the_top_left_corner(turns: int, width: int) -> None:
    height = 500
    made = to_regions(Drawn("r", "car", Box(x=150, y=200, w=40, h=25)), width, height)[0]
    made["value"]["rotation"] = turns
    drawn, refused = read_result([made], width, height, CLASSES)
    expected = {
        90: (125, 200, 150, 240),
        180: (110, 175, 150, 200),
        270: (150, 160, 175, 200),
    }[turns % 360]
    assert not refused
    assert drawn[0].box.xyxy == pytest.approx(expected, abs=1e-6)


def test_turned_corners_keep_their_distances_at_odd_aspect_ratios(shared_data: Path) -> None:
    """Only undoing the percentages before turning keeps angles right and sides their length."""
    tasks = json.loads((shared_data / EXPORTS / "test_export_yolo" / "data_obb.json").read_text())
    seen = 0
    for shape in tasks[0]["annotations"][0]["result"]:
        a, b, c, d = corners(shape)
        w = shape["value"]["width"] / 100 * shape["original_width"]
        h = shape["value"]["height"] / 100 * shape["original_height"]
        assert math.dist(a, b) == pytest.approx(w)
        assert math.dist(b, c) == pytest.approx(h)
        assert math.dist(a, c) == pytest.approx(math.hypot(w, h))
        assert math.dist(a, d) == pytest.approx(h)
        seen += 1
    assert seen >= 3


def test_exports_by_others_are_read_or_refused_never_dropped(shared_data: Path) -> None:
    tasks = json.loads((shared_data / EXPORTS / "test_export_coco" / "data.json").read_text())
    result = [shape for task in tasks for shape in task["annotations"][0]["result"]]
    size = (result[0]["original_width"], result[0]["original_height"])
    drawn, refused = read_result(result, *size, ("rectangle_label",))
    boxes = [shape for shape in result if shape["type"] == "rectanglelabels"]
    assert boxes and len(drawn) + len(refused) == len(result)
    first, value = drawn[0].box, boxes[0]["value"]
    assert first.x == pytest.approx(value["x"] * size[0] / 100, abs=1e-6)
    assert first.h == pytest.approx(value["height"] * size[1] / 100, abs=1e-6)

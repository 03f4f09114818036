"""Regions: exact round trips, and invalid regions with a reason."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.labeling.conftest import frame_regions
from workbench.labeling import regions
from workbench.labeling.regions import DrawnObject, parse_result, to_regions
from workbench.records.frames import ANY_CLASS, Box, LabelSchema, Question, RotatedBox

EXPORTS = "labelstudio_samples/tests/custom/converter/data"
BOXES_ONLY = LabelSchema(name="s", version=1, classes=("car", "truck"))
SCHEMA = BOXES_ONLY.model_copy(
    update={
        "shapes": ("box", "turned", "polygon"),
        "box_questions": (Question(name="doors", answers=("open", "shut")),),
        "frame_questions": (Question(name="weather", answers=("clear", "rain")),),
        "tracks": True,
    }
)

share = st.floats(0, 1)
sides = (st.integers(2, 7681), st.integers(2, 4321))


def region(**changes: Any) -> dict[str, Any]:
    created = to_regions(DrawnObject("r", "car", Box(x=10, y=20, w=30, h=40)), 317, 211)[0]
    value = {**created["value"], **changes.pop("value", {})}
    return {**created, "value": value, **changes}


def polygon(*points: tuple[float, float]) -> dict[str, Any]:
    drawn = DrawnObject("p", "car", regions.enclosing_box(points), polygon=points)
    return to_regions(drawn, 317, 211)[0]


def through(drawn: DrawnObject, width: int, height: int) -> DrawnObject:
    """As it comes back from the server's JSON."""
    sent = json.loads(json.dumps(to_regions(drawn, width, height)))
    read = parse_result(sent, width, height, SCHEMA)
    assert not read.invalid
    return read.objects[0]


@settings(max_examples=300, deadline=None)
@given(*sides, st.tuples(share, share), st.tuples(share, share))
def test_a_box_moves_less_than_a_millionth_of_a_pixel(
    width: int, height: int, corner: tuple[float, float], size: tuple[float, float]
) -> None:
    w, h = 1 + size[0] * (width - 1), 1 + size[1] * (height - 1)
    box = Box(x=corner[0] * (width - w), y=corner[1] * (height - h), w=w, h=h)
    back = through(DrawnObject("r", "car", box), width, height).box
    assert max(abs(a - b) for a, b in zip(back.xyxy, box.xyxy, strict=True)) < 1e-6


@settings(max_examples=300, deadline=None)
@given(
    st.integers(20, 7681),
    st.integers(20, 4321),
    st.floats(-720, 720),
    st.tuples(share, share),
    st.tuples(share, share),
)
def test_a_rotated_box_moves_less_than_a_millionth_of_a_pixel(
    width: int,
    height: int,
    degrees: float,
    centre: tuple[float, float],
    size: tuple[float, float],
) -> None:
    reach = min(width, height) / 2
    w, h = (1 + part * (math.sqrt(2) * reach - 2) for part in size)
    half = math.hypot(w, h) / 2
    cx = half + centre[0] * (width - 2 * half)
    cy = half + centre[1] * (height - 2 * half)
    turned = RotatedBox(cx=cx, cy=cy, w=w, h=h, degrees=degrees)
    corners = regions.rotated_corners(turned)
    drawn = DrawnObject("r", "car", regions.enclosing_box(corners), turned=turned)
    back = through(drawn, width, height)
    points = regions.rotated_corners(back.turned) if back.turned else _corners_of(back.box)
    # A whole quarter comes back upright, and its corners in another order.
    moved = [min(math.dist(point, other) for other in points) for point in corners]
    assert max(moved) < (1e-6 if back.turned else 0.02)
    assert max(abs(a - b) for a, b in zip(back.box.xyxy, drawn.box.xyxy, strict=True)) < (
        1e-6 if back.turned else 0.02
    )


@settings(max_examples=200, deadline=None)
@given(*(st.integers(50, 7681),) * 2, st.lists(st.tuples(share, share), min_size=3, max_size=30))
def test_a_polygon_moves_less_than_a_millionth_of_a_pixel(
    width: int, height: int, points: list[tuple[float, float]]
) -> None:
    outline = tuple((x * width, y * height) for x, y in points)
    drawn = DrawnObject("p", "car", regions.enclosing_box(outline), polygon=outline)
    sent = json.loads(json.dumps(to_regions(drawn, width, height)[0]))
    back = regions._to_pixels(sent, width, height)[2]
    assert back is not None
    for (x, y), (u, v) in zip(points, back, strict=True):
        assert math.dist((x * width, y * height), (u, v)) < 1e-6


def test_attributes_of_an_object_survive_the_round_trip() -> None:
    first = DrawnObject(
        "a", "car", Box(x=1, y=2, w=3, h=4), occluded=0.75, truncated=0.0, ignore=True
    )
    second = DrawnObject(
        "b", "truck", Box(x=5, y=6, w=7, h=8), track="17", attributes={"doors": "open"}
    )
    area = DrawnObject("c", ANY_CLASS, Box(x=0, y=0, w=9, h=9), ignore=True)
    points = ((1.0, 1.0), (9.0, 1.0), (5.0, 9.0))
    outline = DrawnObject("d", "car", regions.enclosing_box(points), polygon=points, track="3")
    sent = [part for one in (first, second, area, outline) for part in to_regions(one, 99, 51)]
    read = parse_result([*sent, *frame_regions({"weather": "rain"}, "glare")], 99, 51, SCHEMA)
    assert not read.invalid and (read.choices, read.comment) == ({"weather": "rain"}, "glare")
    assert [(d.cls, d.occluded, d.truncated, d.ignore) for d in read.objects] == [
        ("car", 0.75, 0.0, True),
        ("truck", None, None, False),
        (ANY_CLASS, None, None, True),
        ("car", None, None, False),
    ]
    assert [(d.track, d.attributes) for d in read.objects] == [
        (None, {}),
        ("17", {"doors": "open"}),
        (None, {}),
        ("3", {}),
    ]


@pytest.mark.parametrize(
    ("changed", "reason", "detail"),
    [
        (region(value={"x": 150.0}), "out-of-bounds", "317x211"),
        (region(value={"y": -0.01}), "out-of-bounds", "leaves"),
        (region(value={"width": 0.1}), "degenerate", "pixels"),
        (region(value={"width": -5}), "degenerate", "pixels"),
        (region(value={"x": None}), "mislabelled", "not a number"),
        (region(value={"rotation": "12"}), "mislabelled", "not a number"),
        (region(value={"rectanglelabels": ["bus"]}), "unknown-class", "bus"),
        (region(value={"rectanglelabels": []}), "unknown-class", "none"),
        (region(image_rotation=90), "mislabelled", "rotated"),
        (region(original_width=211, original_height=317), "mislabelled", "211x317"),
        (region(type="keypointlabels"), "mislabelled", "keypointlabels"),
        (region(type="polygonlabels"), "mislabelled", "three corners"),
        (region(value={"x": 1.0, "rotation": 45.0}), "out-of-bounds", "leaves"),
        (polygon((0, 0), (50, 50), (50, 0), (0, 50)), "degenerate", "crosses"),
        (polygon((0, 0), (50, 50), (25, 25)), "degenerate", "no area"),
        (polygon((0, 0), (50, 50), (320, 10)), "out-of-bounds", "leaves"),
    ],
)
def test_invalid_shapes_have_a_reason(changed: Any, reason: str, detail: str) -> None:
    read = parse_result([changed], 317, 211, SCHEMA)
    assert not read.objects
    assert read.invalid[0].reason == reason
    assert detail in read.invalid[0].detail


@pytest.mark.parametrize(
    ("changed", "detail"),
    [
        (region(value={"rotation": 12.0}), "upright"),
        (polygon((0, 0), (50, 50), (50, 0)), "polygonlabels"),
    ],
)
def test_shapes_outside_the_schema_are_invalid(changed: Any, detail: str) -> None:
    read = parse_result([changed], 317, 211, BOXES_ONLY)
    assert not read.objects and detail in read.invalid[0].detail


def test_rounding_at_the_edge_is_valid() -> None:
    edge = region(value={"x": -1e-12, "width": 100.00000000000001})
    read = parse_result([edge], 317, 211, BOXES_ONLY)
    assert len(read.objects) == 1 and not read.invalid


@settings(max_examples=50, deadline=None)
@given(turns=st.sampled_from([90, 180, 270, -90, 450]), width=st.integers(300, 900))
def test_quarter_turns_pivot_on_the_top_left_corner(turns: int, width: int) -> None:
    created = to_regions(DrawnObject("r", "car", Box(x=150, y=200, w=40, h=25)), width, 500)[0]
    created["value"]["rotation"] = turns
    read = parse_result([created], width, 500, BOXES_ONLY)
    expected = {
        90: (125, 200, 150, 240),
        180: (110, 175, 150, 200),
        270: (150, 160, 175, 200),
    }[turns % 360]
    assert not read.invalid
    assert read.objects[0].box.xyxy == pytest.approx(expected, abs=1e-6)


def test_rotated_shapes_of_a_label_studio_sample_survive_the_round_trip(shared_data: Path) -> None:
    """Read to pixels and written again, every number of Label Studio's own sample is the same."""
    tasks = json.loads((shared_data / EXPORTS / "test_export_yolo" / "data_obb.json").read_text())
    schema = SCHEMA.model_copy(update={"classes": ("Butterfly", "Moth", "Dragonfly")})
    seen = 0
    for shape in (shape for task in tasks for shape in task["annotations"][0]["result"]):
        size = shape["original_width"], shape["original_height"]
        for drawn in parse_result([shape], *size, schema).objects:
            again = to_regions(drawn, *size)[0]["value"]
            for name in ("x", "y", "width", "height"):
                assert again[name] == pytest.approx(shape["value"][name], abs=1e-9)
            assert drawn.turned is None or drawn.turned.degrees == shape["value"]["rotation"]
            seen += drawn.turned is not None
    assert seen >= 3


def test_exports_from_elsewhere_are_parsed_completely(shared_data: Path) -> None:
    tasks = json.loads((shared_data / EXPORTS / "test_export_coco" / "data.json").read_text())
    result = [shape for task in tasks for shape in task["annotations"][0]["result"]]
    size = (result[0]["original_width"], result[0]["original_height"])
    schema = SCHEMA.model_copy(update={"classes": ("rectangle_label", "polygon_label")})
    read = parse_result(result, *size, schema)
    shapes = [one for one in result if one["type"] in ("rectanglelabels", "polygonlabels")]
    assert len(read.objects) == len(shapes) and len(read.objects) + len(read.invalid) == len(result)
    first, value = read.objects[0].box, shapes[0]["value"]
    assert first.x == pytest.approx(value["x"] * size[0] / 100, abs=1e-6)
    assert first.h == pytest.approx(value["height"] * size[1] / 100, abs=1e-6)


def _corners_of(box: Box) -> list[tuple[float, float]]:
    x1, y1, x2, y2 = box.xyxy
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]

"""Boxes to Label Studio's regions and back, exact to a millionth of a pixel.

A region gives position and size in percent of the image, as floats that are never rounded, with
the origin top left. A turned region pivots about its top left corner: ``x`` and ``y`` are where
that corner lies after turning, and ``rotation`` is clockwise in degrees, in pixels (so at
non-square aspect ratios the percentages have to be undone first). See Label Studio's
``RectangleLabels`` reference.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from workbench.labeling import config
from workbench.records.frames import Box

Region = dict[str, Any]
"""One entry of an annotation's or prediction's ``result``."""

Point = tuple[float, float]

TOLERANCE_PX = 1e-6
"""What a round trip may move an edge, and overshoot that is rounding rather than a mistake."""

SMALLEST_PX = 1.0
"""A box narrower or lower than this is a slip of the mouse, not an object."""

_LARGEST_TURN_PX = 0.01


@dataclass(frozen=True)
class Drawn:
    """A usable box as a labeler left it, in pixels of its frame."""

    region: str
    cls: str
    box: Box
    occluded: float | None = None
    truncated: float | None = None
    ignore: bool = False


@dataclass(frozen=True)
class Refused:
    """A region that cannot become a label, and why in words for the labeler."""

    region: str
    reason: Literal["out-of-bounds", "unknown-class", "degenerate", "mislabelled"]
    detail: str


def to_regions(
    drawn: Drawn, width: int, height: int, *, score: float | None = None
) -> list[Region]:
    """A box and its attributes as Label Studio keeps them: regions that share one ``id``."""
    value = {
        "x": drawn.box.x / width * 100,
        "y": drawn.box.y / height * 100,
        "width": drawn.box.w / width * 100,
        "height": drawn.box.h / height * 100,
        "rotation": 0,
    }
    shape: Region = {
        "id": drawn.region,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "to_name": config.IMAGE,
    }
    label = config.name_on_screen(drawn.cls)
    box: Region = {
        **shape,
        "from_name": config.BOXES,
        "type": "rectanglelabels",
        "value": {**value, "rectanglelabels": [label]},
    }
    if score is not None:
        box["score"] = score
    answers: dict[str, str] = {}
    if drawn.occluded is not None:
        answers[config.OCCLUDED] = config.degree_of(drawn.occluded)
    if drawn.truncated is not None:
        answers[config.TRUNCATED] = config.degree_of(drawn.truncated)
    # An area that covers objects of every class is ignored by its nature.
    if drawn.ignore and label != config.IGNORE_AREA:
        answers[config.IGNORE] = config.IGNORE_YES
    choices = [
        {**shape, "from_name": name, "type": "choices", "value": {**value, "choices": [answer]}}
        for name, answer in answers.items()
    ]
    return [box, *choices]


def corners(region: Region) -> tuple[Point, Point, Point, Point]:
    """Corners in pixels, clockwise from the one the region turns about."""
    value = region["value"]
    width, height = region["original_width"], region["original_height"]
    x, y = value["x"] / 100 * width, value["y"] / 100 * height
    w, h = value["width"] / 100 * width, value["height"] / 100 * height
    cosine, sine = _turn(float(value.get("rotation") or 0))
    along, down = (w * cosine, w * sine), (-h * sine, h * cosine)
    return (
        (x, y),
        (x + along[0], y + along[1]),
        (x + along[0] + down[0], y + along[1] + down[1]),
        (x + down[0], y + down[1]),
    )


def read_result(
    result: list[Region], width: int, height: int, classes: Collection[str]
) -> tuple[list[Drawn], list[Refused]]:
    """Every box of one annotation or prediction, and every region that is none.

    Args:
        result: As in an export: boxes, and per-box choices that share their ``id``.
        width, height: The frame's size in pixels; regions must have been drawn on that size.
        classes: Those of the schema that the batch was sent with.
    """
    answers = _answers(result)
    drawn: list[Drawn] = []
    refused: list[Refused] = []
    for region in result:
        if region.get("type") == "choices":
            continue
        outcome = _read(region, width, height, classes, answers.get(region.get("id", ""), {}))
        if isinstance(outcome, Drawn):
            drawn.append(outcome)
        else:
            refused.append(outcome)
    return drawn, refused


def _read(
    region: Region, width: int, height: int, classes: Collection[str], answers: Mapping[str, str]
) -> Drawn | Refused:
    name = str(region.get("id", ""))
    problem = _not_a_box(region, width, height)
    if problem:
        return Refused(name, "mislabelled", problem)
    names = region["value"].get("rectanglelabels") or []
    if len(names) != 1 or (names[0] not in classes and names[0] != config.IGNORE_AREA):
        told = ", ".join(names) or "none"
        return Refused(name, "unknown-class", f"class is {told}, schema has {', '.join(classes)}")
    # Unturned boxes are read without corners: adding and subtracting would cost digits.
    box = _straight(region) if _is_straight(region) else _enclosing(region)
    if box is None:
        return Refused(name, "mislabelled", "the box is turned; draw it upright")
    if box.w < SMALLEST_PX - TOLERANCE_PX or box.h < SMALLEST_PX - TOLERANCE_PX:
        return Refused(name, "degenerate", f"box is {box.w:.2f} by {box.h:.2f} pixels")
    x1, y1, x2, y2 = box.xyxy
    if min(x1, y1, width - x2, height - y2) < -TOLERANCE_PX:
        extent = f"({x1:.1f}, {y1:.1f}) to ({x2:.1f}, {y2:.1f})"
        return Refused(name, "out-of-bounds", f"box {extent} leaves the {width}x{height} image")
    cls = config.class_on_record(names[0])
    return Drawn(
        region=name,
        cls=cls,
        box=box,
        occluded=config.DEGREES.get(answers.get(config.OCCLUDED, "")),
        truncated=config.DEGREES.get(answers.get(config.TRUNCATED, "")),
        ignore=config.IGNORE in answers or names[0] == config.IGNORE_AREA,
    )


def _not_a_box(region: Region, width: int, height: int) -> str | None:
    if region.get("type") != "rectanglelabels":
        return f"region is of type {region.get('type')}, expected a box"
    value = region.get("value", {})
    numbers = [value.get(key) for key in ("x", "y", "width", "height")]
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        return "position or size is not a number"
    size = (region.get("original_width"), region.get("original_height"))
    if size != (width, height):
        return f"drawn on an image of {size[0]}x{size[1]}, the frame is {width}x{height}"
    if region.get("image_rotation"):
        return "the image was turned while drawing; turn it back and draw again"
    return None


def _is_straight(region: Region) -> bool:
    return float(region["value"].get("rotation") or 0) % 360 == 0


def _straight(region: Region) -> Box:
    value = region["value"]
    width, height = region["original_width"], region["original_height"]
    return Box(
        x=value["x"] / 100 * width,
        y=value["y"] / 100 * height,
        w=value["width"] / 100 * width,
        h=value["height"] / 100 * height,
    )


def _enclosing(region: Region) -> Box | None:
    """The upright box of a region turned by quarter turns; None for any other angle."""
    points = corners(region)
    xs, ys = zip(*points, strict=True)
    box = Box(x=min(xs), y=min(ys), w=max(xs) - min(xs), h=max(ys) - min(ys))
    at_corner = all(
        min(x - min(xs), max(xs) - x) < _LARGEST_TURN_PX
        and min(y - min(ys), max(ys) - y) < _LARGEST_TURN_PX
        for x, y in points
    )
    return box if at_corner else None


def _turn(degrees: float) -> Point:
    """Cosine and sine, exact for quarter turns."""
    quarter = {0.0: (1.0, 0.0), 90.0: (0.0, 1.0), 180.0: (-1.0, 0.0), 270.0: (0.0, -1.0)}
    angle = math.radians(degrees)
    return quarter.get(degrees % 360, (math.cos(angle), math.sin(angle)))


def _answers(result: list[Region]) -> dict[str, dict[str, str]]:
    """Per-box choices by region id, then by question."""
    found: dict[str, dict[str, str]] = {}
    for region in result:
        chosen = region.get("value", {}).get("choices") if region.get("type") == "choices" else None
        if chosen:
            found.setdefault(region.get("id", ""), {})[region.get("from_name", "")] = chosen[0]
    return found

"""Labels as Label Studio regions and back; invalid regions say why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from workbench.labeling import label_config
from workbench.records.frames import Box, LabelSchema, Point, RotatedBox

RegionValue = dict[str, Any]
"""The ``value`` of a region, without its labels."""

Corners = tuple[Point, Point, Point, Point]

_UPRIGHT_TOLERANCE_PX = 0.01
"""How far a corner may lie off the upright box for the turn to count as a whole quarter."""


def box_value(box: Box, width: int, height: int) -> RegionValue:
    return {
        "x": box.x / width * 100,
        "y": box.y / height * 100,
        "width": box.w / width * 100,
        "height": box.h / height * 100,
        "rotation": 0,
    }


def turned_value(turned: RotatedBox, width: int, height: int) -> RegionValue:
    cosine, sine = _cosine_sine(turned.degrees)
    x = turned.cx - (turned.w * cosine - turned.h * sine) / 2
    y = turned.cy - (turned.w * sine + turned.h * cosine) / 2
    value = box_value(Box(x=x, y=y, w=turned.w, h=turned.h), width, height)
    return {**value, "rotation": turned.degrees}


def polygon_value(points: Sequence[Point], width: int, height: int) -> RegionValue:
    return {"points": [[x / width * 100, y / height * 100] for x, y in points], "closed": True}


def rectangle_from_value(value: RegionValue, width: int, height: int) -> RotatedBox | Box:
    """The rectangle of a region: upright where it is turned by whole quarters, else turned."""
    x, y = value["x"] / 100 * width, value["y"] / 100 * height
    w, h = value["width"] / 100 * width, value["height"] / 100 * height
    degrees = float(value.get("rotation") or 0)
    if degrees % 360 == 0:
        # Read without corners: adding and subtracting would cost digits.
        return Box(x=x, y=y, w=w, h=h)
    cosine, sine = _cosine_sine(degrees)
    turned = RotatedBox(
        cx=x + (w * cosine - h * sine) / 2,
        cy=y + (w * sine + h * cosine) / 2,
        w=w,
        h=h,
        degrees=degrees,
    )
    points = turned_corners(turned)
    upright = enclosing_box(points)
    return upright if _fills_box(points, upright) else turned


def polygon_from_value(value: RegionValue, width: int, height: int) -> tuple[Point, ...]:
    return tuple((x / 100 * width, y / 100 * height) for x, y in value["points"])


def turned_corners(turned: RotatedBox) -> Corners:
    """Clockwise from the one that Label Studio turns about."""
    cosine, sine = _cosine_sine(turned.degrees)
    along = (turned.w / 2 * cosine, turned.w / 2 * sine)
    down = (-turned.h / 2 * sine, turned.h / 2 * cosine)
    return (
        (turned.cx - along[0] - down[0], turned.cy - along[1] - down[1]),
        (turned.cx + along[0] - down[0], turned.cy + along[1] - down[1]),
        (turned.cx + along[0] + down[0], turned.cy + along[1] + down[1]),
        (turned.cx - along[0] + down[0], turned.cy - along[1] + down[1]),
    )


def enclosing_box(points: Sequence[Point]) -> Box:
    """The upright box that just holds all points."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return Box(x=min(xs), y=min(ys), w=max(xs) - min(xs), h=max(ys) - min(ys))


def polygon_area(points: Sequence[Point]) -> float:
    """Of a polygon that does not cross itself, in square pixels (shoelace formula)."""
    pairs = zip(points, (*points[1:], points[0]), strict=True)
    return abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairs)) / 2


def crosses_itself(points: Sequence[Point]) -> bool:
    """Whether two sides of a polygon that are no neighbours have a point in common."""
    count = len(points)
    sides = [(points[i], points[(i + 1) % count]) for i in range(count)]
    return any(
        _sides_cross(*sides[i], *sides[j])
        for i in range(count)
        for j in range(i + 2, count)
        if (i, j) != (0, count - 1)
    )


def _sides_cross(a: Point, b: Point, c: Point, d: Point) -> bool:
    # Touching is how hand-drawn outlines often close, and does no harm: only true crossings count.
    return (
        _side_of_line(a, b, c) * _side_of_line(a, b, d) < 0  # c and d lie on different sides of a-b
        and _side_of_line(c, d, a) * _side_of_line(c, d, b) < 0
    )


def _side_of_line(a: Point, b: Point, c: Point) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _fills_box(points: Corners, box: Box) -> bool:
    x1, y1, x2, y2 = box.xyxy
    return all(
        min(x - x1, x2 - x) < _UPRIGHT_TOLERANCE_PX and min(y - y1, y2 - y) < _UPRIGHT_TOLERANCE_PX
        for x, y in points
    )


def _cosine_sine(degrees: float) -> Point:
    """Cosine and sine, exact for quarter turns."""
    quarter = {0.0: (1.0, 0.0), 90.0: (0.0, 1.0), 180.0: (-1.0, 0.0), 270.0: (0.0, -1.0)}
    angle = math.radians(degrees)
    return quarter.get(degrees % 360, (math.cos(angle), math.sin(angle)))


# ---- Labels as Label Studio's regions, and regions as labels or as refusals that say why.


Region = dict[str, Any]
"""One entry of an annotation's or prediction's ``result``."""

TOLERANCE_PX = 1e-6
"""What a round trip may move an edge, and overshoot that is rounding rather than a mistake."""

MIN_BOX_PX = 1.0
"""A box narrower or lower than this is a slip of the mouse, not an object."""

_ANSWER_TYPES = ("choices", "textarea")


@dataclass(frozen=True)
class DrawnObject:
    """A usable object as a labeler left it, in pixels of its frame.

    ``box`` just holds the turned rectangle or the polygon where it is one of these.
    """

    region: str
    cls: str
    box: Box
    occluded: float | None = None
    truncated: float | None = None
    ignore: bool = False
    turned: RotatedBox | None = None
    polygon: tuple[Point, ...] | None = None
    track: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class InvalidRegion:
    """A region that cannot become a label, and why in words for the labeler."""

    region: str
    reason: Literal["out-of-bounds", "unknown-class", "degenerate", "mislabelled"]
    detail: str


@dataclass(frozen=True)
class ParsedResult:
    """What one annotation says: of objects, of the frame, and to the team."""

    drawn: tuple[DrawnObject, ...]
    refused: tuple[InvalidRegion, ...]
    choices: dict[str, str]
    comment: str | None


def to_regions(
    drawn: DrawnObject, width: int, height: int, *, score: float | None = None
) -> list[Region]:
    """An object and what is said of it as Label Studio keeps them: regions of one ``id``."""
    if drawn.polygon is not None:
        value = polygon_value(drawn.polygon, width, height)
        control, kind = label_config.POLYGONS, "polygonlabels"
    elif drawn.turned is not None:
        value = turned_value(drawn.turned, width, height)
        control, kind = label_config.BOXES, "rectanglelabels"
    else:
        value = box_value(drawn.box, width, height)
        control, kind = label_config.BOXES, "rectanglelabels"
    shape: Region = {
        "id": drawn.region,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "to_name": label_config.IMAGE,
    }
    label = label_config.class_to_label(drawn.cls)
    region: Region = {
        **shape,
        "from_name": control,
        "type": kind,
        "value": {**value, kind: [label]},
    }
    if score is not None:
        region["score"] = score
    told = [
        {**shape, "from_name": name, "type": "choices", "value": {**value, "choices": [answer]}}
        for name, answer in _object_choices(drawn, label).items()
    ]
    if drawn.track is not None:
        text = {**value, "text": [drawn.track]}
        told.append({**shape, "from_name": label_config.TRACK, "type": "textarea", "value": text})
    return [region, *told]


def frame_regions(choices: Mapping[str, str], comment: str | None = None) -> list[Region]:
    """What is said of the whole frame, as Label Studio keeps it."""
    about = {"to_name": label_config.IMAGE}
    said: list[Region] = [
        {
            **about,
            "id": f"frame-{name}",
            "from_name": name,
            "type": "choices",
            "value": {"choices": [answer]},
        }
        for name, answer in choices.items()
    ]
    if comment:
        text = {"id": "frame-comment", "from_name": label_config.COMMENT, "type": "textarea"}
        said.append({**about, **text, "value": {"text": [comment]}})
    return said


def read_result(
    result: Sequence[Region], width: int, height: int, schema: LabelSchema
) -> ParsedResult:
    """Everything that one annotation or prediction says; nothing is dropped in silence.

    Args:
        result: As in an export: shapes, and answers that share their ``id``.
        width: The frame's width in pixels; regions must have been drawn on that size.
        height: Its height in pixels.
        schema: The one that the batch was sent with.
    """
    asked = {question.name for question in schema.frame_questions}
    answers = _answers_by_region(result)
    choices: dict[str, str] = {}
    comments: list[str] = []
    drawn: list[DrawnObject] = []
    refused: list[InvalidRegion] = []
    for region in result:
        if region.get("type") in _ANSWER_TYPES:
            said = _answer_text(region)
            if region.get("from_name") in asked and said:
                choices[region["from_name"]] = said
            elif region.get("from_name") == label_config.COMMENT and said:
                comments.append(said)
            continue
        outcome = _read_region(region, width, height, schema, answers.get(region.get("id", ""), {}))
        if isinstance(outcome, DrawnObject):
            drawn.append(outcome)
        else:
            refused.append(outcome)
    return ParsedResult(tuple(drawn), tuple(refused), choices, "\n".join(comments) or None)


def _object_choices(drawn: DrawnObject, label: str) -> dict[str, str]:
    answers: dict[str, str] = {}
    if drawn.occluded is not None:
        answers[label_config.OCCLUDED] = label_config.fraction_to_degree(drawn.occluded)
    if drawn.truncated is not None:
        answers[label_config.TRUNCATED] = label_config.fraction_to_degree(drawn.truncated)
    # An area that covers objects of every class is ignored by its nature.
    if drawn.ignore and label != label_config.IGNORE_AREA:
        answers[label_config.IGNORE] = label_config.IGNORE_YES
    return {**answers, **drawn.attributes}


def _read_region(
    region: Region, width: int, height: int, schema: LabelSchema, answers: Mapping[str, str]
) -> DrawnObject | InvalidRegion:
    name = str(region.get("id", ""))
    problem = _format_problem(region, width, height, schema)
    if problem:
        return InvalidRegion(name, "mislabelled", problem)
    names = region["value"].get(region["type"]) or []
    if len(names) != 1 or (names[0] not in schema.classes and names[0] != label_config.IGNORE_AREA):
        told = ", ".join(names) or "none"
        known = ", ".join(schema.classes)
        return InvalidRegion(name, "unknown-class", f"class is {told}, schema has {known}")
    box, turned, polygon = _region_shape(region, width, height)
    refused = _check_shape(name, box, turned, polygon, (width, height), schema)
    if refused:
        return refused
    questions = {question.name for question in schema.box_questions}
    return DrawnObject(
        region=name,
        cls=label_config.label_to_class(names[0]),
        box=box,
        occluded=label_config.DEGREES.get(answers.get(label_config.OCCLUDED, "")),
        truncated=label_config.DEGREES.get(answers.get(label_config.TRUNCATED, "")),
        ignore=label_config.IGNORE in answers or names[0] == label_config.IGNORE_AREA,
        turned=turned,
        polygon=polygon,
        track=answers.get(label_config.TRACK),
        attributes={key: said for key, said in answers.items() if key in questions},
    )


def _region_shape(
    region: Region, width: int, height: int
) -> tuple[Box, RotatedBox | None, tuple[Point, ...] | None]:
    if region["type"] == "polygonlabels":
        polygon = polygon_from_value(region["value"], width, height)
        return enclosing_box(polygon), None, polygon
    rectangle = rectangle_from_value(region["value"], width, height)
    if isinstance(rectangle, Box):
        return rectangle, None, None
    return enclosing_box(turned_corners(rectangle)), rectangle, None


def _check_shape(
    name: str,
    box: Box,
    turned: RotatedBox | None,
    polygon: tuple[Point, ...] | None,
    size: tuple[int, int],
    schema: LabelSchema,
) -> InvalidRegion | None:
    if turned is not None and "turned" not in schema.shapes:
        return InvalidRegion(name, "mislabelled", "the box is turned; draw it upright")
    w, h = (turned.w, turned.h) if turned else (box.w, box.h)
    if w < MIN_BOX_PX - TOLERANCE_PX or h < MIN_BOX_PX - TOLERANCE_PX:
        return InvalidRegion(name, "degenerate", f"box is {w:.2f} by {h:.2f} pixels")
    if polygon is not None and crosses_itself(polygon):
        return InvalidRegion(name, "degenerate", "the polygon crosses itself")
    if polygon is not None and polygon_area(polygon) < MIN_BOX_PX**2:
        return InvalidRegion(name, "degenerate", "the polygon has no area")
    x1, y1, x2, y2 = box.xyxy
    if min(x1, y1, size[0] - x2, size[1] - y2) < -TOLERANCE_PX:
        extent = f"({x1:.1f}, {y1:.1f}) to ({x2:.1f}, {y2:.1f})"
        return InvalidRegion(
            name, "out-of-bounds", f"box {extent} leaves the {size[0]}x{size[1]} image"
        )
    return None


def _format_problem(region: Region, width: int, height: int, schema: LabelSchema) -> str | None:
    kind, value = region.get("type"), region.get("value") or {}
    if kind == "polygonlabels" and "polygon" in schema.shapes:
        points = value.get("points")
        numbers = [axis for point in points or () for axis in point]
        if not points or len(points) < 3 or len(numbers) != 2 * len(points):
            return "a polygon needs three corners or more"
    elif kind == "rectanglelabels":
        numbers = [value.get(key) for key in ("x", "y", "width", "height")]
        numbers.append(value.get("rotation") or 0)
    else:
        return f"region is of type {kind}, expected {' or '.join(schema.shapes)}"
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        return "position or size is not a number"
    size = (region.get("original_width"), region.get("original_height"))
    if size != (width, height):
        return f"drawn on an image of {size[0]}x{size[1]}, the frame is {width}x{height}"
    if region.get("image_rotation"):
        return "the image was turned while drawing; turn it back and draw again"
    return None


def _answers_by_region(result: Sequence[Region]) -> dict[str, dict[str, str]]:
    """What is said of each object: by region id, then by question."""
    found: dict[str, dict[str, str]] = {}
    for region in result:
        said = _answer_text(region) if region.get("type") in _ANSWER_TYPES else None
        if said:
            found.setdefault(region.get("id", ""), {})[region.get("from_name", "")] = said
    return found


def _answer_text(region: Region) -> str | None:
    value = region.get("value") or {}
    said = value.get("choices") or value.get("text") or []
    return said if isinstance(said, str) else "\n".join(said) or None

"""Conversion between labels and Label Studio's regions; invalid regions get a reason.

A region gives position and size in percent of the image, unrounded, with the origin top left. A
rotated rectangle rotates about its top left corner: ``x`` and ``y`` are that corner after rotation,
and ``rotation`` is clockwise in degrees, in pixel space. See Label Studio's ``RectangleLabels`` and
``PolygonLabels`` references. A round trip is exact to a millionth of a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from workbench.core.parsing import UNREADABLE, describe_unreadable
from workbench.core.types import Json
from workbench.data.files import parse_size
from workbench.labeling import label_config
from workbench.records.frames import Box, LabelSchema, Point, RotatedBox

__all__ = ()

Region = Json
"""One entry of an annotation's or prediction's ``result``."""

MIN_BOX_PX = 1.0
"""Smallest width and height of an object, in pixels; smaller boxes are accidental clicks."""

_TOLERANCE_PX = 1e-6
"""Rounding error of a round trip, in pixels."""

_UPRIGHT_TOLERANCE_PX = 0.01
"""Distance of a corner from the upright box up to which a rotation counts as a quarter turn."""

_MAX_DETAIL = 300
_ANSWER_TYPES = ("choices", "textarea")

_RELATION = "relation"
"""A line between two regions, which has no shape of its own."""

_Corners = tuple[Point, Point, Point, Point]
_Shape = tuple[Box, RotatedBox | None, tuple[Point, ...] | None]


@dataclass(frozen=True)
class DrawnObject:
    """An object as a labeler left it, in pixels of its frame.

    Attributes:
        region: Label Studio's id of the region.
        box: Upright box; encloses ``turned`` or ``polygon`` where the object has one.
        occluded, truncated: Fractions in [0, 1]; None if unknown.
        attributes: Answers to the schema's questions about the object.
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
    """A region that cannot become a label; ``detail`` explains it to the labeler."""

    region: str
    reason: Literal["out-of-bounds", "unknown-class", "degenerate", "mislabelled"]
    detail: str


@dataclass(frozen=True)
class ParsedResult:
    """Content of one annotation.

    Attributes:
        choices: Answers to the schema's questions about the frame.
        comment: The labeler's comment about the frame.
    """

    objects: tuple[DrawnObject, ...]
    invalid: tuple[InvalidRegion, ...]
    choices: dict[str, str]
    comment: str | None


def to_regions(
    drawn: DrawnObject, width: int, height: int, *, score: float | None = None
) -> list[Region]:
    """Regions of an object and its attributes; all have the same ``id``.

    Args:
        width: Width of the frame in pixels.
        height: Its height in pixels.
        score: Confidence of a prediction.
    """
    control, kind = label_config.BOXES, "rectanglelabels"
    if drawn.polygon is not None:
        control, kind = label_config.POLYGONS, "polygonlabels"
        points = [[x / width * 100, y / height * 100] for x, y in drawn.polygon]
        value: Json = {"points": points, "closed": True}
    elif drawn.turned is not None:
        value = _rotated_value(drawn.turned, width, height)
    else:
        value = _box_value(drawn.box, width, height)
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
    attributes = [
        {**shape, "from_name": name, "type": "choices", "value": {**value, "choices": [answer]}}
        for name, answer in _attribute_choices(drawn, label).items()
    ]
    if drawn.track is not None:
        text = {**value, "text": [drawn.track]}
        track = {"from_name": label_config.TRACK, "type": "textarea", "value": text}
        attributes.append({**shape, **track})
    return [region, *attributes]


def _attribute_choices(drawn: DrawnObject, label: str) -> dict[str, str]:
    choices: dict[str, str] = {}
    if drawn.occluded is not None:
        choices[label_config.OCCLUDED] = label_config.fraction_to_degree(drawn.occluded)
    if drawn.truncated is not None:
        choices[label_config.TRUNCATED] = label_config.fraction_to_degree(drawn.truncated)
    # An area that covers objects of every class is always ignored.
    if drawn.ignore and label != label_config.IGNORE_AREA:
        choices[label_config.IGNORE] = label_config.IGNORE_YES
    return {**choices, **drawn.attributes}


def parse_result(
    result: Sequence[Region], width: int, height: int, schema: LabelSchema
) -> ParsedResult:
    """Parse an annotation or prediction; every shape becomes an object or an invalid region.

    Args:
        result: Regions as exported: shapes, and answers with the ``id`` of their shape.
        width: Width of the frame in pixels; regions must refer to this size.
        height: Its height in pixels.
        schema: Label schema that the batch was sent with.
    """
    questions = {question.name for question in schema.frame_questions}
    answers: dict[str, dict[str, str]] = {}
    choices: dict[str, str] = {}
    comments: list[str] = []
    parsed: list[DrawnObject | InvalidRegion] = []
    shapes: list[Region] = []
    for region in result:
        try:
            text = _answer_text(region)
            if region.get("type") not in (*_ANSWER_TYPES, _RELATION):
                shapes.append(region)
            if not text:
                continue
            name = region.get("from_name", "")
            answers.setdefault(region.get("id", ""), {})[name] = text
            if name in questions:
                choices[name] = text
            elif name == label_config.COMMENT:
                comments.append(text)
        except UNREADABLE as error:
            parsed.append(_unreadable_region(region, error))
    for region in shapes:
        try:
            about = answers.get(region.get("id", ""), {})
            parsed.append(_parse_shape(region, width, height, schema, about))
        except UNREADABLE as error:
            parsed.append(_unreadable_region(region, error))
    return ParsedResult(
        tuple(one for one in parsed if isinstance(one, DrawnObject)),
        tuple(_shortened(one) for one in parsed if isinstance(one, InvalidRegion)),
        choices,
        "\n".join(comments) or None,
    )


def _shortened(invalid: InvalidRegion) -> InvalidRegion:
    text = invalid.detail.encode("utf-8", "backslashreplace").decode()
    return replace(invalid, detail=text if len(text) <= _MAX_DETAIL else f"{text[:_MAX_DETAIL]}…")


def _unreadable_region(region: object, error: BaseException) -> InvalidRegion:
    region_id = str(region.get("id", ""))[:40] if isinstance(region, Mapping) else ""
    return InvalidRegion(region_id, "mislabelled", describe_unreadable(error))


def without_copies(parsed: ParsedResult) -> ParsedResult:
    """One object where a copy lies on top of it; a copy with other answers is invalid."""
    objects: list[DrawnObject] = []
    invalid = list(parsed.invalid)
    first: dict[Any, DrawnObject] = {}
    for one in parsed.objects:
        original = first.setdefault((one.cls, one.box, one.turned, one.polygon), one)
        if original is one:
            objects.append(one)
        elif replace(one, region=original.region) != original:
            detail = f"the same shape as region {original.region} with other answers"
            invalid.append(InvalidRegion(one.region, "mislabelled", detail))
    return replace(parsed, objects=tuple(objects), invalid=tuple(invalid))


def _answer_text(region: Region) -> str | None:
    if region.get("type") not in _ANSWER_TYPES:
        return None
    value = region.get("value") or {}
    text = value.get("choices") or value.get("text") or []
    text = text if isinstance(text, str) else "\n".join(text)
    text.encode()  # a half character cannot be recorded
    return text or None


def _parse_shape(
    region: Region, width: int, height: int, schema: LabelSchema, answers: Mapping[str, str]
) -> DrawnObject | InvalidRegion:
    region_id = str(region.get("id", ""))
    problem = _format_problem(region, width, height, schema)
    if problem:
        return InvalidRegion(region_id, "mislabelled", problem)
    labels = region["value"].get(region["type"]) or []
    labels = [labels] if isinstance(labels, str) else labels
    for name in (label_config.OCCLUDED, label_config.TRUNCATED):
        if (answer := answers.get(name)) and answer not in label_config.DEGREES:
            detail = f"{name} is {answer!r}, expected one of {', '.join(label_config.DEGREES)}"
            return InvalidRegion(region_id, "mislabelled", detail)
    if len(labels) != 1 or labels[0] not in (*schema.classes, label_config.IGNORE_AREA):
        classes = ", ".join(schema.classes)
        detail = f"class is {', '.join(labels)[:100] or 'none'}, schema has {classes}"
        return InvalidRegion(region_id, "unknown-class", detail)
    shape = _to_pixels(region, width, height)
    invalid = _check_shape(region_id, shape, (width, height), schema)
    if invalid:
        return invalid
    box, rotated, polygon = shape
    questions = {question.name for question in schema.box_questions}
    return DrawnObject(
        region=region_id,
        cls=label_config.label_to_class(labels[0]),
        box=box,
        occluded=label_config.DEGREES.get(answers.get(label_config.OCCLUDED, "")),
        truncated=label_config.DEGREES.get(answers.get(label_config.TRUNCATED, "")),
        ignore=label_config.IGNORE in answers or labels[0] == label_config.IGNORE_AREA,
        turned=rotated,
        polygon=polygon,
        track=answers.get(label_config.TRACK),
        attributes={name: answer for name, answer in answers.items() if name in questions},
    )


def _format_problem(region: Region, width: int, height: int, schema: LabelSchema) -> str | None:
    kind, value = region.get("type"), region.get("value") or {}
    if kind == "polygonlabels" and "polygon" in schema.shapes:
        points = value.get("points")
        numbers = [axis for point in points or () for axis in point]
        if not points or len(points) < 3 or len(numbers) != 2 * len(points):
            return "a polygon needs at least three corners"
    elif kind == "rectanglelabels":
        numbers = [value.get(key) for key in ("x", "y", "width", "height")]
        numbers.append(value.get("rotation") or 0)
    else:
        expected = f"expected {' or '.join(schema.shapes)}"
        drawn_without = kind in ("rectangle", "polygon")
        return f"region is of type {kind}, {'without a class' if drawn_without else expected}"
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
        return "position or size is not a number"
    size = parse_size(region.get("original_width"), region.get("original_height"))
    # Shapes are in percent: annotations written through the API without a size are complete.
    if size not in ((width, height), None):
        return f"drawn on an image of {size[0]}x{size[1]}, the frame is {width}x{height}"
    if region.get("image_rotation"):
        return "the image was rotated while drawing; rotate it back and draw again"
    return None


def _check_shape(
    region_id: str, shape: _Shape, size: tuple[int, int], schema: LabelSchema
) -> InvalidRegion | None:
    box, rotated, polygon = shape
    if rotated is not None and "turned" not in schema.shapes:
        return InvalidRegion(region_id, "mislabelled", "the box is rotated; draw it upright")
    w, h = (rotated.w, rotated.h) if rotated else (box.w, box.h)
    if min(w, h) < MIN_BOX_PX - _TOLERANCE_PX:
        return InvalidRegion(region_id, "degenerate", f"box is {w:.2f} by {h:.2f} pixels")
    if polygon is not None and crosses_itself(polygon):
        return InvalidRegion(region_id, "degenerate", "the polygon crosses itself")
    if polygon is not None and _polygon_area(polygon) < MIN_BOX_PX**2:
        return InvalidRegion(region_id, "degenerate", "the polygon has no area")
    x1, y1, x2, y2 = box.xyxy
    if min(x1, y1, size[0] - x2, size[1] - y2) < -_TOLERANCE_PX:
        extent = f"({x1:.1f}, {y1:.1f}) to ({x2:.1f}, {y2:.1f})"
        detail = f"box {extent} leaves the {size[0]}x{size[1]} image"
        return InvalidRegion(region_id, "out-of-bounds", detail)
    return None


# Geometry: pixels to percent and back.


def _box_value(box: Box, width: int, height: int) -> Json:
    return {
        "x": box.x / width * 100,
        "y": box.y / height * 100,
        "width": box.w / width * 100,
        "height": box.h / height * 100,
        "rotation": 0,
    }


def _rotated_value(rotated: RotatedBox, width: int, height: int) -> Json:
    cosine, sine = _cosine_sine(rotated.degrees)
    x = rotated.cx - (rotated.w * cosine - rotated.h * sine) / 2
    y = rotated.cy - (rotated.w * sine + rotated.h * cosine) / 2
    value = _box_value(Box(x=x, y=y, w=rotated.w, h=rotated.h), width, height)
    return {**value, "rotation": rotated.degrees}


def _to_pixels(region: Region, width: int, height: int) -> _Shape:
    value = region["value"]
    if region["type"] == "polygonlabels":
        polygon = tuple((x / 100 * width, y / 100 * height) for x, y in value["points"])
        return enclosing_box(polygon), None, polygon
    x, y = value["x"] / 100 * width, value["y"] / 100 * height
    w, h = value["width"] / 100 * width, value["height"] / 100 * height
    degrees = float(value.get("rotation") or 0)
    if degrees % 360 == 0:
        # Without computing corners: adding and subtracting would cost precision.
        return Box(x=x, y=y, w=w, h=h), None, None
    cosine, sine = _cosine_sine(degrees)
    rotated = RotatedBox(
        cx=x + (w * cosine - h * sine) / 2,
        cy=y + (w * sine + h * cosine) / 2,
        w=w,
        h=h,
        degrees=degrees,
    )
    points = rotated_corners(rotated)
    upright = enclosing_box(points)
    return upright, None if _fills_box(points, upright) else rotated, None


def rotated_corners(rotated: RotatedBox) -> _Corners:
    """Corners, clockwise from the one that Label Studio rotates about (top left before that)."""
    cosine, sine = _cosine_sine(rotated.degrees)
    along = (rotated.w / 2 * cosine, rotated.w / 2 * sine)
    down = (-rotated.h / 2 * sine, rotated.h / 2 * cosine)
    return (
        (rotated.cx - along[0] - down[0], rotated.cy - along[1] - down[1]),
        (rotated.cx + along[0] - down[0], rotated.cy + along[1] - down[1]),
        (rotated.cx + along[0] + down[0], rotated.cy + along[1] + down[1]),
        (rotated.cx - along[0] + down[0], rotated.cy - along[1] + down[1]),
    )


def enclosing_box(points: Sequence[Point]) -> Box:
    """The smallest upright box around all points."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return Box(x=min(xs), y=min(ys), w=max(xs) - min(xs), h=max(ys) - min(ys))


def _polygon_area(points: Sequence[Point]) -> float:
    """Area of a polygon that does not cross itself, in square pixels (shoelace formula)."""
    pairs = zip(points, (*points[1:], points[0]), strict=True)
    return abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairs)) / 2


def crosses_itself(points: Sequence[Point]) -> bool:
    """Whether two sides of a polygon that are not adjacent cross."""
    count = len(points)
    sides = [(points[i], points[(i + 1) % count]) for i in range(count)]
    return any(
        _sides_cross(*sides[i], *sides[j])
        for i in range(count)
        for j in range(i + 2, count)
        if (i, j) != (0, count - 1)
    )


def _sides_cross(a: Point, b: Point, c: Point, d: Point) -> bool:
    # Touching sides are frequent in hand-drawn outlines and harmless.
    return (
        _side_of_line(a, b, c) * _side_of_line(a, b, d) < 0  # c and d lie on different sides of a-b
        and _side_of_line(c, d, a) * _side_of_line(c, d, b) < 0
    )


def _side_of_line(a: Point, b: Point, c: Point) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _fills_box(points: _Corners, box: Box) -> bool:
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

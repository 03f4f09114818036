"""Labels as Label Studio's regions, and regions as labels or as refusals that say why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from workbench.labeling import config, geometry
from workbench.records.frames import Box, LabelSchema, Point, Turned

Region = dict[str, Any]
"""One entry of an annotation's or prediction's ``result``."""

TOLERANCE_PX = 1e-6
"""What a round trip may move an edge, and overshoot that is rounding rather than a mistake."""

SMALLEST_PX = 1.0
"""A box narrower or lower than this is a slip of the mouse, not an object."""

_ANSWERS = ("choices", "textarea")


@dataclass(frozen=True)
class Drawn:
    """A usable object as a labeler left it, in pixels of its frame.

    ``box`` just holds the turned rectangle or the polygon where it is one of these.
    """

    region: str
    cls: str
    box: Box
    occluded: float | None = None
    truncated: float | None = None
    ignore: bool = False
    turned: Turned | None = None
    polygon: tuple[Point, ...] | None = None
    track: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """A region that cannot become a label, and why in words for the labeler."""

    region: str
    reason: Literal["out-of-bounds", "unknown-class", "degenerate", "mislabelled"]
    detail: str


@dataclass(frozen=True)
class Read:
    """What one annotation says: of objects, of the frame, and to the team."""

    drawn: tuple[Drawn, ...]
    refused: tuple[Refused, ...]
    choices: dict[str, str]
    comment: str | None


def to_regions(
    drawn: Drawn, width: int, height: int, *, score: float | None = None
) -> list[Region]:
    """An object and what is said of it as Label Studio keeps them: regions of one ``id``."""
    if drawn.polygon is not None:
        value = geometry.polygon_value(drawn.polygon, width, height)
        control, kind = config.POLYGONS, "polygonlabels"
    elif drawn.turned is not None:
        value = geometry.turned_value(drawn.turned, width, height)
        control, kind = config.BOXES, "rectanglelabels"
    else:
        value = geometry.box_value(drawn.box, width, height)
        control, kind = config.BOXES, "rectanglelabels"
    shape: Region = {
        "id": drawn.region,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "to_name": config.IMAGE,
    }
    label = config.name_on_screen(drawn.cls)
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
        for name, answer in _said(drawn, label).items()
    ]
    if drawn.track is not None:
        text = {**value, "text": [drawn.track]}
        told.append({**shape, "from_name": config.TRACK, "type": "textarea", "value": text})
    return [region, *told]


def frame_regions(choices: Mapping[str, str], comment: str | None = None) -> list[Region]:
    """What is said of the whole frame, as Label Studio keeps it."""
    about = {"to_name": config.IMAGE}
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
        text = {"id": "frame-comment", "from_name": config.COMMENT, "type": "textarea"}
        said.append({**about, **text, "value": {"text": [comment]}})
    return said


def read_result(result: Sequence[Region], width: int, height: int, schema: LabelSchema) -> Read:
    """Everything that one annotation or prediction says; nothing is dropped in silence.

    Args:
        result: As in an export: shapes, and answers that share their ``id``.
        width, height: The frame's size in pixels; regions must have been drawn on that size.
        schema: The one that the batch was sent with.
    """
    asked = {question.name for question in schema.frame_questions}
    answers = _answers(result)
    choices: dict[str, str] = {}
    comments: list[str] = []
    drawn: list[Drawn] = []
    refused: list[Refused] = []
    for region in result:
        if region.get("type") in _ANSWERS:
            said = _text(region)
            if region.get("from_name") in asked and said:
                choices[region["from_name"]] = said
            elif region.get("from_name") == config.COMMENT and said:
                comments.append(said)
            continue
        outcome = _read(region, width, height, schema, answers.get(region.get("id", ""), {}))
        if isinstance(outcome, Drawn):
            drawn.append(outcome)
        else:
            refused.append(outcome)
    return Read(tuple(drawn), tuple(refused), choices, "\n".join(comments) or None)


def _said(drawn: Drawn, label: str) -> dict[str, str]:
    answers: dict[str, str] = {}
    if drawn.occluded is not None:
        answers[config.OCCLUDED] = config.degree_of(drawn.occluded)
    if drawn.truncated is not None:
        answers[config.TRUNCATED] = config.degree_of(drawn.truncated)
    # An area that covers objects of every class is ignored by its nature.
    if drawn.ignore and label != config.IGNORE_AREA:
        answers[config.IGNORE] = config.IGNORE_YES
    return {**answers, **drawn.attributes}


def _read(
    region: Region, width: int, height: int, schema: LabelSchema, answers: Mapping[str, str]
) -> Drawn | Refused:
    name = str(region.get("id", ""))
    problem = _not_a_shape(region, width, height, schema)
    if problem:
        return Refused(name, "mislabelled", problem)
    names = region["value"].get(region["type"]) or []
    if len(names) != 1 or (names[0] not in schema.classes and names[0] != config.IGNORE_AREA):
        told = ", ".join(names) or "none"
        known = ", ".join(schema.classes)
        return Refused(name, "unknown-class", f"class is {told}, schema has {known}")
    box, turned, polygon = _shape(region, width, height)
    refused = _unusable(name, box, turned, polygon, (width, height), schema)
    if refused:
        return refused
    questions = {question.name for question in schema.box_questions}
    return Drawn(
        region=name,
        cls=config.class_on_record(names[0]),
        box=box,
        occluded=config.DEGREES.get(answers.get(config.OCCLUDED, "")),
        truncated=config.DEGREES.get(answers.get(config.TRUNCATED, "")),
        ignore=config.IGNORE in answers or names[0] == config.IGNORE_AREA,
        turned=turned,
        polygon=polygon,
        track=answers.get(config.TRACK),
        attributes={key: said for key, said in answers.items() if key in questions},
    )


def _shape(
    region: Region, width: int, height: int
) -> tuple[Box, Turned | None, tuple[Point, ...] | None]:
    if region["type"] == "polygonlabels":
        polygon = geometry.polygon_of(region["value"], width, height)
        return geometry.enclosing(polygon), None, polygon
    rectangle = geometry.rectangle_of(region["value"], width, height)
    if isinstance(rectangle, Box):
        return rectangle, None, None
    return geometry.enclosing(geometry.corners(rectangle)), rectangle, None


def _unusable(
    name: str,
    box: Box,
    turned: Turned | None,
    polygon: tuple[Point, ...] | None,
    size: tuple[int, int],
    schema: LabelSchema,
) -> Refused | None:
    if turned is not None and "turned" not in schema.shapes:
        return Refused(name, "mislabelled", "the box is turned; draw it upright")
    w, h = (turned.w, turned.h) if turned else (box.w, box.h)
    if w < SMALLEST_PX - TOLERANCE_PX or h < SMALLEST_PX - TOLERANCE_PX:
        return Refused(name, "degenerate", f"box is {w:.2f} by {h:.2f} pixels")
    if polygon is not None and geometry.crosses_itself(polygon):
        return Refused(name, "degenerate", "the polygon crosses itself")
    if polygon is not None and geometry.area(polygon) < SMALLEST_PX**2:
        return Refused(name, "degenerate", "the polygon has no area")
    x1, y1, x2, y2 = box.xyxy
    if min(x1, y1, size[0] - x2, size[1] - y2) < -TOLERANCE_PX:
        extent = f"({x1:.1f}, {y1:.1f}) to ({x2:.1f}, {y2:.1f})"
        return Refused(name, "out-of-bounds", f"box {extent} leaves the {size[0]}x{size[1]} image")
    return None


def _not_a_shape(region: Region, width: int, height: int, schema: LabelSchema) -> str | None:
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


def _answers(result: Sequence[Region]) -> dict[str, dict[str, str]]:
    """What is said of each object: by region id, then by question."""
    found: dict[str, dict[str, str]] = {}
    for region in result:
        said = _text(region) if region.get("type") in _ANSWERS else None
        if said:
            found.setdefault(region.get("id", ""), {})[region.get("from_name", "")] = said
    return found


def _text(region: Region) -> str | None:
    value = region.get("value") or {}
    said = value.get("choices") or value.get("text") or []
    return said if isinstance(said, str) else "\n".join(said) or None

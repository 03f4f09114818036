"""Pixels to Label Studio's percent and back, exact to a millionth of a pixel.

A region gives position and size in percent of the image, as floats that are never rounded, with
the origin top left. A turned rectangle pivots about its top left corner: ``x`` and ``y`` are where
that corner lies after turning, and ``rotation`` is clockwise in degrees, in pixels (so at
non-square aspect ratios the percentages have to be undone first). See Label Studio's
``RectangleLabels`` and ``PolygonLabels`` references.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from workbench.records.frames import Box, Point, Turned

Value = dict[str, Any]
"""The ``value`` of a region, without its labels."""

Corners = tuple[Point, Point, Point, Point]

_QUARTER_PX = 0.01
"""How far a corner may lie off the upright box for the turn to count as a whole quarter."""


def box_value(box: Box, width: int, height: int) -> Value:
    return {
        "x": box.x / width * 100,
        "y": box.y / height * 100,
        "width": box.w / width * 100,
        "height": box.h / height * 100,
        "rotation": 0,
    }


def turned_value(turned: Turned, width: int, height: int) -> Value:
    cosine, sine = _turn(turned.degrees)
    x = turned.cx - (turned.w * cosine - turned.h * sine) / 2
    y = turned.cy - (turned.w * sine + turned.h * cosine) / 2
    value = box_value(Box(x=x, y=y, w=turned.w, h=turned.h), width, height)
    return {**value, "rotation": turned.degrees}


def polygon_value(points: Sequence[Point], width: int, height: int) -> Value:
    return {"points": [[x / width * 100, y / height * 100] for x, y in points], "closed": True}


def rectangle_of(value: Value, width: int, height: int) -> Turned | Box:
    """The rectangle of a region: upright where it is turned by whole quarters, else turned."""
    x, y = value["x"] / 100 * width, value["y"] / 100 * height
    w, h = value["width"] / 100 * width, value["height"] / 100 * height
    degrees = float(value.get("rotation") or 0)
    if degrees % 360 == 0:
        # Read without corners: adding and subtracting would cost digits.
        return Box(x=x, y=y, w=w, h=h)
    cosine, sine = _turn(degrees)
    turned = Turned(
        cx=x + (w * cosine - h * sine) / 2,
        cy=y + (w * sine + h * cosine) / 2,
        w=w,
        h=h,
        degrees=degrees,
    )
    points = corners(turned)
    upright = enclosing(points)
    return upright if _fills(points, upright) else turned


def polygon_of(value: Value, width: int, height: int) -> tuple[Point, ...]:
    return tuple((x / 100 * width, y / 100 * height) for x, y in value["points"])


def corners(turned: Turned) -> Corners:
    """Clockwise from the one that Label Studio turns about."""
    cosine, sine = _turn(turned.degrees)
    along = (turned.w / 2 * cosine, turned.w / 2 * sine)
    down = (-turned.h / 2 * sine, turned.h / 2 * cosine)
    return (
        (turned.cx - along[0] - down[0], turned.cy - along[1] - down[1]),
        (turned.cx + along[0] - down[0], turned.cy + along[1] - down[1]),
        (turned.cx + along[0] + down[0], turned.cy + along[1] + down[1]),
        (turned.cx - along[0] + down[0], turned.cy - along[1] + down[1]),
    )


def enclosing(points: Sequence[Point]) -> Box:
    """The upright box that just holds all points."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return Box(x=min(xs), y=min(ys), w=max(xs) - min(xs), h=max(ys) - min(ys))


def area(points: Sequence[Point]) -> float:
    """Of a polygon that does not cross itself, in square pixels (shoelace formula)."""
    pairs = zip(points, (*points[1:], points[0]), strict=True)
    return abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairs)) / 2


def crosses_itself(points: Sequence[Point]) -> bool:
    """Whether two sides of a polygon that are no neighbours have a point in common."""
    count = len(points)
    sides = [(points[i], points[(i + 1) % count]) for i in range(count)]
    return any(
        _cross(*sides[i], *sides[j])
        for i in range(count)
        for j in range(i + 2, count)
        if (i, j) != (0, count - 1)
    )


def _cross(a: Point, b: Point, c: Point, d: Point) -> bool:
    # Touching is how hand-drawn outlines often close, and does no harm: only true crossings count.
    return (
        _side(a, b, c) * _side(a, b, d) < 0  # c and d lie on different sides of a-b
        and _side(c, d, a) * _side(c, d, b) < 0
    )


def _side(a: Point, b: Point, c: Point) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _fills(points: Corners, box: Box) -> bool:
    x1, y1, x2, y2 = box.xyxy
    return all(
        min(x - x1, x2 - x) < _QUARTER_PX and min(y - y1, y2 - y) < _QUARTER_PX for x, y in points
    )


def _turn(degrees: float) -> Point:
    """Cosine and sine, exact for quarter turns."""
    quarter = {0.0: (1.0, 0.0), 90.0: (0.0, 1.0), 180.0: (-1.0, 0.0), 270.0: (0.0, -1.0)}
    angle = math.radians(degrees)
    return quarter.get(degrees % 360, (math.cos(angle), math.sin(angle)))

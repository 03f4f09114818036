"""A frame of a scenario: its picture and the exact box of everything in it.

Everything is drawn back to front. A second canvas keeps, for every pixel, who was drawn there last;
what is left of each silhouette in it is the visible part.

Boxes are the bounds of the silhouette (the union of the drawn polygons, without glow or shadow) in
continuous pixels, clipped at the image: ``x, y, width, height`` with pixel ``i`` covering
``[i, i + 1)``. ``occluded`` is the share of the silhouette inside the image that others cover,
``truncated`` the share that lies outside.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from workbench.errors import ParameterError
from workbench.simulation import ground, scene, sensor
from workbench.simulation import light as lighting
from workbench.simulation.light import Light
from workbench.simulation.mesh import SHIFT, Stroke
from workbench.simulation.scenario import Actor, Scenario
from workbench.simulation.scene import Body

Image = NDArray[np.uint8]

MIN_VISIBLE = 0.25
"""A box is to be ignored when less of what the image holds of its silhouette can be seen, ..."""
MAX_TRUNCATED = 0.85
"""... when more of the silhouette lies outside the image, ..."""
MAX_VEILED = 0.88
"""... when fog leaves less contrast than the rest to one, ..."""
MIN_HEIGHT = 14.0 / 288.0
"""... or when it is lower than this share of the image's height: an adult some 50 m away."""


@dataclass(frozen=True)
class RenderedBox:
    """``x, y, w, h`` continuous pixels; ``ignore``: too little of it can be seen to be scored."""

    cls: str
    x: float
    y: float
    w: float
    h: float
    occluded: float
    truncated: float
    track: str
    ignore: bool


@dataclass(frozen=True, eq=False)
class RenderedFrame:
    """``image`` is uint8 RGB, height x width x 3."""

    image: Image
    boxes: tuple[RenderedBox, ...]
    events: tuple[str, ...]
    construction: bool


def render(scenario: Scenario, frame_index: int) -> RenderedFrame:
    """Draw one frame; the same scenario and index always give the same pixels and boxes.

    Raises:
        ParameterError: The drive has no such frame.
    """
    if not 0 <= frame_index < scenario.frames:
        raise ParameterError(
            f"frame {frame_index} is not part of the drive",
            where=scenario.drive,
            hint=f"It has frames 0 to {scenario.frames - 1}",
        )
    time_s = scenario.time_s(frame_index)
    light = lighting.of(scenario)
    image = ground.background(scenario, time_s)
    owners = np.zeros(image.shape[:2], np.uint8)
    bodies = scene.bodies(scenario, time_s, light)
    scene.cast_shadows(image, bodies, scenario, light)
    measures = [_draw(body, image, owners) for body in bodies]
    visible = np.bincount(owners.ravel(), minlength=256)
    boxes = tuple(
        box
        for body, measure in zip(bodies, measures, strict=True)
        if body.actor is not None
        and measure is not None
        and (box := _box(body, body.actor, measure, int(visible[body.number]), scenario, light))
    )
    rng = np.random.default_rng([scenario.seed, 29, frame_index])
    flares = scene.flares(bodies, owners, scenario, light)
    image = sensor.expose(image, flares, light, rng, scenario.camera.width / 480)
    shown = {box.track for box in boxes if not box.ignore}
    events = {
        e.name for e in scenario.events if e.start_s <= time_s <= e.end_s and e.track in shown
    }
    works = any(box.cls == "construction" and not box.ignore for box in boxes)
    return RenderedFrame(image, boxes, tuple(sorted(events)), works)


def _draw(body: Body, image: Image, owners: Image) -> _Measure | None:
    """Paint a body and note who owns its pixels; None for what has no box."""
    measure = _measure(body, owners) if body.actor is not None else None
    for stroke in body.strokes:
        polygons = _split(stroke, stroke.fixed)
        cv2.fillPoly(image, polygons, body.colours[stroke.number], cv2.LINE_AA, SHIFT)
        if body.actor is None and not stroke.detail:
            cv2.fillPoly(owners, polygons, 0, cv2.LINE_8, SHIFT)
    return measure


def _split(stroke: Stroke, fixed: NDArray[np.int32]) -> list[NDArray[np.int32]]:
    return list(fixed.reshape(-1, stroke.corners, 2)) if stroke.corners else [fixed]


@dataclass(frozen=True)
class _Measure:
    """Bounds ``x0, y0, x1, y1`` inside the image, pixels of the silhouette there, share outside."""

    bounds: tuple[float, float, float, float]
    inside: int
    truncated: float


def _measure(body: Body, owners: Image) -> _Measure | None:
    """Mark the silhouette in ``owners`` and measure it; None when the image holds none of it."""
    corners = np.concatenate([stroke.polygon for stroke in body.strokes])
    (low_x, low_y), (high_x, high_y) = corners.min(0).tolist(), corners.max(0).tolist()
    height, width = owners.shape
    # Bodies beside the camera reach far out of the image; a few images' worth is enough.
    x0, y0 = max(math.floor(low_x) - 1, -2 * width), max(math.floor(low_y) - 1, -2 * height)
    x1, y1 = min(math.ceil(high_x) + 1, 3 * width), min(math.ceil(high_y) + 1, 3 * height)
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if left >= right or top >= bottom:
        return None
    mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
    corner = np.array([x0, y0], np.int32) << SHIFT
    for stroke in body.strokes:
        cv2.fillPoly(mask, _split(stroke, stroke.fixed - corner), 1, cv2.LINE_8, SHIFT)
    inner = mask[top - y0 : bottom - y0, left - x0 : right - x0]
    owners[top:bottom, left:right][inner > 0] = body.number
    inside, whole = cv2.countNonZero(inner), cv2.countNonZero(mask)
    if inside == 0:
        return None
    if low_x < 0 or low_y < 0 or high_x > width or high_y > height:
        # What is cut off may have held the extremes of the rest too: look at what is left.
        x, y, w, h = cv2.boundingRect(np.ascontiguousarray(inner))
        low_x, low_y = max(low_x, left + x), max(low_y, top + y)
        high_x, high_y = min(high_x, left + x + w), min(high_y, top + y + h)
    return _Measure((low_x, low_y, high_x, high_y), inside, 1.0 - inside / whole)


def _box(
    body: Body, actor: Actor, measure: _Measure, visible: int, scenario: Scenario, light: Light
) -> RenderedBox | None:
    """None when nothing of it can be seen."""
    x0, y0, x1, y1 = measure.bounds
    if visible == 0 or x1 - x0 < 1.0 or y1 - y0 < 1.0:
        return None
    occluded = 1.0 - visible / measure.inside
    veiled = 1.0 - math.exp(-light.air_per_m * body.depth)
    ignore = (
        1.0 - occluded < MIN_VISIBLE
        or measure.truncated > MAX_TRUNCATED
        or veiled > MAX_VEILED
        or y1 - y0 < MIN_HEIGHT * scenario.camera.height
    )
    truncated = round(measure.truncated, 3)
    return RenderedBox(
        actor.cls, x0, y0, x1 - x0, y1 - y0, round(occluded, 3), truncated, actor.track, ignore
    )

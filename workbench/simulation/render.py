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
from workbench.simulation import camera as optics
from workbench.simulation import shapes
from workbench.simulation.mesh import Stroke, strokes
from workbench.simulation.scenario import Actor, Pose, Scenario

Image = NDArray[np.uint8]

_SHIFT = 4
_SUBPIXELS = 1 << _SHIFT
MIN_VISIBLE = 0.25
MIN_HEIGHT_PX = 6.0


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


@dataclass(eq=False)
class _Drawn:
    actor: Actor
    depth: float
    strokes: list[Stroke]


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
    image = _background(scenario, time_s)
    owners = np.zeros(image.shape[:2], np.uint8)
    bodies = _bodies(scenario, time_s)
    measures = []
    for number, body in enumerate(bodies, start=1):
        for stroke in body.strokes:
            colour = tuple(255 * c for c in stroke.colour)
            cv2.fillPoly(image, [_fixed(stroke.polygon)], colour, cv2.LINE_AA, _SHIFT)
        measures.append(_measure(body, owners, number))
    boxes = tuple(
        box
        for number, (body, measure) in enumerate(zip(bodies, measures, strict=True), start=1)
        if (box := _box(body, measure, int((owners == number).sum()), scenario)) is not None
    )
    shown = {box.track for box in boxes if not box.ignore}
    events = {
        e.name for e in scenario.events if e.start_s <= time_s <= e.end_s and e.track in shown
    }
    works = any(box.cls == "construction" and not box.ignore for box in boxes)
    return RenderedFrame(image, boxes, tuple(sorted(events)), works)


def _background(scenario: Scenario, time_s: float) -> Image:
    camera = scenario.camera
    image = np.full((camera.height, camera.width, 3), (150, 185, 225), np.uint8)
    first, along, left, _ = optics.ground_map(camera, scenario.road.curvature, scenario.ego_d_m)
    ground = image[int(first) :]
    ground[:] = (110, 125, 90)
    ground[np.abs(left) < scenario.road.edge_m] = (95, 95, 98)
    dash = (np.mod(along + scenario.ego(time_s).s_m, 9.0) < 4.0) & (np.abs(left) < 0.08)
    ground[dash] = (230, 230, 230)
    return image


def _bodies(scenario: Scenario, time_s: float) -> list[_Drawn]:
    """Actors in view, farthest first."""
    ego = scenario.ego(time_s)
    found = []
    for actor in scenario.actors:
        pose = actor.pose(time_s)
        if pose is None:
            continue
        body = _posed(scenario, actor, pose, ego)
        if body is not None:
            found.append(body)
    return sorted(found, key=lambda body: -body.depth)


def _posed(scenario: Scenario, actor: Actor, pose: Pose, ego: Pose) -> _Drawn | None:
    mesh = shapes.body(actor, pose)
    points = optics.to_ego(scenario.road, ego, mesh.points, pose)
    heading = pose.heading_rad + scenario.road.curvature * (pose.s_m - ego.s_m)
    cos, sin = math.cos(heading), math.sin(heading)
    turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    drawn = strokes(mesh, points, turn, scenario.camera)
    if not drawn:
        return None
    depth = float(optics.depths(scenario.camera, points).mean())
    return _Drawn(actor, depth, drawn)


def _fixed(polygon: NDArray[np.float64], offset: tuple[float, float] = (0, 0)) -> NDArray[np.int32]:
    """OpenCV's fixed-point coordinates, whose integers are pixel centres."""
    return np.round((polygon - offset - 0.5) * _SUBPIXELS).astype(np.int32)


@dataclass(frozen=True)
class _Measure:
    bounds: tuple[float, float, float, float]
    inside: int
    truncated: float


def _measure(body: _Drawn, owners: Image, number: int) -> _Measure:
    """Mark the silhouette in ``owners``; its bounds and how much of it the image holds."""
    corners = np.concatenate([stroke.polygon for stroke in body.strokes])
    low, high = corners.min(0), corners.max(0)
    height, width = owners.shape
    bounds = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
    x0, y0 = math.floor(low[0]) - 1, math.floor(low[1]) - 1
    x1, y1 = math.ceil(high[0]) + 1, math.ceil(high[1]) + 1
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        return _Measure(bounds, 0, 1.0)
    # Bodies beside the camera reach far out of the image; a few images' worth is enough.
    x0, y0 = max(x0, -2 * width), max(y0, -2 * height)
    x1, y1 = min(x1, 3 * width), min(y1, 3 * height)
    mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
    for stroke in body.strokes:
        cv2.fillPoly(mask, [_fixed(stroke.polygon, (x0, y0))], 1, cv2.LINE_8, _SHIFT)
    left, top = max(x0, 0), max(y0, 0)
    right, bottom = min(x1, width), min(y1, height)
    inner = mask[top - y0 : bottom - y0, left - x0 : right - x0]
    owners[top:bottom, left:right][inner > 0] = number
    inside, whole = int(inner.sum()), int(mask.sum())
    return _Measure(bounds, inside, 1.0 - inside / max(whole, 1))


def _box(body: _Drawn, measure: _Measure, visible: int, scenario: Scenario) -> RenderedBox | None:
    """None when nothing of it can be seen."""
    x0, y0, x1, y1 = measure.bounds
    x0, x1 = max(x0, 0.0), min(x1, float(scenario.camera.width))
    y0, y1 = max(y0, 0.0), min(y1, float(scenario.camera.height))
    if visible == 0 or x1 - x0 < 1.0 or y1 - y0 < 1.0:
        return None
    occluded = 1.0 - visible / measure.inside
    seen = visible / measure.inside * (1.0 - measure.truncated)
    return RenderedBox(
        body.actor.cls,
        x0,
        y0,
        x1 - x0,
        y1 - y0,
        round(occluded, 3),
        round(measure.truncated, 3),
        body.actor.track,
        seen < MIN_VISIBLE or y1 - y0 < MIN_HEIGHT_PX,
    )

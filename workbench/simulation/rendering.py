"""Rendering of one frame: background, bodies, and the exact box of each body.

Everything is drawn back to front. A second canvas stores for every pixel the last body drawn there;
what is left of each silhouette is its visible part. Boxes are the bounds of the silhouette (the
union of the drawn polygons, without glow or shadow) in continuous pixels, clipped to the image;
pixel ``i`` covers ``[i, i + 1)``. ``occluded`` is the covered share of the silhouette inside the
image, ``truncated`` the share outside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from workbench.core.errors import ParameterError
from workbench.simulation import geometry, lighting, scene
from workbench.simulation.geometry import FIXED_POINT_BITS, Stroke
from workbench.simulation.lighting import SceneLight
from workbench.simulation.scenario import Actor, Scenario
from workbench.simulation.scene import VisibleBody

__all__ = ()

_Floats = NDArray[np.float32]

_DASH_M, _DASH_PERIOD_M = 4.0, 10.0
_ASPHALT = (0.40, 0.40, 0.41)
_PAVEMENT = (0.60, 0.58, 0.55)
_KERB = (0.66, 0.65, 0.63)
_GRASS = (0.31, 0.40, 0.20)
_PAINT = (0.90, 0.90, 0.88)
_PAVEMENT_M = 3.4


@dataclass(frozen=True, eq=False)
class _StaticBackground:
    """The parts of the background that do not change during a drive.

    Arrays cover the rows from ``first``, the first row with ground. A pixel's colour is ``(steady +
    warm * lamps) * texture + air``, with ``painted`` instead of ``steady`` where a marking covers
    it; all after light and air.
    """

    sky: NDArray[np.uint8]
    first: int
    along: _Floats
    left: _Floats
    steady: _Floats
    painted: _Floats
    warm: _Floats
    air: _Floats
    grain: _Floats
    columns: NDArray[np.int32]
    dashed: NDArray[np.int64]
    dashes: _Floats
    step: _Floats


def _draw_background(scenario: Scenario, time_s: float) -> NDArray[np.uint8]:
    """The scene without bodies, uint8 RGB."""
    ego, light = scenario.ego(time_s), lighting.scene_light(scenario)
    static = _static_background(scenario, ego.d_m, ego.heading_rad)
    along = static.along + np.float32(ego.s_m)
    rows = (along * 17.0).astype(np.int32) & 255
    bright = (
        1.0 + static.grain * _noise_texture(scenario.seed % 7).ravel()[rows * 256 + static.columns]
    )
    ground = static.steady.copy()
    if light.street_lamps:
        wave = np.cos((2 * np.pi / lighting.LAMP_SPACING_M) * along)
        ground += static.warm * cv2.merge((wave, wave, wave))
    flat, painted = ground.reshape(-1, 3), static.painted.reshape(-1, 3)
    cover = static.dashes * _dash_coverage(along.ravel()[static.dashed], static.step)
    flat[static.dashed] += (painted[static.dashed] - flat[static.dashed]) * cover[:, None]
    for marked in _draw_crossings(scenario, along.ravel(), static.left.ravel()):
        flat[marked] += (painted[marked] - flat[marked]) * 0.88
    ground *= cv2.merge((bright, bright, bright))
    ground += static.air
    image = np.empty((scenario.camera.height, scenario.camera.width, 3), np.uint8)
    image[: static.first] = static.sky
    image[static.first :] = cv2.convertScaleAbs(ground, alpha=255.0)
    return image


@lru_cache(maxsize=2)
def _static_background(scenario: Scenario, ego_d_m: float, heading_rad: float) -> _StaticBackground:
    camera, road = scenario.camera, scenario.road
    light = lighting.scene_light(scenario)
    first, along, left, depth = geometry.ground_map(camera, road.curvature, ego_d_m, heading_rad)
    aside = left - ego_d_m  # of the ego's axis, along which its headlights point
    if heading_rad:
        aside = depth * (camera.cx - 0.5 - np.arange(camera.width, dtype=np.float32)) / camera.fx
    albedo, dashes, grain = _road_surface(scenario, left, depth)
    up = light.shade(np.array([[0.0, 0.0, 1.0]]))[0]
    falling = _to_rgb(up) + lighting.headlights_and_lamps(
        light, depth, aside, np.full_like(along, lighting.LAMP_SPACING_M / 4)
    )
    if light.wet:
        # A wet road is darker, and reflects more sky at a smaller angle.
        road_only = (np.abs(left) < road.edge_m).astype(np.float32)[..., None]
        albedo *= 1.0 - 0.35 * road_only
        mirror = np.clip(depth / 45.0, 0.0, 1.0)[..., None] * 0.55 * road_only
        sheen = _to_rgb(light.sky_low) * 0.85 / np.maximum(falling, 0.05)
        albedo += (np.minimum(sheen, 1.2) - albedo) * mirror
    clear = np.exp(-light.air_per_m * depth)[..., None]
    warm = _to_rgb((0.325, 0.26, 0.17)) * light.street_lamps
    dashed = np.flatnonzero(dashes > 0.01)
    step = depth**2 / (camera.fy * camera.height_m)
    return _StaticBackground(
        sky=_draw_sky(scenario, int(first)),
        first=int(first),
        along=along,
        left=left,
        steady=(albedo * falling * clear).astype(np.float32),
        painted=(_to_rgb(_PAINT) * falling * clear).astype(np.float32),
        warm=(albedo * warm * clear).astype(np.float32),
        air=(_to_rgb(light.air) * (1.0 - clear)).astype(np.float32),
        grain=(grain / (1.0 + depth / 12.0)).astype(np.float32),
        columns=(left * 23.0).astype(np.int32) & 255,
        dashed=dashed,
        dashes=dashes.ravel()[dashed],
        step=step.ravel()[dashed].astype(np.float32),
    )


def _to_rgb(colour: Sequence[float] | NDArray[np.float64]) -> _Floats:
    return np.asarray(colour, np.float32)


def _road_surface(
    scenario: Scenario, left: _Floats, depth: _Floats
) -> tuple[_Floats, _Floats, _Floats]:
    """Colour, share that dashed lines may cover, and texture strength of every pixel."""
    road = scenario.road
    town = road.surroundings in ("town", "avenue")
    pixel = depth / scenario.camera.fx
    side = np.abs(left)

    def beyond(border: float) -> _Floats:
        """Share of a pixel that lies outside ``border``."""
        share = np.clip((side - border) / pixel + 0.5, 0.0, 1.0)[..., None]
        return np.asarray(share, np.float32)

    def line(at: float, width: float) -> _Floats:
        cover = (width / 2 + pixel / 2 - np.abs(left - at)) / pixel
        return np.asarray(np.clip(cover, 0.0, np.minimum(1.0, width / pixel)), np.float32)

    albedo = np.empty((*left.shape, 3), np.float32)
    albedo[:] = _ASPHALT
    tracks = np.cos((left / road.lane_width_m - 0.5) * 4 * np.pi) * (side < road.edge_m)
    albedo *= (1.0 - 0.035 * tracks)[..., None]
    grass = _to_rgb(_GRASS) * (0.9 + 0.2 * (scenario.seed % 5) / 5)
    if town:
        albedo += (_to_rgb(_KERB) - albedo) * beyond(road.edge_m)
        albedo += (_to_rgb(_PAVEMENT) - albedo) * beyond(road.edge_m + 0.18)
        albedo += (grass - albedo) * beyond(road.edge_m + _PAVEMENT_M)
    else:
        albedo += (grass - albedo) * beyond(road.edge_m)
    solid = np.zeros_like(left)
    carriageway = road.lanes * road.lane_width_m
    edges = () if road.parking and road.surroundings == "town" else (-carriageway, carriageway)
    for at in edges:
        solid = np.maximum(solid, line(at, 0.14))
    dashes = np.zeros_like(left)
    for lane in range(1 - road.lanes, road.lanes):
        at = lane * road.lane_width_m
        if lane == 0 and road.lanes > 1:
            solid = np.maximum(solid, np.maximum(line(-0.14, 0.12), line(0.14, 0.12)))
        else:
            dashes = np.maximum(dashes, line(at, 0.14))
    albedo += (_to_rgb(_PAINT) - albedo) * (solid * 0.92)[..., None]
    grain = np.where(side < road.edge_m, 0.075, 0.10 if town else 0.2)
    return albedo.astype(np.float32), (dashes * 0.92).astype(np.float32), grain


def _dash_coverage(along: _Floats, step: _Floats) -> _Floats:
    """Share of a pixel covered by dashes along the road, their mean where they are too small."""
    middle = np.abs(np.mod(along, _DASH_PERIOD_M) - _DASH_PERIOD_M / 2)
    sharp = np.clip((_DASH_M / 2 - middle) / np.maximum(step, 0.02) + 0.5, 0.0, 1.0)
    return np.asarray(np.where(step > 5.0, _DASH_M / _DASH_PERIOD_M, sharp), np.float32)


def _draw_crossings(
    scenario: Scenario, along: _Floats, left: _Floats
) -> Iterator[NDArray[np.int64]]:
    """Pixels of zebra stripes and stop lines at the road's crossings."""
    road = scenario.road
    ego = float(along.min())
    for s in road.crossings_m:
        if ego - 6.0 < s < ego + 70.0:
            near = np.flatnonzero(np.abs(along - (s - 1.2)) < 3.0)
            ahead, d = along[near] - s, left[near]
            stripes = (np.abs(ahead) < 1.7) & (np.mod(d, 1.0) < 0.5)
            stop = (np.abs(ahead + 3.6) < 0.25) & (d < 0)
            yield near[(stripes | stop) & (np.abs(d) < road.lanes * road.lane_width_m)]


def _draw_sky(scenario: Scenario, rows: int) -> NDArray[np.uint8]:
    """Gradient, clouds, stars and a skyline."""
    camera, light = scenario.camera, lighting.scene_light(scenario)
    rng = np.random.default_rng([scenario.seed, 13])
    height = np.clip(1.0 - np.arange(rows) / max(rows - 1, 1), 0, 1)[:, None, None] ** 0.75
    top, low = _to_rgb(light.sky_top), _to_rgb(light.sky_low)
    sky = np.broadcast_to(low + (top - low) * height, (rows, camera.width, 3)).astype(np.float32)
    if light.clouds > 0.05 and rows > 8:
        puffs = np.zeros((rows, camera.width), np.float32)
        for cells, weight in ((4, 0.5), (9, 0.3), (20, 0.2)):
            spots = rng.random((max(2, cells // 2), cells)).astype(np.float32)
            size = (camera.width, rows)
            puffs += weight * cv2.resize(spots, size, interpolation=cv2.INTER_CUBIC)
        cover = np.clip((puffs - 0.5) * 4.0, 0.0, 1.0)[..., None] * min(light.clouds, 1.0) * 0.8
        sky += (low * 0.35 + 0.65 * low.max() - sky) * cover
    if light.headlights > 0.5 and scenario.weather == "clear":
        stars = rng.random((rows, camera.width)) > 0.9985
        sky[stars] += 0.25
    image = np.ascontiguousarray(np.clip(sky * 255, 0, 255).astype(np.uint8))
    _draw_skyline(image, scenario, rng)
    return image


def _draw_skyline(image: NDArray[np.uint8], scenario: Scenario, rng: np.random.Generator) -> None:
    """Distant hills or buildings."""
    light, (rows, width) = lighting.scene_light(scenario), image.shape[:2]
    scale = scenario.camera.fy / 400.0
    city = scenario.road.surroundings in ("town", "avenue")
    for layer, (tall, fade) in enumerate(((26.0, 0.75), (14.0, 0.5))):
        knots = rng.random(48 if city else 12) * tall * scale + 3
        way = cv2.INTER_NEAREST if city else cv2.INTER_CUBIC
        ridge = cv2.resize(knots[None].astype(np.float32), (width, 1), interpolation=way)[0]
        dark = _to_rgb((0.20, 0.24, 0.26) if city else (0.20, 0.28, 0.22)) * _to_rgb(light.ambient)
        fog = min(1.0, fade + light.air_per_m * 12)
        colour = (_to_rgb(light.air) * fog + dark * (1 - fog)) * 255
        if light.air_per_m > 0.015:
            colour = _to_rgb(light.air) * 255
        points = np.stack((np.arange(width), rows - ridge), 1)
        outline = np.concatenate((points, [[width, rows + 2], [0, rows + 2]])).astype(np.int32)
        cv2.fillPoly(image, [outline], colour.tolist(), cv2.LINE_AA)
        if layer == 1 and city and light.headlights > 0.5 and light.air_per_m < 0.015:
            for _ in range(60):
                x = int(rng.integers(width))
                y = rows - int(rng.uniform(1, max(2.0, float(ridge[x]))))
                image[y, x] = (190, 160, 100)


@lru_cache(maxsize=8)
def _noise_texture(number: int) -> _Floats:
    """A seamless tile of road texture, 256 x 256, zero mean."""
    rng = np.random.default_rng([number, 17])
    fine = rng.normal(0, 1, (256, 256)).astype(np.float32)
    tiled = np.tile(rng.normal(0, 1, (32, 32)).astype(np.float32), (3, 3))
    coarse = cv2.resize(tiled, (768, 768), interpolation=cv2.INTER_LINEAR)[256:512, 256:512]
    return np.asarray(np.clip(0.6 * fine + 0.7 * coarse, -2.5, 2.5), np.float32)


Image = NDArray[np.uint8]

# Boxes beyond one of these limits are marked as ignored.
_MIN_VISIBLE = 0.25
"""Visible share of the silhouette inside the image."""
_MAX_TRUNCATED = 0.85
"""Share of the silhouette outside the image."""
_MAX_FOG = 0.88
"""Share of contrast lost in fog."""
_MIN_HEIGHT = 14.0 / 288.0
"""Height as a share of the image height: an adult about 50 m away."""


@dataclass(frozen=True)
class RenderedBox:
    """Box in continuous pixels; ``ignore`` where too little is visible to be evaluated."""

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
    """One frame.

    Attributes:
        image: Uint8 RGB ``[height, width, 3]``.
        events: Names of the rare events in view.
        construction: Whether road works are in view.
    """

    image: Image
    boxes: tuple[RenderedBox, ...]
    events: tuple[str, ...]
    construction: bool


def render_frame(scenario: Scenario, frame_index: int) -> RenderedFrame:
    """Render one frame; the same scenario and index always give the same pixels and boxes.

    Args:
        scenario: The drive.
        frame_index: From 0.

    Raises:
        ParameterError: The index is out of range.
    """
    if not 0 <= frame_index < scenario.frames:
        raise ParameterError(
            f"frame index {frame_index} is out of range",
            where=scenario.drive,
            hint=f"Frames: 0 to {scenario.frames - 1}",
        )
    time_s = scenario.time_s(frame_index)
    light = lighting.scene_light(scenario)
    image = _draw_background(scenario, time_s)
    owners = np.zeros(image.shape[:2], np.uint8)
    bodies = scene.visible_bodies(scenario, time_s, light)
    scene.cast_shadows(image, bodies, scenario, light)
    silhouettes = [_draw_body(body, image, owners) for body in bodies]
    visible = np.bincount(owners.ravel(), minlength=256)
    boxes = tuple(
        box
        for body, silhouette in zip(bodies, silhouettes, strict=True)
        if body.actor is not None
        and silhouette is not None
        and (
            box := _rendered_box(
                body, body.actor, silhouette, int(visible[body.number]), scenario, light
            )
        )
    )
    rng = np.random.default_rng([scenario.seed, 29, frame_index])
    flares = scene.lamp_flares(bodies, owners, scenario, light)
    image = lighting.apply_camera_effects(image, flares, light, rng, scenario.camera.width / 480)
    shown = {box.track for box in boxes if not box.ignore}
    events = {
        e.name for e in scenario.events if e.start_s <= time_s <= e.end_s and e.track in shown
    }
    works = any(box.cls == "construction" and not box.ignore for box in boxes)
    return RenderedFrame(image, boxes, tuple(sorted(events)), works)


def _draw_body(body: VisibleBody, image: Image, owners: Image) -> _Silhouette | None:
    """Draw a body and mark its pixels in ``owners``; None for a body without a box."""
    silhouette = _mark_silhouette(body, owners) if body.actor is not None else None
    for stroke in body.strokes:
        polygons = _split_stroke(stroke, stroke.fixed)
        cv2.fillPoly(image, polygons, body.colours[stroke.number], cv2.LINE_AA, FIXED_POINT_BITS)
        if body.actor is None and not stroke.detail:
            cv2.fillPoly(owners, polygons, 0, cv2.LINE_8, FIXED_POINT_BITS)
    return silhouette


def _split_stroke(stroke: Stroke, fixed: NDArray[np.int32]) -> list[NDArray[np.int32]]:
    return list(fixed.reshape(-1, stroke.corners, 2)) if stroke.corners else [fixed]


@dataclass(frozen=True)
class _Silhouette:
    """Bounds ``x0, y0, x1, y1`` inside the image, number of pixels there, share outside."""

    bounds: tuple[float, float, float, float]
    inside: int
    truncated: float


def _mark_silhouette(body: VisibleBody, owners: Image) -> _Silhouette | None:
    """Mark the silhouette in ``owners`` and measure it; None if it is outside the image."""
    corners = np.concatenate([stroke.polygon for stroke in body.strokes])
    (low_x, low_y), (high_x, high_y) = corners.min(0).tolist(), corners.max(0).tolist()
    height, width = owners.shape
    # Bodies beside the camera extend far outside the image: limit the size of the mask.
    x0, y0 = max(math.floor(low_x) - 1, -2 * width), max(math.floor(low_y) - 1, -2 * height)
    x1, y1 = min(math.ceil(high_x) + 1, 3 * width), min(math.ceil(high_y) + 1, 3 * height)
    left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if left >= right or top >= bottom:
        return None
    mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
    corner = np.array([x0, y0], np.int32) << FIXED_POINT_BITS
    for stroke in body.strokes:
        cv2.fillPoly(
            mask, _split_stroke(stroke, stroke.fixed - corner), 1, cv2.LINE_8, FIXED_POINT_BITS
        )
    inner = mask[top - y0 : bottom - y0, left - x0 : right - x0]
    owners[top:bottom, left:right][inner > 0] = body.number
    inside, whole = cv2.countNonZero(inner), cv2.countNonZero(mask)
    if inside == 0:
        return None
    if low_x < 0 or low_y < 0 or high_x > width or high_y > height:
        # The extremes may be outside the image: measure the part inside.
        x, y, w, h = cv2.boundingRect(np.ascontiguousarray(inner))
        low_x, low_y = max(low_x, left + x), max(low_y, top + y)
        high_x, high_y = min(high_x, left + x + w), min(high_y, top + y + h)
    return _Silhouette((low_x, low_y, high_x, high_y), inside, 1.0 - inside / whole)


def _rendered_box(
    body: VisibleBody,
    actor: Actor,
    silhouette: _Silhouette,
    visible: int,
    scenario: Scenario,
    light: SceneLight,
) -> RenderedBox | None:
    """The box of a body, or None if it is not visible."""
    x0, y0, x1, y1 = silhouette.bounds
    if visible == 0 or x1 - x0 < 1.0 or y1 - y0 < 1.0:
        return None
    occluded = 1.0 - visible / silhouette.inside
    fog = 1.0 - math.exp(-light.air_per_m * body.depth)
    ignore = (
        1.0 - occluded < _MIN_VISIBLE
        or silhouette.truncated > _MAX_TRUNCATED
        or fog > _MAX_FOG
        or y1 - y0 < _MIN_HEIGHT * scenario.camera.height
    )
    truncated = round(silhouette.truncated, 3)
    return RenderedBox(
        actor.cls, x0, y0, x1 - x0, y1 - y0, round(occluded, 3), truncated, actor.track, ignore
    )

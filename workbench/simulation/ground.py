"""Everything behind the bodies: sky, skyline, road with its markings, pavement and verge.

What does not change during a drive is drawn once and kept; a frame adds texture, dashes, crossings
and the pools of light below street lamps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from workbench.simulation import camera as optics
from workbench.simulation import light as lighting
from workbench.simulation.scenario import Scenario

Floats = NDArray[np.float32]

DASH_M, DASH_PERIOD_M = 4.0, 10.0
_ASPHALT = (0.40, 0.40, 0.41)
_PAVEMENT = (0.60, 0.58, 0.55)
_KERB = (0.66, 0.65, 0.63)
_GRASS = (0.31, 0.40, 0.20)
_PAINT = (0.90, 0.90, 0.88)
_PAVEMENT_M = 3.4


@dataclass(frozen=True, eq=False)
class _Kept:
    """A drive's still parts. Arrays cover the rows from ``first``, the first that sees ground.

    A pixel's colour is ``(steady + warm * lamps) * texture + air``, or with ``painted`` in place of
    ``steady`` where a marking covers it; all of them are after light and air.
    """

    sky: NDArray[np.uint8]
    first: int
    along: Floats
    left: Floats
    steady: Floats
    painted: Floats
    warm: Floats
    air: Floats
    grain: Floats
    columns: NDArray[np.int32]
    dashed: NDArray[np.int64]
    dashes: Floats
    step: Floats


def background(scenario: Scenario, time_s: float) -> NDArray[np.uint8]:
    """The empty scene as uint8 RGB."""
    kept, light = _kept(scenario), lighting.of(scenario)
    along = kept.along + np.float32(scenario.ego(time_s).s_m)
    rows = (along * 17.0).astype(np.int32) & 255
    bright = 1.0 + kept.grain * _noise(scenario.seed % 7).ravel()[rows * 256 + kept.columns]
    ground = kept.steady.copy()
    if light.street_lamps:
        wave = np.cos((2 * np.pi / lighting.LAMP_SPACING_M) * along)
        ground += kept.warm * cv2.merge((wave, wave, wave))
    flat, painted = ground.reshape(-1, 3), kept.painted.reshape(-1, 3)
    cover = kept.dashes * _dash(along.ravel()[kept.dashed], kept.step)
    flat[kept.dashed] += (painted[kept.dashed] - flat[kept.dashed]) * cover[:, None]
    for marked in _crossings(scenario, along.ravel(), kept.left.ravel()):
        flat[marked] += (painted[marked] - flat[marked]) * 0.88
    ground *= cv2.merge((bright, bright, bright))
    ground += kept.air
    image = np.empty((scenario.camera.height, scenario.camera.width, 3), np.uint8)
    image[: kept.first] = kept.sky
    image[kept.first :] = cv2.convertScaleAbs(ground, alpha=255.0)
    return image


@lru_cache(maxsize=2)
def _kept(scenario: Scenario) -> _Kept:
    camera, road = scenario.camera, scenario.road
    light = lighting.of(scenario)
    first, along, left, depth = optics.ground_map(camera, road.curvature, scenario.ego_d_m)
    albedo, dashes, grain = _painted(scenario, left, depth)
    up = light.shade(np.array([[0.0, 0.0, 1.0]]))[0]
    falling = _rgb(up) + lighting.own_light(
        light, depth, left - scenario.ego_d_m, np.full_like(along, lighting.LAMP_SPACING_M / 4)
    )
    if light.wet:
        # A wet road is darker, and mirrors the sky the more the flatter it is looked at.
        road_only = (np.abs(left) < road.edge_m).astype(np.float32)[..., None]
        albedo *= 1.0 - 0.35 * road_only
        mirror = np.clip(depth / 45.0, 0.0, 1.0)[..., None] * 0.55 * road_only
        sheen = _rgb(light.sky_low) * 0.85 / np.maximum(falling, 0.05)
        albedo += (np.minimum(sheen, 1.2) - albedo) * mirror
    clear = np.exp(-light.air_per_m * depth)[..., None]
    warm = _rgb((0.325, 0.26, 0.17)) * light.street_lamps
    dashed = np.flatnonzero(dashes > 0.01)
    step = depth**2 / (camera.fy * camera.height_m)
    return _Kept(
        sky=_sky(scenario, int(first)),
        first=int(first),
        along=along,
        left=left,
        steady=(albedo * falling * clear).astype(np.float32),
        painted=(_rgb(_PAINT) * falling * clear).astype(np.float32),
        warm=(albedo * warm * clear).astype(np.float32),
        air=(_rgb(light.air) * (1.0 - clear)).astype(np.float32),
        grain=(grain / (1.0 + depth / 12.0)).astype(np.float32),
        columns=(left * 23.0).astype(np.int32) & 255,
        dashed=dashed,
        dashes=dashes.ravel()[dashed],
        step=step.ravel()[dashed].astype(np.float32),
    )


def _rgb(colour: Sequence[float] | NDArray[np.float64]) -> Floats:
    return np.asarray(colour, np.float32)


def _painted(scenario: Scenario, left: Floats, depth: Floats) -> tuple[Floats, Floats, Floats]:
    """Colours across the road, how much of a pixel dashed lines may cover, texture strength."""
    road = scenario.road
    town = road.surroundings in ("town", "avenue")
    pixel = depth / scenario.camera.fx
    side = np.abs(left)

    def beyond(border: float) -> Floats:
        """Share of a pixel that lies outside ``border``."""
        share = np.clip((side - border) / pixel + 0.5, 0.0, 1.0)[..., None]
        return np.asarray(share, np.float32)

    def line(at: float, width: float) -> Floats:
        cover = (width / 2 + pixel / 2 - np.abs(left - at)) / pixel
        return np.asarray(np.clip(cover, 0.0, np.minimum(1.0, width / pixel)), np.float32)

    albedo = np.empty((*left.shape, 3), np.float32)
    albedo[:] = _ASPHALT
    tracks = np.cos((left / road.lane_width_m - 0.5) * 4 * np.pi) * (side < road.edge_m)
    albedo *= (1.0 - 0.035 * tracks)[..., None]
    grass = _rgb(_GRASS) * (0.9 + 0.2 * (scenario.seed % 5) / 5)
    if town:
        albedo += (_rgb(_KERB) - albedo) * beyond(road.edge_m)
        albedo += (_rgb(_PAVEMENT) - albedo) * beyond(road.edge_m + 0.18)
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
    albedo += (_rgb(_PAINT) - albedo) * (solid * 0.92)[..., None]
    grain = np.where(side < road.edge_m, 0.075, 0.10 if town else 0.2)
    return albedo.astype(np.float32), (dashes * 0.92).astype(np.float32), grain


def _dash(along: Floats, step: Floats) -> Floats:
    """Share of a pixel that the dashes cover along the road, softly where they run together."""
    middle = np.abs(np.mod(along, DASH_PERIOD_M) - DASH_PERIOD_M / 2)
    sharp = np.clip((DASH_M / 2 - middle) / np.maximum(step, 0.02) + 0.5, 0.0, 1.0)
    return np.asarray(np.where(step > 5.0, DASH_M / DASH_PERIOD_M, sharp), np.float32)


def _crossings(scenario: Scenario, along: Floats, left: Floats) -> Iterator[NDArray[np.int64]]:
    """Pixels of zebra stripes at the road's crossings, and of a line to stop at before each."""
    road = scenario.road
    ego = float(along.min())
    for s in road.crossings_m:
        if ego - 6.0 < s < ego + 70.0:
            near = np.flatnonzero(np.abs(along - (s - 1.2)) < 3.0)
            ahead, d = along[near] - s, left[near]
            stripes = (np.abs(ahead) < 1.7) & (np.mod(d, 1.0) < 0.5)
            stop = (np.abs(ahead + 3.6) < 0.25) & (d < 0)
            yield near[(stripes | stop) & (np.abs(d) < road.lanes * road.lane_width_m)]


def _sky(scenario: Scenario, rows: int) -> NDArray[np.uint8]:
    """Gradient, clouds, stars, and a skyline where it meets the ground."""
    camera, light = scenario.camera, lighting.of(scenario)
    rng = np.random.default_rng([scenario.seed, 13])
    height = np.clip(1.0 - np.arange(rows) / max(rows - 1, 1), 0, 1)[:, None, None] ** 0.75
    top, low = _rgb(light.sky_top), _rgb(light.sky_low)
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
    _skyline(image, scenario, rng)
    return image


def _skyline(image: NDArray[np.uint8], scenario: Scenario, rng: np.random.Generator) -> None:
    """Far hills, or blocks of a city, faded into the air."""
    light, (rows, width) = lighting.of(scenario), image.shape[:2]
    scale = scenario.camera.fy / 400.0
    city = scenario.road.surroundings in ("town", "avenue")
    for layer, (tall, fade) in enumerate(((26.0, 0.75), (14.0, 0.5))):
        knots = rng.random(48 if city else 12) * tall * scale + 3
        way = cv2.INTER_NEAREST if city else cv2.INTER_CUBIC
        ridge = cv2.resize(knots[None].astype(np.float32), (width, 1), interpolation=way)[0]
        dark = _rgb((0.20, 0.24, 0.26) if city else (0.20, 0.28, 0.22)) * _rgb(light.ambient)
        fog = min(1.0, fade + light.air_per_m * 12)
        colour = (_rgb(light.air) * fog + dark * (1 - fog)) * 255
        if light.air_per_m > 0.015:
            colour = _rgb(light.air) * 255
        points = np.stack((np.arange(width), rows - ridge), 1)
        outline = np.concatenate((points, [[width, rows + 2], [0, rows + 2]])).astype(np.int32)
        cv2.fillPoly(image, [outline], colour.tolist(), cv2.LINE_AA)
        if layer == 1 and city and light.headlights > 0.5 and light.air_per_m < 0.015:
            for _ in range(60):
                x = int(rng.integers(width))
                y = rows - int(rng.uniform(1, max(2.0, float(ridge[x]))))
                image[y, x] = (190, 160, 100)


@lru_cache(maxsize=8)
def _noise(number: int) -> Floats:
    """A tile of road texture, 256 x 256, zero mean, that repeats without a seam."""
    rng = np.random.default_rng([number, 17])
    fine = rng.normal(0, 1, (256, 256)).astype(np.float32)
    tiled = np.tile(rng.normal(0, 1, (32, 32)).astype(np.float32), (3, 3))
    coarse = cv2.resize(tiled, (768, 768), interpolation=cv2.INTER_LINEAR)[256:512, 256:512]
    return np.asarray(np.clip(0.6 * fine + 0.7 * coarse, -2.5, 2.5), np.float32)

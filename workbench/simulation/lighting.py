"""Light of a scene, and camera effects: glare, reflections, rain, blur and noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from workbench.simulation.geometry import Colour
from workbench.simulation.scenario import Scenario

__all__ = ()

_Rgb = tuple[float, float, float]
_Floats = NDArray[np.float32]

_WARM_LAMP = np.array([1.0, 0.8, 0.52], np.float32)
_HEADLIGHT = np.array([1.0, 0.97, 0.88], np.float32)

LAMP_SPACING_M = 32.0


@dataclass(frozen=True)
class SceneLight:
    """Light and air of a scene. ``sun_way`` points to the sun, in the ego frame."""

    sky_top: _Rgb
    sky_low: _Rgb
    ambient: _Rgb
    sun: _Rgb
    sun_way: _Rgb
    air: _Rgb
    air_per_m: float
    shadow: float = 0.0
    headlights: float = 0.0
    street_lamps: float = 0.0
    lit: bool = False
    clouds: float = 0.5
    noise: float = 1.6
    wet: float = 0.0

    def shade(self, normals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Light of sky and sun on surfaces.

        Args:
            normals: ``(n, 3)`` in the ego frame; zero for round surfaces.

        Returns:
            ``(n, 3)`` factors for their colours.
        """
        facing = np.maximum(normals @ np.array(self.sun_way), 0.0)
        rounded = ~normals.any(1)
        facing[rounded] = 0.45
        sky = 0.7 + 0.3 * (0.5 + 0.5 * normals[:, 2])
        return np.outer(sky, self.ambient) + np.outer(facing, self.sun)


_DAYLIGHT = SceneLight(
    sky_top=(0.33, 0.52, 0.80),
    sky_low=(0.76, 0.84, 0.91),
    ambient=(0.67, 0.70, 0.75),
    sun=(0.58, 0.54, 0.46),
    sun_way=(0.0, 0.0, 1.0),
    air=(0.74, 0.80, 0.86),
    air_per_m=0.0022,
    shadow=0.55,
)
_DUSK_LIGHT = SceneLight(
    sky_top=(0.22, 0.26, 0.46),
    sky_low=(0.96, 0.62, 0.36),
    ambient=(0.40, 0.35, 0.39),
    sun=(0.42, 0.22, 0.10),
    sun_way=(0.0, 0.0, 1.0),
    air=(0.72, 0.52, 0.42),
    air_per_m=0.0035,
    shadow=0.3,
    headlights=0.16,
    street_lamps=0.06,
    lit=True,
    noise=2.6,
)
_NIGHT_LIGHT = SceneLight(
    sky_top=(0.015, 0.02, 0.045),
    sky_low=(0.07, 0.065, 0.075),
    ambient=(0.07, 0.075, 0.095),
    sun=(0.0, 0.0, 0.0),
    sun_way=(0.0, 0.0, 1.0),
    air=(0.045, 0.045, 0.055),
    air_per_m=0.005,
    headlights=1.3,
    street_lamps=0.26,
    lit=True,
    clouds=0.15,
    noise=4.2,
)
_BASE_LIGHTS = {"day": _DAYLIGHT, "dusk": _DUSK_LIGHT, "night": _NIGHT_LIGHT}


@lru_cache(maxsize=64)
def scene_light(scenario: Scenario) -> SceneLight:
    """Light of a drive; the position of the sun depends on its seed."""
    rng = np.random.default_rng([scenario.seed, 11])
    base = _BASE_LIGHTS[scenario.light]
    azimuth = float(rng.uniform(0, 2 * np.pi))
    high = float(rng.uniform(0.6, 1.05) if scenario.light == "day" else rng.uniform(0.12, 0.2))
    flat = math.cos(high)
    way = (math.cos(azimuth) * flat, math.sin(azimuth) * flat, math.sin(high))
    clouds = base.clouds * float(rng.uniform(0.3, 1.6))
    light = replace(base, sun_way=way, clouds=clouds)
    lamps = light.street_lamps if scenario.road.surroundings in ("town", "avenue") else 0.0
    light = replace(light, street_lamps=lamps)
    if scenario.weather == "rain":
        return _rainy(light)
    if scenario.weather == "fog":
        return _foggy(light, float(rng.uniform(0.022, 0.04)))
    return light


def _mix(a: _Rgb, b: _Rgb, share: float) -> _Rgb:
    return (
        a[0] + (b[0] - a[0]) * share,
        a[1] + (b[1] - a[1]) * share,
        a[2] + (b[2] - a[2]) * share,
    )


def _dim(colour: _Rgb, share: float) -> _Rgb:
    return _mix((0.0, 0.0, 0.0), colour, share)


def _grey(colour: _Rgb, share: float) -> _Rgb:
    mean = sum(colour) / 3
    return _mix(colour, (mean, mean, mean * 1.03), share)


def _rainy(light: SceneLight) -> SceneLight:
    return replace(
        light,
        sky_top=_mix(_grey(light.sky_top, 0.8), (0.4, 0.42, 0.45), 0.35 if light.shadow else 0.0),
        sky_low=_grey(light.sky_low, 0.7),
        ambient=_dim(_grey(light.ambient, 0.5), 1.05),
        sun=_dim(light.sun, 0.15),
        air=_grey(light.air, 0.7),
        air_per_m=light.air_per_m + 0.004,
        shadow=light.shadow * 0.45,
        lit=True,
        headlights=1.35 * light.headlights,
        clouds=0.9,
        noise=light.noise * 1.2,
        wet=1.0,
    )


def _foggy(light: SceneLight, per_m: float) -> SceneLight:
    air = _mix(_grey(light.air, 0.8), (0.8, 0.81, 0.82), 0.35) if light.shadow else light.air
    if light.headlights > 0.5:
        air = (0.15, 0.15, 0.16)
    return replace(
        light,
        sky_top=_mix(air, light.sky_top, 0.15),
        sky_low=air,
        ambient=_grey(light.ambient, 0.6),
        sun=_dim(light.sun, 0.1),
        air=air,
        air_per_m=per_m,
        shadow=light.shadow * 0.4,
        lit=True,
        clouds=0.0,
    )


def headlights_and_lamps(light: SceneLight, x: _Floats, y: _Floats, along: _Floats) -> _Floats:
    """Light of headlights and street lamps, to be added to sky and sun.

    Args:
        light: Of the scene.
        x: Position in the ego frame in metres.
        y: Position in the ego frame in metres.
        along: Position along the road in metres.

    Returns:
        Shape of the inputs and three colours.
    """
    if light.headlights == 0 and light.street_lamps == 0:
        return np.zeros((*x.shape, 3), np.float32)
    away = np.maximum(x, 1.0)
    aside = (y + 0.02 * away) / away
    beam = np.exp(-((aside / 0.42) ** 2)) / (1.0 + (away / 26.0) ** 2)
    near = 1.0 - np.exp(-away / 5.0)
    head = np.asarray(light.headlights * beam * near, np.float32)[..., None] * _HEADLIGHT
    if light.street_lamps == 0:
        return np.asarray(head, np.float32)
    wave = 0.5 + 0.5 * np.cos(2 * np.pi * along / LAMP_SPACING_M)
    pools = np.asarray(light.street_lamps * (0.35 + 0.65 * wave), np.float32)
    lamps = pools[..., None] * _WARM_LAMP
    return np.asarray(head + lamps, np.float32)


def attenuate(light: SceneLight, depth: float, glow: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the air's colour at a distance in metres; lower for glowing parts."""
    return 1.0 - np.exp(-light.air_per_m * depth * (1.0 - 0.55 * glow))


Image = NDArray[np.uint8]

_BANK_MARGIN = 64


@dataclass(frozen=True)
class Flare:
    """Glare of a visible lamp, in pixels; ``ground_v`` is the row of the road below it."""

    u: float
    v: float
    colour: Colour
    radius: float
    strength: float
    ground_v: float


def apply_camera_effects(
    image: Image, flares: Sequence[Flare], light: SceneLight, rng: np.random.Generator, scale: float
) -> Image:
    """Glare, reflections, rain, blur and noise.

    Args:
        image: Uint8 RGB; may be changed in place.
        flares: Visible lamps.
        light: Of the scene.
        rng: Of this frame.
        scale: Image width / 480, for the size of effects.
    """
    for flare in flares:
        if light.wet:
            _add_reflection(image, flare)
        _add_glow(image, flare)
    if light.wet:
        image = _add_rain(image, light, rng, scale)
    sigma = (0.75 if light.wet else 0.55) * scale
    return _add_noise(cv2.GaussianBlur(image, (0, 0), sigma), light, rng)


@lru_cache(maxsize=1)
def _glare_spot() -> NDArray[np.float32]:
    """Glare of a lamp: a bright core in a wide faint halo, 64 x 64 pixels."""
    at = np.linspace(-1, 1, 64, dtype=np.float32)
    far = np.sqrt(at[:, None] ** 2 + at[None] ** 2)
    core, halo = np.exp(-((far / 0.16) ** 2)), 0.35 * np.clip(1 - far, 0, 1) ** 2.2
    return np.asarray(np.clip(core + halo, 0, 1), np.float32)


def _add_glow(image: Image, flare: Flare) -> None:
    _add_spot(image, flare.u, flare.v, flare.radius, flare.radius, flare.colour, flare.strength)


def _add_reflection(image: Image, flare: Flare) -> None:
    """Reflection of a lamp on a wet road, stretched towards the viewer."""
    deep = flare.ground_v - flare.v
    if deep < 2 or flare.ground_v > image.shape[0]:
        return
    v = flare.ground_v + deep
    tall = max(deep * 0.9, flare.radius)
    _add_spot(image, flare.u, v, flare.radius * 0.6, tall, flare.colour, flare.strength * 0.5)


def _add_spot(
    image: Image, u: float, v: float, wide: float, tall: float, colour: Colour, strength: float
) -> None:
    half_w, half_h = max(1, round(wide)), max(1, round(tall))
    x, y = round(u) - half_w, round(v) - half_h
    height, width = image.shape[:2]
    x0, y0 = max(x, 0), max(y, 0)
    x1, y1 = min(x + 2 * half_w, width), min(y + 2 * half_h, height)
    if x1 <= x0 or y1 <= y0:
        return
    whole = cv2.resize(_glare_spot(), (2 * half_w, 2 * half_h), interpolation=cv2.INTER_AREA)
    spot = np.asarray(whole, np.float32)[y0 - y : y1 - y, x0 - x : x1 - x, None]
    shine = (spot * (np.array(colour, np.float32) * (255.0 * strength))).astype(np.uint8)
    part = image[y0:y1, x0:x1]
    part[:] = cv2.add(part, shine.reshape(part.shape))


def _add_rain(image: Image, light: SceneLight, rng: np.random.Generator, scale: float) -> Image:
    """Slanted streaks and reduced contrast."""
    height, width = image.shape[:2]
    veil = np.zeros((height, width), np.uint8)
    count = int(190 * scale)
    u, v = rng.integers(0, width, count), rng.integers(-20, height, count)
    length, slant = rng.integers(5, 17, count) * scale, rng.normal(0.12, 0.04)
    ends = np.stack((u + slant * length, v + length), 1).astype(np.int32)
    starts = np.stack((u, v), 1).astype(np.int32)
    shine = int(14 + 58 * min(1.0, sum(light.ambient) / 2))
    lines = np.stack((starts, ends), 1)
    cv2.polylines(veil, list(lines), False, shine, 1, cv2.LINE_AA)
    soft = cv2.GaussianBlur(veil, (0, 0), 0.6 * scale)
    faded = cv2.convertScaleAbs(image, alpha=0.93, beta=255 * 0.06 * sum(light.air) / 3)
    return np.asarray(cv2.add(faded, cv2.merge((soft, soft, soft))), np.uint8)


@lru_cache(maxsize=4)
def _noise_bank(height: int, width: int) -> NDArray[np.int8]:
    """Noise from which each frame takes a window, which is faster than new noise."""
    rng = np.random.default_rng([23])
    size = (height + _BANK_MARGIN, width + _BANK_MARGIN, 3)
    grey = rng.normal(0, 24.0, (*size[:2], 1))
    return np.asarray(np.clip(grey + rng.normal(0, 14.0, size), -127, 127), np.int8)


def _add_noise(image: cv2.typing.MatLike, light: SceneLight, rng: np.random.Generator) -> Image:
    height, width = image.shape[:2]
    y, x = rng.integers(0, _BANK_MARGIN, 2)
    window = _noise_bank(height, width)[y : y + height, x : x + width]
    return np.asarray(
        cv2.addWeighted(image, 1.0, window, light.noise / 28.0, 0.0, dtype=cv2.CV_8U), np.uint8
    )

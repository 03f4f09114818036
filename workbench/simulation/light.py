"""What lights a scene: the sky's colours, the sun, headlights, street lamps, and the air between.

Colours are display values in [0, 1], tuned by eye; this is no physical light transport. Light and
weather therefore change a picture the way they matter to a detector (contrast, colour, noise,
glare), not in measured units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from workbench.simulation.scenario import Scenario

Rgb = tuple[float, float, float]
Floats = NDArray[np.float32]

_WARM_LAMP = np.array([1.0, 0.8, 0.52], np.float32)
_HEADLIGHT = np.array([1.0, 0.97, 0.88], np.float32)

LAMP_SPACING_M = 32.0


@dataclass(frozen=True)
class Light:
    """Everything the renderer asks about light. ``sun_way`` points to the sun, ego frame."""

    sky_top: Rgb
    sky_low: Rgb
    ambient: Rgb
    sun: Rgb
    sun_way: Rgb
    air: Rgb
    air_per_m: float
    shadow: float = 0.0
    headlights: float = 0.0
    street_lamps: float = 0.0
    lit: bool = False
    clouds: float = 0.5
    noise: float = 1.6
    wet: float = 0.0

    def shade(self, normals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sky and sun on surfaces that look along ``(n, 3)`` ego-frame normals; zero is round.

        Returns:
            ``(n, 3)`` factors for their colours.
        """
        facing = np.maximum(normals @ np.array(self.sun_way), 0.0)
        rounded = ~normals.any(1)
        facing[rounded] = 0.45
        sky = 0.7 + 0.3 * (0.5 + 0.5 * normals[:, 2])
        return np.outer(sky, self.ambient) + np.outer(facing, self.sun)


_DAY = Light(
    sky_top=(0.33, 0.52, 0.80),
    sky_low=(0.76, 0.84, 0.91),
    ambient=(0.67, 0.70, 0.75),
    sun=(0.58, 0.54, 0.46),
    sun_way=(0.0, 0.0, 1.0),
    air=(0.74, 0.80, 0.86),
    air_per_m=0.0022,
    shadow=0.55,
)
_DUSK = Light(
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
_NIGHT = Light(
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
_BASES = {"day": _DAY, "dusk": _DUSK, "night": _NIGHT}


@lru_cache(maxsize=64)
def of(scenario: Scenario) -> Light:
    """The light of a drive; the sun's place is drawn from the drive's seed."""
    rng = np.random.default_rng([scenario.seed, 11])
    base = _BASES[scenario.light]
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


def _mix(a: Rgb, b: Rgb, share: float) -> Rgb:
    return (
        a[0] + (b[0] - a[0]) * share,
        a[1] + (b[1] - a[1]) * share,
        a[2] + (b[2] - a[2]) * share,
    )


def _dim(colour: Rgb, share: float) -> Rgb:
    return _mix((0.0, 0.0, 0.0), colour, share)


def _grey(colour: Rgb, share: float) -> Rgb:
    mean = sum(colour) / 3
    return _mix(colour, (mean, mean, mean * 1.03), share)


def _rainy(light: Light) -> Light:
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


def _foggy(light: Light, per_m: float) -> Light:
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


def own_light(light: Light, x: Floats, y: Floats, along: Floats) -> Floats:
    """Headlights and street lamps on the ground or a body at ego ``x, y`` and road ``along``.

    Returns:
        The shape of the inputs, times three colours, to be added to sky and sun.
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


def through_air(light: Light, depth: float, glow: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the air's colour at a distance; what glows is seen farther."""
    return 1.0 - np.exp(-light.air_per_m * depth * (1.0 - 0.55 * glow))

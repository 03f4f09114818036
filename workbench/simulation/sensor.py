"""From the drawn scene to what a camera would have stored: glare, wet roads, rain, blur, noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from workbench.simulation.light import Light
from workbench.simulation.mesh import Colour

Image = NDArray[np.uint8]

_BANK_MARGIN = 64


@dataclass(frozen=True)
class Flare:
    """A visible lamp: pixel, colour, radius in pixels, strength, row where it meets the road."""

    u: float
    v: float
    colour: Colour
    radius: float
    strength: float
    ground_v: float


def expose(
    image: Image, flares: Sequence[Flare], light: Light, rng: np.random.Generator, scale: float
) -> Image:
    """The stored image. ``scale`` is the image's width over 480; effects keep their share of it."""
    for flare in flares:
        if light.wet:
            _mirror(image, flare)
        _glow(image, flare)
    if light.wet:
        image = _rain(image, light, rng, scale)
    sigma = (0.75 if light.wet else 0.55) * scale
    return _noise(cv2.GaussianBlur(image, (0, 0), sigma), light, rng)


@lru_cache(maxsize=1)
def _spot() -> NDArray[np.float32]:
    """Light around a lamp: a bright core in a wide faint halo, 64 x 64."""
    at = np.linspace(-1, 1, 64, dtype=np.float32)
    far = np.sqrt(at[:, None] ** 2 + at[None] ** 2)
    core, halo = np.exp(-((far / 0.16) ** 2)), 0.35 * np.clip(1 - far, 0, 1) ** 2.2
    return np.asarray(np.clip(core + halo, 0, 1), np.float32)


def _glow(image: Image, flare: Flare) -> None:
    _add_spot(image, flare.u, flare.v, flare.radius, flare.radius, flare.colour, flare.strength)


def _mirror(image: Image, flare: Flare) -> None:
    """The lamp's image on a wet road: below it, drawn out towards the viewer."""
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
    whole = cv2.resize(_spot(), (2 * half_w, 2 * half_h), interpolation=cv2.INTER_AREA)
    spot = np.asarray(whole, np.float32)[y0 - y : y1 - y, x0 - x : x1 - x, None]
    shine = (spot * (np.array(colour, np.float32) * (255.0 * strength))).astype(np.uint8)
    part = image[y0:y1, x0:x1]
    part[:] = cv2.add(part, shine.reshape(part.shape))


def _rain(image: Image, light: Light, rng: np.random.Generator, scale: float) -> Image:
    """Slanted streaks, and the contrast that wet air takes away."""
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
def _bank(height: int, width: int) -> NDArray[np.int8]:
    """Noise to cut a window from: drawing new normal noise for every frame would take longer."""
    rng = np.random.default_rng([23])
    size = (height + _BANK_MARGIN, width + _BANK_MARGIN, 3)
    grey = rng.normal(0, 24.0, (*size[:2], 1))
    return np.asarray(np.clip(grey + rng.normal(0, 14.0, size), -127, 127), np.int8)


def _noise(image: cv2.typing.MatLike, light: Light, rng: np.random.Generator) -> Image:
    height, width = image.shape[:2]
    y, x = rng.integers(0, _BANK_MARGIN, 2)
    window = _bank(height, width)[y : y + height, x : x + width]
    return np.asarray(
        cv2.addWeighted(image, 1.0, window, light.noise / 28.0, 0.0, dtype=cv2.CV_8U), np.uint8
    )

"""How frames are varied: where the camera looked, the light, the weather, and the sensor.

Everything drawn comes from the generator given, so that equal generators give equal pixels.
Pixels are uint8 ``[height, width, 3]`` RGB at the network's size; boxes are in network pixels.
The weather is a picture of weather, not physics: it teaches a detector to bear lost contrast and
has no claim to show what a camera would see.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from workbench.perception.preprocessing import Pixels
from workbench.training.config import Augmentation
from workbench.training.targets import Targets, joined

Draw = NDArray[np.float64]

DRAWS = 9
"""Numbers that `move` and `light_table` use: always as many, whatever the settings."""
_WEATHER_DRAWS = 10
_HORIZON = 0.4  # of the height: front cameras look a little down
_DARK = 50  # mean of the pixels: a frame that is dark already would be black
_GREY = np.array([0.299, 0.587, 0.114], np.float32)


def vary(
    pixels: Pixels, targets: Targets, how: Augmentation, pad: int, rng: np.random.Generator
) -> tuple[Pixels, Targets]:
    """One random variation of a frame: mirrored, zoomed, moved, in other light and weather."""
    draw = rng.random(DRAWS)
    pixels, targets = move(pixels, targets, how, pad, draw)
    table = light_table(how, draw)
    if table is not None:
        pixels = np.asarray(cv2.LUT(pixels, table[None]))
    return spoil(pixels, how, rng), targets


def move(
    pixels: Pixels, targets: Targets, how: Augmentation, pad: int, draw: Draw
) -> tuple[Pixels, Targets]:
    """Mirrored, zoomed and moved by the first four numbers drawn."""
    height, width = pixels.shape[:2]
    low, high = np.log(how.zoom)
    zoom = float(np.exp(low + (high - low) * draw[1]))
    mirror = -1.0 if draw[0] < how.flip else 1.0
    reach = how.shift + max(0.0, zoom - 1) / 2  # a zoomed picture may show any part of itself
    shift_x, shift_y = (2 * draw[2:4] - 1) * reach * np.array([width, height])
    if zoom == 1 and shift_x == 0 and shift_y == 0 and mirror == 1:
        return pixels.copy(), targets
    scale_x = mirror * zoom
    left = width / 2 - scale_x * width / 2 + shift_x
    top = height / 2 - zoom * height / 2 + shift_y
    moved = _warp(pixels, (scale_x, zoom), (left, top), (width, height), pad)
    xs = targets.boxes[:, 0::2] * scale_x + left
    ys = targets.boxes[:, 1::2] * zoom + top
    xs.sort(axis=1)
    boxes = np.stack([xs[:, 0], ys[:, 0], xs[:, 1], ys[:, 1]], axis=1)
    return moved, targets.moved(boxes, (0, 0, width, height))


def light_table(how: Augmentation, draw: Draw) -> NDArray[np.uint8] | None:
    """New value of each of the 256 old ones, by channel ``[256, 3]``, from numbers 5 to 9."""
    if how.brightness == 0 and how.colour == 0 and how.gamma == 1:
        return None
    signed = 2 * draw[4:] - 1
    gain = (1 + how.brightness * signed[0]) * (1 + how.colour * signed[1:4])
    curve = np.linspace(0, 1, 256) ** (how.gamma ** signed[4])
    bent = np.clip(255 * curve[:, None] * gain[None], 0, 255).round()
    return np.asarray(bent, np.uint8)


def mosaic(
    frames: Sequence[tuple[Pixels, Targets]], pad: int, rng: np.random.Generator
) -> tuple[Pixels, Targets]:
    """One picture from four: each fills a corner up to a point near the middle."""
    height, width = frames[0][0].shape[:2]
    draw = rng.random(10)
    across, down = (
        round(float(0.3 + 0.4 * draw[i]) * side) for i, side in ((0, width), (1, height))
    )
    canvas = np.full((height, width, 3), pad, np.uint8)
    found = []
    for corner, (pixels, targets) in enumerate(frames):
        x0, x1 = (0, across) if corner % 2 == 0 else (across, width)
        y0, y1 = (0, down) if corner < 2 else (down, height)
        scale = max((x1 - x0) / width, (y1 - y0) / height)
        room = np.array([scale * width - (x1 - x0), scale * height - (y1 - y0)])
        left, top = -room * draw[2 + 2 * corner : 4 + 2 * corner]
        part = _warp(pixels, (scale, scale), (left, top), (x1 - x0, y1 - y0), pad)
        canvas[y0:y1, x0:x1] = part
        shift = np.array([left + x0, top + y0] * 2)
        found.append(targets.moved(targets.boxes * scale + shift, (x0, y0, x1, y1)))
    return canvas, joined(found)


def spoil(pixels: Pixels, how: Augmentation, rng: np.random.Generator) -> Pixels:
    """Weather, darkness, blur and noise, each by its chance."""
    if not spoils(how):
        return pixels
    draw = rng.random(_WEATHER_DRAWS)
    dark = draw[0] < how.night and pixels.mean() > _DARK
    if draw[1] < how.fog:
        pixels = _fog(pixels, draw[5])
    if draw[2] < how.rain:
        pixels = _rain(pixels, draw[6], rng)
    if dark:
        pixels = _night(pixels, draw[7])
    if draw[3] < how.blur:
        pixels = _blur(pixels, draw[8])
    if dark or draw[4] < how.noise:
        pixels = _noise(pixels, draw[9], rng)
    return pixels


def spoils(how: Augmentation) -> bool:
    return max(how.fog, how.rain, how.night, how.blur, how.noise) > 0


def _fog(pixels: Pixels, strength: float) -> Pixels:
    """Koschmieder's law with the distance of a flat road below the horizon."""
    rows = (np.arange(len(pixels), dtype=np.float32) + 0.5) / len(pixels) - _HORIZON
    distance = 0.1 / np.maximum(rows, 0.06)  # 1 a tenth of the height below the horizon
    seen = np.exp(-(0.15 + 0.5 * strength) * distance)[:, None, None].astype(np.float32)
    return np.asarray(pixels * seen + 205 * (1 - seen), np.uint8)


def _rain(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    streaks = np.zeros((height, width), np.uint8)
    count = int(width * height / 800 * (0.4 + strength))
    starts = rng.random((count, 3)) * [width, height, 1]
    slant = (rng.random() - 0.5) * 0.6
    for x, y, size in starts.tolist():
        length = height * (0.02 + 0.05 * size)
        end = (round(x + slant * length), round(y + length))
        cv2.line(streaks, (round(x), round(y)), end, 90 + round(80 * size), 1)
    veil = cv2.blur(streaks, (1, 3)).astype(np.float32)[..., None]
    flat = pixels * np.float32(0.8) + np.float32(22)
    return np.asarray(np.clip(flat + veil * np.float32(0.6), 0, 255), np.uint8)


def _night(pixels: Pixels, strength: float) -> Pixels:
    dim = pixels.astype(np.float32)
    grey = dim @ _GREY
    dim = dim * np.float32(0.6) + grey[..., None] * np.float32(0.4)
    gain = np.float32(0.6 - 0.35 * strength)
    return np.asarray(dim * gain, np.uint8)


def _blur(pixels: Pixels, strength: float) -> Pixels:
    if strength < 0.5:  # the exposure of a turn: along the row
        length = 3 + 2 * int(strength * 4)
        return np.asarray(cv2.blur(pixels, (length, 1)))
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), 0.4 + 1.4 * (strength - 0.5)))


def _noise(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Shot noise grows with the root of the light, read noise does not."""
    light = pixels.astype(np.float32)
    spread = np.sqrt(light * np.float32(0.6 * strength) + np.float32((2 + 8 * strength) ** 2))
    grain = rng.standard_normal(light.shape, np.float32) * spread
    return np.asarray(np.clip(light + grain, 0, 255), np.uint8)


def _warp(
    pixels: Pixels,
    scale: tuple[float, float],
    origin: tuple[float, float],
    size: tuple[int, int],
    pad: int,
) -> Pixels:
    """Scaled, its corner moved to ``origin``, and cut to ``size`` (width, height)."""
    # OpenCV counts from the centre of the first pixel, boxes from its corner.
    there = np.array(
        [
            [scale[0], 0, origin[0] + (scale[0] - 1) / 2],
            [0, scale[1], origin[1] + (scale[1] - 1) / 2],
        ],
        np.float64,
    )
    warped = cv2.warpAffine(
        pixels, there, size, flags=cv2.INTER_LINEAR, borderValue=(pad, pad, pad)
    )
    return np.asarray(warped, np.uint8)

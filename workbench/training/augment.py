"""Data augmentation: geometry, color, weather and sensor noise.

Everything random comes from the generator given, so equal generators give equal pixels. Pixels are uint8
``[height, width, 3]`` RGB at network size; boxes are in network pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from workbench.detection.preprocessing import Pixels
from workbench.training.config import Augmentation
from workbench.training.targets import Targets, concatenate_targets

Draws = NDArray[np.float64]

DRAW_COUNT = 9
"""Numbers that `move` and `light_table` use: always as many, whatever the settings."""
_CORRUPTION_DRAWS = 10
_HORIZON = 0.4  # of the height: front cameras look a little down
_DARK_MEAN = 50  # mean of the pixels: a frame that is dark already would be black
_GRAY = np.array([0.299, 0.587, 0.114], np.float32)


def augment_frame(
    pixels: Pixels, targets: Targets, how: Augmentation, pad: int, rng: np.random.Generator
) -> tuple[Pixels, Targets]:
    """One random variation of a frame: mirrored, zoomed, moved, in other light and weather."""
    draw = rng.random(DRAW_COUNT)
    pixels, targets = random_geometry(pixels, targets, how, pad, draw)
    table = color_table(how, draw)
    if table is not None:
        pixels = np.asarray(cv2.LUT(pixels, table[None]))
    return corrupt(pixels, how, rng), targets


def random_geometry(
    pixels: Pixels, targets: Targets, how: Augmentation, pad: int, draw: Draws
) -> tuple[Pixels, Targets]:
    """Mirrored, zoomed and moved by the first four numbers drawn."""
    height, width = pixels.shape[:2]
    low, high = np.log(how.zoom)
    zoom = float(np.exp(low + (high - low) * draw[1]))
    reach = how.shift + max(0.0, zoom - 1) / 2  # a zoomed picture may show any part of itself
    shift = (2 * draw[2:4] - 1) * reach
    corner = np.array([width, height]) * ((1 - zoom) / 2 + shift)
    moved, scale, start = _resize_into(pixels, zoom, corner.tolist(), (width, height), pad)
    boxes = targets.boxes * (scale * 2) + (start * 2)
    if draw[0] < how.flip:
        moved = np.asarray(cv2.flip(moved, 1), np.uint8)
        boxes[:, 0::2] = width - boxes[:, 2::-2]
    return moved, targets.moved(boxes, (0, 0, width, height))


def color_table(how: Augmentation, draw: Draws) -> NDArray[np.uint8] | None:
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
    for number, (pixels, targets) in enumerate(frames):
        x0, x1 = (0, across) if number % 2 == 0 else (across, width)
        y0, y1 = (0, down) if number < 2 else (down, height)
        scale = max((x1 - x0) / width, (y1 - y0) / height)
        room = np.array([scale * width - (x1 - x0), scale * height - (y1 - y0)])
        corner = (-room * draw[2 + 2 * number : 4 + 2 * number]).tolist()
        part, scales, start = _resize_into(pixels, scale, corner, (x1 - x0, y1 - y0), pad)
        canvas[y0:y1, x0:x1] = part
        shift = np.array([start[0] + x0, start[1] + y0] * 2)
        boxes = targets.boxes * (scales * 2) + shift
        found.append(targets.moved(boxes, (x0, y0, x1, y1)))
    return canvas, concatenate_targets(found)


def corrupt(pixels: Pixels, how: Augmentation, rng: np.random.Generator) -> Pixels:
    """Weather, darkness, blur and noise, each by its chance."""
    if not has_corruptions(how):
        return pixels
    draw = rng.random(_CORRUPTION_DRAWS)
    dark = draw[0] < how.night and pixels.mean() > _DARK_MEAN
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


def has_corruptions(how: Augmentation) -> bool:
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
    grey = dim @ _GRAY
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


_Pair = tuple[float, float]


def _resize_into(
    pixels: Pixels, zoom: float, corner: Sequence[float], size: tuple[int, int], pad: int
) -> tuple[Pixels, _Pair, _Pair]:
    """A picture zoomed, its ``corner`` at a place of a canvas of ``size`` (width, height).

    What is seen of it is cut at whole pixels and resized onto whole pixels, which takes half the
    time of a warp; so scale and corner are those asked for within half a pixel.

    Returns:
        The canvas, and by axis the scale and the corner as they are, for boxes.
    """
    height, width = pixels.shape[:2]
    xs = _axis_crop(zoom, corner[0], width, size[0])
    ys = _axis_crop(zoom, corner[1], height, size[1])
    scale = xs.scale, ys.scale
    start = xs.to[0] - xs.of[0] * xs.scale, ys.to[0] - ys.of[0] * ys.scale
    if xs.nothing or ys.nothing:
        return np.full((size[1], size[0], 3), pad, np.uint8), scale, start
    part = pixels[slice(*ys.of), slice(*xs.of)]
    room = xs.to[1] - xs.to[0], ys.to[1] - ys.to[0]
    seen = cv2.resize(part, room, interpolation=cv2.INTER_LINEAR)
    if room != size:
        edges = (ys.to[0], size[1] - ys.to[1], xs.to[0], size[0] - xs.to[1])
        seen = cv2.copyMakeBorder(seen, *edges, cv2.BORDER_CONSTANT, value=(pad, pad, pad))
    return np.asarray(seen, np.uint8), scale, start


class _AxisCrop(NamedTuple):
    """Along one axis: pixels ``of`` the picture, first and one past the last, onto ``to``."""

    of: tuple[int, int]
    to: tuple[int, int]

    @property
    def scale(self) -> float:
        return 1.0 if self.nothing else (self.to[1] - self.to[0]) / (self.of[1] - self.of[0])

    @property
    def nothing(self) -> bool:
        return self.of[1] <= self.of[0] or self.to[1] <= self.to[0]


def _axis_crop(zoom: float, start: float, length: int, room: int) -> _AxisCrop:
    first, last = max(0, round(-start / zoom)), min(length, round((room - start) / zoom))
    # Where the picture goes on beyond the canvas it reaches the canvas's edge.
    low = 0 if first > 0 else max(0, round(start))
    high = room if last < length else min(room, round(start + zoom * length))
    return _AxisCrop((first, last), (low, high))

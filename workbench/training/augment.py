"""Data augmentation: geometry, color, weather and sensor noise.

Everything random comes from the generator given, so equal generators give equal pixels. Pixels are
uint8 ``[height, width, 3]`` RGB at network size; boxes are in network pixels. The weather is an
approximation of lost contrast, and no claim about what a camera would see.
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

__all__ = ()

DRAW_COUNT = 9
"""Random numbers that `random_geometry` and `color_table` share, whatever the settings."""
_CORRUPTION_DRAWS = 10
_HORIZON = 0.4  # share of the height: front cameras look slightly down
_DARK_MEAN = 50  # frames that are dark already would become black
_GRAY = np.array([0.299, 0.587, 0.114], np.float32)

_Draws = NDArray[np.float64]
_Pair = tuple[float, float]


def random_geometry(
    pixels: Pixels, targets: Targets, settings: Augmentation, pad: int, draws: _Draws
) -> tuple[Pixels, Targets]:
    """Flip, zoom and shift a frame.

    Args:
        pixels: The frame.
        targets: Its targets.
        settings: Ranges and probabilities.
        pad: Gray value outside the image.
        draws: Uniform random numbers in [0, 1), ``[DRAW_COUNT]``; the first four are used.
    """
    height, width = pixels.shape[:2]
    low, high = np.log(settings.zoom)
    zoom = float(np.exp(low + (high - low) * draws[1]))
    reach = settings.shift + max(0.0, zoom - 1) / 2  # a zoomed image may show any part of itself
    shift = (2 * draws[2:4] - 1) * reach
    corner = np.array([width, height]) * ((1 - zoom) / 2 + shift)
    moved, scale, start = _resize_into(pixels, zoom, corner.tolist(), (width, height), pad)
    boxes = targets.boxes * (scale * 2) + (start * 2)
    if draws[0] < settings.flip:
        moved = np.asarray(cv2.flip(moved, 1), np.uint8)
        boxes[:, 0::2] = width - boxes[:, 2::-2]
    return moved, targets.with_boxes(boxes, (0, 0, width, height))


def color_table(settings: Augmentation, draws: _Draws) -> NDArray[np.uint8] | None:
    """Brightness, gamma and color as a lookup table ``[256, 3]`` by channel; None for no change.

    Args:
        settings: Ranges.
        draws: As of `random_geometry`; the last five are used.
    """
    if settings.brightness == 0 and settings.colour == 0 and settings.gamma == 1:
        return None
    signed = 2 * draws[4:] - 1
    gain = (1 + settings.brightness * signed[0]) * (1 + settings.colour * signed[1:4])
    curve = np.linspace(0, 1, 256) ** (settings.gamma ** signed[4])
    return np.asarray(np.clip(255 * curve[:, None] * gain[None], 0, 255).round(), np.uint8)


def mosaic(
    frames: Sequence[tuple[Pixels, Targets]], pad: int, rng: np.random.Generator
) -> tuple[Pixels, Targets]:
    """One image from four of equal size; each fills the corner up to a point near the center."""
    height, width = frames[0][0].shape[:2]
    draws = rng.random(10)
    across, down = (
        round(float(0.3 + 0.4 * draws[i]) * side) for i, side in ((0, width), (1, height))
    )
    canvas = np.full((height, width, 3), pad, np.uint8)
    parts = []
    for number, (pixels, targets) in enumerate(frames):
        x0, x1 = (0, across) if number % 2 == 0 else (across, width)
        y0, y1 = (0, down) if number < 2 else (down, height)
        scale = max((x1 - x0) / width, (y1 - y0) / height)
        excess = np.array([scale * width - (x1 - x0), scale * height - (y1 - y0)])
        corner = (-excess * draws[2 + 2 * number : 4 + 2 * number]).tolist()
        part, scales, start = _resize_into(pixels, scale, corner, (x1 - x0, y1 - y0), pad)
        canvas[y0:y1, x0:x1] = part
        boxes = targets.boxes * (scales * 2) + np.array([start[0] + x0, start[1] + y0] * 2)
        parts.append(targets.with_boxes(boxes, (x0, y0, x1, y1)))
    return canvas, concatenate_targets(parts)


def corrupt(pixels: Pixels, settings: Augmentation, rng: np.random.Generator) -> Pixels:
    """Weather, darkness, blur and noise, each with its probability."""
    if not settings.has_corruptions:
        return pixels
    draws = rng.random(_CORRUPTION_DRAWS)
    dark = draws[0] < settings.night and pixels.mean() > _DARK_MEAN
    if draws[1] < settings.fog:
        pixels = _fog(pixels, draws[5])
    if draws[2] < settings.rain:
        pixels = _rain(pixels, draws[6], rng)
    if dark:
        pixels = _night(pixels, draws[7])
    if draws[3] < settings.blur:
        pixels = _blur(pixels, draws[8])
    if dark or draws[4] < settings.noise:
        pixels = _noise(pixels, draws[9], rng)
    return pixels


def _fog(pixels: Pixels, strength: float) -> Pixels:
    """Koschmieder's law with the distance of a flat road below the horizon."""
    rows = (np.arange(len(pixels), dtype=np.float32) + 0.5) / len(pixels) - _HORIZON
    distance = 0.1 / np.maximum(rows, 0.06)  # 1 at a tenth of the height below the horizon
    visible = np.exp(-(0.15 + 0.5 * strength) * distance)[:, None, None].astype(np.float32)
    return np.asarray(pixels * visible + 205 * (1 - visible), np.uint8)


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
    gray = dim @ _GRAY
    dim = dim * np.float32(0.6) + gray[..., None] * np.float32(0.4)
    gain = np.float32(0.6 - 0.35 * strength)
    return np.asarray(dim * gain, np.uint8)


def _blur(pixels: Pixels, strength: float) -> Pixels:
    if strength < 0.5:  # motion blur of a turn, along the row
        length = 3 + 2 * int(strength * 4)
        return np.asarray(cv2.blur(pixels, (length, 1)))
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), 0.4 + 1.4 * (strength - 0.5)))


def _noise(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Shot noise grows with the square root of the signal, read noise does not."""
    light = pixels.astype(np.float32)
    spread = np.sqrt(light * np.float32(0.6 * strength) + np.float32((2 + 8 * strength) ** 2))
    grain = rng.standard_normal(light.shape, np.float32) * spread
    return np.asarray(np.clip(light + grain, 0, 255), np.uint8)


def _resize_into(
    pixels: Pixels, zoom: float, corner: Sequence[float], size: tuple[int, int], pad: int
) -> tuple[Pixels, _Pair, _Pair]:
    """Resize an image by ``zoom`` and put its top left ``corner`` onto a canvas of ``size`` (w, h).

    The visible part is cropped and resized at whole pixels, which takes half the time of a warp;
    scale and corner are those asked for within half a pixel.

    Returns:
        The canvas, and by axis the actual scale and corner, for boxes.
    """
    height, width = pixels.shape[:2]
    xs = _axis_crop(zoom, corner[0], width, size[0])
    ys = _axis_crop(zoom, corner[1], height, size[1])
    scale = xs.scale, ys.scale
    start = xs.target[0] - xs.source[0] * xs.scale, ys.target[0] - ys.source[0] * ys.scale
    if xs.empty or ys.empty:
        return np.full((size[1], size[0], 3), pad, np.uint8), scale, start
    part = pixels[slice(*ys.source), slice(*xs.source)]
    part_size = xs.target[1] - xs.target[0], ys.target[1] - ys.target[0]
    resized = cv2.resize(part, part_size, interpolation=cv2.INTER_LINEAR)
    if part_size != size:
        edges = (ys.target[0], size[1] - ys.target[1], xs.target[0], size[0] - xs.target[1])
        resized = cv2.copyMakeBorder(resized, *edges, cv2.BORDER_CONSTANT, value=(pad, pad, pad))
    return np.asarray(resized, np.uint8), scale, start


class _AxisCrop(NamedTuple):
    """Along one axis: pixels ``source`` (first, one past the last) are resized onto ``target``."""

    source: tuple[int, int]
    target: tuple[int, int]

    @property
    def scale(self) -> float:
        if self.empty:
            return 1.0
        return (self.target[1] - self.target[0]) / (self.source[1] - self.source[0])

    @property
    def empty(self) -> bool:
        return self.source[1] <= self.source[0] or self.target[1] <= self.target[0]


def _axis_crop(zoom: float, start: float, length: int, canvas: int) -> _AxisCrop:
    first, last = max(0, round(-start / zoom)), min(length, round((canvas - start) / zoom))
    # An image that continues beyond the canvas reaches the canvas's edge.
    low = 0 if first > 0 else max(0, round(start))
    high = canvas if last < length else min(canvas, round(start + zoom * length))
    return _AxisCrop((first, last), (low, high))

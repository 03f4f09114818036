"""Image quality metrics, and the gate that keeps broken frames out of selections."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.detection.preprocessing import Pixels
from workbench.records.base import FrozenModel

QUALITY_NAMES = ("brightness", "contrast", "sharpness", "noise", "blockage")
"""The columns of a quality array, in order."""

_ROWS, _COLUMNS = 6, 8
_WINDOW = (24, 32)
"""Rows and columns of pixels that are read of each part of the picture."""

_MIN_PART_PX = 8
_EMPTY_STD = 2.0
"""Standard deviation of luma, of 255, below which a part of the picture shows nothing at all:
real scenes seldom have such a part, as sensor noise alone is about that much."""

_BLOWN_OUT = 240.0
"""A part brighter than this is blown out, as skies are, not covered."""

_NOISE_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)


def measure_quality(image: Pixels) -> NDArray[np.float32]:
    """Five numbers of RGB uint8 ``[height, width, 3]``, float32 ``[5]``, in the order of `NAMES`.

    Brightness and contrast are mean and standard deviation of luma (BT.601) in [0, 1]. Sharpness is
    the mean absolute 4-neighbour Laplacian of luma, in [0, 4]. Noise is the standard deviation of
    luma, in [0, 1], that Immerkær's operator finds (Fast Noise Variance Estimation, 1996) in the
    calmest quarter of the picture, so that texture is not taken for it. Blockage is the share of
    the picture's parts that show nothing: neither texture nor noise, and not blown out.
    """
    import cv2

    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    mean, deviation = cv2.meanStdDev(luma)
    windows = _sample_windows(luma)
    rows, high, columns, wide = windows.shape
    mosaic = windows.astype(np.float32).reshape(rows * high, columns * wide)

    def averaged(values: NDArray[Any]) -> NDArray[Any]:
        """The mean of each window, ``[rows, columns]``."""
        return cv2.resize(values, (columns, rows), interpolation=cv2.INTER_AREA)

    means = averaged(mosaic)
    spread = np.sqrt(np.maximum(averaged(mosaic * mosaic) - means * means, 0))
    sharpness = noise = 0.0
    if min(high, wide) > 2:
        inner = _interior_mask(windows.shape)
        share = inner.mean()
        laplacian = np.abs(cv2.Laplacian(mosaic, cv2.CV_32F, ksize=1)) * inner
        sharpness = float(laplacian.mean() / share)
        second = averaged(np.abs(cv2.filter2D(mosaic, cv2.CV_32F, _NOISE_KERNEL)) * inner)
        calm = np.sort(second, axis=None)[second.size // 4] / share
        noise = float(calm) * math.sqrt(math.pi / 2) / 6
    empty = float(((spread < _EMPTY_STD) & (means < _BLOWN_OUT)).mean())
    levels = [float(mean[0, 0]), float(deviation[0, 0]), sharpness, noise]
    return np.array([*(level / 255 for level in levels), empty], np.float32)


@cache
def _interior_mask(shape: tuple[int, int, int, int]) -> NDArray[np.float32]:
    """0 for the pixels at a window's edge, whose neighbours are another window's; 1 elsewhere."""
    mask = np.zeros(shape, np.float32)
    mask[:, 1:-1, :, 1:-1] = 1
    return mask.reshape(shape[0] * shape[1], shape[2] * shape[3])


def _sample_windows(luma: NDArray[Any]) -> NDArray[Any]:
    """The middle of each part of a picture, ``[rows, pixels, columns, pixels]``; a small picture
    has fewer parts."""
    height, width = luma.shape
    rows = min(_ROWS, max(1, height // _MIN_PART_PX))
    columns = min(_COLUMNS, max(1, width // _MIN_PART_PX))
    high, wide = height // rows, width // columns
    parts = luma[: rows * high, : columns * wide].reshape(rows, high, columns, wide)
    top, left = max(0, (high - _WINDOW[0]) // 2), max(0, (wide - _WINDOW[1]) // 2)
    return parts[:, top : top + _WINDOW[0], :, left : left + _WINDOW[1]]


class QualityGate(FrozenModel):
    """The limits outside which a frame is not offered to labelers, see `measure` for the units.

    ``blurred`` lies between real and rendered drives, day and night (0.016 and more), and the same
    out of focus (0.005 and less: what rounding to 8 bits leaves).
    """

    dark: float = 0.01
    bright: float = 0.99
    flat: float = 0.01
    blurred: float = 0.006
    noisy: float = 0.6
    noise: float = 0.08
    blocked: float = 0.35

    def verdict(self, quality: NDArray[np.float32]) -> str:
        """Why a frame with these numbers is kept out, in one word; empty when it may pass."""
        brightness, contrast, sharpness, noise, blockage = (float(value) for value in quality)
        faults = {
            "dark": brightness < self.dark,
            "bright": brightness > self.bright,
            "flat": contrast < self.flat,
            "blurred": sharpness < self.blurred,
            "noisy": sharpness > self.noisy or noise > self.noise,
            "blocked": blockage > self.blocked,
            "unmeasured": not np.isfinite(quality).all(),
        }
        return next((fault for fault, found in faults.items() if found), "")

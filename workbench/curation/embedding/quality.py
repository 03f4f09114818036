"""Image quality metrics, and the gate that keeps broken frames out of selections.

Metrics describe the stored image and depend on no model. Pixels are read from at most 48 windows
spread over the image, so that a large frame costs little more than a small one.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.detection.preprocessing import Pixels
from workbench.records.base import FrozenModel

__all__ = ["QualityGate"]

QUALITY_NAMES = ("brightness", "contrast", "sharpness", "noise", "blockage")
"""Columns of a quality array."""

_ROWS, _COLUMNS = 6, 8
_WINDOW = (24, 32)
"""Rows and columns of pixels that are read from each part of the image."""

_MIN_PART_PX = 8
_EMPTY_STD = 2.0
"""Standard deviation of luma (of 255) below which a part of the image shows nothing; sensor noise
alone is about this large.
"""

_BLOWN_OUT = 240.0
"""A part brighter than this is overexposed, as skies are, and not blocked."""

_NOISE_KERNEL = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)


class QualityGate(FrozenModel):
    """Limits outside which a frame is not offered to labelers; units as in `measure_quality`.

    The limit ``blurred`` lies between sharp drives, real and rendered, day and night (0.016 and
    more), and the same out of focus (0.005 and less).
    """

    dark: float = 0.01
    bright: float = 0.99
    flat: float = 0.01
    blurred: float = 0.006
    noisy: float = 0.6
    noise: float = 0.08
    blocked: float = 0.35

    def verdict(self, quality: NDArray[np.float32]) -> str:
        """The first fault of a frame, in one word; empty when it passes.

        Args:
            quality: Float32 ``[5]``, see `measure_quality`.
        """
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
        return next((fault for fault, present in faults.items() if present), "")


def measure_quality(image: Pixels) -> NDArray[np.float32]:
    """Measure the quality of one image.

    Brightness and contrast are mean and standard deviation of luma (BT.601) in [0, 1]. Sharpness is
    the mean absolute 4-neighbour Laplacian of luma, in [0, 4]. Noise is the standard deviation of
    luma, in [0, 1], by Immerkær's operator (Fast Noise Variance Estimation, 1996) in the calmest
    quarter of the image, so that texture does not count. Blockage is the share of the image's parts
    with neither texture nor noise that are not overexposed.

    Args:
        image: RGB uint8 ``[height, width, 3]``.

    Returns:
        Float32 ``[5]``, in the order of `QUALITY_NAMES`.
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
    """0 at window edges, where neighbouring pixels belong to another window; 1 elsewhere."""
    mask = np.zeros(shape, np.float32)
    mask[:, 1:-1, :, 1:-1] = 1
    return mask.reshape(shape[0] * shape[1], shape[2] * shape[3])


def _sample_windows(luma: NDArray[Any]) -> NDArray[Any]:
    """The centre of each part of an image, ``[rows, pixels, columns, pixels]``; fewer parts for a
    small image.
    """
    height, width = luma.shape
    rows = min(_ROWS, max(1, height // _MIN_PART_PX))
    columns = min(_COLUMNS, max(1, width // _MIN_PART_PX))
    high, wide = height // rows, width // columns
    parts = luma[: rows * high, : columns * wide].reshape(rows, high, columns, wide)
    top, left = max(0, (high - _WINDOW[0]) // 2), max(0, (wide - _WINDOW[1]) // 2)
    return parts[:, top : top + _WINDOW[0], :, left : left + _WINDOW[1]]

"""Is a frame worth looking at? Rare must not mean broken, so this is asked before rarity.

The numbers are of the image as stored, independent of any model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from workbench.perception.preprocessing import Pixels
from workbench.records.base import Row

NAMES = ("brightness", "contrast", "sharpness")
"""The columns of a quality array, in order."""

_LUMA = np.array([77, 150, 29], np.uint16)  # BT.601 weights in 1/256


def measure(image: Pixels) -> NDArray[np.float32]:
    """Brightness, contrast and sharpness of RGB uint8 ``[height, width, 3]``, float32 ``[3]``.

    Brightness and contrast are mean and standard deviation of luma in [0, 1]; sharpness is the
    mean absolute 4-neighbour Laplacian of luma in [0, 4]. A covered lens has neither of the last
    two; strong sensor noise has a sharpness that no scene reaches.
    """
    luma = (image[..., 0] * _LUMA[0] + image[..., 1] * _LUMA[1] + image[..., 2] * _LUMA[2]).astype(
        np.float32
    ) / np.float32(65280)
    centre = luma[1:-1, 1:-1]
    ring = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]
    sharpness = np.abs(4 * centre - ring).mean() if centre.size else 0.0
    return np.array([luma.mean(), luma.std(), sharpness], np.float32)


class QualityGate(Row):
    """The limits outside which a frame is not offered to labelers."""

    dark: float = 0.01
    bright: float = 0.99
    flat: float = 0.01
    blurred: float = 0.002
    noisy: float = 0.6

    def verdict(self, quality: NDArray[np.float32]) -> str:
        """Why a frame with these numbers is kept out, in one word; empty when it may pass."""
        brightness, contrast, sharpness = (float(value) for value in quality)
        faults = {
            "dark": brightness < self.dark,
            "bright": brightness > self.bright,
            "flat": contrast < self.flat,
            "blurred": sharpness < self.blurred,
            "noisy": sharpness > self.noisy,
            "unmeasured": not np.isfinite(quality).all(),
        }
        return next((fault for fault, found in faults.items() if found), "")

"""From an image to the network's input: the one implementation for training, calibration and cars.

A wrong channel order or scale costs a model most of its accuracy without any error, so what is
done here is a record of its own that travels inside every checkpoint and every ONNX file.
Resampling is Pillow's: its 8-bit resize is integer arithmetic, the same bits on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, field_validator

from workbench import digest
from workbench.errors import DataError
from workbench.perception.boxes import Floats
from workbench.records.base import Row

Pixels = NDArray[np.uint8]
"""``[height, width, 3]`` RGB."""

Triple = tuple[float, float, float]


class Preprocessing(Row):
    """The contract: letterbox to ``width`` x ``height``, then ``(pixel * scale - mean) / std``.

    ``width`` and ``height`` are the network's input in pixels, ``pad`` the 8-bit grey around the
    picture, ``mean`` and ``std`` in the order of ``colour``.
    """

    width: int = Field(default=320, gt=0)
    height: int = Field(default=192, gt=0)
    colour: Literal["RGB"] = "RGB"
    resize: Literal["letterbox"] = "letterbox"
    interpolation: Literal["bilinear-antialiased"] = "bilinear-antialiased"
    pad: int = Field(default=114, ge=0, le=255)
    scale: float = 1 / 255
    mean: Triple = (0.45, 0.45, 0.45)
    std: Triple = (0.25, 0.25, 0.25)
    layout: Literal["NCHW"] = "NCHW"
    dtype: Literal["float32"] = "float32"

    @field_validator("std")
    @classmethod
    def _no_zero(cls, value: Triple) -> Triple:
        if min(value) <= 0:
            raise ValueError("std must be above zero")
        return value

    @cached_property
    def digest(self) -> str:
        return digest.of_json(self.model_dump(mode="json"))


@dataclass(frozen=True)
class Placement:
    """Where a picture lies inside the network's input, in both directions.

    The two scales differ by less than a pixel's rounding; keeping both makes boxes exact.
    """

    scale_x: float
    scale_y: float
    dx: float
    dy: float

    def to_network(self, boxes: Floats) -> NDArray[np.float32]:
        """Boxes ``[n, 4]`` xyxy from image pixels to network pixels."""
        return (boxes * self._scale + self._shift).astype(np.float32)

    def to_image(self, boxes: Floats) -> NDArray[np.float32]:
        """Boxes ``[n, 4]`` xyxy from network pixels to image pixels."""
        return ((boxes - self._shift) / self._scale).astype(np.float32)

    @property
    def _scale(self) -> NDArray[np.float64]:
        return np.array([self.scale_x, self.scale_y] * 2)

    @property
    def _shift(self) -> NDArray[np.float64]:
        return np.array([self.dx, self.dy] * 2)


def load_rgb(path: Path) -> Pixels:
    """Decode an image file to ``[height, width, 3]`` RGB; raises `DataError` when it cannot.

    Of 16-bit grey the high byte is taken: Pillow alone would turn almost all of it white.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16"):
                high = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
                return np.repeat(high[..., None], 3, axis=2)
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"image cannot be read: {error}",
            where=path,
            hint="Ingest the source again: unreadable images are quarantined there",
        ) from error


def fit(image: Pixels, spec: Preprocessing) -> tuple[Pixels, Placement]:
    """Resize and pad, still 8-bit: what a training loader keeps in memory.

    Returns:
        ``[spec.height, spec.width, 3]`` and where the picture lies in it.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise DataError(
            f"expected uint8 pixels [height, width, 3], got {image.dtype} {list(image.shape)}",
            hint="Read images with workbench.perception.preprocessing.load_rgb",
        )
    height, width = image.shape[:2]
    inner_width, inner_height, left, top = _inside(width, height, spec)
    placement = placement_of(width, height, spec)
    if (inner_width, inner_height) != (width, height):
        size = (inner_width, inner_height)
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    if (inner_width, inner_height) == (spec.width, spec.height):
        return image, placement
    canvas = np.full((spec.height, spec.width, 3), spec.pad, np.uint8)
    canvas[top : top + inner_height, left : left + inner_width] = image
    return canvas, placement


def placement_of(width: int, height: int, spec: Preprocessing) -> Placement:
    """Where a picture of this size in pixels lies in the network's input."""
    inner_width, inner_height, left, top = _inside(width, height, spec)
    return Placement(inner_width / width, inner_height / height, left, top)


def _inside(width: int, height: int, spec: Preprocessing) -> tuple[int, int, int, int]:
    """Width, height, left and top of the letterboxed picture in network pixels."""
    ratio = min(spec.width / width, spec.height / height)
    inner_width = min(spec.width, max(1, round(width * ratio)))
    inner_height = min(spec.height, max(1, round(height * ratio)))
    left, top = (spec.width - inner_width) // 2, (spec.height - inner_height) // 2
    return inner_width, inner_height, left, top


def normalise(pixels: NDArray[np.uint8], spec: Preprocessing) -> NDArray[np.float32]:
    """8-bit pixels ``[..., height, width, 3]`` to float32 ``[..., 3, height, width]``."""
    # Three separate operations in float32: each is rounded once, on every machine alike.
    planes = np.ascontiguousarray(np.moveaxis(pixels, -1, -3)).astype(np.float32)
    planes *= np.float32(spec.scale)
    planes -= np.array(spec.mean, np.float32)[:, None, None]
    planes /= np.array(spec.std, np.float32)[:, None, None]
    return planes


def prepare(image: Pixels, spec: Preprocessing) -> tuple[NDArray[np.float32], Placement]:
    """One image to the network's input, float32 ``[3, height, width]``, and its placement."""
    pixels, placement = fit(image, spec)
    return normalise(pixels, spec), placement


def prepare_batch(
    images: Sequence[Pixels], spec: Preprocessing
) -> tuple[NDArray[np.float32], list[Placement]]:
    """Images of any sizes to one input ``[n, 3, height, width]`` and their placements."""
    fitted = [fit(image, spec) for image in images]
    pixels = np.stack([pixels for pixels, _ in fitted])
    return normalise(pixels, spec), [placement for _, placement in fitted]

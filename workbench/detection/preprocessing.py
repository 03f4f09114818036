"""Preprocessing: from an image to the network input, the same for training, export and vehicles.

A wrong channel order or scale costs a model most of its accuracy without any error. So the
preprocessing is a contract that every checkpoint and every ONNX file carries. Resizing is Pillow's:
its 8-bit resize is integer arithmetic, the same bits on every machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, field_validator

from workbench.core import digest
from workbench.core.errors import ContractError, DataError
from workbench.core.types import Json
from workbench.core.workspace import Workspace
from workbench.data.images import open_media, open_rgb
from workbench.detection.boxes import Floats
from workbench.records.base import FrozenModel
from workbench.records.dataset import media_path
from workbench.records.frames import Frame

__all__ = ["CHECK_KEY", "Pixels", "Preprocessing", "check_preprocessing", "letterbox", "load_rgb"]

Pixels = NDArray[np.uint8]
"""``[height, width, 3]`` RGB."""

PerChannel = tuple[float, float, float]


class Preprocessing(FrozenModel):
    """Preprocessing contract: letterbox, then ``(pixel * scale - mean) / std``.

    Attributes:
        width: Of the network input, in pixels.
        height: Of the network input, in pixels.
        pad: 8-bit grey level around the image.
        mean: By channel, in the order of ``colour``.
        std: By channel, above zero.
    """

    width: int = Field(default=320, gt=0)
    height: int = Field(default=192, gt=0)
    colour: Literal["RGB"] = "RGB"
    resize: Literal["letterbox"] = "letterbox"
    interpolation: Literal["bilinear-antialiased"] = "bilinear-antialiased"
    pad: int = Field(default=114, ge=0, le=255)
    scale: float = 1 / 255
    mean: PerChannel = (0.45, 0.45, 0.45)
    std: PerChannel = (0.25, 0.25, 0.25)
    layout: Literal["NCHW"] = "NCHW"
    dtype: Literal["float32"] = "float32"

    @field_validator("std")
    @classmethod
    def _no_zero(cls, value: PerChannel) -> PerChannel:
        if min(value) <= 0:
            raise ValueError("std must be above zero")
        return value

    @cached_property
    def digest(self) -> str:
        return digest.of_json(self.model_dump(mode="json"))

    @classmethod
    def imagenet_lite(cls, width: int, height: int) -> Preprocessing:
        """``(pixel - 127) / 128``, as the weights of EfficientNet-Lite were trained."""
        return cls(width=width, height=height, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


@dataclass(frozen=True)
class LetterboxTransform:
    """Position of a letterboxed image in the network input; maps boxes in both directions.

    The two scales differ by the rounding to whole pixels; keeping both makes boxes exact.
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
    """Decode an image file to RGB uint8 ``[height, width, 3]``.

    Raises:
        DataError: The file is missing or not a readable image.
    """
    try:
        return np.asarray(open_rgb(path))
    except Exception as error:  # decoders raise any exception on damaged files
        raise DataError(
            f"image cannot be read: {error}",
            where=path,
            hint="Ingest the source again: unreadable images are quarantined there",
        ) from error


def load_frame(workspace: Workspace, frame: Frame) -> Pixels:
    """Decode a frame of a dataset to RGB uint8 ``[height, width, 3]``.

    Raises:
        DataError: The image is missing, is not the one that was ingested, or cannot be decoded.
    """
    return np.asarray(open_media(media_path(workspace, frame), frame.id))


def letterbox(image: Pixels, spec: Preprocessing) -> tuple[Pixels, LetterboxTransform]:
    """Resize and pad an image to the size of the network input, still 8-bit.

    Args:
        image: RGB uint8 ``[height, width, 3]``.

    Returns:
        Uint8 ``[spec.height, spec.width, 3]`` and the position of the image in it.

    Raises:
        DataError: ``image`` has another shape or dtype.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise DataError(
            f"expected uint8 pixels [height, width, 3], got {image.dtype} {list(image.shape)}",
            hint="Read images with workbench.detection.preprocessing.load_rgb",
        )
    height, width = image.shape[:2]
    inner_width, inner_height, left, top = _letterbox_size(width, height, spec)
    transform = letterbox_transform(width, height, spec)
    if (inner_width, inner_height) != (width, height):
        size = (inner_width, inner_height)
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    if (inner_width, inner_height) == (spec.width, spec.height):
        return image, transform
    canvas = np.full((spec.height, spec.width, 3), spec.pad, np.uint8)
    canvas[top : top + inner_height, left : left + inner_width] = image
    return canvas, transform


def letterbox_transform(width: int, height: int, spec: Preprocessing) -> LetterboxTransform:
    """Position in the network input of an image of this size in pixels."""
    inner_width, inner_height, left, top = _letterbox_size(width, height, spec)
    return LetterboxTransform(inner_width / width, inner_height / height, left, top)


def _letterbox_size(width: int, height: int, spec: Preprocessing) -> tuple[int, int, int, int]:
    """Width, height, left and top of the letterboxed image in network pixels."""
    ratio = min(spec.width / width, spec.height / height)
    inner_width = min(spec.width, max(1, round(width * ratio)))
    inner_height = min(spec.height, max(1, round(height * ratio)))
    left, top = (spec.width - inner_width) // 2, (spec.height - inner_height) // 2
    return inner_width, inner_height, left, top


def normalise(pixels: NDArray[np.uint8], spec: Preprocessing) -> NDArray[np.float32]:
    """8-bit pixels ``[..., height, width, 3]`` to float32 ``[..., 3, height, width]``."""
    # Three separate float32 operations, each rounded once, give equal bits on every machine.
    planes = np.ascontiguousarray(np.moveaxis(pixels, -1, -3)).astype(np.float32)
    planes *= np.float32(spec.scale)
    planes -= np.array(spec.mean, np.float32)[:, None, None]
    planes /= np.array(spec.std, np.float32)[:, None, None]
    return planes


def preprocess(
    image: Pixels, spec: Preprocessing
) -> tuple[NDArray[np.float32], LetterboxTransform]:
    """Preprocess one image.

    Args:
        image: RGB uint8 ``[height, width, 3]`` of any size.

    Returns:
        Float32 ``[3, spec.height, spec.width]`` and the position of the image in it.
    """
    pixels, transform = letterbox(image, spec)
    return normalise(pixels, spec), transform


def preprocess_batch(
    images: Sequence[Pixels], spec: Preprocessing
) -> tuple[NDArray[np.float32], list[LetterboxTransform]]:
    """Preprocess images of any sizes into one batch.

    Returns:
        Float32 ``[n, 3, spec.height, spec.width]`` and the position of each image in its input.
    """
    letterboxed = [letterbox(image, spec) for image in images]
    pixels = np.stack([pixels for pixels, _ in letterboxed])
    return normalise(pixels, spec), [transform for _, transform in letterboxed]


# The golden image: preprocessing in a vehicle is other code on another chip. A wrong colour order,
# scale, mean or memory layout raises no error there and costs most of the accuracy. So every model
# file carries a few values of the tensor that a computed image must become, and any implementation
# can be tested against them: ours when a model is loaded, another team's in its own tests.

CHECK_KEY = "workbench.preprocessing.check"
_GOLDEN_HEIGHT, _GOLDEN_WIDTH = 360, 500
"""Neither side fits a network's input, so that resizing and padding show."""

_SAMPLED_VALUES = 96
_TOLERANCE = 0.6
"""Allowed difference in 8-bit steps: for another rounding, not for another formula."""


def golden_image() -> Pixels:
    """The golden image: red ``7y + 3x``, green ``xy // 5``, blue ``11x - 2y``, all modulo 256."""
    rows, columns = np.mgrid[:_GOLDEN_HEIGHT, :_GOLDEN_WIDTH]
    planes = (rows * 7 + columns * 3, rows * columns // 5, columns * 11 - rows * 2)
    return np.stack(planes, axis=-1).astype(np.uint8)


def golden_values(spec: Preprocessing) -> Json:
    """Values of the preprocessed golden image that a model file carries.

    Returns:
        A JSON object: ``values`` has rows ``[channel, row, column, value]``; ``tensor`` is the
        digest of all values as float32 in C order, which other implementations need not reach.
    """
    tensor, _ = preprocess(golden_image(), spec)
    flat = np.linspace(0, tensor.size - 1, _SAMPLED_VALUES).astype(int)
    positions = np.stack(np.unravel_index(flat, tensor.shape), axis=1).tolist()
    return {
        "contract": spec.digest,
        "picture": {
            "height": _GOLDEN_HEIGHT,
            "width": _GOLDEN_WIDTH,
            "sha256": digest.of_bytes(golden_image().tobytes()),
        },
        "shape": list(tensor.shape),
        "tensor": digest.of_bytes(tensor.tobytes()),
        "values": [[*at, round(float(tensor[tuple(at)]), 5)] for at in positions],
    }


def check_preprocessing(
    implementation: Callable[[Pixels], NDArray[np.float32]],
    spec: Preprocessing,
    *,
    expected: Mapping[str, Any],
) -> None:
    """Test an implementation of the preprocessing against the golden values of a model.

    Args:
        implementation: RGB uint8 ``[height, width, 3]`` to float32 ``[3, height, width]``.
        spec: The preprocessing contract of the model.
        expected: Result of `golden_values`, as the model file carries it.

    Raises:
        ContractError: The tensor differs; the message names the likely mistake.
    """
    if expected.get("contract") != spec.digest:
        raise ContractError(
            "golden values in the model file belong to another preprocessing contract",
            hint="Its metadata was changed after export: export it again",
        )
    tensor = np.asarray(implementation(golden_image()))
    if tensor.shape != tuple(expected["shape"]):
        raise ContractError(
            f"preprocessing gives shape {list(tensor.shape)}, the model takes {expected['shape']}",
            hint="The layout is channels first: red, green and blue planes",
        )
    rows = np.array(expected["values"], np.float64)
    values = _values_at(tensor, rows)
    tolerance = _TOLERANCE * spec.scale / min(spec.std)
    difference = float(np.abs(values - rows[:, 3]).max())
    if not difference <= tolerance:
        raise ContractError(
            f"preprocessing differs from the golden values by up to {difference:.3g}, allowed are "
            f"{tolerance:.2g}: {_likely_mistake(tensor, rows, spec, tolerance)}",
            hint="Implement the preprocessing contract of the model file",
        )


def check_metadata(metadata: Mapping[str, str], spec: Preprocessing) -> None:
    """Test this machine's preprocessing against the golden values in ONNX metadata, if any.

    Raises:
        ContractError: The tensor differs, or the golden values cannot be read.
    """
    if CHECK_KEY not in metadata:
        return
    try:
        expected = json.loads(metadata[CHECK_KEY])
        check_preprocessing(lambda image: preprocess(image, spec)[0], spec, expected=expected)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ContractError("golden values in the model file cannot be read") from error


def input_range(spec: Preprocessing) -> tuple[float, float]:
    """Smallest and largest value of the network input that 8-bit pixels can give."""
    ends = [
        (level * spec.scale - mean) / std
        for level in (0, 255)
        for mean, std in zip(spec.mean, spec.std, strict=True)
    ]
    return min(ends), max(ends)


def require_input(
    batch: NDArray[Any], spec: Preprocessing, *, where: object = None
) -> NDArray[np.float32]:
    """Check that a batch can be the result of the preprocessing contract.

    Args:
        batch: Expected to be float32 ``[n, 3, height, width]``.
        where: Named in the error.

    Returns:
        The batch, contiguous in memory.

    Raises:
        ContractError: Another shape or dtype (channels last, for example), or values that no 8-bit
            pixel gives (0 to 255 or NaN, for example).
    """
    shape = (3, spec.height, spec.width)
    if batch.ndim != 4 or batch.shape[1:] != shape or batch.dtype != np.float32:
        raise ContractError(
            f"network input is {batch.dtype} {list(batch.shape)}, expected float32 "
            f"[n, {', '.join(map(str, shape))}]",
            where=where,
            hint="The layout is channels first (NCHW)",
        )
    low, high = input_range(spec)
    slack = 1e-3 * (high - low)
    if batch.size and not (batch.min() >= low - slack and batch.max() <= high + slack):
        raise ContractError(
            f"network input lies in [{batch.min():.3g}, {batch.max():.3g}], expected values in "
            f"[{low:.3g}, {high:.3g}]",
            where=where,
            hint="Check that scale, mean and std were applied to the pixels",
        )
    return np.ascontiguousarray(batch)


def _values_at(tensor: NDArray[Any], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    channel, row, column = rows[:, :3].astype(int).T
    return np.asarray(tensor[channel, row, column], np.float64)


def _likely_mistake(
    tensor: NDArray[Any], rows: NDArray[np.float64], spec: Preprocessing, tolerance: float
) -> str:
    """Which of the common mistakes explains the difference."""
    values = _values_at(tensor, rows)
    if values.max() > 10 * input_range(spec)[1]:
        return "values are far out of range, as of pixels from 0 to 255"
    if np.abs(_values_at(tensor[::-1], rows) - rows[:, 3]).max() <= tolerance * 2:
        return "colour planes are in the order BGR instead of RGB"
    if _differs_by_scale_and_shift(values, rows, tolerance):
        return "another mean, std or scale was used"
    return "another resize, padding or memory order was used"


def _differs_by_scale_and_shift(
    values: NDArray[np.float64], rows: NDArray[np.float64], tolerance: float
) -> bool:
    """Whether a linear function of each plane gives the expected values."""
    for plane in np.unique(rows[:, 0]):
        chosen = rows[:, 0] == plane
        design = np.stack([values[chosen], np.ones(int(chosen.sum()))], axis=1)
        solution, *_ = np.linalg.lstsq(design, rows[chosen, 3], rcond=None)
        error = np.abs(design @ solution - rows[chosen, 3]).max()
        if error > tolerance * max(1, abs(solution[0])):
            return False
    return True

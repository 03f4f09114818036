"""Preprocessing contract: from an image to the network input, and the check that an implementation follows it."""

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
from workbench.detection.boxes import Floats
from workbench.records.base import FrozenModel

Pixels = NDArray[np.uint8]
"""``[height, width, 3]`` RGB."""

PerChannel = tuple[float, float, float]


class Preprocessing(FrozenModel):
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


@dataclass(frozen=True)
class LetterboxTransform:
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


def letterbox(image: Pixels, spec: Preprocessing) -> tuple[Pixels, LetterboxTransform]:
    """Resize and pad, still 8-bit: what a training loader keeps in memory.

    Returns:
        ``[spec.height, spec.width, 3]`` and where the picture lies in it.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise DataError(
            f"expected uint8 pixels [height, width, 3], got {image.dtype} {list(image.shape)}",
            hint="Read images with workbench.detection.preprocessing.load_rgb",
        )
    height, width = image.shape[:2]
    inner_width, inner_height, left, top = _letterbox_size(width, height, spec)
    placement = letterbox_transform(width, height, spec)
    if (inner_width, inner_height) != (width, height):
        size = (inner_width, inner_height)
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    if (inner_width, inner_height) == (spec.width, spec.height):
        return image, placement
    canvas = np.full((spec.height, spec.width, 3), spec.pad, np.uint8)
    canvas[top : top + inner_height, left : left + inner_width] = image
    return canvas, placement


def letterbox_transform(width: int, height: int, spec: Preprocessing) -> LetterboxTransform:
    """Where a picture of this size in pixels lies in the network's input."""
    inner_width, inner_height, left, top = _letterbox_size(width, height, spec)
    return LetterboxTransform(inner_width / width, inner_height / height, left, top)


def _letterbox_size(width: int, height: int, spec: Preprocessing) -> tuple[int, int, int, int]:
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


def preprocess(
    image: Pixels, spec: Preprocessing
) -> tuple[NDArray[np.float32], LetterboxTransform]:
    """One image to the network's input, float32 ``[3, height, width]``, and its placement."""
    pixels, placement = letterbox(image, spec)
    return normalise(pixels, spec), placement


def preprocess_batch(
    images: Sequence[Pixels], spec: Preprocessing
) -> tuple[NDArray[np.float32], list[LetterboxTransform]]:
    """Images of any sizes to one input ``[n, 3, height, width]`` and their placements."""
    fitted = [letterbox(image, spec) for image in images]
    pixels = np.stack([pixels for pixels, _ in fitted])
    return normalise(pixels, spec), [placement for _, placement in fitted]


# ---- A picture anyone can make and the tensor it must become: the preprocessing contract, checked.
#
# A car's own preprocessing is other code on another chip. A wrong colour order, scale, mean or
# memory layout raises no error there and costs most of the accuracy. So every model file carries a
# few values of the tensor that a picture given by a formula must become, and whoever feeds the model
# can be held to them: this machine's code when a model is loaded, a team's own in its tests.


CHECK_KEY = "workbench.preprocessing.check"
_GOLDEN_HEIGHT, _GOLDEN_WIDTH = 360, 500
"""Of the picture: neither side fits a network's input, so that resizing and padding are seen."""

_SAMPLED_VALUES = 96
_TOLERATED_STEP = 0.6
"""Share of one 8-bit step that a value may be off: rounding may differ, a formula may not."""

InputTensor = NDArray[np.float32]


def golden_image() -> Pixels:
    """The picture: red ``7y + 3x``, green ``xy / 5``, blue ``11x - 2y``, each whole and mod 256."""
    rows, columns = np.mgrid[:_GOLDEN_HEIGHT, :_GOLDEN_WIDTH]
    planes = (rows * 7 + columns * 3, rows * columns // 5, columns * 11 - rows * 2)
    return np.stack(planes, axis=-1).astype(np.uint8)


def golden_values(spec: Preprocessing) -> dict[str, Any]:
    """What a model file says of the tensor: some of its values, with their places, as plain JSON.

    ``values`` has rows ``[channel, row, column, value]``; ``tensor`` is the digest of all values as
    float32 in C order, which other implementations need not reach.
    """
    tensor, _ = preprocess(golden_image(), spec)
    flat = np.linspace(0, tensor.size - 1, _SAMPLED_VALUES).astype(int)
    places = np.stack(np.unravel_index(flat, tensor.shape), axis=1)
    values = [[*place, round(float(tensor[tuple(place)]), 5)] for place in places.tolist()]
    return {
        "contract": spec.digest,
        "picture": {
            "height": _GOLDEN_HEIGHT,
            "width": _GOLDEN_WIDTH,
            "sha256": digest.of_bytes(golden_image().tobytes()),
        },
        "shape": list(tensor.shape),
        "tensor": digest.of_bytes(tensor.tobytes()),
        "values": values,
    }


def check_preprocessing(
    feed: Callable[[Pixels], InputTensor], spec: Preprocessing, *, expected: Mapping[str, Any]
) -> None:
    """Hold an implementation of the preprocessing to a model's check vector.

    Args:
        feed: RGB uint8 ``[height, width, 3]`` to float32 ``[3, height, width]``.
        spec: The contract that the model carries.
        expected: Of `vector`, as the model carries it.

    Raises:
        ContractError: Saying in which way the tensor is wrong, as far as that can be told.
    """
    if expected.get("contract") != spec.digest:
        raise ContractError(
            "model file carries a check of another preprocessing contract than its own",
            hint="Its metadata was changed after export: export it again",
        )
    found = feed(golden_image())
    if tuple(found.shape) != tuple(expected["shape"]):
        raise ContractError(
            f"preprocessing gives shape {list(found.shape)}, the model takes {expected['shape']}",
            hint="The layout is channels first: red, green and blue planes",
        )
    rows = np.array(expected["values"], np.float64)
    places = rows[:, :3].astype(int)
    values = np.asarray(found)[places[:, 0], places[:, 1], places[:, 2]].astype(np.float64)
    allowed = _TOLERATED_STEP * spec.scale / min(spec.std)
    apart = float(np.abs(values - rows[:, 3]).max())
    if not apart <= allowed:
        raise ContractError(
            f"preprocessing is up to {apart:.3g} off the model's golden tensor, {allowed:.2g} "
            f"allowed: {_likely_mistake(values, rows, np.asarray(found), spec, allowed)}",
            hint="Feed the model as its preprocessing contract says",
        )


def check_metadata(metadata: Mapping[str, str], spec: Preprocessing) -> None:
    """Hold this machine's own preprocessing to what a model file expects.

    Files from before the check vector was written have none and are not held to it.

    Raises:
        ContractError: It gives another tensor, or the vector cannot be read.
    """
    if CHECK_KEY not in metadata:
        return
    try:
        expected = json.loads(metadata[CHECK_KEY])
        check_preprocessing(lambda image: preprocess(image, spec)[0], spec, expected=expected)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ContractError("preprocessing check in the model file cannot be read") from error


def input_range(spec: Preprocessing) -> tuple[float, float]:
    """Smallest and largest value that the contract can give from 8-bit pixels."""
    ends = [
        (level * spec.scale - mean) / std
        for level in (0, 255)
        for mean, std in zip(spec.mean, spec.std, strict=True)
    ]
    return min(ends), max(ends)


def require_input(batch: NDArray[Any], spec: Preprocessing, *, where: object = None) -> InputTensor:
    """The batch, in memory as networks expect it, if it can have come from the contract.

    Raises:
        ContractError: Not float32 ``[n, 3, height, width]`` (channels last, say), or values that
            no 8-bit pixel gives (0 to 255, say, or not numbers).
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
            f"network input lies in [{batch.min():.3g}, {batch.max():.3g}], the contract can only "
            f"give [{low:.3g}, {high:.3g}]",
            where=where,
            hint="Were pixels fed without scale, mean and std?",
        )
    return np.ascontiguousarray(batch)


def _likely_mistake(
    values: NDArray[np.float64],
    rows: NDArray[np.float64],
    found: NDArray[Any],
    spec: Preprocessing,
    allowed: float,
) -> str:
    """The classic mistakes, each tried."""
    if values.max() > 10 * input_range(spec)[1]:
        return "its values are far out of range, as of pixels from 0 to 255"
    swapped = found[::-1]
    places = rows[:, :3].astype(int)
    turned = swapped[places[:, 0], places[:, 1], places[:, 2]]
    if np.abs(turned - rows[:, 3]).max() <= allowed * 2:
        return "its colour planes are in the order BGR instead of RGB"
    if _differs_by_scale_and_shift(values, rows, allowed):
        return "another mean, std or scale was used"
    return "another resize, padding or order of memory was used"


def _differs_by_scale_and_shift(
    values: NDArray[np.float64], rows: NDArray[np.float64], allowed: float
) -> bool:
    """Whether every plane is the right one but for a factor and a shift."""
    for plane in np.unique(rows[:, 0]):
        mine = rows[:, 0] == plane
        design = np.stack([values[mine], np.ones(int(mine.sum()))], axis=1)
        solution, *_ = np.linalg.lstsq(design, rows[mine, 3], rcond=None)
        if np.abs(design @ solution - rows[mine, 3]).max() > allowed * max(1, abs(solution[0])):
            return False
    return True

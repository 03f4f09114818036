"""Encoders that see pictures, not boxes: frames, the boxes of a detector and tiles as crops."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, ValidationError

from workbench import digest
from workbench.curation.embedding.encoder import (
    Grid,
    Seen,
    first_boxes,
    summed_entropy,
    tile_boxes,
)
from workbench.errors import DataError, ParameterError
from workbench.perception.decode import Detections
from workbench.perception.predictor import Predictor
from workbench.perception.preprocessing import Pixels, Triple
from workbench.records.base import Row

TILES: Grid = ((2, 2), (4, 3))
"""Each tile is a picture of its own to such an encoder, so there are few of them."""

_CROPS = 64
"""Pictures that go through the network at once."""

_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
Positive = Annotated[int, Field(gt=0)]


class ImagePreprocessing(Row):
    """How a picture becomes the network's input: resize, crop the middle, scale, normalise.

    Args:
        size: Width and height after resizing, pixels; with ``keep_shape``, the first is the length
            of the shorter side.
        crop: Width and height cut out of the middle; None keeps all.
        scale: Factor of 8-bit values, before ``mean`` and ``std`` (RGB).
    """

    size: tuple[Positive, Positive]
    keep_shape: bool = False
    crop: tuple[Positive, Positive] | None = None
    resample: Literal["nearest", "lanczos", "bilinear", "bicubic"] = "bicubic"
    scale: float = 1 / 255
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1.0, 1.0, 1.0)

    @property
    def input_size(self) -> tuple[int, int]:
        """Width and height of the network's input, pixels."""
        return self.crop or self.size

    def apply(self, image: Pixels) -> NDArray[np.float32]:
        """RGB uint8 ``[height, width, 3]`` to float32 ``[3, height, width]``."""
        picture = Image.fromarray(np.ascontiguousarray(image))
        size = self.size
        if self.keep_shape:
            share = self.size[0] / min(picture.size)
            size = (max(1, round(picture.width * share)), max(1, round(picture.height * share)))
        picture = picture.resize(size, Image.Resampling[self.resample.upper()])
        if self.crop is not None and picture.size != self.crop:
            left = (picture.width - self.crop[0]) // 2
            top = (picture.height - self.crop[1]) // 2
            picture = picture.crop((left, top, left + self.crop[0], top + self.crop[1]))
        planes = np.moveaxis(np.asarray(picture), -1, 0).astype(np.float32) * np.float32(self.scale)
        shift, spread = (np.array(v, np.float32)[:, None, None] for v in (self.mean, self.std))
        done: NDArray[np.float32] = (planes - shift) / spread
        return done


def from_preprocessor_config(path: Path) -> ImagePreprocessing:
    """The contract in a ``preprocessor_config.json``, as Hugging Face's vision models have it.

    Raises:
        DataError: The file cannot be read, or asks for what is not built.
    """
    try:
        config: dict[str, Any] = json.loads(path.read_text())
        size, keep = _size(config.get("size", 224))
        plain = config.get("do_normalize", True)
        return ImagePreprocessing(
            size=size,
            keep_shape=keep,
            crop=_size(config["crop_size"])[0]
            if config.get("do_center_crop")
            else _square(size, keep),
            resample=_RESAMPLE[config.get("resample", 2)],
            scale=config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0,
            mean=config["image_mean"] if plain else (0, 0, 0),
            std=config["image_std"] if plain else (1, 1, 1),
        )
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise DataError(
            f"preprocessing cannot be read: {type(error).__name__}: {error}",
            where=path,
            hint="Give the encoder an ImagePreprocessing of your own",
        ) from error


def _size(value: Any) -> tuple[tuple[int, int], bool]:
    """Width and height, and whether only the shorter side is meant."""
    if isinstance(value, dict) and "shortest_edge" in value:
        return (value["shortest_edge"],) * 2, True
    if isinstance(value, dict):
        return (value["width"], value["height"]), False
    return (int(value),) * 2, False


def _square(size: tuple[int, int], keep_shape: bool) -> tuple[int, int] | None:
    """Inputs of one shape go into one batch, so what keeps its shape is cut in any case."""
    return size if keep_shape else None


@dataclass(frozen=True)
class BoxSource:
    """Where an encoder that finds no boxes has them from: a detector, and the digest of it."""

    predictor: Predictor
    identity: str


class ImageEncoder:
    """What encoders of single pictures share: all but the network.

    Args:
        preprocessing: How a picture becomes input.
        boxes: Whose boxes get a vector each; None gives none, and no entropy.
        grid: Tiles, (columns, rows) at each scale.
    """

    def __init__(
        self,
        model: str,
        preprocessing: ImagePreprocessing,
        boxes: BoxSource | None = None,
        grid: Grid = TILES,
    ) -> None:
        self.model = model
        self.image_preprocessing = preprocessing
        self.boxes = boxes
        self.grid = grid

    @cached_property
    def preprocessing(self) -> str:
        """Digest of the preprocessing and of whose boxes are cut out."""
        about = self.image_preprocessing.model_dump(mode="json")
        return digest.of_json({**about, "boxes": self.boxes and self.boxes.identity})

    @property
    def classes(self) -> tuple[str, ...]:
        return self.boxes.predictor.classes if self.boxes else ()

    def encode(self, images: Sequence[Pixels]) -> NDArray[np.float32]:
        """One vector a picture, float32 ``[n, d]``."""
        if not images:
            raise ParameterError("there is nothing to encode")
        parts = []
        for start in range(0, len(images), _CROPS):
            chunk = images[start : start + _CROPS]
            batch = np.stack([self.image_preprocessing.apply(image) for image in chunk])
            parts.append(self.vectors(batch))
        return np.concatenate(parts)

    def vectors(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """The network: float32 ``[n, 3, height, width]`` to ``[n, d]``."""
        raise NotImplementedError

    def look(self, images: Sequence[Pixels]) -> Seen:
        found = [_NOTHING] * len(images)
        entropy = np.zeros(len(images), np.float32)
        if self.boxes is not None:
            everything = self.boxes.predictor.predict(images)
            entropy = np.array([summed_entropy(one.scores) for one in everything], np.float32)
            found = [first_boxes(one) for one in everything]
        sizes = np.array([(image.shape[1], image.shape[0]) for image in images])
        tiles = tile_boxes(self.grid, sizes)
        crops: list[Pixels] = []
        for image, one, parts in zip(images, found, tiles, strict=True):
            crops += [image, *(_cut(image, box) for box in (*one.boxes, *parts))]
        vectors = self.encode(crops)
        counts = np.array([1 + len(one) + tiles.shape[1] for one in found])
        each = np.split(vectors, np.cumsum(counts)[:-1])
        return Seen(
            frames=np.stack([own[0] for own in each]),
            entropy=entropy,
            found=found,
            objects=[own[1 : 1 + len(one)] for own, one in zip(each, found, strict=True)],
            tiles=np.stack([own[1 + len(one) :] for own, one in zip(each, found, strict=True)]),
        )


_NOTHING = Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))


def _cut(image: Pixels, box: NDArray[np.float32]) -> Pixels:
    """The pixels that a box touches, at least one."""
    height, width = image.shape[:2]
    x1, y1 = min(int(box[0]), width - 1), min(int(box[1]), height - 1)
    x2, y2 = max(x1 + 1, int(np.ceil(box[2]))), max(y1 + 1, int(np.ceil(box[3])))
    return image[y1:y2, x1:x2]

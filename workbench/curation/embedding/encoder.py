"""What turns images into vectors: a small interface, and the team's own detector behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from workbench import digest
from workbench.perception.decode import Detections, decode
from workbench.perception.predictor import TorchPredictor, to_image
from workbench.perception.preprocessing import Pixels, prepare_batch
from workbench.records.base import digest_of

if TYPE_CHECKING:
    import torch

MAX_OBJECTS = 20
"""Boxes of a frame that get a vector of their own: its most certain ones."""


@dataclass(frozen=True)
class Seen:
    """What one pass over a batch of ``n`` images gives.

    Attributes:
        frames: Float32 ``[n, d]``, a vector an image.
        entropy: Float32 ``[n]``, nats: the binary entropy of every box's score, summed.
        found: Boxes in image pixels, at most `MAX_OBJECTS` an image.
        objects: Float32 ``[k, c]`` an image, a vector a box.
    """

    frames: NDArray[np.float32]
    entropy: NDArray[np.float32]
    found: list[Detections]
    objects: list[NDArray[np.float32]]


class Encoder(Protocol):
    """Anything that embeds images. ``model`` and ``preprocessing`` are digests, and its name."""

    @property
    def model(self) -> str: ...

    @property
    def preprocessing(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    def look(self, images: Sequence[Pixels]) -> Seen:
        """RGB uint8 images of any size to vectors and boxes."""
        ...


class DetectorEncoder:
    """The detector's own feature pyramid: no second model, no download, one forward pass.

    A frame's vector is the mean and the maximum of every channel and level; a box's vector is the
    mean of every level under it.
    """

    def __init__(self, predictor: TorchPredictor) -> None:
        self.predictor = predictor

    @cached_property
    def model(self) -> str:
        if self.predictor.ref is not None:
            return digest_of(self.predictor.ref)
        import safetensors.torch

        weights = {k: v.contiguous() for k, v in self.predictor.detector.state_dict().items()}
        return digest.of_bytes(safetensors.torch.save(weights))

    @property
    def preprocessing(self) -> str:
        return self.predictor.preprocessing.digest

    @property
    def classes(self) -> tuple[str, ...]:
        return self.predictor.classes

    def look(self, images: Sequence[Pixels]) -> Seen:
        import torch

        from workbench.perception.detector import pooled

        detector = self.predictor.detector
        batch, placements = prepare_batch(images, self.predictor.preprocessing)
        with torch.inference_mode():
            maps = detector.features(torch.from_numpy(batch))
            outputs = [output.numpy() for output in detector.heads_on(maps)]
            vectors = pooled(maps).numpy()
            decoded = decode(outputs, detector.config)
            entropy = np.array([_summed_entropy(one.scores) for one in decoded], np.float32)
            top = [_first(one, MAX_OBJECTS) for one in decoded]
            objects = _box_means(maps, [one.boxes for one in top], detector.config.strides)
        found, kept = [], []
        for one, vector, placement, image in zip(top, objects, placements, images, strict=True):
            # `to_image` drops boxes in the padding; the score order tells which were kept.
            inside = to_image(one, placement, image)
            rows = _rows_kept(one, inside)
            found.append(inside)
            kept.append(vector[rows])
        return Seen(vectors, entropy, found, kept)


def _summed_entropy(scores: NDArray[np.float32]) -> float:
    p = np.clip(scores.astype(np.float64), 1e-6, 1 - 1e-6)
    return float(-(p * np.log(p) + (1 - p) * np.log1p(-p)).sum())


def _first(found: Detections, count: int) -> Detections:
    return Detections(found.boxes[:count], found.scores[:count], found.classes[:count])


def _rows_kept(before: Detections, after: Detections) -> list[int]:
    """Rows of ``before`` that are still in ``after``, which keeps their order."""
    rows: list[int] = []
    start = 0
    for score, number in zip(after.scores, after.classes, strict=True):
        while before.scores[start] != score or before.classes[start] != number:
            start += 1
        rows.append(start)
        start += 1
    return rows


def _box_means(
    maps: tuple[torch.Tensor, ...],
    boxes: list[NDArray[np.float32]],
    strides: tuple[int, ...],
) -> list[NDArray[np.float32]]:
    """Mean of each level's cells under each box.

    Slices, not summed-area tables: those touch every cell of every frame, and boxes cover few.

    Args:
        boxes: ``[k, 4]`` xyxy network pixels of each image.

    Returns:
        ``[k, channels * levels]`` of each image. A box smaller than a cell takes that cell.
    """
    levels = [level.numpy() for level in maps]
    width = sum(level.shape[1] for level in levels)
    means = []
    for row, found in enumerate(boxes):
        parts = np.empty((len(found), width), np.float32)
        start = 0
        for level, stride in zip(levels, strides, strict=True):
            end = start + level.shape[1]
            limit = np.array([level.shape[3], level.shape[2]])
            low = np.clip(np.floor(found[:, :2] / stride), 0, limit - 1).astype(int)
            high = np.maximum(np.minimum(np.ceil(found[:, 2:] / stride), limit), low + 1).astype(
                int
            )
            for number, ((x1, y1), (x2, y2)) in enumerate(
                zip(low.tolist(), high.tolist(), strict=True)
            ):
                parts[number, start:end] = level[row, :, y1:y2, x1:x2].mean((1, 2))
            start = end
        means.append(parts)
    return means

"""The detector in hand as an encoder: no second model, no download, one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workbench import digest
from workbench.curation.embedding.encoder import (
    MAX_OBJECTS,
    Grid,
    Seen,
    first_boxes,
    summed_entropy,
)
from workbench.errors import ParameterError
from workbench.perception.boxes import clip
from workbench.perception.decode import Detections, decode
from workbench.perception.models.protocol import WithFeatures
from workbench.perception.predictor import TorchPredictor
from workbench.perception.preprocessing import Pixels, Placement, prepare_batch
from workbench.records.base import digest_of

if TYPE_CHECKING:
    import torch

FINE = (10, 6)
"""Columns and rows of the smaller tiles; of the larger ones, half as many."""


class DetectorEncoder:
    """The detector's own feature pyramid.

    A frame's vector is the mean and the maximum of every channel and level. A box's vector is the
    mean of every level under it, and a tile's is the same, so that a box can be compared with
    tiles: what was never detected is found by what it looks like.
    """

    grid: Grid = ((FINE[0] // 2, FINE[1] // 2), FINE)

    def __init__(self, predictor: TorchPredictor) -> None:
        if not isinstance(predictor.detector, WithFeatures):
            raise ParameterError(
                f"models of the family {predictor.config.architecture!r} tell no features",
                where="embed",
                hint="Give yours `features` and `features_and_outputs`, or embed by a "
                "HuggingFaceEncoder or an OnnxEncoder",
            )
        self.predictor = predictor

    @cached_property
    def model(self) -> str:
        if self.predictor.ref is not None:
            return digest_of(self.predictor.ref)
        import safetensors.torch

        live = self.predictor.detector.state_dict()
        # Heads of suppliers' networks share their memory, which the format refuses.
        weights = {name: value.contiguous().clone() for name, value in live.items()}
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
            maps, raw = detector.features_and_outputs(torch.from_numpy(batch))
            outputs = [output.numpy() for output in raw]
            strides = tuple(round(batch.shape[2] / level.shape[2]) for level in maps)
            vectors = pooled(maps).numpy()
            # Channels last: the sums below then read whole runs of memory, several times faster.
            maps = tuple(level.contiguous(memory_format=torch.channels_last) for level in maps)
            decoded = decode(outputs, detector.config)
            top = [first_boxes(one, MAX_OBJECTS) for one in decoded]
            means = box_means(maps, [one.boxes for one in top], strides)
            tiles = _tile_means(maps, _insides(images, placements), strides)
        found, objects = [], []
        for one, vector, placement, image in zip(top, means, placements, images, strict=True):
            # As `to_image` does: boxes that lie in the padding alone are none.
            boxes = clip(placement.to_image(one.boxes), image.shape[1], image.shape[0])
            whole = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
            found.append(Detections(boxes[whole], one.scores[whole], one.classes[whole]))
            objects.append(vector[whole])
        entropy = np.array([summed_entropy(one.scores) for one in decoded], np.float32)
        return Seen(vectors, entropy, found, objects, tiles)


def box_means(
    maps: tuple[torch.Tensor, ...],
    boxes: Sequence[NDArray[np.float32]],
    strides: tuple[int, ...],
) -> list[NDArray[np.float32]]:
    """Mean of each level's cells under each box, as one product of masks and maps a level.

    Args:
        maps: ``[n, channels, height/stride, width/stride]`` of each level.
        boxes: ``[k, 4]`` xyxy network pixels of each image.

    Returns:
        ``[k, channels * levels]`` of each image. A box smaller than a cell takes that cell.
    """
    import torch

    most = max((len(found) for found in boxes), default=0)
    padded = np.zeros((len(boxes), most, 4), np.float32)
    for row, found in enumerate(boxes):
        padded[row, : len(found)] = found
    parts = []
    for level, stride in zip(maps, strides, strict=True):
        count, channels, rows, columns = level.shape
        across = _share(padded[..., 0], padded[..., 2], stride, columns)
        down = _share(padded[..., 1], padded[..., 3], stride, rows)
        masks = (down[..., :, None] * across[..., None, :]).reshape(count, most, rows * columns)
        cells = level.permute(0, 2, 3, 1).reshape(count, rows * columns, channels)
        parts.append(torch.bmm(torch.from_numpy(masks), cells).numpy())
    means = np.concatenate(parts, axis=2)
    return [means[row, : len(found)] for row, found in enumerate(boxes)]


def _share(
    low: NDArray[np.float32], high: NDArray[np.float32], stride: int, cells: int
) -> NDArray[np.float32]:
    """What each cell of a row weighs in the mean over ``low`` to ``high``, ``[..., cells]``."""
    first = np.clip(np.floor(low / stride), 0, cells - 1)
    last = np.maximum(np.minimum(np.ceil(high / stride), cells), first + 1)
    places = np.arange(cells, dtype=np.float32)
    inside = (places >= first[..., None]) & (places < last[..., None])
    weights: NDArray[np.float32] = inside / (last - first)[..., None].astype(np.float32)
    return weights


def _insides(
    images: Sequence[Pixels], placements: Sequence[Placement]
) -> dict[tuple[int, int, int, int], list[int]]:
    """Where pictures lie in the network's input (xyxy pixels), and which images lie there."""
    rows: dict[tuple[int, int, int, int], list[int]] = {}
    for number, (image, at) in enumerate(zip(images, placements, strict=True)):
        right = round(at.dx + image.shape[1] * at.scale_x)
        bottom = round(at.dy + image.shape[0] * at.scale_y)
        rows.setdefault((int(at.dx), int(at.dy), right, bottom), []).append(number)
    return rows


def _tile_means(
    maps: tuple[torch.Tensor, ...],
    insides: dict[tuple[int, int, int, int], list[int]],
    strides: tuple[int, ...],
) -> NDArray[np.float32]:
    """Float32 ``[n, tiles, channels * levels]``: the mean of each level under each tile.

    Small tiles take the cells that they touch; a large one is the mean of its four small ones.
    """
    import torch
    from torch.nn import functional

    columns, rows = FINE
    count, channels = len(maps[0]), sum(level.shape[1] for level in maps)
    fine = torch.empty((count, rows, columns, channels))
    for (left, top, right, bottom), numbers in insides.items():
        pooled = [
            functional.adaptive_avg_pool2d(
                (level if len(numbers) == count else level[numbers])[
                    :,
                    :,
                    top // stride : max(top // stride + 1, -(-bottom // stride)),
                    left // stride : max(left // stride + 1, -(-right // stride)),
                ],
                (rows, columns),
            ).permute(0, 2, 3, 1)
            for level, stride in zip(maps, strides, strict=True)
        ]
        fine[numbers] = torch.cat(pooled, dim=3)
    coarse = fine.reshape(count, rows // 2, 2, columns // 2, 2, channels).mean((2, 4))
    tiles = torch.cat([coarse.flatten(1, 2), fine.flatten(1, 2)], dim=1)
    vectors: NDArray[np.float32] = tiles.numpy()
    return vectors

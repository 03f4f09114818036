"""The encoder interface, and the detector as an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from workbench.core import digest
from workbench.core.errors import ParameterError
from workbench.detection.boxes import clip_boxes
from workbench.detection.config import ComputesFeatures
from workbench.detection.models import Detections, decode
from workbench.detection.predictor import TorchPredictor
from workbench.detection.preprocessing import LetterboxTransform, Pixels, preprocess_batch
from workbench.records.base import digest_of

if TYPE_CHECKING:
    import torch


MAX_OBJECTS = 20
"""Boxes of a frame that get a vector of their own: its most certain ones."""

TileGrid = tuple[tuple[int, int], ...]
"""Tiles of a frame: (columns, rows) at each scale, coarse first. Whatever no detector has a box
for is still under some tile."""


@dataclass(frozen=True)
class EncoderOutput:
    """What one pass over a batch of ``n`` images gives.

    Attributes:
        frames: Float32 ``[n, d]``, a vector an image.
        entropy: Float32 ``[n]``, nats: the binary entropy of every box's score, summed.
        found: Boxes in image pixels, at most `MAX_OBJECTS` an image.
        objects: Float32 ``[k, c]`` an image, a vector a box.
        tiles: Float32 ``[n, t, c]``, a vector a tile, in the order of `tile_boxes`.
    """

    frames: NDArray[np.float32]
    entropy: NDArray[np.float32]
    found: list[Detections]
    objects: list[NDArray[np.float32]]
    tiles: NDArray[np.float32]


class Encoder(Protocol):
    """Anything that embeds images.

    ``model`` and ``preprocessing`` are digests, and its name: of the weights, and of all else that
    shapes a vector. ``classes`` names the numbers of its boxes.
    """

    @property
    def model(self) -> str: ...

    @property
    def preprocessing(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def grid(self) -> TileGrid: ...

    def look(self, images: Sequence[Pixels]) -> EncoderOutput:
        """RGB uint8 images of any size to vectors and boxes."""
        ...


def tile_count(grid: TileGrid) -> int:
    """Tiles of one frame."""
    return sum(columns * rows for columns, rows in grid)


def tile_boxes(grid: TileGrid, sizes: NDArray[np.integer]) -> NDArray[np.float32]:
    """Where the tiles of frames lie: scale by scale, row by row.

    Args:
        sizes: ``[n, 2]`` width and height of each frame, pixels.

    Returns:
        Float32 ``[n, t, 4]`` xyxy pixels of each frame.
    """
    shares = []
    for columns, rows in grid:
        y, x = np.divmod(np.arange(columns * rows), columns)
        shares.append(np.stack([x / columns, y / rows, (x + 1) / columns, (y + 1) / rows], axis=1))
    relative = np.concatenate(shares) if shares else np.empty((0, 4))
    scale = np.tile(np.asarray(sizes, np.float64), (1, 2))
    boxes: NDArray[np.float32] = (relative[None] * scale[:, None]).astype(np.float32)
    return boxes


def summed_entropy(scores: NDArray[np.float32]) -> float:
    """Binary entropy of every score in [0, 1], summed, nats."""
    p = np.clip(scores.astype(np.float64), 1e-6, 1 - 1e-6)
    return float(-(p * np.log(p) + (1 - p) * np.log1p(-p)).sum())


def top_boxes(found: Detections, count: int = MAX_OBJECTS) -> Detections:
    """The best ``count`` boxes."""
    return Detections(found.boxes[:count], found.scores[:count], found.classes[:count])


# ---- The detector in hand as an encoder: no second model, no download, one forward pass.


_FINE_GRID = (10, 6)
"""Columns and rows of the smaller tiles; of the larger ones, half as many."""


class DetectorEncoder:
    """The detector's own feature pyramid.

    A frame's vector is the mean and the maximum of every channel and level. A box's vector is the
    mean of every level under it, and a tile's is the same, so that a box can be compared with
    tiles: what was never detected is found by what it looks like.
    """

    grid: TileGrid = ((_FINE_GRID[0] // 2, _FINE_GRID[1] // 2), _FINE_GRID)

    def __init__(self, predictor: TorchPredictor) -> None:
        if not isinstance(predictor.detector, ComputesFeatures):
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

    def look(self, images: Sequence[Pixels]) -> EncoderOutput:
        import torch

        from workbench.detection.detector import pool_features

        detector = self.predictor.detector
        batch, placements = preprocess_batch(images, self.predictor.preprocessing)
        with torch.inference_mode():
            maps, raw = detector.features_and_outputs(torch.from_numpy(batch))
            outputs = [output.numpy() for output in raw]
            strides = tuple(round(batch.shape[2] / level.shape[2]) for level in maps)
            vectors = pool_features(maps).numpy()
            # Channels last: the sums below then read whole runs of memory, several times faster.
            maps = tuple(level.contiguous(memory_format=torch.channels_last) for level in maps)
            decoded = decode(outputs, detector.config)
            top = [top_boxes(one, MAX_OBJECTS) for one in decoded]
            means = box_means(maps, [one.boxes for one in top], strides)
            tiles = _tile_means(maps, _content_areas(images, placements), strides)
        found, objects = [], []
        for one, vector, placement, image in zip(top, means, placements, images, strict=True):
            # As `to_image` does: boxes that lie in the padding alone are none.
            boxes = clip_boxes(placement.to_image(one.boxes), image.shape[1], image.shape[0])
            whole = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
            found.append(Detections(boxes[whole], one.scores[whole], one.classes[whole]))
            objects.append(vector[whole])
        entropy = np.array([summed_entropy(one.scores) for one in decoded], np.float32)
        return EncoderOutput(vectors, entropy, found, objects, tiles)


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
        across = _cell_weights(padded[..., 0], padded[..., 2], stride, columns)
        down = _cell_weights(padded[..., 1], padded[..., 3], stride, rows)
        masks = (down[..., :, None] * across[..., None, :]).reshape(count, most, rows * columns)
        cells = level.permute(0, 2, 3, 1).reshape(count, rows * columns, channels)
        parts.append(torch.bmm(torch.from_numpy(masks), cells).numpy())
    means = np.concatenate(parts, axis=2)
    return [means[row, : len(found)] for row, found in enumerate(boxes)]


def _cell_weights(
    low: NDArray[np.float32], high: NDArray[np.float32], stride: int, cells: int
) -> NDArray[np.float32]:
    """What each cell of a row weighs in the mean over ``low`` to ``high``, ``[..., cells]``."""
    first = np.clip(np.floor(low / stride), 0, cells - 1)
    last = np.maximum(np.minimum(np.ceil(high / stride), cells), first + 1)
    places = np.arange(cells, dtype=np.float32)
    inside = (places >= first[..., None]) & (places < last[..., None])
    weights: NDArray[np.float32] = inside / (last - first)[..., None].astype(np.float32)
    return weights


def _content_areas(
    images: Sequence[Pixels], placements: Sequence[LetterboxTransform]
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

    columns, rows = _FINE_GRID
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

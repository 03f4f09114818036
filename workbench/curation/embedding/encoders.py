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
from workbench.detection.families import Detections, decode
from workbench.detection.predictor import TorchPredictor
from workbench.detection.preprocessing import LetterboxTransform, Pixels, preprocess_batch
from workbench.records.base import digest_of

if TYPE_CHECKING:
    import torch

__all__ = ["DetectorEncoder", "Encoder"]

MAX_OBJECTS = 20
"""Boxes per frame that get a vector of their own: those with the highest scores."""

TileGrid = tuple[tuple[int, int], ...]
"""(columns, rows) of the tiles of a frame at each scale, coarse first."""

_FINE_GRID = (10, 6)
"""Columns and rows of the fine tiles; the coarse scale has half as many of each."""


@dataclass(frozen=True)
class WordOutput:
    """How strongly each of ``n`` images shows each class of an image classifier.

    Attributes:
        scores: Float32 ``[n, w]``: the largest log probability of any tile. Scores of different
            classes cannot be compared.
        tiles: Uint16 ``[n, w]``: the tile that has it, in the order of `tile_boxes`.
    """

    scores: NDArray[np.float32]
    tiles: NDArray[np.uint16]


@dataclass(frozen=True)
class EncoderOutput:
    """Vectors and boxes of a batch of ``n`` images.

    Attributes:
        frames: Float32 ``[n, d]``, one vector per image.
        entropy: Float32 ``[n]``, nats: the binary entropy of all box scores, summed.
        detections: Boxes in image pixels, at most `MAX_OBJECTS` per image.
        objects: Float32 ``[k, c]`` per image, one vector per box.
        tiles: Float32 ``[n, t, c]``, one vector per tile, in the order of `tile_boxes`.
        words: Classes of an image classifier; None from an encoder without one.
    """

    frames: NDArray[np.float32]
    entropy: NDArray[np.float32]
    detections: list[Detections]
    objects: list[NDArray[np.float32]]
    tiles: NDArray[np.float32]
    words: WordOutput | None = None


class Encoder(Protocol):
    """Anything that embeds images.

    Attributes:
        model: Digest of the weights.
        preprocessing: Digest of everything else that shapes a vector.
        classes: Class names, by the class index of a box.
        grid: Tiles of a frame.
    """

    @property
    def model(self) -> str: ...

    @property
    def preprocessing(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def grid(self) -> TileGrid: ...

    def embed(self, images: Sequence[Pixels]) -> EncoderOutput:
        """Embed RGB uint8 images ``[height, width, 3]`` of any size."""
        ...


def tile_count(grid: TileGrid) -> int:
    """Number of tiles in one frame."""
    return sum(columns * rows for columns, rows in grid)


def tile_boxes(grid: TileGrid, sizes: NDArray[np.integer]) -> NDArray[np.float32]:
    """Boxes of the tiles of ``n`` frames: scale by scale, row by row.

    Args:
        grid: Tiles of a frame.
        sizes: ``[n, 2]`` width and height of each frame, pixels.

    Returns:
        Float32 ``[n, t, 4]`` xyxy, pixels of each frame.
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
    """Binary entropy of scores in [0, 1], summed, nats."""
    p = np.clip(scores.astype(np.float64), 1e-6, 1 - 1e-6)
    return float(-(p * np.log(p) + (1 - p) * np.log1p(-p)).sum())


def top_boxes(detections: Detections, count: int = MAX_OBJECTS) -> Detections:
    """The first ``count`` boxes; detections are sorted by score."""
    return Detections(
        detections.boxes[:count], detections.scores[:count], detections.classes[:count]
    )


class DetectorEncoder:
    """Embeds images with a detector's own feature pyramid: no second model, one forward pass.

    A frame's vector is the mean and the maximum of each channel of each level. The vector of a box
    or a tile is the mean of each level under it, so boxes and tiles can be compared: an object that
    was not detected is still found by its appearance.

    Args:
        predictor: The detector; its model must implement `ComputesFeatures`.

    Raises:
        ParameterError: The model provides no features.
    """

    grid: TileGrid = ((_FINE_GRID[0] // 2, _FINE_GRID[1] // 2), _FINE_GRID)

    def __init__(self, predictor: TorchPredictor) -> None:
        if not isinstance(predictor.detector, ComputesFeatures):
            raise ParameterError(
                f"model family {predictor.config.architecture!r} provides no features",
                where="embed",
                hint="Implement `features` and `features_and_outputs`, or use a HuggingFaceEncoder "
                "or an OnnxEncoder",
            )
        self.predictor = predictor

    @cached_property
    def model(self) -> str:
        """Digest of the checkpoint, or of the weights where there is no record."""
        if self.predictor.ref is not None:
            return digest_of(self.predictor.ref)
        import safetensors.torch

        state = self.predictor.detector.state_dict()
        # Third-party heads may share memory, which safetensors rejects.
        weights = {name: value.contiguous().clone() for name, value in state.items()}
        return digest.of_bytes(safetensors.torch.save(weights))

    @property
    def preprocessing(self) -> str:
        return self.predictor.preprocessing.digest

    @property
    def classes(self) -> tuple[str, ...]:
        return self.predictor.classes

    def embed(self, images: Sequence[Pixels]) -> EncoderOutput:
        import torch

        from workbench.detection.detector import pool_features

        detector = self.predictor.detector
        batch, transforms = preprocess_batch(images, self.predictor.preprocessing)
        with torch.inference_mode():
            maps, raw = detector.features_and_outputs(torch.from_numpy(batch))
            outputs = [output.numpy() for output in raw]
            strides = tuple(round(batch.shape[2] / level.shape[2]) for level in maps)
            vectors = pool_features(maps).numpy()
            # Channels last: the sums below read contiguous memory, several times faster.
            maps = tuple(level.contiguous(memory_format=torch.channels_last) for level in maps)
            decoded = decode(outputs, detector.config)
            top = [top_boxes(one, MAX_OBJECTS) for one in decoded]
            means = box_means(maps, [one.boxes for one in top], strides)
            tiles = tile_means(maps, content_areas(images, transforms), strides, _FINE_GRID)
        detections, objects = [], []
        for one, vector, transform, image in zip(top, means, transforms, images, strict=True):
            # Drop boxes that lie entirely in the padding.
            boxes = clip_boxes(transform.to_image(one.boxes), image.shape[1], image.shape[0])
            visible = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
            detections.append(Detections(boxes[visible], one.scores[visible], one.classes[visible]))
            objects.append(vector[visible])
        entropy = np.array([summed_entropy(one.scores) for one in decoded], np.float32)
        return EncoderOutput(vectors, entropy, detections, objects, tiles)


def box_means(
    maps: tuple[torch.Tensor, ...],
    boxes: Sequence[NDArray[np.float32]],
    strides: tuple[int, ...],
) -> list[NDArray[np.float32]]:
    """Mean of each level's cells under each box, by one matrix product per level.

    Args:
        maps: Feature maps ``[n, channels, height/stride, width/stride]``, one per level.
        boxes: ``[k, 4]`` xyxy per image, network pixels.
        strides: Stride of each level, network pixels.

    Returns:
        ``[k, channels * levels]`` per image. A box smaller than a cell takes that cell.
    """
    import torch

    most = max((len(own) for own in boxes), default=0)
    padded = np.zeros((len(boxes), most, 4), np.float32)
    for row, own in enumerate(boxes):
        padded[row, : len(own)] = own
    parts = []
    for level, stride in zip(maps, strides, strict=True):
        count, channels, rows, columns = level.shape
        across = _cell_weights(padded[..., 0], padded[..., 2], stride, columns)
        down = _cell_weights(padded[..., 1], padded[..., 3], stride, rows)
        masks = (down[..., :, None] * across[..., None, :]).reshape(count, most, rows * columns)
        cells = level.permute(0, 2, 3, 1).reshape(count, rows * columns, channels)
        parts.append(torch.bmm(torch.from_numpy(masks), cells).numpy())
    means = np.concatenate(parts, axis=2)
    return [means[row, : len(own)] for row, own in enumerate(boxes)]


def _cell_weights(
    low: NDArray[np.float32], high: NDArray[np.float32], stride: int, cells: int
) -> NDArray[np.float32]:
    """Weight of each cell in the mean over ``low`` to ``high``, ``[..., cells]``."""
    first = np.clip(np.floor(low / stride), 0, cells - 1)
    last = np.maximum(np.minimum(np.ceil(high / stride), cells), first + 1)
    index = np.arange(cells, dtype=np.float32)
    inside = (index >= first[..., None]) & (index < last[..., None])
    weights: NDArray[np.float32] = inside / (last - first)[..., None].astype(np.float32)
    return weights


def content_areas(
    images: Sequence[Pixels], transforms: Sequence[LetterboxTransform]
) -> dict[tuple[int, int, int, int], list[int]]:
    """Areas of the network input that images fill (xyxy pixels), and which images do."""
    rows: dict[tuple[int, int, int, int], list[int]] = {}
    for index, (image, transform) in enumerate(zip(images, transforms, strict=True)):
        right = round(transform.dx + image.shape[1] * transform.scale_x)
        bottom = round(transform.dy + image.shape[0] * transform.scale_y)
        rows.setdefault((int(transform.dx), int(transform.dy), right, bottom), []).append(index)
    return rows


def tile_means(
    maps: tuple[torch.Tensor, ...],
    areas: dict[tuple[int, int, int, int], list[int]],
    strides: tuple[int, ...],
    grid: tuple[int, int],
) -> NDArray[np.float32]:
    """Float32 ``[n, tiles, channels * levels]``: the mean of each level under each tile.

    A fine tile takes the cells it touches; a coarse one is the mean of its four fine ones.

    Args:
        maps: Feature maps ``[n, channels, height/stride, width/stride]``, one per level.
        areas: Result of `content_areas`.
        strides: Stride of each level, network pixels.
        grid: Columns and rows of the fine tiles, both even.
    """
    import torch
    from torch.nn import functional

    columns, rows = grid
    count, channels = len(maps[0]), sum(level.shape[1] for level in maps)
    fine = torch.empty((count, rows, columns, channels))
    for (left, top, right, bottom), numbers in areas.items():
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

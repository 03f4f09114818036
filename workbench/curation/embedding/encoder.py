"""What turns images into vectors: a small interface, whoever is behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from workbench.perception.decode import Detections
from workbench.perception.preprocessing import Pixels

MAX_OBJECTS = 20
"""Boxes of a frame that get a vector of their own: its most certain ones."""

Grid = tuple[tuple[int, int], ...]
"""Tiles of a frame: (columns, rows) at each scale, coarse first. Whatever no detector has a box
for is still under some tile."""


@dataclass(frozen=True)
class Seen:
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
    def grid(self) -> Grid: ...

    def look(self, images: Sequence[Pixels]) -> Seen:
        """RGB uint8 images of any size to vectors and boxes."""
        ...


def tile_count(grid: Grid) -> int:
    """Tiles of one frame."""
    return sum(columns * rows for columns, rows in grid)


def tile_boxes(grid: Grid, sizes: NDArray[np.integer]) -> NDArray[np.float32]:
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


def first_boxes(found: Detections, count: int = MAX_OBJECTS) -> Detections:
    """The best ``count`` boxes."""
    return Detections(found.boxes[:count], found.scores[:count], found.classes[:count])

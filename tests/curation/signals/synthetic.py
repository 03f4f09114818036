"""Synthetic embeddings: vectors of frames, objects and tiles as a test defines them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.curation.embedding.embeddings import Embeddings, Tiles

Object = tuple[int, Sequence[float], float]
"""Frame, vector, score."""
GRID = ((2, 1),)
"""Two tiles per frame: its left half and its right half."""
SIZE = (200, 100)


def embeddings(
    vectors: np.ndarray,
    entropy: np.ndarray | None = None,
    objects: Sequence[Object] = (),
    *,
    boxes: np.ndarray | None = None,
    classes: Sequence[int] | None = None,
    tiles: np.ndarray | None = None,
    model: str = "0" * 64,
) -> Embeddings:
    """Frames with vectors; objects of one class and size by default; tiles ``[n, 2, c]``."""
    count, number = len(vectors), len(objects)
    width = len(objects[0][1]) if number else 2
    if boxes is None:
        boxes = np.tile(np.array([0, 0, 30, 30], np.float32), (number, 1))
    tile_vectors = Tiles()
    if tiles is not None:
        sizes = np.tile(np.array(SIZE, np.int32), (count, 1))
        tile_vectors = Tiles.of(tiles.reshape(-1, tiles.shape[-1]).astype(np.float16), GRID, sizes)
    return Embeddings(
        frames=tuple(f"{number:064x}" for number in range(count)),
        vectors=vectors.astype(np.float16),
        entropy=np.zeros(count, np.float32) if entropy is None else entropy.astype(np.float32),
        quality=np.full((count, 5), 0.3, np.float32),
        owner=np.array([frame for frame, _, _ in objects], np.int64),
        object_vectors=np.array([v for _, v, _ in objects], np.float16).reshape(number, width),
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        scores=np.array([score for _, _, score in objects], np.float32),
        classes=np.array([0] * number if classes is None else classes, np.int64),
        class_names=("car", "deer"),
        model=model,
        preprocessing="0" * 64,
        tiles=tile_vectors,
    )

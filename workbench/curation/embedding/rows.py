"""Rows that wait until their shard is whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.curation.embedding import shards
from workbench.curation.embedding.encoder import Seen
from workbench.perception.preprocessing import Pixels

_NOT_FINITE = "the model's vector is not finite"


class Rows:
    """What was seen on the frames of one shard.

    Attributes:
        left_out: Frames of it that got no vector, and why.
    """

    def __init__(self) -> None:
        self.left_out: list[tuple[str, str]] = []
        self._refused: dict[str, str] = {}
        self._frames: list[str] = []
        self._arrays: dict[str, list[NDArray[Any]]] = {name: [] for name in shards.ARRAYS}

    def add(
        self,
        frames: Sequence[str],
        images: Sequence[Pixels],
        measured: NDArray[np.float32],
        seen: Seen,
    ) -> None:
        """Take the rows of one batch; a frame with a number that is none goes into quarantine."""
        whole = [
            all(np.isfinite(part).all() for part in parts)
            for parts in zip(seen.frames, seen.tiles, seen.objects, strict=True)
        ]
        for frame, finite in zip(frames, whole, strict=True):
            if not finite:
                self.left_out.append((frame, _NOT_FINITE))
                self._refused[frame] = _NOT_FINITE
        rows = [row for row, finite in enumerate(whole) if finite]
        if not rows:
            return
        self._frames += [frames[row] for row in rows]
        found = [seen.found[row] for row in rows]
        chosen = slice(None) if len(rows) == len(frames) else rows
        sizes = [(images[row].shape[1], images[row].shape[0]) for row in rows]
        values: dict[str, NDArray[Any]] = {
            "vectors": _half(seen.frames[chosen]),
            "entropy": seen.entropy[chosen],
            "quality": measured[chosen],
            "sizes": np.array(sizes, np.int32),
            "tiles": _half(seen.tiles[chosen]),
            "counts": np.array([len(one) for one in found], np.int64),
            "object_vectors": _half(np.concatenate([seen.objects[row] for row in rows])),
            "boxes": np.concatenate([one.boxes for one in found]),
            "scores": np.concatenate([one.scores for one in found]),
            "classes": np.concatenate([one.classes for one in found]),
        }
        for name, value in values.items():
            self._arrays[name].append(value)

    def write(self, folder: Path) -> None:
        """One shard of all rows; the quarantine is written first, so that a kill loses neither."""
        if self._refused:
            shards.quarantine(folder, self._refused)
        if self._frames:
            arrays = {name: np.concatenate(parts) for name, parts in self._arrays.items()}
            shards.write(folder, self._frames, arrays)


def _half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    limit = np.finfo(np.float16).max
    return np.clip(values, -limit, limit).astype(np.float16)

"""One set of boxes from several models: weighted boxes fusion (Solovyev et al., 2021).

Boxes of one class that overlap are averaged with their scores as weights, instead of all but the
best being dropped. A box that few models saw loses score. Everything is taken in a fixed order, so
equal inputs give equal outputs, whichever model was asked first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from workbench.errors import ParameterError
from workbench.perception.boxes import iou_matrix
from workbench.perception.decode import Detections

Rows = NDArray[np.float64]


def fuse(members: Sequence[Detections], *, iou: float = 0.55, limit: int = 100) -> Detections:
    """The detections of several models on one frame as one, best first.

    Args:
        members: One entry a model, in any order; boxes in pixels of the frame.
        iou: Overlap with a fused box from which a box joins it.
        limit: Most boxes given.

    Raises:
        ParameterError: There are no models.
    """
    if not members:
        raise ParameterError("no models to fuse the boxes of")
    rows = np.concatenate([_rows(found) for found in members])
    # By class, then falling score, then place: ties never fall to the order of the models.
    order = np.lexsort((*(rows[:, column] for column in (3, 2, 1, 0)), -rows[:, 4], rows[:, 5]))
    fused: list[Rows] = []
    for cls in np.unique(rows[:, 5]):
        fused += _of_class(rows[order][rows[order][:, 5] == cls], iou, len(members))
    table = np.array(fused, np.float64).reshape(-1, 6)
    best = np.lexsort((table[:, 0], table[:, 1], table[:, 5], -table[:, 4]))[:limit]
    table = table[best]
    return Detections(
        table[:, :4].astype(np.float32),
        table[:, 4].astype(np.float32),
        table[:, 5].astype(np.int64),
    )


def _rows(found: Detections) -> Rows:
    """Box, score, class: ``[n, 6]``."""
    columns = (found.boxes, found.scores[:, None], found.classes[:, None])
    return np.concatenate([column.astype(np.float64) for column in columns], axis=1)


def _of_class(rows: Rows, iou: float, models: int) -> list[Rows]:
    clusters: list[list[Rows]] = []
    fused: list[Rows] = []
    for row in rows:
        joined = -1
        if fused:
            overlap = iou_matrix(row[None, :4], np.array(fused)[:, :4])[0]
            best = int(overlap.argmax())
            joined = best if overlap[best] > iou else -1
        if joined < 0:
            clusters.append([row])
            fused.append(row.copy())
        else:
            clusters[joined].append(row)
            fused[joined] = _average(clusters[joined])
    for cluster, box in zip(clusters, fused, strict=True):
        box[4] *= min(len(cluster), models) / models
    return fused


def _average(cluster: list[Rows]) -> Rows:
    table = np.array(cluster)
    weights = table[:, 4] / table[:, 4].sum()
    box: Rows = table[0].copy()
    box[:4] = weights @ table[:, :4]
    box[4] = table[:, 4].mean()
    return box

"""The pool as the model sees it, in FiftyOne's App: an embedding map, and "more like this".

Both are brain runs of FiftyOne's that compute nothing there: points and vectors come from the
workbench's embeddings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.curation.embedding import Embeddings
from workbench.curation.neighbours import directions
from workbench.perception import boxes
from workbench.workspace import Workspace

MAP, FRAMES, OBJECTS = "map", "more_like_this", "objects_like_this"
"""Brain keys: the map of frames, similarity of frames, similarity of predicted objects."""

_SAME_BOX_IOU = 0.9


def show(fo: Any, shown: Any, place: Workspace, seen: Embeddings) -> None:
    """Give a published dataset its map and its similarity of frames and objects.

    Args:
        fo: FiftyOne, connected.
        shown: The dataset in FiftyOne; frames of it without an embedding are on no map.
    """
    for key in (MAP, FRAMES, OBJECTS):
        if key in shown.list_brain_runs():
            shown.delete_brain_run(key)
    folder = place.root / "workshop" / shown.name
    names = dict(zip(*shown.values(["frame", "id"]), strict=True))
    rows = [row for row, frame in enumerate(seen.frames) if frame in names]
    if not rows:
        return
    unit = directions(np.asarray(seen.vectors)[rows])
    frames = [seen.frames[row] for row in rows]
    _add_map(shown, unit, [names[frame] for frame in frames])
    _add_index(shown, FRAMES, (unit, frames), folder, None)
    found = _objects(shown, seen)
    if found is not None:
        _add_index(shown, OBJECTS, found, folder, "predictions")


def forget_objects(shown: Any) -> None:
    """Take the similarity of predicted boxes away: those that it knew have been replaced."""
    if OBJECTS in shown.list_brain_runs():
        shown.delete_brain_run(OBJECTS)


def project(unit: NDArray[np.float32]) -> NDArray[np.float32]:
    """Two principal components of unit vectors ``[n, d]``, float32 ``[n, 2]``.

    Frames on one spot, as in a pool of identical frames, lie side by side within a thousandth of
    the map's width so that each can be picked.
    """
    count = len(unit)
    points = np.zeros((count, 2), np.float32)
    if count >= 3:
        values, axes = np.linalg.eigh(unit.T @ unit)
        first = axes[:, np.argsort(values)[::-1][:2]]
        first = first * np.sign(first[np.abs(first).argmax(axis=0), np.arange(first.shape[1])])
        points[:, : first.shape[1]] = unit @ first
    width = float(np.ptp(points)) or 1.0
    _, inverse, counts = np.unique(points, axis=0, return_inverse=True, return_counts=True)
    if counts.max(initial=1) > 1:
        turn = 2.399963 * np.arange(count)  # the golden angle spreads any number evenly
        radius = 5e-4 * width * np.sqrt(np.arange(count) / count)
        around = np.stack([np.cos(turn), np.sin(turn)], axis=1) * radius[:, None]
        points += np.where((counts[inverse.ravel()] > 1)[:, None], around, 0).astype(np.float32)
    return points


def _add_map(shown: Any, unit: NDArray[np.float32], ids: list[str]) -> None:
    import fiftyone.brain as fob

    points = dict(zip(ids, project(unit), strict=True))
    view = shown if len(ids) == len(shown) else shown.select(ids)
    fob.compute_visualization(view, points=points, brain_key=MAP, method="manual", progress=False)


def _add_index(
    shown: Any, key: str, vectors: tuple[Any, Any], folder: Any, patches_field: str | None
) -> None:
    import fiftyone.brain as fob

    from workbench.curation.workshop import similarity

    where, content = similarity.write(folder / key, *vectors)
    fob.compute_similarity(
        shown,
        patches_field=patches_field,
        embeddings=False,
        brain_key=key,
        backend=similarity.WorkbenchSimilarityConfig,
        folder=str(where),
        content=content,
    )


def _objects(
    shown: Any, seen: Embeddings
) -> tuple[NDArray[np.float32], list[tuple[str, str]]] | None:
    """Vectors of the predicted boxes that are shown, by the object that has the same box."""
    if not shown.has_sample_field("predictions"):
        return None
    paths = ["frame", "metadata.width", "metadata.height", "predictions.detections"]
    rows = {frame: row for row, frame in enumerate(seen.frames)}
    starts = np.searchsorted(seen.owner, np.arange(len(seen.frames) + 1))
    objects, owners = [], []
    for frame, width, height, found in zip(*shown.values(paths), strict=True):
        if frame not in rows or not found:
            continue
        first, last = starts[rows[frame]], starts[rows[frame] + 1]
        drawn = boxes.xywh_to_xyxy(np.array([one.bounding_box for one in found], np.float32))
        scale = np.array([width, height, width, height], np.float32)
        overlap = boxes.iou_matrix(drawn * scale, seen.boxes[first:last])
        if not overlap.size:
            continue
        for one, best, share in zip(found, overlap.argmax(1), overlap.max(1), strict=True):
            if share >= _SAME_BOX_IOU:
                objects.append(int(first + best))
                owners.append((frame, one.id))
    if len(objects) < 2:
        return None
    return directions(np.asarray(seen.object_vectors)[objects]), owners

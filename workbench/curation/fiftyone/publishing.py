"""Publish datasets to FiftyOne: samples, saved views, embedding map, similarity index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.core import workspace
from workbench.core.errors import DataError, ParameterError, ServiceError
from workbench.core.workspace import Workspace
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.fiftyone.connection import connect, load_dataset
from workbench.curation.fiftyone.tags import ARM_TAGS, record_app_tags
from workbench.curation.hygiene.inspection import InspectionFindings
from workbench.curation.vectors import unit_vectors
from workbench.data.slices import describe_conditions
from workbench.detection import boxes
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Box, Frame, Label
from workbench.records.types import Prediction, SelectedFrame, Selection

MAP, FRAMES, OBJECTS = "map", "more_like_this", "objects_like_this"
"""Brain keys: the map of frames, similarity of frames, similarity of predicted objects."""

_SAME_BOX_IOU = 0.9


def add_embedding_map(fo: Any, shown: Any, place: Workspace, seen: Embeddings) -> None:
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
    unit = unit_vectors(np.asarray(seen.vectors)[rows])
    frames = [seen.frames[row] for row in rows]
    _add_map(shown, unit, [names[frame] for frame in frames])
    _add_similarity(shown, FRAMES, (unit, frames), folder, None)
    found = _shown_objects(shown, seen)
    if found is not None:
        _add_similarity(shown, OBJECTS, found, folder, "predictions")


def forget_object_similarity(shown: Any) -> None:
    """Take the similarity of predicted boxes away: those that it knew have been replaced."""
    if OBJECTS in shown.list_brain_runs():
        shown.delete_brain_run(OBJECTS)


def project_points(unit: NDArray[np.float32]) -> NDArray[np.float32]:
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

    points = dict(zip(ids, project_points(unit), strict=True))
    view = shown if len(ids) == len(shown) else shown.select(ids)
    fob.compute_visualization(view, points=points, brain_key=MAP, method="manual", progress=False)


def _add_similarity(
    shown: Any, key: str, vectors: tuple[Any, Any], folder: Any, patches_field: str | None
) -> None:
    import fiftyone.brain as fob

    from workbench.curation.fiftyone import similarity

    where, content = similarity.write_vectors(folder / key, *vectors)
    fob.compute_similarity(
        shown,
        patches_field=patches_field,
        embeddings=False,
        brain_key=key,
        backend=similarity.WorkbenchSimilarityConfig,
        folder=str(where),
        content=content,
    )


def _shown_objects(
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
    return unit_vectors(np.asarray(seen.object_vectors)[objects]), owners


# ---- Saved views and the App's layout: where to look first.


SUSPECTS, TWINS, LEAKS = "suspected label errors", "duplicates", "leaks between roles"
CONDITION_PREFIX = "condition: "


def save_views(fo: Any, shown: Any) -> None:
    """Views of each arm, each condition and each kind of finding; those of nothing are dropped.

    Views that people saved under other names stay.
    """
    field = fo.ViewField
    ranked = shown.has_sample_field("rank")
    wanted = {}
    for arm in ARM_TAGS:
        chosen = shown.match_tags(arm)
        wanted[arm] = chosen.sort_by("rank") if ranked else chosen
    for condition in shown.distinct("condition"):
        wanted[f"{CONDITION_PREFIX}{condition}"] = shown.match(field("condition") == condition)
    if shown.has_sample_field("suspicion"):
        suspects = shown.match(field("suspicion") != None)  # noqa: E711 - an expression
        wanted[SUSPECTS] = suspects.sort_by("suspicion", reverse=True)
    if shown.has_sample_field("twins"):
        wanted[TWINS] = shown.match(field("twins") != None).sort_by("twins")  # noqa: E711
    if shown.has_sample_field("leak"):
        wanted[LEAKS] = shown.match(field("leak") != None)  # noqa: E711
    empty = {name for name, view in wanted.items() if name not in ("mined", "random") and not view}
    for name in shown.list_saved_views():
        ours = name in (*ARM_TAGS, SUSPECTS, TWINS, LEAKS) or name.startswith(CONDITION_PREFIX)
        if ours and (name not in wanted or name in empty):
            shown.delete_saved_view(name)
    for name, view in wanted.items():
        if name not in empty:
            shown.save_view(name, view, overwrite=True)


def app_layout(fo: Any, shown: Any) -> Any:
    """Frames on the left and maps on the right; None, FiftyOne's own layout, without a map.

    Frames have the larger share: the App's buttons to tag and to sort by likeness hide in a narrow
    panel, and its list of searches takes half of it.

    The panel of maps opens on its list, where one click opens a map: FiftyOne 1.22 forgets which
    one was to be open whenever a page is loaded.
    """
    if MAP not in shown.list_brain_runs():
        return None
    frames = fo.Panel(type="Samples", pinned=True)
    points = fo.Panel(type="Embeddings")
    # Without an active child a panel stays blank.
    return fo.Space(
        children=[
            fo.Space(children=[frames], active_child=frames.component_id),
            fo.Space(children=[points], active_child=points.component_id),
        ],
        orientation="horizontal",
        sizes=[0.64, 0.36],
    )


# ---- Publishing: frames in FiftyOne with all that is known about them.
#
# What is shown there is a copy; records are the truth. Publishing again replaces what the workbench
# wrote and leaves what people tagged. FiftyOne never starts a database of its own here: its embedded
# one attaches to whichever mongod it finds first, so two projects would silently share theirs.


def publish(
    place: Workspace,
    dataset: Dataset,
    predictions: Sequence[Prediction] = (),
    selection: Selection | None = None,
    name: str | None = None,
    *,
    scores: Mapping[str, Mapping[str, Any]] | None = None,
    seen: Embeddings | None = None,
    found: InspectionFindings | None = None,
) -> str:
    """Show frames in FiftyOne with labels, predictions, scores and the reason for each choice.

    The dataset is persistent; chosen frames carry their arm as a tag, and views are saved for the
    App: each arm, each condition, what looks wrong, duplicates, leaks. Repeating it replaces
    content and keeps people's tags.

    Args:
        scores: Frame to its scores, see `workbench.curation.read_scores`.
        seen: Embeddings of the frames: gives the App a map, and "more like this" of frames and of
            predicted objects. Without it the map and the likeness of frames stay as they were.
        found: An inspection of the dataset: gives the App its duplicates, leaks and label errors.

    Returns:
        The dataset's name in FiftyOne.

    Raises:
        ServiceError: mongod is away.
    """
    if not dataset.frames:
        raise DataError("there are no frames to show", where=dataset.ref or dataset.name)
    fo = connect(place)
    name = name or dataset.name
    shown = fo.load_dataset(name) if fo.dataset_exists(name) else fo.Dataset(name, persistent=True)
    if "frame" not in shown.get_field_schema() and len(shown):
        raise ParameterError(
            "a dataset of this name is there that the workbench did not make",
            where=name,
            hint="Publish under another name",
        )
    if len(shown):
        record_app_tags(shown)
    _sync_samples(fo, shown, place, dataset.frames)
    _fill_samples(fo, shown, place, dataset, predictions, selection, scores or {})
    if found is not None:
        _fill_hygiene(fo, shown, dataset, found)
    if seen is not None:
        add_embedding_map(fo, shown, place, seen)
    else:
        forget_object_similarity(shown)
    save_views(fo, shown)
    # A dataset's pool is no version of its own: the selection knows which one it is of.
    version = dataset.ref or (selection.dataset if selection else None)
    shown.info["workbench"] = {"dataset": version, "simulated": dataset.simulated}
    shown.save()
    return name


def is_published(place: Workspace, selection: Selection, name: str) -> bool:
    """Whether FiftyOne shows exactly the frames of this selection as chosen, images included."""
    fo = connect(place)
    if not fo.dataset_exists(name):
        return False
    rows = fo.load_dataset(name).match_tags(list(ARM_TAGS)).values(["frame", "tags", "filepath"])
    there = {
        frame: arm
        for frame, tags, path in zip(*rows, strict=True)
        for arm in ARM_TAGS
        if arm in tags and Path(path).is_file()
    }
    return there == {choice.frame: choice.arm for choice in selection.chosen}


def open_app(name: str, *, place: Workspace | None = None, port: int = 5151) -> Any:
    """Start FiftyOne's App on loopback and return its session; `session.url` opens in a browser.

    It opens on the mined frames where there are any, with the map beside them where there is one.

    Raises:
        ServiceError: mongod is away, or the App does not start.
    """
    shown = load_dataset(place, name)
    view = shown.load_saved_view("mined") if "mined" in shown.list_saved_views() else None
    fo = connect(place or workspace.find_workspace())
    from fiftyone.core.service import ServiceListenTimeout

    try:
        return fo.launch_app(
            shown if view is None or not len(view) else view,
            remote=True,
            address="127.0.0.1",
            port=port,
            auto=False,
            spaces=app_layout(fo, shown),
        )
    except ServiceListenTimeout as error:
        raise ServiceError(
            "FiftyOne's App did not start in time",
            where=f"127.0.0.1:{port}",
            hint="The machine is busy or the port is taken: try again, or give another port",
        ) from error


def _sync_samples(fo: Any, shown: Any, place: Workspace, frames: Sequence[Frame]) -> None:
    """Make the samples those of ``frames``; a frame that stays keeps its sample."""
    present = set(shown.values("frame")) if len(shown) else set()
    wanted = {frame.id for frame in frames}
    if present - wanted:
        shown.delete_samples(shown.match(fo.ViewField("frame").is_in(list(present - wanted))))
    fresh = [
        fo.Sample(
            filepath=str(media_path(place, frame)),
            frame=frame.id,
            metadata=fo.ImageMetadata(width=frame.width, height=frame.height),
        )
        for frame in frames
        if frame.id not in present
    ]
    if fresh:
        shown.add_samples(fresh, progress=False)


def _fill_samples(
    fo: Any,
    shown: Any,
    place: Workspace,
    dataset: Dataset,
    predictions: Sequence[Prediction],
    selection: Selection | None,
    scores: Mapping[str, Mapping[str, Any]],
) -> None:
    """Set every field of every sample; one bulk write a field."""
    by_id = {frame.id: frame for frame in dataset.frames}
    names, tags = shown.values(["frame", "tags"])
    frames = [by_id[name] for name in names]
    choices = {choice.frame: choice for choice in selection.chosen} if selection else {}
    found: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        found.setdefault(prediction.frame, []).append(prediction)
    fields: dict[str, list[Any]] = {
        # Also of samples that stay: the workspace may have moved.
        "filepath": [str(media_path(place, frame)) for frame in frames],
        "drive": [frame.drive for frame in frames],
        "index": [frame.index for frame in frames],
        "light": [str(frame.conditions.light) for frame in frames],
        "weather": [str(frame.conditions.weather) for frame in frames],
        "role": [frame.role and str(frame.role) for frame in frames],
        "ground_truth": [_ground_truth(fo, f, dataset.labels_by_frame[f.id]) for f in frames],
        "predictions": [_predicted_boxes(fo, f, found.get(f.id)) for f in frames],
        "tags": [_merge_tags(old, choices.get(f.id)) for old, f in zip(tags, frames, strict=True)],
        "reason": [_choice_reason(choices.get(f.id)) for f in frames],
        "rank": [choices[f.id].rank if f.id in choices else None for f in frames],
        "arm": [choices[f.id].arm if f.id in choices else None for f in frames],
        "condition": [describe_conditions(frame) for frame in frames],
        "rarity": [scores.get(f.id, {}).get("rarity") for f in frames],
        "fault": [scores.get(f.id, {}).get("fault") or None for f in frames],
        **_signal_fields(names, scores),
    }
    _set_values(shown, fields)


def _set_values(shown: Any, fields: Mapping[str, list[Any]]) -> None:
    for field, values in fields.items():
        # A field of nothing but None has no type yet, and nothing to say.
        if shown.has_sample_field(field) or any(value is not None for value in values):
            shown.set_values(field, values)


def _signal_fields(
    names: Sequence[str], scores: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[float | None]]:
    """A field a signal, such as ``signal_entropy``: its rank in [0, 1], 1 the rarest."""
    ranks = [scores.get(name, {}).get("ranks", {}) for name in names]
    known = sorted({signal for one in ranks for signal in one})
    return {f"signal_{signal}": [one.get(signal) for one in ranks] for signal in known}


def _fill_hygiene(fo: Any, shown: Any, dataset: Dataset, found: InspectionFindings) -> None:
    """What an inspection found, on the frames it concerns; of others it is taken off again."""
    by_id = {frame.id: frame for frame in dataset.frames}
    names = shown.values("frame")
    leaks: dict[str, str] = {}
    for leak in found.leaks:
        for frame in (leak.first, leak.second):
            leaks.setdefault(frame, leak.why)
    twins = {
        frame: number
        for number, cluster in enumerate(found.clusters, start=1)
        for frame in cluster.frames
    }
    errors: dict[str, list[Any]] = {}
    for one in found.errors:
        if one.frame in by_id:
            errors.setdefault(one.frame, []).append(one)
    boxes = {
        name: [
            fo.Detection(
                label=one.kind,
                bounding_box=_box_shares(by_id[name], one.box),
                confidence=one.weight,
                why=one.why,
                cls=one.cls,
            )
            for one in theirs
        ]
        for name, theirs in errors.items()
    }
    fields: dict[str, list[Any]] = {
        "leak": [leaks.get(name) for name in names],
        "twins": [twins.get(name) for name in names],
        "suspicion": [max((e.weight for e in errors.get(n, ())), default=None) for n in names],
        "label_errors": [fo.Detections(detections=boxes[n]) if n in boxes else None for n in names],
    }
    _set_values(shown, fields)


def _merge_tags(old: Sequence[str], choice: SelectedFrame | None) -> list[str]:
    people = [one for one in old or () if one not in ARM_TAGS]
    return [choice.arm, *people] if choice else people


def _choice_reason(choice: SelectedFrame | None) -> str | None:
    return "; ".join(choice.reasons) if choice else None


def _ground_truth(fo: Any, frame: Frame, labels: Sequence[Label]) -> Any:
    if not labels:
        return None
    return fo.Detections(
        detections=[
            fo.Detection(
                label=label.cls,
                bounding_box=_relative_box(frame, label),
                origin=str(label.origin),
                annotator=label.annotator,
                ignore=label.ignore,
            )
            for label in labels
        ]
    )


def _predicted_boxes(fo: Any, frame: Frame, found: Sequence[Prediction] | None) -> Any:
    if not found:
        return None
    return fo.Detections(
        detections=[
            fo.Detection(
                label=one.cls, bounding_box=_relative_box(frame, one), confidence=one.score
            )
            for one in found
        ]
    )


def _relative_box(frame: Frame, boxed: Label | Prediction) -> list[float]:
    return _box_shares(frame, boxed.box)


def _box_shares(frame: Frame, box: Box) -> list[float]:
    """FiftyOne's box: left, top, width, height as shares of the image."""
    return [box.x / frame.width, box.y / frame.height, box.w / frame.width, box.h / frame.height]

"""Publish datasets to FiftyOne: samples, saved views, embedding map, similarity index.

FiftyOne shows a copy; records are the source of truth. Publishing again replaces what the workbench
wrote and keeps people's tags. The map and the similarity index are brain runs whose points and
vectors come from the workbench's embeddings. FiftyOne never starts its own database here: its
embedded one attaches to the first mongod it finds, so two projects would share theirs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.audit import log as audit
from workbench.core.errors import DataError, ParameterError, ServiceError
from workbench.core.workspace import HOME_VARIABLE, Workspace, find_workspace
from workbench.curation.embedding.embeddings import Embeddings
from workbench.curation.fiftyone.connection import connect, load_fo_dataset
from workbench.curation.fiftyone.tags import ARM_TAGS, record_app_tags
from workbench.curation.hygiene.inspection import InspectionFindings
from workbench.curation.vectors import principal_components, unit_vectors
from workbench.data.drawing import class_colours
from workbench.data.slices import describe_conditions
from workbench.detection import boxes
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import ANY_CLASS, Box, Frame, Label, LabelSchema, Role
from workbench.records.held_out import refuse_held_out
from workbench.records.integrity import damaged_media
from workbench.records.store import Store
from workbench.records.types import Prediction, SelectedFrame, Selection

__all__ = ["is_published", "open_app", "publish"]

# Keys of FiftyOne's brain runs.
MAP, FRAMES, OBJECTS = "map", "more_like_this", "objects_like_this"

PLUGIN = Path(__file__).parents[2] / "widgets" / "fiftyone_plugin"
"""Operators of the App, which FiftyOne loads by their path."""

_SAME_BOX_IOU = 0.9
_SUSPECTS, _TWINS, _LEAKS = "suspected label errors", "duplicates", "leaks between roles"
_CONDITION_PREFIX = "condition: "


def publish(
    workspace: Workspace,
    dataset: Dataset,
    predictions: Sequence[Prediction] = (),
    selection: Selection | None = None,
    name: str | None = None,
    *,
    scores: Mapping[str, Mapping[str, Any]] | None = None,
    embeddings: Embeddings | None = None,
    findings: InspectionFindings | None = None,
) -> str:
    """Publish frames to FiftyOne with labels, predictions, scores and the reasons of a selection.

    The dataset is persistent; chosen frames carry their arm as a tag, and views are saved for each
    arm, each condition, suspected label errors, duplicates and leaks. Publishing again replaces
    content and keeps people's tags.

    Args:
        workspace: Its mongod and images.
        dataset: The frames and labels.
        predictions: Boxes of a model.
        selection: Its choices become tags, ranks and reasons.
        name: Name in FiftyOne; by default the dataset's.
        scores: Scores by frame, see `workbench.curation.read_scores`.
        embeddings: Embeddings of the frames: adds the map and "more like this" for frames and
            predicted objects. Without it, the map and the index of frames stay as they are.
        findings: An inspection of the dataset: adds duplicates, leaks and label errors.

    Returns:
        The dataset's name in FiftyOne.

    Raises:
        DataError: The dataset has no frames.
        ParameterError: A dataset of this name was not made by the workbench.
        ServiceError: mongod does not answer.
    """
    if not dataset.frames:
        raise DataError("the dataset has no frames to publish", where=dataset.ref or dataset.name)
    refuse_held_out(Store(workspace), dataset.frames, "FiftyOne", roles=(Role.BLIND,))
    fo = connect(workspace)
    name = name or dataset.name
    fo_dataset = (
        fo.load_dataset(name) if fo.dataset_exists(name) else fo.Dataset(name, persistent=True)
    )
    if "frame" not in fo_dataset.get_field_schema() and len(fo_dataset):
        raise ParameterError(
            "a FiftyOne dataset of this name was not made by the workbench",
            where=name,
            hint="Publish under another name",
        )
    if len(fo_dataset):
        record_app_tags(fo_dataset)
    _sync_samples(fo, fo_dataset, workspace, dataset.frames)
    _fill_samples(fo, fo_dataset, workspace, dataset, predictions, selection, scores or {})
    if findings is not None:
        _fill_hygiene(fo, fo_dataset, dataset, findings)
    if embeddings is not None:
        _add_embedding_map(fo, fo_dataset, workspace, embeddings)
    else:
        _forget_object_similarity(fo_dataset)
    _save_views(fo, fo_dataset)
    fo_dataset.app_config.color_scheme = color_scheme(fo, dataset.label_schema)
    # A part of a dataset is no version of its own; its selection refers to the version.
    version = dataset.ref or (selection.dataset if selection else None)
    fo_dataset.info["workbench"] = {"dataset": version, "simulated": dataset.simulated}
    fo_dataset.save()
    audit.append(
        workspace,
        "frames-read",
        subjects=(version,) if version else (),
        why=f"FiftyOne dataset {name}",
        frames=len(dataset.frames),
    )
    return name


def is_published(workspace: Workspace, selection: Selection, name: str) -> bool:
    """Whether FiftyOne shows exactly the frames of this selection as chosen, images included."""
    fo = connect(workspace)
    if not fo.dataset_exists(name):
        return False
    rows = fo.load_dataset(name).match_tags(list(ARM_TAGS)).values(["frame", "tags", "filepath"])
    published_arms = {
        frame: arm
        for frame, tags, path in zip(*rows, strict=True)
        for arm in ARM_TAGS
        if arm in tags and Path(path).is_file()
    }
    return published_arms == {choice.frame: choice.arm for choice in selection.chosen}


def open_app(name: str, *, workspace: Workspace | None = None, port: int = 5151) -> Any:
    """Start FiftyOne's App on loopback; open the session's ``url`` in a browser.

    It opens on the mined frames where there are any, with the map beside them. Buttons above the
    grid mine, search, send frames to labelers, add incidents and show lineage. The App has no
    login: while it is open, every account of this machine can read this account's files through it,
    and press these buttons.

    Args:
        name: The dataset in FiftyOne.
        workspace: By default, that of the current folder.
        port: Port of the App.

    Returns:
        FiftyOne's session.

    Raises:
        DataError: There is no such dataset.
        ServiceError: mongod does not answer, or the App does not start.
    """
    fo_dataset = load_fo_dataset(workspace, name)
    view = fo_dataset.load_saved_view("mined") if "mined" in fo_dataset.list_saved_views() else None
    workspace = workspace or find_workspace()
    fo = connect(workspace)
    from fiftyone.core.service import ServiceListenTimeout

    try:
        with _server_environment(fo, workspace):
            return fo.launch_app(
                fo_dataset if view is None or not len(view) else view,
                remote=True,
                address="127.0.0.1",
                port=port,
                auto=False,
                spaces=app_layout(fo, fo_dataset),
            )
    except ServiceListenTimeout as error:
        raise ServiceError(
            "FiftyOne's App did not start in time",
            where=f"127.0.0.1:{port}",
            hint="Try again, or use another port if this one is taken",
        ) from error


@contextlib.contextmanager
def _server_environment(fo: Any, workspace: Workspace) -> Iterator[None]:
    """What the App's server, started inside, finds in its environment: workspace and plugins."""
    plugins = workspace.root / "cache" / "fiftyone-plugins"
    plugins.mkdir(parents=True, exist_ok=True)
    folders = {"workbench": PLUGIN, "own": Path(fo.config.plugins_dir)}  # FiftyOne has one folder
    for name, folder in folders.items():
        (plugins / name).unlink(missing_ok=True)
        if folder.is_dir() and folder.resolve() != plugins.resolve():
            (plugins / name).symlink_to(folder.resolve())
    wanted = {"FIFTYONE_PLUGINS_DIR": str(plugins), HOME_VARIABLE: str(workspace.root)}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def color_scheme(fo: Any, schema: LabelSchema, fields: Sequence[str] = ()) -> Any:
    """The colours of classes that widgets, plots and Label Studio show, too.

    Args:
        fo: FiftyOne, connected.
        schema: The classes.
        fields: Fields of boxes beside ``ground_truth`` and ``predictions``.
    """
    colours = class_colours((*schema.classes, ANY_CLASS))
    values = [{"value": name, "color": colour} for name, colour in colours.items()]
    colored = [
        {"path": path, "colorByAttribute": "label", "valueColors": values}
        for path in ("ground_truth", "predictions", *fields)
    ]
    return fo.ColorScheme(color_by="value", fields=colored)


def _add_embedding_map(
    fo: Any, fo_dataset: Any, workspace: Workspace, embeddings: Embeddings
) -> None:
    """Add the embedding map, and the similarity index of frames and objects, to a published
    dataset.

    Args:
        fo: FiftyOne, connected.
        fo_dataset: The dataset in FiftyOne; frames without an embedding are not on the map.
        workspace: Holds the vectors.
        embeddings: Embeddings of the frames.
    """
    for key in (MAP, FRAMES, OBJECTS):
        if key in fo_dataset.list_brain_runs():
            fo_dataset.delete_brain_run(key)
    folder = workspace.root / "workshop" / fo_dataset.name
    names = dict(zip(*fo_dataset.values(["frame", "id"]), strict=True))
    rows = [row for row, frame in enumerate(embeddings.frames) if frame in names]
    if not rows:
        return
    unit = unit_vectors(np.asarray(embeddings.vectors)[rows])
    frames = [embeddings.frames[row] for row in rows]
    _add_map(fo_dataset, unit, [names[frame] for frame in frames])
    _add_similarity(fo_dataset, FRAMES, (unit, frames), folder, None)
    objects = _shown_objects(fo_dataset, embeddings)
    if objects is not None:
        _add_similarity(fo_dataset, OBJECTS, objects, folder, "predictions")


def _forget_object_similarity(fo_dataset: Any) -> None:
    """Remove the similarity index of predicted boxes, which have been replaced."""
    if OBJECTS in fo_dataset.list_brain_runs():
        fo_dataset.delete_brain_run(OBJECTS)


def project_points(units: NDArray[np.float32]) -> NDArray[np.float32]:
    """Map coordinates of unit vectors ``[n, d]``: two principal components, float32 ``[n, 2]``.

    Points at one spot, as in a pool of identical frames, are spread within a thousandth of the
    map's width, so that each can be picked.
    """
    count = len(units)
    points = principal_components(units)
    width = float(np.ptp(points)) or 1.0
    _, inverse, counts = np.unique(points, axis=0, return_inverse=True, return_counts=True)
    if counts.max(initial=1) > 1:
        turn = 2.399963 * np.arange(count)  # the golden angle spreads any number evenly
        radius = 5e-4 * width * np.sqrt(np.arange(count) / count)
        offset = np.stack([np.cos(turn), np.sin(turn)], axis=1) * radius[:, None]
        points += np.where((counts[inverse.ravel()] > 1)[:, None], offset, 0).astype(np.float32)
    return points


def _add_map(fo_dataset: Any, unit: NDArray[np.float32], ids: list[str]) -> None:
    import fiftyone.brain as fob

    points = dict(zip(ids, project_points(unit), strict=True))
    view = fo_dataset if len(ids) == len(fo_dataset) else fo_dataset.select(ids)
    fob.compute_visualization(view, points=points, brain_key=MAP, method="manual", progress=False)


def _add_similarity(
    fo_dataset: Any, key: str, vectors: tuple[Any, Any], folder: Any, patches_field: str | None
) -> None:
    import fiftyone.brain as fob

    from workbench.curation.fiftyone import similarity

    where, content = similarity.write_vectors(folder / key, *vectors)
    fob.compute_similarity(
        fo_dataset,
        patches_field=patches_field,
        embeddings=False,
        brain_key=key,
        backend=similarity.WorkbenchSimilarityConfig,
        folder=str(where),
        content=content,
    )


def _shown_objects(
    fo_dataset: Any, embeddings: Embeddings
) -> tuple[NDArray[np.float32], list[tuple[str, str]]] | None:
    """Vectors of the published boxes, from the embedded object with the same box."""
    if not fo_dataset.has_sample_field("predictions"):
        return None
    paths = ["frame", "metadata.width", "metadata.height", "predictions.detections"]
    rows = {frame: row for row, frame in enumerate(embeddings.frames)}
    starts = np.searchsorted(embeddings.owner, np.arange(len(embeddings.frames) + 1))
    objects, owners = [], []
    for frame, width, height, detections in zip(*fo_dataset.values(paths), strict=True):
        if frame not in rows or not detections:
            continue
        first, last = starts[rows[frame]], starts[rows[frame] + 1]
        predicted = boxes.xywh_to_xyxy(
            np.array([one.bounding_box for one in detections], np.float32)
        )
        scale = np.array([width, height, width, height], np.float32)
        overlap = boxes.iou_matrix(predicted * scale, embeddings.boxes[first:last])
        if not overlap.size:
            continue
        for one, best, share in zip(detections, overlap.argmax(1), overlap.max(1), strict=True):
            if share >= _SAME_BOX_IOU:
                objects.append(int(first + best))
                owners.append((frame, one.id))
    if len(objects) < 2:
        return None
    return unit_vectors(np.asarray(embeddings.object_vectors)[objects]), owners


def _save_views(fo: Any, fo_dataset: Any) -> None:
    """Save views of each arm, each condition and each kind of finding; remove empty ones.

    Views that people saved under other names stay.
    """
    field = fo.ViewField
    ranked = fo_dataset.has_sample_field("rank")
    views = {}
    for arm in ARM_TAGS:
        chosen = fo_dataset.match_tags(arm)
        views[arm] = chosen.sort_by("rank") if ranked else chosen
    for condition in fo_dataset.distinct("condition"):
        views[f"{_CONDITION_PREFIX}{condition}"] = fo_dataset.match(field("condition") == condition)
    if fo_dataset.has_sample_field("suspicion"):
        suspects = fo_dataset.match(field("suspicion") != None)  # noqa: E711 - an expression
        views[_SUSPECTS] = suspects.sort_by("suspicion", reverse=True)
    if fo_dataset.has_sample_field("twins"):
        views[_TWINS] = fo_dataset.match(field("twins") != None).sort_by("twins")  # noqa: E711
    if fo_dataset.has_sample_field("leak"):
        views[_LEAKS] = fo_dataset.match(field("leak") != None)  # noqa: E711
    empty = {name for name, view in views.items() if name not in ("mined", "random") and not view}
    for name in fo_dataset.list_saved_views():
        ours = name in (*ARM_TAGS, _SUSPECTS, _TWINS, _LEAKS) or name.startswith(_CONDITION_PREFIX)
        if ours and (name not in views or name in empty):
            fo_dataset.delete_saved_view(name)
    for name, view in views.items():
        if name not in empty:
            fo_dataset.save_view(name, view, overwrite=True)


def app_layout(fo: Any, fo_dataset: Any) -> Any:
    """Layout of the App: frames on the left, maps on the right; None, FiftyOne's own, without a
    map.

    Frames get the larger share, because the App's buttons to tag and to sort by similarity hide in
    a narrow panel. The panel of maps opens on its list: FiftyOne 1.22 forgets which map was open
    when a page is loaded.
    """
    if MAP not in fo_dataset.list_brain_runs():
        return None
    frames = fo.Panel(type="Samples", pinned=True)
    points = fo.Panel(type="Embeddings")
    # A panel without an active child stays blank.
    return fo.Space(
        children=[
            fo.Space(children=[frames], active_child=frames.component_id),
            fo.Space(children=[points], active_child=points.component_id),
        ],
        orientation="horizontal",
        sizes=[0.64, 0.36],
    )


def _sync_samples(fo: Any, fo_dataset: Any, workspace: Workspace, frames: Sequence[Frame]) -> None:
    """Make the samples those of ``frames``; existing samples stay."""
    present = set(fo_dataset.values("frame")) if len(fo_dataset) else set()
    frame_ids = {frame.id for frame in frames}
    if present - frame_ids:
        fo_dataset.delete_samples(
            fo_dataset.match(fo.ViewField("frame").is_in(list(present - frame_ids)))
        )
    new = [
        fo.Sample(
            filepath=str(media_path(workspace, frame)),
            frame=frame.id,
            metadata=fo.ImageMetadata(width=frame.width, height=frame.height),
        )
        for frame in frames
        if frame.id not in present
    ]
    if new:
        fo_dataset.add_samples(new, progress=False)


def _fill_samples(
    fo: Any,
    fo_dataset: Any,
    workspace: Workspace,
    dataset: Dataset,
    predictions: Sequence[Prediction],
    selection: Selection | None,
    scores: Mapping[str, Mapping[str, Any]],
) -> None:
    """Set every field of every sample, one bulk write per field."""
    by_id = {frame.id: frame for frame in dataset.frames}
    names, tags = fo_dataset.values(["frame", "tags"])
    frames = [by_id[name] for name in names]
    choices = {choice.frame: choice for choice in selection.chosen} if selection else {}
    damaged = {frame.id for frame in damaged_media(workspace, frames)}
    predictions_by_frame: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        predictions_by_frame.setdefault(prediction.frame, []).append(prediction)
    fields: dict[str, list[Any]] = {
        # For existing samples, too: the workspace may have moved.
        "filepath": [str(media_path(workspace, frame)) for frame in frames],
        "drive": [frame.drive for frame in frames],
        "index": [frame.index for frame in frames],
        "light": [str(frame.conditions.light) for frame in frames],
        "weather": [str(frame.conditions.weather) for frame in frames],
        "role": [frame.role and str(frame.role) for frame in frames],
        "ground_truth": [_ground_truth(fo, f, dataset.labels_by_frame[f.id]) for f in frames],
        "predictions": [predicted_boxes(fo, f, predictions_by_frame.get(f.id)) for f in frames],
        "tags": [_merge_tags(old, choices.get(f.id)) for old, f in zip(tags, frames, strict=True)],
        "reason": [_reason(choices.get(f.id), damaged=f.id in damaged) for f in frames],
        "rank": [choices[f.id].rank if f.id in choices else None for f in frames],
        "arm": [choices[f.id].arm if f.id in choices else None for f in frames],
        "condition": [describe_conditions(frame) for frame in frames],
        "rarity": [scores.get(f.id, {}).get("rarity") for f in frames],
        "fault": [scores.get(f.id, {}).get("fault") or None for f in frames],
        **_signal_fields(names, scores),
    }
    _set_values(fo_dataset, fields)


def _set_values(fo_dataset: Any, fields: Mapping[str, list[Any]]) -> None:
    for field, values in fields.items():
        # A field of None values only has no type yet.
        if fo_dataset.has_sample_field(field) or any(value is not None for value in values):
            fo_dataset.set_values(field, values)


def _signal_fields(
    names: Sequence[str], scores: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[float | None]]:
    """One field per signal, such as ``signal_entropy``: its rank in [0, 1], 1 is rarest."""
    ranks = [scores.get(name, {}).get("ranks", {}) for name in names]
    known = sorted({signal for one in ranks for signal in one})
    return {f"signal_{signal}": [one.get(signal) for one in ranks] for signal in known}


def _fill_hygiene(fo: Any, fo_dataset: Any, dataset: Dataset, findings: InspectionFindings) -> None:
    """Set the findings of an inspection, and remove earlier ones."""
    by_id = {frame.id: frame for frame in dataset.frames}
    names = fo_dataset.values("frame")
    leaks: dict[str, str] = {}
    for leak in findings.leaks:
        for frame in (leak.first, leak.second):
            leaks.setdefault(frame, leak.why)
    clusters = {
        frame: number
        for number, cluster in enumerate(findings.clusters, start=1)
        for frame in cluster.frames
    }
    errors: dict[str, list[Any]] = {}
    for one in findings.errors:
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
            for one in errors_of_frame
        ]
        for name, errors_of_frame in errors.items()
    }
    fields: dict[str, list[Any]] = {
        "leak": [leaks.get(name) for name in names],
        "twins": [clusters.get(name) for name in names],
        "suspicion": [max((e.weight for e in errors.get(n, ())), default=None) for n in names],
        "label_errors": [fo.Detections(detections=boxes[n]) if n in boxes else None for n in names],
    }
    _set_values(fo_dataset, fields)


def _merge_tags(old: Sequence[str], choice: SelectedFrame | None) -> list[str]:
    people = [one for one in old or () if one not in ARM_TAGS]
    return [choice.arm, *people] if choice else people


def _reason(choice: SelectedFrame | None, *, damaged: bool) -> str | None:
    """Why a frame was selected, or that people see another image than the one ingested."""
    if damaged:
        return "image missing or not the one that was ingested"
    return "; ".join(choice.reasons) if choice else None


def _ground_truth(fo: Any, frame: Frame, labels: Sequence[Label]) -> Any:
    if not labels:
        return None
    return fo.Detections(
        detections=[
            fo.Detection(
                label=label.cls,
                bounding_box=_box_shares(frame, label.box),
                origin=str(label.origin),
                annotator=label.annotator,
                ignore=label.ignore,
                digest=label.id,
            )
            for label in labels
        ]
    )


def predicted_boxes(fo: Any, frame: Frame, predictions: Sequence[Prediction] | None) -> Any:
    """A frame's predictions as FiftyOne's detections; None without any."""
    if not predictions:
        return None
    return fo.Detections(
        detections=[
            fo.Detection(
                label=one.cls, bounding_box=_box_shares(frame, one.box), confidence=one.score
            )
            for one in predictions
        ]
    )


def _box_shares(frame: Frame, box: Box) -> list[float]:
    """FiftyOne's box: left, top, width, height, relative to the image."""
    return [box.x / frame.width, box.y / frame.height, box.w / frame.width, box.h / frame.height]

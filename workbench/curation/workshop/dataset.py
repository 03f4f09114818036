"""Publishing: frames in FiftyOne with all that is known about them.

What is shown there is a copy; records are the truth. Publishing again replaces what the workbench
wrote and leaves what people tagged. FiftyOne never starts a database of its own here: its embedded
one attaches to whichever mongod it finds first, so two projects would silently share theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench import workspace
from workbench.curation.embedding import Embeddings
from workbench.curation.hygiene.coverage import condition_in_words
from workbench.curation.hygiene.inspection import Found
from workbench.curation.workshop import embedding_map, views
from workbench.curation.workshop.connection import connect, load
from workbench.curation.workshop.tags import ARMS, note_app_tags
from workbench.errors import DataError, ParameterError, ServiceError
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Box, Frame, Label
from workbench.records.types import Choice, Prediction, Selection
from workbench.workspace import Workspace


def publish(
    place: Workspace,
    dataset: Dataset,
    predictions: Sequence[Prediction] = (),
    selection: Selection | None = None,
    name: str | None = None,
    *,
    scores: Mapping[str, Mapping[str, Any]] | None = None,
    seen: Embeddings | None = None,
    found: Found | None = None,
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
        note_app_tags(shown)
    _same_frames(fo, shown, place, dataset.frames)
    _fill(fo, shown, place, dataset, predictions, selection, scores or {})
    if found is not None:
        _fill_hygiene(fo, shown, dataset, found)
    if seen is not None:
        embedding_map.show(fo, shown, place, seen)
    else:
        embedding_map.forget_objects(shown)
    views.save(fo, shown)
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
    rows = fo.load_dataset(name).match_tags(list(ARMS)).values(["frame", "tags", "filepath"])
    there = {
        frame: arm
        for frame, tags, path in zip(*rows, strict=True)
        for arm in ARMS
        if arm in tags and Path(path).is_file()
    }
    return there == {choice.frame: choice.arm for choice in selection.chosen}


def open_app(name: str, *, place: Workspace | None = None, port: int = 5151) -> Any:
    """Start FiftyOne's App on loopback and return its session; `session.url` opens in a browser.

    It opens on the mined frames where there are any, with the map beside them where there is one.

    Raises:
        ServiceError: mongod is away, or the App does not start.
    """
    shown = load(place, name)
    view = shown.load_saved_view("mined") if "mined" in shown.list_saved_views() else None
    fo = connect(place or workspace.find())
    from fiftyone.core.service import ServiceListenTimeout

    try:
        return fo.launch_app(
            shown if view is None or not len(view) else view,
            remote=True,
            address="127.0.0.1",
            port=port,
            auto=False,
            spaces=views.spaces(fo, shown),
        )
    except ServiceListenTimeout as error:
        raise ServiceError(
            "FiftyOne's App did not start in time",
            where=f"127.0.0.1:{port}",
            hint="The machine is busy or the port is taken: try again, or give another port",
        ) from error


def _same_frames(fo: Any, shown: Any, place: Workspace, frames: Sequence[Frame]) -> None:
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


def _fill(
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
        "ground_truth": [_truth(fo, f, dataset.labels_by_frame[f.id]) for f in frames],
        "predictions": [_predicted(fo, f, found.get(f.id)) for f in frames],
        "tags": [_tags(old, choices.get(f.id)) for old, f in zip(tags, frames, strict=True)],
        "reason": [_reason(choices.get(f.id)) for f in frames],
        "rank": [choices[f.id].rank if f.id in choices else None for f in frames],
        "arm": [choices[f.id].arm if f.id in choices else None for f in frames],
        "condition": [condition_in_words(frame) for frame in frames],
        "rarity": [scores.get(f.id, {}).get("rarity") for f in frames],
        "fault": [scores.get(f.id, {}).get("fault") or None for f in frames],
        **_signals(names, scores),
    }
    _set(shown, fields)


def _set(shown: Any, fields: Mapping[str, list[Any]]) -> None:
    for field, values in fields.items():
        # A field of nothing but None has no type yet, and nothing to say.
        if shown.has_sample_field(field) or any(value is not None for value in values):
            shown.set_values(field, values)


def _signals(
    names: Sequence[str], scores: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[float | None]]:
    """A field a signal, such as ``signal_entropy``: its rank in [0, 1], 1 the rarest."""
    ranks = [scores.get(name, {}).get("ranks", {}) for name in names]
    known = sorted({signal for one in ranks for signal in one})
    return {f"signal_{signal}": [one.get(signal) for one in ranks] for signal in known}


def _fill_hygiene(fo: Any, shown: Any, dataset: Dataset, found: Found) -> None:
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
                bounding_box=_shares(by_id[name], one.box),
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
    _set(shown, fields)


def _tags(old: Sequence[str], choice: Choice | None) -> list[str]:
    people = [one for one in old or () if one not in ARMS]
    return [choice.arm, *people] if choice else people


def _reason(choice: Choice | None) -> str | None:
    return "; ".join(choice.reasons) if choice else None


def _truth(fo: Any, frame: Frame, labels: Sequence[Label]) -> Any:
    if not labels:
        return None
    return fo.Detections(
        detections=[
            fo.Detection(
                label=label.cls,
                bounding_box=_relative(frame, label),
                origin=str(label.origin),
                annotator=label.annotator,
                ignore=label.ignore,
            )
            for label in labels
        ]
    )


def _predicted(fo: Any, frame: Frame, found: Sequence[Prediction] | None) -> Any:
    if not found:
        return None
    return fo.Detections(
        detections=[
            fo.Detection(label=one.cls, bounding_box=_relative(frame, one), confidence=one.score)
            for one in found
        ]
    )


def _relative(frame: Frame, boxed: Label | Prediction) -> list[float]:
    return _shares(frame, boxed.box)


def _shares(frame: Frame, box: Box) -> list[float]:
    """FiftyOne's box: left, top, width, height as shares of the image."""
    return [box.x / frame.width, box.y / frame.height, box.w / frame.width, box.h / frame.height]

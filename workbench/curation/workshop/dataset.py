"""FiftyOne, the workshop: the only file that knows it.

What is shown there is a copy; records are the truth. Publishing again replaces what the workbench
wrote and leaves what people tagged. FiftyOne never starts a database of its own here: its embedded
one attaches to whichever mongod it finds first, so two projects would silently share theirs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench import services, workspace
from workbench.errors import DataError, ParameterError, ServiceError
from workbench.records.dataset import Dataset, media_path
from workbench.records.frames import Frame, Label
from workbench.records.types import Choice, Prediction, Selection
from workbench.workspace import Workspace

ARMS = ("mined", "random")
"""Tags that the workbench owns; all others are people's."""

_URI = "FIFTYONE_DATABASE_URI"
_LOG = "workbench_tags"
_HINT = "Run `workbench up`; `workbench status` shows what is running"


def publish(
    place: Workspace,
    dataset: Dataset,
    predictions: Sequence[Prediction] = (),
    selection: Selection | None = None,
    name: str | None = None,
    *,
    scores: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """Show frames in FiftyOne with labels, predictions, scores and the reason for each choice.

    The dataset is persistent; chosen frames carry the tag ``mined`` or ``random``, and views of
    these names are saved for the App. Repeating it replaces content and keeps people's tags.

    Args:
        scores: Frame to its scores, see `workbench.curation.selecting.mining.read_scores`.

    Returns:
        The dataset's name in FiftyOne.

    Raises:
        ServiceError: mongod is away.
    """
    if not dataset.frames:
        raise DataError("there are no frames to show", where=dataset.ref or dataset.name)
    fo = _connect(place)
    name = name or dataset.name
    shown = fo.load_dataset(name) if fo.dataset_exists(name) else fo.Dataset(name, persistent=True)
    if "frame" not in shown.get_field_schema() and len(shown):
        raise ParameterError(
            "a dataset of this name is there that the workbench did not make",
            where=name,
            hint="Publish under another name",
        )
    _same_frames(fo, shown, place, dataset.frames)
    _fill(fo, shown, place, dataset, predictions, selection, scores or {})
    for arm in ARMS:
        chosen = shown.match_tags(arm)
        ranked = chosen.sort_by("rank") if shown.has_sample_field("rank") else chosen
        shown.save_view(arm, ranked, overwrite=True)
    shown.info["workbench"] = {"dataset": dataset.ref, "simulated": dataset.simulated}
    shown.save()
    return name


def is_published(place: Workspace, selection: Selection, name: str) -> bool:
    """Whether FiftyOne shows exactly the frames of this selection as chosen, images included."""
    fo = _connect(place)
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


def tag(
    name: str,
    frames: Iterable[str],
    label: str,
    *,
    by: str = "unknown",
    place: Workspace | None = None,
) -> int:
    """Tag frames, noting who and when; returns how many did not have the tag before."""
    if label in ARMS or not label.strip():
        raise ParameterError(
            f"{label!r} cannot be a tag of people", hint=f"{', '.join(ARMS)} are set by mining"
        )
    shown = _load(place, name)
    tags = dict(zip(*shown.values(["frame", "tags"]), strict=True))
    wanted = list(dict.fromkeys(frames))
    unknown = [frame for frame in wanted if frame not in tags]
    if unknown:
        raise DataError(
            f"{len(unknown)} frames are not in the FiftyOne dataset {name!r}",
            where=unknown[0],
            hint="Publish the dataset version that holds them",
        )
    new = [frame for frame in wanted if label not in tags[frame]]
    if new:
        values = {frame: [*tags[frame], label] for frame in new}
        shown.set_values("tags", values, key_field="frame")
        at = datetime.now(UTC).isoformat(timespec="seconds")
        entry = {"tag": label, "by": by, "at": at, "frames": new}
        shown.info[_LOG] = [*shown.info.get(_LOG, []), entry]
        shown.save()
    return len(new)


def tagged(name: str, label: str, *, place: Workspace | None = None) -> tuple[str, ...]:
    """Frames with a tag, whoever set it, here or in the App."""
    return tuple(_load(place, name).match_tags(label).values("frame"))


def tag_log(name: str, *, place: Workspace | None = None) -> list[dict[str, Any]]:
    """Who tagged what and when, for tags that were set through `tag`."""
    return [dict(entry) for entry in _load(place, name).info.get(_LOG, [])]


def open_app(name: str, *, place: Workspace | None = None, port: int = 5151) -> Any:
    """Start FiftyOne's App on loopback and return its session; `session.url` opens in a browser."""
    shown = _load(place, name)
    view = shown.load_saved_view("mined") if "mined" in shown.list_saved_views() else None
    fo = _connect(place or workspace.find())
    return fo.launch_app(
        shown if view is None else view, remote=True, address="127.0.0.1", port=port, auto=False
    )


def _connect(place: Workspace) -> Any:
    """FiftyOne attached to this workspace's mongod; its database is asked first."""
    import pymongo
    from pymongo.errors import PyMongoError

    if _URI not in os.environ:
        os.environ.update(services.environment(place, ("mongod",)))
    uri = os.environ[_URI]
    try:
        client: pymongo.MongoClient[dict[str, Any]]
        with pymongo.MongoClient(uri, serverSelectionTimeoutMS=3000) as client:
            client.admin.command("ping")
    except PyMongoError as error:
        raise ServiceError("mongod does not answer", where=uri, hint=_HINT) from error
    known = sys.modules.get("fiftyone")
    if known is not None and getattr(known.config, "database_uri", uri) != uri:
        raise ServiceError(
            "this process has FiftyOne attached to another database",
            where=known.config.database_uri,
            hint="Restart the notebook's kernel",
        )
    import fiftyone

    return fiftyone


def _load(place: Workspace | None, name: str) -> Any:
    fo = _connect(place or workspace.find())
    if not fo.dataset_exists(name):
        near = ", ".join(fo.list_datasets()) or "none"
        raise DataError(
            f"FiftyOne has no dataset {name!r}",
            hint=f"There are: {near}. `workbench.curation.publish` makes one",
        )
    shown = fo.load_dataset(name)
    shown.reload()
    return shown


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
        "rarity": [scores.get(f.id, {}).get("rarity") for f in frames],
        "fault": [scores.get(f.id, {}).get("fault") or None for f in frames],
    }
    for field, values in fields.items():
        # A field of nothing but None has no type yet, and nothing to say.
        if shown.has_sample_field(field) or any(value is not None for value in values):
            shown.set_values(field, values)


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
    """FiftyOne's box: left, top, width, height as shares of the image."""
    box = boxed.box
    return [box.x / frame.width, box.y / frame.height, box.w / frame.width, box.h / frame.height]

"""Tags set by people, here or in the App, and selections made from them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from workbench.core.errors import DataError, ParameterError
from workbench.core.workspace import Workspace
from workbench.curation.fiftyone.connection import load_dataset
from workbench.curation.selection.mining import MANUAL_METHOD
from workbench.records import dataset
from workbench.records.base import Ref
from workbench.records.store import Store
from workbench.records.types import SelectedFrame, Selection

ARM_TAGS = ("mined", "random", "control")
"""Tags that the workbench owns; all others are people's."""

_TAG_LOG_FIELD = "workbench_tags"


def tag_frames(
    name: str,
    frames: Iterable[str],
    label: str,
    *,
    by: str = "unknown",
    place: Workspace | None = None,
) -> int:
    """Tag frames, noting who and when; returns how many did not have the tag before."""
    if label in ARM_TAGS or not label.strip():
        raise ParameterError(
            f"{label!r} cannot be a tag of people", hint=f"{', '.join(ARM_TAGS)} are set by mining"
        )
    shown = load_dataset(place, name)
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
        shown.info[_TAG_LOG_FIELD] = [*shown.info.get(_TAG_LOG_FIELD, []), entry]
        shown.save()
    return len(new)


def tagged_frames(name: str, label: str, *, place: Workspace | None = None) -> tuple[str, ...]:
    """Frames with a tag, whoever set it, here or in the App."""
    return tuple(load_dataset(place, name).match_tags(label).values("frame"))


def read_tag_log(name: str, *, place: Workspace | None = None) -> list[dict[str, Any]]:
    """Who tagged what and when, for tags that were set through `tag`."""
    log = load_dataset(place, name).info.get(_TAG_LOG_FIELD, [])
    return [dict(entry) for entry in log if entry["by"] is not None]


def record_app_tags(shown: Any) -> None:
    """Note when tags were set in the App, before publishing changes when a frame was last changed.

    Who set them is not known, so their ``by`` is None.
    """
    log = shown.info.get(_TAG_LOG_FIELD, [])
    noted = {(entry["tag"], frame) for entry in log for frame in entry["frames"]}
    fresh: dict[tuple[str, str], list[str]] = {}
    for frame, tags, at in zip(*shown.values(["frame", "tags", "last_modified_at"]), strict=True):
        for label in set(tags or ()) - set(ARM_TAGS):
            if (label, frame) not in noted:
                fresh.setdefault((label, _utc_text(at)), []).append(frame)
    if fresh:
        entries = [
            {"tag": label, "by": None, "at": at, "frames": frames}
            for (label, at), frames in sorted(fresh.items())
        ]
        shown.info[_TAG_LOG_FIELD] = [*log, *entries]
        shown.save()


def selection_from_tag(
    store: Store, name: str, label: str, by: str, *, model: Ref | None = None
) -> Ref:
    """The frames that carry a tag, as a Selection that says who tagged each and when.

    Tags set through `tag` have their own author and time. FiftyOne's App asks nobody for a name:
    what was tagged there is said to be ``by`` whoever takes it over, at the time of the frame's
    last change before it was published again, and marked ``app``.

    Args:
        name: The dataset in FiftyOne; the Selection is of the dataset version published there.

    Raises:
        DataError: No frame has the tag, or the dataset was published without a version.
        ParameterError: The tag is the workbench's own.
    """
    if label in ARM_TAGS:
        raise ParameterError(
            f"{label!r} was set by mining, not by people",
            where=name,
            hint="What was mined is a Selection already; `curation.newest_selection` names it",
        )
    shown = load_dataset(store.workspace, name)
    version = (shown.info.get("workbench") or {}).get("dataset")
    rows = list(zip(*shown.match_tags(label).values(["frame", "last_modified_at"]), strict=True))
    if not rows:
        theirs = ", ".join(sorted(set(shown.distinct("tags")) - set(ARM_TAGS)))
        raise DataError(
            f"no frame of {name!r} has the tag {label!r}",
            where="FiftyOne",
            hint=f"There are: {theirs or 'no tags of people'}",
        )
    if version is None:
        raise DataError(
            "what FiftyOne shows under this name is of no dataset version",
            where=name,
            hint="Publish it again: a saved dataset, or part of one with its selection",
        )
    known = {frame.id for frame in dataset.load_dataset(store, version).frames}
    who = _tag_authors(shown.info.get(_TAG_LOG_FIELD, []), label, by)
    tagged_by = {
        frame: who.get(frame) or {"by": by, "at": _utc_text(at), "through": "app"}
        for frame, at in rows
        if frame in known
    }
    return store.put(_make_selection(version, model, label, by, tagged_by))


def _make_selection(
    version: Ref, model: Ref | None, label: str, by: str, tagged_by: dict[str, dict[str, str]]
) -> Selection:
    ordered = sorted(tagged_by, key=lambda frame: (tagged_by[frame]["at"], frame))
    chosen = tuple(
        SelectedFrame(
            frame=frame, rank=rank, score=1.0, reasons=(_tag_reason(label, tagged_by[frame]),)
        )
        for rank, frame in enumerate(ordered, start=1)
    )
    return Selection(
        dataset=version,
        model=model,
        budget=len(chosen),
        seed=0,
        method=MANUAL_METHOD,
        parameters={"tag": label, "taken_by": by, "tagged": tagged_by},
        chosen=chosen,
    )


def _tag_authors(
    log: Iterable[dict[str, Any]], label: str, taker: str
) -> dict[str, dict[str, str]]:
    """Who tagged a frame, and when, where that was noted; the first counts."""
    found: dict[str, dict[str, str]] = {}
    for entry in log:
        if entry["tag"] == label:
            for frame in entry["frames"]:
                who = (taker, "app") if entry["by"] is None else (entry["by"], "workbench")
                found.setdefault(frame, {"by": who[0], "at": entry["at"], "through": who[1]})
    return found


def _utc_text(at: datetime | None) -> str:
    moment = at or datetime.now(UTC)
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return aware.astimezone(UTC).isoformat(timespec="seconds")


def _tag_reason(label: str, tagged_by: dict[str, str]) -> str:
    return f"tagged {label!r} by {tagged_by['by']} on {tagged_by['at'][:10]}"

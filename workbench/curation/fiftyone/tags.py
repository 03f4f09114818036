"""Tags set by people, through the workbench or in the App, and selections made from them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from workbench.core.errors import DataError, ParameterError
from workbench.core.names import check_person, check_text
from workbench.core.text import counted
from workbench.core.workspace import Workspace
from workbench.curation.fiftyone.connection import load_fo_dataset
from workbench.curation.selection.mining import MANUAL_METHOD
from workbench.records.base import Ref
from workbench.records.dataset import load_dataset
from workbench.records.store import Store
from workbench.records.types import SelectedFrame, Selection

__all__ = ["tag_frames"]

ARM_TAGS = ("mined", "random", "control")
"""Tags set by mining; all others are people's."""

_TAG_LOG_FIELD = "workbench_tags"


def tag_frames(
    name: str,
    frames: Iterable[str],
    label: str,
    *,
    by: str = "unknown",
    workspace: Workspace | None = None,
) -> int:
    """Tag frames, with author and time.

    Args:
        name: The dataset in FiftyOne.
        frames: Digests.
        label: The tag.
        by: The author.
        workspace: By default, that of the current folder.

    Returns:
        How many frames did not have the tag before.

    Raises:
        ParameterError: The tag is reserved or cannot be a tag, or the author's name is invalid.
        DataError: There is no such dataset, or a frame is not in it.
    """
    check_text(label, "tag")
    if label in ARM_TAGS:
        raise ParameterError(
            f"reserved tag {label!r}", hint=f"{', '.join(ARM_TAGS)} are set by mining"
        )
    by = check_person(by, "author")
    fo_dataset = load_fo_dataset(workspace, name)
    tags = dict(zip(*fo_dataset.values(["frame", "tags"]), strict=True))
    unique = list(dict.fromkeys(frames))
    unknown = [frame for frame in unique if frame not in tags]
    if unknown:
        raise DataError(
            f"{counted(len(unknown), 'frame')} not in the FiftyOne dataset {name!r}",
            where=unknown[0],
            hint="Publish the dataset version that has them",
        )
    new = [frame for frame in unique if label not in tags[frame]]
    if new:
        values = {frame: [*tags[frame], label] for frame in new}
        fo_dataset.set_values("tags", values, key_field="frame")
        at = datetime.now(UTC).isoformat(timespec="seconds")
        entry = {"tag": label, "by": by, "at": at, "frames": new}
        fo_dataset.info[_TAG_LOG_FIELD] = [*fo_dataset.info.get(_TAG_LOG_FIELD, []), entry]
        fo_dataset.save()
    return len(new)


def tagged_frames(name: str, label: str, *, workspace: Workspace | None = None) -> tuple[str, ...]:
    """Frames with a tag, whoever set it, through the workbench or in the App."""
    return tuple(load_fo_dataset(workspace, name).match_tags(label).values("frame"))


def read_tag_log(name: str, *, workspace: Workspace | None = None) -> list[dict[str, Any]]:
    """Who tagged what and when, for tags set by `tag_frames`."""
    log = load_fo_dataset(workspace, name).info.get(_TAG_LOG_FIELD, [])
    return [dict(entry) for entry in log if entry["by"] is not None]


def record_app_tags(fo_dataset: Any) -> None:
    """Record the time of tags set in the App, before publishing changes when a frame was last
    modified.

    Their author is unknown, so ``by`` is None.
    """
    log = fo_dataset.info.get(_TAG_LOG_FIELD, [])
    recorded = {(entry["tag"], frame) for entry in log for frame in entry["frames"]}
    new: dict[tuple[str, str], list[str]] = {}
    for frame, tags, at in zip(
        *fo_dataset.values(["frame", "tags", "last_modified_at"]), strict=True
    ):
        for label in set(tags or ()) - set(ARM_TAGS):
            if (label, frame) not in recorded:
                new.setdefault((label, _utc_text(at)), []).append(frame)
    if new:
        entries = [
            {"tag": label, "by": None, "at": at, "frames": frames}
            for (label, at), frames in sorted(new.items())
        ]
        fo_dataset.info[_TAG_LOG_FIELD] = [*log, *entries]
        fo_dataset.save()


def selection_from_tag(
    store: Store, name: str, label: str, by: str, *, model: Ref | None = None
) -> Ref:
    """Save the frames with a tag as a Selection that records who tagged each and when.

    Tags set by `tag_frames` have their own author and time. The App does not ask for a name: tags
    set there are attributed to ``by``, at the time of the frame's last change before it was
    published again, and marked ``app``.

    Args:
        store: Holds the records.
        name: The dataset in FiftyOne; the Selection is of the dataset version published
            there.
        label: The tag.
        by: Who takes over the tags.
        model: The checkpoint used to find the frames, if any.

    Raises:
        DataError: No frame has the tag, or the dataset was published without a version.
        ParameterError: The tag is set by mining.
    """
    check_text(label, "tag")
    by = check_person(by, "author")
    if label in ARM_TAGS:
        raise ParameterError(
            f"tag {label!r} was set by mining, not by people",
            where=name,
            hint="Mined frames are a Selection already, see `curation.newest_selection`",
        )
    fo_dataset = load_fo_dataset(store.workspace, name)
    version = (fo_dataset.info.get("workbench") or {}).get("dataset")
    rows = list(
        zip(*fo_dataset.match_tags(label).values(["frame", "last_modified_at"]), strict=True)
    )
    if not rows:
        tags = ", ".join(sorted(set(fo_dataset.distinct("tags")) - set(ARM_TAGS)))
        raise DataError(
            f"no frame of {name!r} has the tag {label!r}",
            where="FiftyOne",
            hint=f"Tags: {tags or 'none'}",
        )
    if version is None:
        raise DataError(
            "the FiftyOne dataset was published without a dataset version",
            where=name,
            hint="Publish a saved dataset, or part of one with its selection",
        )
    frames_of_version = {frame.id for frame in load_dataset(store, version).frames}
    authors = _tag_authors(fo_dataset.info.get(_TAG_LOG_FIELD, []), label, by)
    tagged_by = {
        frame: authors.get(frame) or {"by": by, "at": _utc_text(at), "through": "app"}
        for frame, at in rows
        if frame in frames_of_version
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
    """Author and time of each tagged frame where recorded; the first entry counts."""
    authors: dict[str, dict[str, str]] = {}
    for entry in log:
        if entry["tag"] == label:
            for frame in entry["frames"]:
                author = (taker, "app") if entry["by"] is None else (entry["by"], "workbench")
                authors.setdefault(
                    frame, {"by": author[0], "at": entry["at"], "through": author[1]}
                )
    return authors


def _utc_text(at: datetime | None) -> str:
    time = at or datetime.now(UTC)
    time_utc = time if time.tzinfo else time.replace(tzinfo=UTC)
    return time_utc.astimezone(UTC).isoformat(timespec="seconds")


def _tag_reason(label: str, tagged_by: dict[str, str]) -> str:
    return f"tagged {label!r} by {tagged_by['by']} on {tagged_by['at'][:10]}"

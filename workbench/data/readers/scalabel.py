"""Scalabel and BDD100K: frames with ``name``, ``attributes`` and ``labels``.

A file is a list of frames or has ``frames``; BDD100K's first release has one file per image, with
``frames[0].objects``. ``box2d`` is x1, y1, x2, y2 in pixels, taken as continuous. ``attributes``
have ``weather`` and ``timeofday`` in words that `workbench.data.conditions` translates. A frame
without ``labels`` was not labeled, which is not the same as an empty list. Yu et al., "BDD100K: A
Diverse Driving Dataset for Heterogeneous Multitask Learning", CVPR 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.core.errors import DataError
from workbench.core.parsing import UNREADABLE, describe_unreadable
from workbench.core.types import Json
from workbench.data.files import (
    find_files,
    parse_flag,
    parse_integer,
    parse_number,
    parse_size,
    read_json,
    refuse_score,
    relative_name,
)
from workbench.data.names import parse_file_name, ride_of
from workbench.data.readers.claims import Claim, ImageFinder, images_root, settle_claims
from workbench.data.source import Source, SourceBox, SourceFrame, left_out_text, mislabelled
from workbench.records.types import Quarantined

__all__ = ()


_MAX_PROBED = 20
# Lanes and drivable areas are drawn as lines and surfaces; they are not objects.
_NOT_OBJECTS = ("lane", "drivable area", "area")


def is_scalabel(source: Path) -> bool:
    """Whether ``source`` is, or has among its first JSON files, a Scalabel file."""
    return any(_frames_of(path) is not None for path in _json_files(source)[:_MAX_PROBED])


def read_scalabel(source: Path) -> Source:
    """Read the Scalabel file ``source``, or all in the folder ``source``.

    Raises:
        DataError: There is no Scalabel file.
    """
    root = images_root(source)
    problems: list[Quarantined] = []
    entries: list[_Entry] = []
    found = False
    for path in _json_files(source):
        frames = _frames_of(path)
        if frames is not None:
            found = True
            where = relative_name(path, root)
            for frame in frames:
                if isinstance(frame, dict) and frame.get("name"):
                    entries.append(_Entry(frame, path, where))
                else:
                    problems.append(mislabelled(where, f"a frame without name: {str(frame)[:80]}"))
    if not found:
        raise DataError("not a Scalabel file", where=source, hint="Try another --format")
    finder = ImageFinder(root)
    # Where nothing has labels, the source is one of images; else nobody labeled these.
    some_labeled = any(entry.labels is not None for entry in entries)
    claims = []
    for entry in entries:
        claim = _claim(entry, finder, some_labeled, problems)
        if claim is not None:
            claims.append(claim)
    settled, contradictions = settle_claims(claims)
    return Source(
        format="scalabel", root=root, frames=settled, problems=(*problems, *contradictions)
    )


@dataclass(frozen=True)
class _Entry:
    frame: Json
    path: Path
    where: str

    @property
    def labels(self) -> Any:
        """The labels; None if there is no entry."""
        return self.frame.get("labels")


def _json_files(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix.lower() == ".json" else []
    return find_files(source, {".json"})


def _frames_of(path: Path) -> list[Any] | None:
    """The frames of a file; None if it is not Scalabel."""
    try:
        body = read_json(path)
    except ValueError:
        return None
    if isinstance(body, dict) and isinstance(body.get("frames"), list):
        frames: list[Any] = body["frames"]
        if body.get("name") and frames and all(_has_objects(frame) for frame in frames):
            return [_from_first_release(body, frame) for frame in frames]
    else:
        frames = body if isinstance(body, list) else []
    keys = ("labels", "attributes", "videoName", "timestamp", "frameIndex")
    fits = any(
        isinstance(frame, dict) and frame.get("name") and any(key in frame for key in keys)
        for frame in frames
    )
    return frames if fits else None


def _has_objects(frame: Any) -> bool:
    return isinstance(frame, dict) and "objects" in frame and "name" not in frame


def _from_first_release(body: Json, frame: Json) -> Json:
    return {
        "name": body["name"],
        "attributes": body.get("attributes"),
        "timestamp": frame.get("timestamp"),
        "labels": frame.get("objects"),
    }


def _claim(
    entry: _Entry, finder: ImageFinder, some_labeled: bool, problems: list[Quarantined]
) -> Claim | None:
    name = str(entry.frame["name"])
    labels = entry.labels
    if labels is not None and not isinstance(labels, list):
        problems.append(mislabelled(name, f"its labels are not a list but {str(labels)[:60]}"))
        return None
    boxes, failed = _boxes(entry.frame, entry.where, problems)
    video = entry.frame.get("videoName") or entry.frame.get("video_name")
    file, reason = finder.find(name, entry.path.parent)
    if file is None and video:
        file, reason = finder.find(f"{video}/{name}", entry.path.parent)
    if file is None:
        detail = f"named in {entry.where}: {reason}{left_out_text(boxes)}"
        problems.append(Quarantined(file=name, reason="missing", detail=detail))
        return None
    if labels is None and some_labeled:
        detail = "nobody labeled it: it has no `labels`, which is not an empty list"
        problems.append(Quarantined(file=name, reason="missing", detail=detail))
        return None
    try:
        frame = _frame(entry.frame, file, finder.root, boxes, failed)
    except UNREADABLE as error:
        reason = describe_unreadable(error)
        detail = f"its description cannot be read ({reason}){left_out_text(boxes)}"
        problems.append(mislabelled(name, detail))
        return None
    return Claim(name, entry.where, frame)


def _frame(
    row: Json, file: Path, root: Path, boxes: tuple[SourceBox, ...], failed: int
) -> SourceFrame:
    parts = parse_file_name(str(row["name"]))
    video = row.get("videoName") or row.get("video_name")
    number = row.get("frameIndex", row.get("frame_index"))
    # A still is a moment of a video that is not here: its name says more than its time.
    timestamp = row.get("timestamp") if number is not None else None
    attributes = row.get("attributes") or {}
    if not isinstance(attributes, dict):
        raise ValueError(f"attributes are not an object but {str(attributes)[:60]}")
    words = (("light", attributes.get("timeofday")), ("weather", attributes.get("weather")))
    size = row.get("size") if isinstance(row.get("size"), dict) else {}
    drive = parts.drive
    if video:
        # Stills of one ride resemble each other; a video is numbered for itself.
        drive = str(video) if number is not None else ride_of(str(video))
    return SourceFrame(
        file=file,
        name=relative_name(file, root),
        drive=drive,
        index=parts.index if number is None else parse_integer(number, "frameIndex"),
        counter=parts.counter,
        timestamp_us=parts.timestamp_us
        if timestamp is None
        else round(parse_number(timestamp, "timestamp") * 1000),
        clock=parts.clock if number is None else None,
        condition_words=tuple((kind, str(word)) for kind, word in words if word is not None),
        size=parse_size(size.get("width"), size.get("height")) if size else None,
        boxes=boxes,
        failed=failed,
    )


def _boxes(
    frame: Json, where: str, problems: list[Quarantined]
) -> tuple[tuple[SourceBox, ...], int]:
    boxes: list[SourceBox] = []
    failed = 0
    name = str(frame["name"])
    tracked = frame.get("frameIndex", frame.get("frame_index")) is not None
    for number, label in enumerate(frame.get("labels") or (), start=1):
        detail = (
            f"label {label.get('id', number)}" if isinstance(label, dict) else f"label {number}"
        )
        try:
            if not isinstance(label, dict) or not label.get("category"):
                raise ValueError("it has no category")
            category = str(label["category"])
            if category.split("/", maxsplit=1)[0] in _NOT_OBJECTS and not label.get("box2d"):
                continue
            boxes.append(_box(label, category, detail, tracked))
        except UNREADABLE as error:
            failed += 1
            reason = describe_unreadable(error)
            problems.append(mislabelled(name, f"{detail} in {where}: {reason}"))
    return tuple(boxes), failed


def _box(label: Json, category: str, detail: str, tracked: bool) -> SourceBox:
    refuse_score(label.get("score"))
    attributes = label.get("attributes")
    attributes = attributes if isinstance(attributes, dict) else {}
    crowd = attributes.get("crowd", attributes.get("Crowd"))
    ignored = attributes.get("ignored", label.get("ignored"))
    return SourceBox(
        name=category,
        corners=_corners(label),
        detail=detail,
        occluded=_absent_is_zero(attributes.get("occluded", attributes.get("Occluded"))),
        truncated=_absent_is_zero(attributes.get("truncated", attributes.get("Truncated"))),
        ignore=parse_flag(crowd, "crowd") or parse_flag(ignored, "ignored"),
        track=str(label["id"]) if tracked and label.get("id") is not None else None,
    )


def _corners(label: Json) -> tuple[float, float, float, float]:
    box = label.get("box2d")
    if isinstance(box, dict):
        if not {"x1", "y1", "x2", "y2"} <= box.keys():
            raise ValueError(f"its box2d has no x1, y1, x2, y2: {str(box)[:60]}")
        x0, y0, x1, y1 = (parse_number(box[key], key) for key in ("x1", "y1", "x2", "y2"))
        return x0, y0, x1, y1
    shapes = label.get("poly2d") or ()
    if not isinstance(shapes, list | tuple):
        raise ValueError(f"its poly2d is not a list but {str(shapes)[:60]}")
    points = [point for shape in shapes for point in _vertices(shape)]
    if not points:
        raise ValueError("it has no box2d and no polygon")
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def _vertices(shape: Any) -> list[tuple[float, float]]:
    """The vertices of a polygon; none for a line."""
    if isinstance(shape, dict) and parse_flag(shape.get("closed", True), "closed"):
        rows = shape.get("vertices") or ()
        pairs = isinstance(rows, list | tuple) and all(
            isinstance(row, list) and len(row) >= 2 for row in rows
        )
        if not pairs:
            raise ValueError(f"its vertices are not pairs: {str(rows)[:60]}")
        return [(parse_number(row[0], "x"), parse_number(row[1], "y")) for row in rows]
    return []


def _absent_is_zero(flag: Any) -> float | None:
    """0 if the flag says that nothing is hidden; true does not say how much."""
    return 0.0 if flag is not None and not parse_flag(flag) else None

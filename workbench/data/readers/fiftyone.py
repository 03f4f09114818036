"""FiftyOne's exports: FiftyOneDataset (``samples.json``) and FiftyOneImageDetectionDataset.

``bounding_box`` is [x, y, width, height] in fractions of the image, origin top left. Of polylines
the box around their points is taken. Labels are the field ``ground_truth``, else the only one with
boxes. FiftyOne's
exports in the formats of COCO, YOLO, VOC and KITTI are read by those readers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.core.errors import DataError
from workbench.core.parsing import UNREADABLE, describe_unreadable
from workbench.core.types import Json
from workbench.data.files import (
    parse_integer,
    parse_number,
    parse_size,
    read_json,
    refuse_rotation,
    relative_name,
)
from workbench.data.names import parse_file_name
from workbench.data.readers.claims import Claim, ImageFinder, settle_claims
from workbench.data.source import Source, SourceBox, SourceFrame, left_out_text, mislabelled
from workbench.records.types import Quarantined

__all__ = ()


def is_fiftyone(source: Path) -> bool:
    """Whether ``source`` is an export of FiftyOne with its labels as JSON."""
    return _entries(source) is not None


def read_fiftyone(source: Path) -> Source:
    """Read the samples of an export.

    Raises:
        DataError: There is neither samples.json nor labels.json of FiftyOne.
    """
    entries = _entries(source)
    if entries is None:
        raise DataError("not a FiftyOne export", where=source, hint="Try another --format")
    path, rows = entries
    finder = ImageFinder(source)
    problems: list[Quarantined] = []
    claims = []
    for name, meta, detections in rows:
        boxes, failed = _boxes(name, detections, problems)
        file, reason = finder.find(name, source / "data")
        if file is None:
            detail = f"named in {path.name}: {reason}{left_out_text(boxes)}"
            problems.append(Quarantined(file=name, reason="missing", detail=detail))
            continue
        if detections is None:
            detail = "nobody labeled it: it has no detections, which is not an empty list"
            problems.append(Quarantined(file=name, reason="missing", detail=detail))
            continue
        try:
            size = parse_size(meta.get("width"), meta.get("height"))
        except UNREADABLE as error:
            detail = f"its metadata cannot be read ({describe_unreadable(error)})"
            problems.append(mislabelled(name, detail + left_out_text(boxes)))
            continue
        parts = parse_file_name(relative_name(file, source))
        frame = SourceFrame(
            file=file,
            name=relative_name(file, source),
            drive=parts.drive,
            index=parts.index,
            counter=parts.counter,
            timestamp_us=parts.timestamp_us,
            clock=parts.clock,
            size=size,
            boxes=boxes,
            failed=failed,
        )
        claims.append(Claim(name, path.name, frame))
    frames, contradictions = settle_claims(claims)
    return Source(
        format="fiftyone", root=source, frames=frames, problems=(*problems, *contradictions)
    )


_Row = tuple[str, Json, list[Any] | None]


def _entries(source: Path) -> tuple[Path, list[_Row]] | None:
    """The JSON file, and the name, metadata and detections of each image."""
    if not source.is_dir():
        return None
    for name, rows_of in (("samples.json", _from_samples), ("labels.json", _from_labels)):
        path = source / name
        if path.is_file():
            try:
                rows = rows_of(read_json(path), source)
            except ValueError:
                continue
            if rows is not None:
                return path, rows
    return None


def _from_samples(body: Any, source: Path) -> list[_Row] | None:
    samples = body.get("samples") if isinstance(body, dict) else None
    if not isinstance(samples, list):
        return None
    rows: list[_Row] = []
    usable = [one for one in samples if isinstance(one, dict) and one.get("filepath")]
    fields = list(dict.fromkeys(k for one in usable for k, v in one.items() if _is_labels(v)))
    # Exports have `ground_truth`, and predictions beside it.
    if _TRUTH not in fields and len(fields) > 1:
        raise DataError(
            f"ambiguous ground truth field: {' and '.join(map(str, fields))}",
            where=source / "samples.json",
            hint=f"Export one field, or call it {_TRUTH}",
        )
    field = _TRUTH if _TRUTH in fields or not fields else fields[0]
    for sample in usable:
        meta = sample.get("metadata")
        meta = meta if isinstance(meta, dict) else {}
        rows.append((str(sample["filepath"]), meta, _detections_of(sample.get(field))))
    if all(detections is None for _, _, detections in rows):
        rows = [(name, meta, []) for name, meta, _ in rows]  # a source of images
    return rows


_TRUTH = "ground_truth"
_LISTS = {"Detections": "detections", "Polylines": "polylines"}
_SINGLE = ("Detection", "Polyline")


def _is_labels(value: Any) -> bool:
    return isinstance(value, dict) and value.get("_cls") in (*_LISTS, *_SINGLE)


def _detections_of(value: Any) -> list[Any] | None:
    """The detections or polylines of a field; None if nobody labeled it."""
    if not _is_labels(value):
        return None
    found = [value] if value["_cls"] in _SINGLE else value.get(_LISTS[value["_cls"]]) or []
    return found if isinstance(found, list) else None


def _from_labels(body: Any, source: Path) -> list[_Row] | None:
    labels = body.get("labels") if isinstance(body, dict) else None
    if not isinstance(labels, dict) or not isinstance(body.get("classes"), list):
        return None
    classes = body["classes"]
    rows: list[_Row] = []
    for name, detections in labels.items():
        if isinstance(detections, list):
            named = [_named(each, classes) for each in detections]
            rows.append((f"data/{name}", {}, named))
        else:
            rows.append((f"data/{name}", {}, None))
    return rows


def _named(detection: Any, classes: list[Any]) -> Any:
    """A detection with its class by name; the export writes numbers."""
    if isinstance(detection, dict) and isinstance(detection.get("label"), int):
        number = parse_integer(detection["label"])
        if 0 <= number < len(classes):
            return {**detection, "label": str(classes[number])}
    return detection


def _boxes(
    name: str, detections: list[Any] | None, problems: list[Quarantined]
) -> tuple[tuple[SourceBox, ...], int]:
    boxes, failed = [], 0
    for number, detection in enumerate(detections or (), start=1):
        detail = f"detection {number}"
        try:
            boxes.append(_box(detection, detail))
        except UNREADABLE as error:
            failed += 1
            problems.append(mislabelled(name, f"{detail}: {describe_unreadable(error)}"))
    return tuple(boxes), failed


def _box(detection: Json, detail: str) -> SourceBox:
    box = detection.get("bounding_box") if isinstance(detection, dict) else None
    if isinstance(detection, dict) and detection.get("points"):
        points = [point for shape in detection["points"] for point in shape]
        xs, ys = ([parse_number(point[i], "point") for point in points] for i in (0, 1))
        box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    if not isinstance(box, list) or len(box) != 4:
        raise ValueError("its bounding_box is not [x, y, width, height]")
    if detection.get("confidence") is not None:
        raise ValueError("a model's output with its confidence, not a label")
    refuse_rotation(detection.get("rotation"), "radians")
    if detection.get("label") is None:
        raise ValueError("it has no label")
    x, y, w, h = (parse_number(value, "bounding_box value") for value in box)
    track = detection.get("index")
    return SourceBox(
        name=str(detection.get("label")),
        corners=(x, y, x + w, y + h),
        detail=detail,
        normalised=True,
        track=None if track is None else str(track),
    )

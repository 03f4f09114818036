"""COCO detection files: ``bbox`` is [x, y, width, height] in pixels, origin top left.

Beyond COCO, an image may carry ``drive`` (or ``sequence``), ``index``, ``timestamp_us``,
``light`` (or ``lighting``), ``weather``, ``construction`` and ``events``, and an annotation
``occluded``, ``truncated`` (fractions) and ``track``. ``iscrowd`` marks an ignore region. Without a
``bbox``, the box round the polygons of ``segmentation`` is taken. ``ignore`` is like ``iscrowd``,
and ``bbox_mode`` (detectron2) is obeyed. Boxes that only fit their images as corners are refused.

A folder may have one file, Roboflow's ``_annotations.coco.json`` in each of its folders, or COCO
2017's ``annotations/instances_*.json``; the last two are read together.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.core.errors import DataError
from workbench.core.parsing import UNREADABLE, describe_unreadable
from workbench.core.types import Json
from workbench.data.files import (
    find_files,
    identity_of,
    parse_flag,
    parse_integer,
    parse_number,
    parse_size,
    read_json,
    refuse_rotation,
    refuse_score,
    relative_name,
)
from workbench.data.names import parse_file_name
from workbench.data.readers.claims import Claim, ImageFinder, images_root, is_outside, settle_claims
from workbench.data.source import Source, SourceBox, SourceFrame, left_out_text, mislabelled
from workbench.records.frames import Conditions
from workbench.records.types import Quarantined

__all__ = ()


_COMMON_FILE_NAMES = (
    "labels.coco.json",
    "_annotations.coco.json",
    "annotations.json",
    "instances.json",
)
_ROBOFLOW_NAME = "_annotations.coco.json"
_BOX_MODES = {"0": "corners", "XYXY_ABS": "corners", "1": "sizes", "XYWH_ABS": "sizes"}
_MAX_PROBED = 20
_MIN_FOR_CORNERS = 5
"""So many boxes with x1 < x2 and y1 < y2 are no accident, where one of them leaves its image."""


def is_coco(source: Path) -> bool:
    """Whether ``source`` is or contains a COCO file."""
    return bool(_candidates(source))


def read_coco(source: Path) -> Source:
    """Read the COCO file ``source``, or those in the folder ``source``.

    Raises:
        DataError: There is no COCO file, or several that do not belong together.
    """
    paths = _coco_files(source)
    root = images_root(source)
    finder = ImageFinder(root)
    problems: list[Quarantined] = []
    claims = [claim for path in paths for claim in _read_file(path, finder, problems)]
    frames, contradictions = settle_claims(claims)
    return Source(format="coco", root=root, frames=frames, problems=(*problems, *contradictions))


def _coco_files(source: Path) -> list[Path]:
    files = _candidates(source)
    if len(files) == 1 or _belong_together(files, source):
        return files
    if not files:
        listed = [source] if source.is_file() else find_files(source, {".json"})
        problems = [problem for path in listed[:_MAX_PROBED] if (problem := _problem(path))]
        raise DataError(
            "no COCO file" + (f": {'; '.join(problems[:3])}" if problems else ""),
            where=source,
            hint="Correct the file, or try another --format",
        )
    names = ", ".join(relative_name(path, source) for path in files[:5])
    raise DataError(
        f"several COCO files: {names}",
        where=source,
        hint="Name one of them instead of the folder",
    )


def _belong_together(files: list[Path], source: Path) -> bool:
    """Whether files describe the parts of one dataset (training, validation, test)."""
    if all(path.name == _ROBOFLOW_NAME for path in files):
        return bool(files)
    return all(
        path.parent == source / "annotations" and path.name.startswith("instances_")
        for path in files
    )


def _candidates(source: Path) -> list[Path]:
    """COCO files in ``source``; one with a common name takes precedence."""
    if source.is_file():
        return [source] if source.suffix.lower() == ".json" and _is_coco_file(source) else []
    for name in _COMMON_FILE_NAMES:
        if (source / name).is_file() and _is_coco_file(source / name):
            return [source / name]
    listed = [*sorted(source.glob("*.json")), *sorted(source.glob("annotations/*.json"))]
    found = [path for path in listed if not path.name.startswith(".") and _is_coco_file(path)]
    instances = [path for path in found if path.name.startswith("instances_")]
    if instances and all(path.parent.name == "annotations" for path in found):
        return instances  # beside COCO's captions and key points of the same images
    if found:
        return found
    return [path for path in find_files(source, {".json"}) if path.name == _ROBOFLOW_NAME]


def _is_coco_file(path: Path) -> bool:
    return not _problem(path)


def _problem(path: Path) -> str:
    """Why a file is no COCO file; empty if it is one."""
    try:
        _load(path)
    except DataError as error:
        return f"{path.name}: {error.what}"
    return ""


def _load(path: Path) -> Json:
    try:
        body = read_json(path)
    except ValueError as error:
        raise DataError(f"cannot read the COCO file: {error}", where=path) from error
    parts = ("images", "annotations", "categories")
    if not isinstance(body, dict) or not all(isinstance(body.get(part), list) for part in parts):
        keys = body if isinstance(body, dict) else {}
        lacking = ", ".join(part for part in parts if not isinstance(keys.get(part), list))
        raise DataError(f"not a COCO detection file: it has no list of {lacking}", where=path)
    return body


@dataclass
class _Annotations:
    """Boxes by image id, and how many annotations of each image cannot be read."""

    boxes: dict[str, list[SourceBox]] = field(default_factory=lambda: defaultdict(list))
    failed: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def _read_file(path: Path, finder: ImageFinder, problems: list[Quarantined]) -> list[Claim]:
    body = _load(path)
    where = relative_name(path, finder.root)
    _check_convention(body, path)
    annotations = _annotations(body, where, problems)
    shared = _shared_ids(body)
    claims = []
    seen: set[str] = set()
    for image in body["images"]:
        has_id = isinstance(image, dict) and "id" in image
        names = shared.get(identity_of(image["id"])) if has_id else None
        if names:
            image_id = identity_of(image["id"])
            detail = f"image id {image_id} is used for {' and '.join(names)}: all are left out"
            boxes = left_out_text(annotations.boxes.get(image_id, ()))
            problems.append(mislabelled(str(image.get("file_name")), detail + boxes))
            continue
        claim = _claim(image, annotations, finder, path, problems)
        if claim is not None and identity_of(image["id"]) not in seen:  # else the entry again
            seen.add(identity_of(image["id"]))
            claims.append(claim)
    known = {identity_of(image.get("id")) for image in body["images"] if isinstance(image, dict)}
    if annotations.boxes and known.isdisjoint(annotations.boxes):
        raise DataError(
            f"no annotation is about one of the images: image_id is {next(iter(annotations.boxes))}"
            f" and the like, and ids of images are {', '.join(sorted(known)[:3])} and the like",
            where=path,
            hint="Correct image_id; without boxes all images would count as empty",
        )
    for image_id, orphans in annotations.boxes.items():
        if image_id not in known:
            for box in orphans:
                detail = f"{box.detail}: no image has id {image_id}"
                problems.append(mislabelled(where, detail))
    return claims


def _check_convention(body: Json, path: Path) -> None:
    """Refuse a file whose boxes are corners.

    They are if all have x1 < x2 and y1 < y2 within their images, and some leave them when read as
    width and height, or if ``area`` says so. Taken for sizes they would be too large in silence.
    """
    sizes = {}
    for image in body["images"]:
        with contextlib.suppress(*UNREADABLE):
            sizes[identity_of(image["id"])] = parse_size(image["width"], image["height"])
    wrong, checked = 0, 0
    for one in body["annotations"]:
        try:
            a, b, c, d = (parse_number(value) for value in one["bbox"])
            size = sizes.get(identity_of(one["image_id"]))
            area, mode = parse_number(one.get("area") or 0), one.get("bbox_mode")
        except UNREADABLE:
            continue
        if size is None or mode is not None:
            continue
        width, height = size
        checked += 1
        if not (a < c <= width + 1 and b < d <= height + 1):
            return
        outside = a + c > 1.01 * width + 1 or b + d > 1.01 * height + 1
        corners = (c - a) * (d - b)
        wrong += outside or (area != c * d and abs(area - corners) <= 0.001 * corners)
    if wrong and (wrong == checked or checked >= _MIN_FOR_CORNERS):
        raise DataError(
            f"boxes are [x1, y1, x2, y2], not COCO's [x, y, width, height]: {wrong} of {checked} "
            "do not fit as sizes, and all do as corners",
            where=path,
            hint="Convert them, or add bbox_mode 0 to each annotation",
        )


def _shared_ids(body: Json) -> dict[str, list[str]]:
    """The names of the images that share an id, which leaves open whose boxes are whose."""
    names: dict[str, list[str]] = defaultdict(list)
    for image in body["images"]:
        if isinstance(image, dict) and "id" in image and image.get("file_name"):
            names[identity_of(image.get("id"))].append(str(image["file_name"]).replace("\\", "/"))
    return {
        image_id: list(dict.fromkeys(several))
        for image_id, several in names.items()
        if len(set(several)) > 1
    }


def _annotations(body: Json, where: str, problems: list[Quarantined]) -> _Annotations:
    names = _category_names(body)
    result = _Annotations()
    for annotation in body["annotations"]:
        if not isinstance(annotation, dict):
            problems.append(mislabelled(where, f"no annotation: {str(annotation)[:80]}"))
            continue
        detail = f"annotation {annotation.get('id')}"
        try:
            if "image_id" not in annotation:
                raise ValueError("it has no image_id")
            box = _box(annotation, names, detail)
        except UNREADABLE as error:
            problems.append(mislabelled(where, f"{detail}: {describe_unreadable(error)}"))
            result.failed[identity_of(annotation.get("image_id"))] += 1
        else:
            result.boxes[identity_of(annotation["image_id"])].append(box)
    return result


def _category_names(body: Json) -> dict[str, set[str]]:
    names: dict[str, set[str]] = defaultdict(set)
    for row in body["categories"]:
        if isinstance(row, dict) and row.get("name") is not None:
            names[identity_of(row.get("id"))].add(str(row["name"]))
    return names


def _box(annotation: Json, names: dict[str, set[str]], detail: str) -> SourceBox:
    refuse_score(annotation.get("score"))
    attributes = annotation.get("attributes")
    attributes = attributes if isinstance(attributes, dict) else {}
    refuse_rotation(attributes.get("rotation"))
    category = identity_of(annotation.get("category_id"))
    found = names.get(category, {f"category {category}"})
    if len(found) > 1:
        several = " and ".join(sorted(found))
        raise ValueError(f"category {category} has several names: {several}")
    return SourceBox(
        name=next(iter(found)),
        corners=_corners(annotation),
        detail=detail,
        occluded=_fraction_or_none(annotation.get("occluded", attributes.get("occluded"))),
        truncated=_fraction_or_none(annotation.get("truncated")),
        ignore=parse_flag(annotation.get("iscrowd"), "iscrowd")
        or parse_flag(annotation.get("ignore"), "ignore"),
        track=None if annotation.get("track") is None else str(annotation["track"]),
    )


def _corners(annotation: Json) -> tuple[float, float, float, float]:
    bbox, segmentation = annotation.get("bbox"), annotation.get("segmentation")
    if segmentation and (not bbox or bbox == [0, 0, 0, 0]):
        return _corners_of_polygons(segmentation)
    if isinstance(bbox, dict) and {"x", "y", "width", "height"} <= bbox.keys():
        bbox = [bbox[key] for key in ("x", "y", "width", "height")]  # imglab
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise ValueError(f"its bbox is not [x, y, width, height] but {str(bbox)[:60]}")
    x, y, w, h = values = [parse_number(value, "bbox value") for value in bbox]
    if all(0 <= value <= 1 for value in values) and any(0 < value < 1 for value in values):
        raise ValueError(f"its bbox {bbox} is in fractions of the image; COCO boxes are in pixels")
    mode = str(annotation.get("bbox_mode", 1)).upper()
    if mode not in _BOX_MODES:
        raise ValueError(f"bbox_mode {mode} is neither 0 (XYXY_ABS) nor 1 (XYWH_ABS)")
    return (x, y, w, h) if _BOX_MODES[mode] == "corners" else (x, y, x + w, y + h)


def _corners_of_polygons(segmentation: Any) -> tuple[float, float, float, float]:
    if not isinstance(segmentation, list):
        raise ValueError("it has a segmentation mask and no bbox")
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    if not all(isinstance(polygon, list) and len(polygon) >= 6 for polygon in polygons):
        raise ValueError("it has no bbox, and its segmentation is not of polygons")
    values = [[parse_number(value, "coordinate") for value in polygon] for polygon in polygons]
    xs = [x for polygon in values for x in polygon[0::2]]
    ys = [y for polygon in values for y in polygon[1::2]]
    return min(xs), min(ys), max(xs), max(ys)


def _fraction_or_none(value: Any) -> float | None:
    # Some exporters write flags: false is 0, and true does not say how much.
    if value is None or isinstance(value, bool):
        return None if value is not False else 0.0
    if isinstance(value, str) and value.strip().lower() in ("true", "false", "yes", "no", ""):
        return 0.0 if value.strip().lower() in ("false", "no") else None
    number = parse_number(value, "fraction")
    return number if 0 <= number <= 1 else None


def _claim(
    image: Any,
    annotations: _Annotations,
    finder: ImageFinder,
    path: Path,
    problems: list[Quarantined],
) -> Claim | None:
    where = relative_name(path, finder.root)
    if not isinstance(image, dict) or "id" not in image or not image.get("file_name"):
        problems.append(mislabelled(where, f"an image without id or file_name: {str(image)[:80]}"))
        return None
    name, image_id = str(image["file_name"]), identity_of(image["id"])
    boxes = tuple(annotations.boxes.get(image_id, ()))
    file, reason = finder.find(name, path.parent)
    if file is None:
        detail = f"named in {where}: {reason}{left_out_text(boxes)}"
        problems.append(Quarantined(file=name, reason="missing", detail=detail))
        return None
    try:
        frame = _frame(image, file, finder.root, boxes, annotations.failed.get(image_id, 0))
    except UNREADABLE as error:
        reason = describe_unreadable(error)
        detail = f"its description cannot be read ({reason}){left_out_text(boxes)}"
        problems.append(mislabelled(name, detail))
        return None
    return Claim(name, where, frame)


def _frame(
    image: Json, file: Path, root: Path, boxes: tuple[SourceBox, ...], failed: int
) -> SourceFrame:
    name = str(image["file_name"])
    # Folders of another machine say nothing about the drive.
    parts = parse_file_name(relative_name(file, root) if is_outside(name) else name)
    index, timestamp = image.get("index"), image.get("timestamp_us")
    if timestamp is not None:
        timestamp = parse_integer(timestamp, "timestamp_us")
    own_clock = index is None and timestamp is None
    events = image.get("events") or ()
    words = (
        ("light", image.get("light") or image.get("lighting")),
        ("weather", image.get("weather")),
    )
    return SourceFrame(
        file=file,
        name=relative_name(file, root),
        drive=str(image.get("drive") or image.get("sequence") or parts.drive),
        index=parts.index if index is None else parse_integer(index, "index"),
        counter=parts.counter,
        timestamp_us=parts.timestamp_us if timestamp is None else timestamp,
        clock=parts.clock if own_clock else None,
        conditions=Conditions(construction=parse_flag(image.get("construction"), "construction")),
        condition_words=tuple((kind, str(word)) for kind, word in words if word is not None),
        events=tuple(str(event) for event in events),
        size=parse_size(image.get("width"), image.get("height")),
        boxes=boxes,
        failed=failed,
    )

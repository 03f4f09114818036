"""Readers of formats with one annotation file per image: KITTI, Pascal VOC, YOLO; and plain folders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from workbench.core import digest
from workbench.core.errors import DataError
from workbench.data.source import (
    Source,
    SourceBox,
    SourceFrame,
    find_images,
    parse_file_name,
    relative_name,
)
from workbench.records.frames import UNKNOWN, Calibration, Drive
from workbench.records.types import Quarantined


def is_image_folder(source: Path) -> bool:
    return source.is_dir() and bool(find_images(source))


def read_images(source: Path) -> Source:
    """Every image below ``source``, in order of name."""
    frames = tuple(_unlabeled_frame(file, source) for file in find_images(source))
    return Source(format="images", root=source, frames=frames)


def _unlabeled_frame(file: Path, root: Path) -> SourceFrame:
    name = relative_name(file, root)
    parts = parse_file_name(name)
    return SourceFrame(
        file=file, name=name, drive=parts.drive, index=parts.index, counter=parts.counter
    )


# ---- KITTI object layout: ``image_2``, ``label_2`` and ``calib`` side by side.
#
# Boxes are left, top, right, bottom in pixels counted from 0, taken as continuous. The benchmark
# shuffled its frames, so file numbers say nothing of time; frames that share a calibration were
# recorded in the same session and are kept together as a drive. Geiger et al., CVPR 2012.


_KITTI_CAMERA = re.compile(r"^image_(\d)$")

# KITTI tells levels: fully visible, partly and largely occluded, unknown. These are nominal
# fractions for the levels, chosen here; level 3 stays unknown.
_KITTI_OCCLUSION = {0: 0.0, 1: 0.4, 2: 0.8}


def is_kitti(source: Path) -> bool:
    return _kitti_image_folder(source) is not None


def read_kitti(source: Path) -> Source:
    """Frames of the left colour camera (``image_2``), else of the first camera there is.

    Raises:
        DataError: No ``image_N`` folder anywhere below.
    """
    images = _kitti_image_folder(source)
    if images is None:
        raise DataError("no image_2 folder below", where=source, hint="Try another --format")
    base, camera = images.parent, images.name.removeprefix("image_")
    labels, calibs = base / f"label_{camera}", base / "calib"
    problems: list[Quarantined] = []
    drives: dict[str, Drive] = {}
    frames = []
    files = find_images(images)
    for file in files:
        drive = _kitti_drive(calibs / f"{file.stem}.txt", camera, source, problems)
        drives[drive.id] = drive
        boxes = _parse_kitti(labels / f"{file.stem}.txt", source, problems)
        frames.append(_kitti_frame(file, source, drive.id, boxes))
    stems = {file.stem for file in files}
    for path in sorted(labels.glob("*.txt")):
        if path.stem not in stems:
            name = relative_name(path, source)
            problems.append(Quarantined(file=name, reason="missing", detail="its image is away"))
    return Source(
        format="kitti",
        root=source,
        frames=tuple(frames),
        drives=drives,
        problems=tuple(problems),
    )


def _kitti_image_folder(source: Path) -> Path | None:
    if not source.is_dir():
        return None
    folders = [source, *source.rglob("image_*")]
    found = [path for path in folders if _KITTI_CAMERA.match(path.name) and path.is_dir()]
    return min(found, key=lambda path: (path.name != "image_2", str(path)), default=None)


def _kitti_drive(path: Path, camera: str, root: Path, problems: list[Quarantined]) -> Drive:
    if not path.is_file():
        return Drive(id=UNKNOWN)
    try:
        rows = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
        matrix = [float(word) for word in rows[f"P{camera}"].split()]
        fx, cx, fy, cy = matrix[0], matrix[2], matrix[5], matrix[6]
    except (KeyError, ValueError, IndexError, UnicodeDecodeError) as error:
        detail = f"calibration cannot be read ({error!r}); the frame is kept without"
        problems.append(
            Quarantined(file=relative_name(path, root), reason="mislabelled", detail=detail)
        )
        return Drive(id=UNKNOWN)
    name = f"calib-{digest.shorten(digest.of_json(matrix))}"
    calibration = Calibration(id=name, fx=fx, fy=fy, cx=cx, cy=cy)
    return Drive(id=name, calibration=calibration, sensor=f"image_{camera}")


def _parse_kitti(path: Path, root: Path, problems: list[Quarantined]) -> tuple[SourceBox, ...]:
    if not path.is_file():
        return ()
    boxes = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            boxes.append(_kitti_box(line.split(), f"line {number}"))
        except ValueError as error:
            detail = f"line {number}: {error}"
            entry = Quarantined(file=relative_name(path, root), reason="mislabelled", detail=detail)
            problems.append(entry)
    return tuple(boxes)


def _kitti_box(words: list[str], detail: str) -> SourceBox:
    if len(words) == 16:
        raise ValueError("sixteen columns: a model's output with its score is no label")
    if len(words) != 15:
        raise ValueError(f"{len(words)} columns instead of KITTI's 15")
    truncated, left, top, right, bottom = (float(words[column]) for column in (1, 4, 5, 6, 7))
    return SourceBox(
        name=words[0],
        corners=(left, top, right, bottom),
        detail=detail,
        occluded=_KITTI_OCCLUSION.get(int(float(words[2]))),
        truncated=truncated if 0 <= truncated <= 1 else None,
    )


def _kitti_frame(file: Path, root: Path, drive: str, boxes: tuple[SourceBox, ...]) -> SourceFrame:
    name = relative_name(file, root)
    return SourceFrame(
        file=file, name=name, drive=drive, index=parse_file_name(name).index, boxes=boxes
    )


# ---- Pascal VOC: an XML file an image; pixel indices count from 1 and both corners are inside.
#
# Pixel k covers [k-1, k) in continuous coordinates, so a box is (xmin-1, ymin-1, xmax, ymax).
# ``difficult`` objects are not scored, as in VOC's own evaluation. ``truncated`` is a flag: 0 means
# nothing is cut off; how much is, with 1, VOC does not say.


_MAX_VOC_BYTES = 8_000_000


def is_voc(source: Path) -> bool:
    if not source.is_dir():
        return False
    first = next(iter(sorted(_voc_documents(source))), None)
    return first is not None and b"<annotation" in first.read_bytes()[:2000]


def read_voc(source: Path) -> Source:
    """Images with the XML file of the same name beside them or under ``Annotations``."""
    files = find_images(source)
    by_stem: dict[str, list[Path]] = {}
    for file in files:
        by_stem.setdefault(file.stem, []).append(file)
    problems: list[Quarantined] = []
    boxes: dict[Path, tuple[tuple[int, int] | None, tuple[SourceBox, ...]]] = {}
    refused: set[Path] = set()
    for document in sorted(_voc_documents(source)):
        image = _voc_image(document, by_stem)
        name = relative_name(document, source)
        if image is None:
            problems.append(Quarantined(file=name, reason="missing", detail="its image is away"))
            continue
        try:
            if image in boxes:
                raise ValueError("a second annotation of the same image")
            boxes[image] = _parse_voc(document, name, problems)
        except (ElementTree.ParseError, ValueError) as error:
            refused.add(image)
            problems.append(Quarantined(file=name, reason="mislabelled", detail=str(error)))
    # An image whose annotation is broken is no image without objects: it stays out as well.
    frames = tuple(
        _voc_frame(file, source, *boxes.get(file, (None, ())))
        for file in files
        if file not in refused
    )
    return Source(format="voc", root=source, frames=frames, problems=tuple(problems))


def _voc_documents(source: Path) -> list[Path]:
    return [path for path in source.rglob("*.xml") if not path.name.startswith(".")]


def _voc_image(document: Path, by_stem: dict[str, list[Path]]) -> Path | None:
    found = by_stem.get(document.stem, [])
    beside = [file for file in found if file.parent == document.parent]
    if beside:
        return beside[0]
    near = [file for file in found if file.parent.parent == document.parent.parent]
    return near[0] if near else (found[0] if len(found) == 1 else None)


def _parse_voc(
    document: Path, name: str, problems: list[Quarantined]
) -> tuple[tuple[int, int] | None, tuple[SourceBox, ...]]:
    content = document.read_bytes()
    if len(content) > _MAX_VOC_BYTES or b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        # Entities can grow without bound and VOC has no use for them.
        raise ValueError("not a VOC annotation: too large, or it defines entities")
    root = ElementTree.fromstring(content)  # noqa: S314 - entities are refused above
    if root.tag != "annotation":
        raise ValueError(f"not a VOC annotation but <{root.tag}>")
    found = []
    for number, entry in enumerate(root.iter("object"), start=1):
        try:
            found.append(_voc_box(entry, f"object {number}"))
        except ValueError as error:
            detail = f"object {number}: {error}"
            problems.append(Quarantined(file=name, reason="mislabelled", detail=detail))
    width, height = root.findtext("size/width"), root.findtext("size/height")
    # Some tools write 0 x 0 for what they did not look up.
    size = (int(width), int(height)) if width and height and int(width) > 0 else None
    return size, tuple(found)


def _voc_box(entry: ElementTree.Element, detail: str) -> SourceBox:
    name = (entry.findtext("name") or "").strip()
    texts = [entry.findtext(f"bndbox/{corner}") for corner in ("xmin", "ymin", "xmax", "ymax")]
    numbers = [float(text) for text in texts if text]
    if not name or len(numbers) != 4:
        raise ValueError("it has no name or no complete bndbox")
    x0, y0, x1, y1 = numbers
    return SourceBox(
        name=name,
        corners=(x0 - 1, y0 - 1, x1, y1),
        detail=detail,
        truncated=0.0 if entry.findtext("truncated") == "0" else None,
        ignore=entry.findtext("difficult") == "1",
    )


def _voc_frame(
    file: Path, root: Path, size: tuple[int, int] | None, boxes: tuple[SourceBox, ...]
) -> SourceFrame:
    name = relative_name(file, root)
    parts = parse_file_name(name)
    return SourceFrame(
        file=file,
        name=name,
        drive=parts.drive,
        index=parts.index,
        counter=parts.counter,
        size=size,
        boxes=boxes,
    )


# ---- YOLO text files: ``class cx cy w h`` a line, fractions of the image, or a polygon's corners.
#
# Class names come from ``data.yaml`` (any YAML with ``names``), ``classes.txt`` or ``obj.names``. A
# polygon becomes the box around it. A line of six numbers carries a confidence: that is what a
# model said, not a label, and it is quarantined.


_YOLO_NAME_FILES = ("classes.txt", "obj.names")
_YOLO_OTHER_FILES = frozenset({"classes.txt", "train.txt", "val.txt", "test.txt", "notes.txt"})


def is_yolo(source: Path) -> bool:
    if not source.is_dir():
        return False
    named = (
        any((source / name).is_file() for name in _YOLO_NAME_FILES)
        or _yolo_yaml_names(source) is not None
    )
    return named and any(True for _ in _yolo_label_files(source))


def read_yolo(source: Path) -> Source:
    """Images with the text file of the same name beside them, or in ``labels`` for ``images``.

    Raises:
        DataError: No list of class names.
    """
    names = _yolo_class_names(source)
    files = find_images(source)
    problems: list[Quarantined] = []
    frames: list[SourceFrame] = []
    used: set[Path] = set()
    for file in files:
        labels = _yolo_labels_path(file, source)
        boxes: tuple[SourceBox, ...] = ()
        if labels is not None:
            used.add(labels)
            boxes = _parse_yolo(labels, relative_name(labels, source), names, problems)
        frames.append(_yolo_frame(file, source, boxes))
    for path in sorted(set(_yolo_label_files(source)) - used):
        name = relative_name(path, source)
        problems.append(Quarantined(file=name, reason="missing", detail="its image is away"))
    return Source(format="yolo", root=source, frames=tuple(frames), problems=tuple(problems))


def _yolo_label_files(source: Path) -> list[Path]:
    folders = [path for path in source.rglob("labels") if path.is_dir()] or [source]
    return [
        path
        for folder in folders
        for path in folder.rglob("*.txt")
        if path.name not in _YOLO_OTHER_FILES
    ]


def _yolo_labels_path(image: Path, root: Path) -> Path | None:
    parts = list(image.relative_to(root).parts)
    candidates = [image.with_suffix(".txt")]
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[:-1][::-1].index("images")
        swapped = [*parts[:last], "labels", *parts[last + 1 :]]
        candidates.insert(0, root.joinpath(*swapped).with_suffix(".txt"))
    return next((path for path in candidates if path.is_file()), None)


def _yolo_class_names(source: Path) -> dict[int, str]:
    listed = _yolo_yaml_names(source)
    if listed is not None:
        return listed
    for name in _YOLO_NAME_FILES:
        if (source / name).is_file():
            rows = (source / name).read_text(errors="replace").splitlines()
            return {number: row.strip() for number, row in enumerate(rows) if row.strip()}
    raise DataError(
        "no class names for YOLO labels",
        where=source,
        hint="Put data.yaml with `names`, or classes.txt with a name a line, beside the images",
    )


def _yolo_yaml_names(source: Path) -> dict[int, str] | None:
    for path in sorted((*source.glob("*.yaml"), *source.glob("*.yml"))):
        try:
            body: Any = yaml.safe_load(path.read_text())
            names = body.get("names") if isinstance(body, dict) else None
            if isinstance(names, list):
                return {number: str(name) for number, name in enumerate(names)}
            if isinstance(names, dict):
                return {int(number): str(name) for number, name in names.items()}
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise DataError("cannot read the YOLO description", where=path) from error
    return None


def _parse_yolo(
    path: Path, name: str, names: dict[int, str], problems: list[Quarantined]
) -> tuple[SourceBox, ...]:
    boxes = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            boxes.append(_yolo_box(line.split(), names, f"line {number}"))
        except ValueError as error:
            detail = f"line {number}: {error}"
            problems.append(Quarantined(file=name, reason="mislabelled", detail=detail))
    return tuple(boxes)


def _yolo_box(words: list[str], names: dict[int, str], detail: str) -> SourceBox:
    if len(words) == 6:
        raise ValueError("six numbers: a model's output with its confidence is no label")
    if len(words) < 5 or len(words) % 2 == 0:
        raise ValueError(f"{len(words)} numbers are neither a box nor a polygon")
    number = int(words[0])
    values = [float(word) for word in words[1:]]
    if len(values) == 4:
        cx, cy, w, h = values
        corners = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    else:
        xs, ys = values[0::2], values[1::2]
        corners = (min(xs), min(ys), max(xs), max(ys))
    name = names.get(number, f"class {number}")
    return SourceBox(name=name, corners=corners, detail=detail, normalised=True)


def _yolo_frame(file: Path, root: Path, boxes: tuple[SourceBox, ...]) -> SourceFrame:
    name = relative_name(file, root)
    parts = parse_file_name(name)
    return SourceFrame(
        file=file,
        name=name,
        drive=parts.drive,
        index=parts.index,
        counter=parts.counter,
        boxes=boxes,
    )

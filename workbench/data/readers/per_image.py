"""Readers for one annotation file per image (KITTI, Pascal VOC, YOLO) and for plain folders."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
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
    frame_of_file,
    relative_name,
)
from workbench.records.frames import UNKNOWN, Calibration, Drive
from workbench.records.types import Quarantined


def is_image_folder(source: Path) -> bool:
    """Whether there are images below ``source``."""
    return source.is_dir() and bool(find_images(source))


def read_images(source: Path) -> Source:
    """All images below ``source``, without labels."""
    frames = tuple(frame_of_file(file, source) for file in find_images(source))
    return Source(format="images", root=source, frames=frames)


# KITTI object layout: ``image_2``, ``label_2`` and ``calib`` side by side. Boxes are left, top,
# right, bottom in pixels counted from 0, taken as continuous. The benchmark shuffled its frames,
# so file numbers are not times; frames with the same calibration were recorded in the same
# session, and form a drive. Geiger et al., "Are we ready for autonomous driving?", CVPR 2012.

_KITTI_CAMERA = re.compile(r"^image_(\d)$")

# KITTI has levels: fully visible, partly occluded, largely occluded, unknown. The fractions are
# nominal values chosen here; level 3 (unknown) has none.
_KITTI_OCCLUSION = {0: 0.0, 1: 0.4, 2: 0.8}


def is_kitti(source: Path) -> bool:
    """Whether there is an ``image_N`` folder in or below ``source``."""
    return _kitti_image_folder(source) is not None


def read_kitti(source: Path) -> Source:
    """Frames of the left colour camera (``image_2``), else of the first camera.

    Raises:
        DataError: There is no ``image_N`` folder.
    """
    images = _kitti_image_folder(source)
    if images is None:
        raise DataError("no folder image_2", where=source, hint="Try another --format")
    base, camera = images.parent, images.name.removeprefix("image_")
    labels, calibs = base / f"label_{camera}", base / "calib"
    problems: list[Quarantined] = []
    drives: dict[str, Drive] = {}
    frames = []
    files = find_images(images)
    for file in files:
        drive = _kitti_drive(calibs / f"{file.stem}.txt", camera, source, problems)
        drives[drive.id] = drive
        label_file = labels / f"{file.stem}.txt"
        boxes: tuple[SourceBox, ...] = ()
        if label_file.is_file():
            boxes = _parse_lines(label_file, source, _kitti_box, problems)
        # File numbers count neither time nor frames of a drive.
        frame = frame_of_file(file, source, boxes)
        frames.append(replace(frame, drive=drive.id, counter=None))
    stems = {file.stem for file in files}
    for path in sorted(labels.glob("*.txt")):
        if path.stem not in stems:
            problems.append(_image_missing(path, source))
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
    cameras = [path for path in folders if _KITTI_CAMERA.match(path.name) and path.is_dir()]
    return min(cameras, key=lambda path: (path.name != "image_2", str(path)), default=None)


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


# Pascal VOC: one XML file per image. Pixel indices count from 1 and both corners are inside: pixel
# k covers [k-1, k), so a box is (xmin-1, ymin-1, xmax, ymax). ``difficult`` objects are ignored,
# as in VOC's own evaluation. ``truncated`` is a flag: 1 does not say how much is cut off.

_MAX_VOC_BYTES = 8_000_000


def is_voc(source: Path) -> bool:
    """Whether the first XML file below ``source`` is a VOC annotation."""
    if not source.is_dir():
        return False
    first = next(iter(sorted(_voc_documents(source))), None)
    return first is not None and b"<annotation" in first.read_bytes()[:2000]


def read_voc(source: Path) -> Source:
    """Images with the XML files of the same names, beside them or in ``Annotations``."""
    files = find_images(source)
    by_stem: dict[str, list[Path]] = {}
    for file in files:
        by_stem.setdefault(file.stem, []).append(file)
    problems: list[Quarantined] = []
    boxes: dict[Path, tuple[tuple[int, int] | None, tuple[SourceBox, ...]]] = {}
    rejected: set[Path] = set()
    for document in sorted(_voc_documents(source)):
        image = _voc_image(document, by_stem)
        name = relative_name(document, source)
        if image is None:
            problems.append(_image_missing(document, source))
            continue
        try:
            if image in boxes:
                raise ValueError("a second annotation of the same image")
            boxes[image] = _parse_voc(document, name, problems)
        except (ElementTree.ParseError, ValueError) as error:
            rejected.add(image)
            problems.append(Quarantined(file=name, reason="mislabelled", detail=str(error)))
    # An image with an invalid annotation is not an image without objects: it is left out, too.
    frames = []
    for file in files:
        if file not in rejected:
            size, labels = boxes.get(file, (None, ()))
            frames.append(frame_of_file(file, source, labels, size))
    return Source(format="voc", root=source, frames=tuple(frames), problems=tuple(problems))


def _voc_documents(source: Path) -> list[Path]:
    return [path for path in source.rglob("*.xml") if not path.name.startswith(".")]


def _voc_image(document: Path, by_stem: dict[str, list[Path]]) -> Path | None:
    images = by_stem.get(document.stem, [])
    beside = [file for file in images if file.parent == document.parent]
    beside += [file for file in images if file.parent.parent == document.parent.parent]
    if beside:
        return beside[0]
    return images[0] if len(images) == 1 else None


def _parse_voc(
    document: Path, name: str, problems: list[Quarantined]
) -> tuple[tuple[int, int] | None, tuple[SourceBox, ...]]:
    content = document.read_bytes()
    if len(content) > _MAX_VOC_BYTES or b"<!DOCTYPE" in content or b"<!ENTITY" in content:
        # Entities can expand without bound, and VOC does not use them.
        raise ValueError("not a VOC annotation: too large, or it defines entities")
    root = ElementTree.fromstring(content)  # noqa: S314 - no entities, see above
    if root.tag != "annotation":
        raise ValueError(f"not a VOC annotation but <{root.tag}>")
    boxes = []
    for number, entry in enumerate(root.iter("object"), start=1):
        try:
            boxes.append(_voc_box(entry, f"object {number}"))
        except ValueError as error:
            detail = f"object {number}: {error}"
            problems.append(Quarantined(file=name, reason="mislabelled", detail=detail))
    width, height = root.findtext("size/width"), root.findtext("size/height")
    # Some tools write 0 x 0 for an unknown size.
    size = (int(width), int(height)) if width and height and int(width) > 0 else None
    return size, tuple(boxes)


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


# YOLO: ``class cx cy w h`` per line, in fractions of the image, or the corners of a polygon, of
# which the bounding box is taken. Class names come from ``data.yaml`` (any YAML with ``names``),
# ``classes.txt`` or ``obj.names``. A line of six numbers has a confidence: it is a prediction, not
# a label, and is quarantined.

_YOLO_NAME_FILES = ("classes.txt", "obj.names")
_YOLO_OTHER_FILES = frozenset({"classes.txt", "train.txt", "val.txt", "test.txt", "notes.txt"})


def is_yolo(source: Path) -> bool:
    """Whether there are class names and label files below ``source``."""
    if not source.is_dir():
        return False
    named = (
        any((source / name).is_file() for name in _YOLO_NAME_FILES)
        or _yolo_yaml_names(source) is not None
    )
    return named and bool(_yolo_label_files(source))


def read_yolo(source: Path) -> Source:
    """Images with the text files of the same names, beside them or in ``labels`` for ``images``.

    Raises:
        DataError: There are no class names.
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
            boxes = _parse_lines(labels, source, partial(_yolo_box, names=names), problems)
        frames.append(frame_of_file(file, source, boxes))
    for path in sorted(set(_yolo_label_files(source)) - used):
        problems.append(_image_missing(path, source))
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
        hint="Add data.yaml with `names`, or classes.txt with one name per line",
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
            raise DataError("cannot read the class names of YOLO labels", where=path) from error
    return None


def _yolo_box(words: list[str], detail: str, names: dict[int, str]) -> SourceBox:
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


def _parse_lines(
    path: Path,
    root: Path,
    parse: Callable[[list[str], str], SourceBox],
    problems: list[Quarantined],
) -> tuple[SourceBox, ...]:
    """Boxes of a text file with one box per line; invalid lines become problems."""
    boxes = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            boxes.append(parse(line.split(), f"line {number}"))
        except ValueError as error:
            problems.append(
                Quarantined(
                    file=relative_name(path, root),
                    reason="mislabelled",
                    detail=f"line {number}: {error}",
                )
            )
    return tuple(boxes)


def _image_missing(annotation: Path, root: Path) -> Quarantined:
    name = relative_name(annotation, root)
    return Quarantined(file=name, reason="missing", detail="its image is away")

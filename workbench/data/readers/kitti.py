"""KITTI's object and tracking benchmarks.

Object layout: ``image_2``, ``label_2`` and ``calib`` side by side. Boxes are left, top, right,
bottom in pixels counted from 0, taken as continuous. The benchmark shuffled its frames, so file
numbers are not times; frames with the same calibration were recorded in the same session, and form
a drive. Tracking layout: ``image_02/SEQUENCE/FRAME.png`` at 10 Hz and ``label_02/SEQUENCE.txt``,
whose lines begin with the frame and the track. Geiger et al., "Are we ready for autonomous
driving?", CVPR 2012. FiftyOne's export of KITTI: the object layout in ``data`` and ``labels``.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

from workbench.core import digest
from workbench.core.errors import DataError
from workbench.core.parsing import UNREADABLE
from workbench.data.files import (
    find_files,
    find_images,
    name_key,
    parse_integer,
    parse_number,
    read_text,
    relative_name,
)
from workbench.data.readers.claims import image_missing, parse_lines
from workbench.data.source import (
    Source,
    SourceBox,
    SourceFrame,
    frame_of_file,
    left_out_text,
    mislabelled,
)
from workbench.records.frames import UNKNOWN, Calibration, Drive
from workbench.records.types import Quarantined

__all__ = ()


_CAMERA = re.compile(r"^image_(\d)$")

# KITTI has levels: fully visible, partly occluded, largely occluded, unknown. The fractions are
# nominal values chosen here; level 3 (unknown) has none.
_OCCLUSION = {0: 0.0, 1: 0.4, 2: 0.8}

_OBJECT_COLUMNS = 14  # behind the class
_TRACKING_PERIOD_US = 100_000


def is_kitti(source: Path) -> bool:
    """Whether ``source`` has an ``image_N`` folder, the tracking layout, or FiftyOne's export."""
    return (
        bool(_image_folders(source))
        or bool(_tracking_labels(source))
        or _is_fiftyone_export(source)
    )


def read_kitti(source: Path) -> Source:
    """Frames of the left colour camera (``image_2``), else of the first camera.

    Of several such folders, as in ``training`` and ``testing``, those with labels are read.

    Raises:
        DataError: None of the layouts is there.
    """
    folders = _image_folders(source)
    if folders:
        labelled = [images for images in folders if _labels_of(images).is_dir()]
        parts = [
            _read_objects(
                source,
                images,
                _labels_of(images),
                (images.name.removeprefix("image_"), images.parent / "calib"),
            )
            for images in labelled or folders
        ]
        left = [relative_name(path, source) for path in folders if path not in labelled]
        note = f"{' and '.join(left)} left out: no labels beside it"
        return Source(
            format="kitti",
            root=source,
            frames=tuple(frame for part in parts for frame in part.frames),
            drives={name: drive for part in parts for name, drive in part.drives.items()},
            problems=tuple(problem for part in parts for problem in part.problems),
            notes=(note,) if labelled and left else (),
        )
    label_files = _tracking_labels(source)
    if label_files:
        return _read_tracking(source, label_files)
    if _is_fiftyone_export(source):
        return _read_objects(source, source / "data", source / "labels", None)
    raise DataError(
        "no folder image_2, no folders image_02 and label_02, and no folders data and labels",
        where=source,
        hint="Try another --format",
    )


def _read_objects(
    source: Path, images: Path, labels: Path, calibrated: tuple[str, Path] | None
) -> Source:
    """Images with the label files of the same names.

    Args:
        calibrated: Number of the camera and the folder of calibrations, which give the drives.
    """
    problems: list[Quarantined] = []
    drives: dict[str, Drive] = {}
    frames = []
    files = find_images(images)
    listed = find_files(labels, {".txt"}) if labels.is_dir() else []
    by_name = {
        name_key(path.relative_to(labels).with_suffix("").as_posix()): path for path in listed
    }

    def labels_of(file: Path) -> Path | None:
        nested = file.relative_to(images).with_suffix("").as_posix()
        return by_name.get(name_key(nested)) or by_name.get(name_key(file.stem))

    users = Counter(map(labels_of, files))
    for file in files:
        label_file = labels_of(file)
        if label_file is not None and users[label_file] > 1:
            detail = f"{relative_name(label_file, source)} may belong to another image, too"
            problems.append(mislabelled(relative_name(file, source), detail))
            continue
        boxes: tuple[SourceBox, ...] | None = None
        failed = 0
        if label_file is not None:
            boxes, failed = parse_lines(label_file, source, _object_box, problems)
        frame = frame_of_file(file, source, boxes, failed=failed)
        if calibrated is not None:
            camera, calibs = calibrated
            drive = _calibrated_drive(calibs / f"{file.stem}.txt", camera, source, problems)
            drives[drive.id] = drive
            # File numbers count neither time nor frames of a drive.
            frame = replace(frame, drive=drive.id, counter=None)
        frames.append(frame)
    for path in sorted(set(listed) - set(users)):
        boxes, _ = parse_lines(path, source, _object_box, problems)
        problems.append(image_missing(path, source, boxes))
    return Source(
        format="kitti",
        root=source,
        frames=tuple(frames),
        drives=drives,
        problems=tuple(problems),
    )


def _read_tracking(source: Path, label_files: list[Path]) -> Source:
    problems: list[Quarantined] = []
    drives: dict[str, Drive] = {}
    frames: list[SourceFrame] = []
    labelled = {(path.parent.parent, path.stem): path for path in label_files}
    bases = dict.fromkeys(path.parent for path in label_files)
    for labels in bases:
        images = labels.parent / labels.name.replace("label_", "image_")
        camera = images.name.removeprefix("image_0")
        for folder in sorted(path for path in images.iterdir() if path.is_dir()):
            path = labelled.pop((labels.parent, folder.name), None)
            calib = labels.parent / "calib" / f"{folder.name}.txt"
            found = _calibrated_drive(calib, camera, source, problems)
            drives[folder.name] = _of_sequence(found, folder.name)
            frames += _sequence(source, folder, path, problems)
    for path in labelled.values():
        problems.append(image_missing(path, source))
    return Source(
        format="kitti",
        root=source,
        frames=tuple(frames),
        drives=drives,
        problems=tuple(problems),
    )


def _of_sequence(drive: Drive, name: str) -> Drive:
    """The drive of a tracking sequence, which has its own name and a fixed frame rate."""
    return drive.model_copy(update={"id": name, "time_source": "frame number at 10 Hz (KITTI)"})


def _sequence(
    source: Path, folder: Path, labels: Path | None, problems: list[Quarantined]
) -> list[SourceFrame]:
    boxes: dict[int, list[SourceBox]] = defaultdict(list)
    failed: dict[int, int] = defaultdict(int)

    def add(words: list[str], detail: str) -> SourceBox:
        number = parse_integer(words[0], "frame number")
        try:
            box = _tracking_box(words, detail)
        except UNREADABLE:
            failed[number] += 1
            raise
        boxes[number].append(box)
        return box

    if labels is not None:
        parse_lines(labels, source, add, problems)
    frames = []
    for file in find_images(folder):
        if not file.stem.isdecimal():
            problems.append(
                mislabelled(relative_name(file, source), "its name is not a frame number")
            )
            continue
        number = int(file.stem)
        own = None if labels is None else tuple(boxes.pop(number, ()))
        frame = frame_of_file(file, source, own, failed=failed.pop(number, 0))
        time_us = number * _TRACKING_PERIOD_US
        frames.append(
            replace(
                frame,
                drive=folder.name,
                index=number,
                counter=None,
                timestamp_us=time_us,
                clock=None,
            )
        )
    for number, left in sorted(boxes.items()):
        detail = f"no image of frame {number} in {relative_name(folder, source)}"
        name = relative_name(labels, source) if labels else folder.name
        problems.append(
            Quarantined(file=name, reason="missing", detail=detail + left_out_text(left))
        )
    return frames


def _image_folders(source: Path) -> list[Path]:
    """The folders of one camera, sorted."""
    if not source.is_dir():
        return []
    folders = [source, *(path.parent for path in find_images(source))]
    cameras = [path for path in dict.fromkeys(folders) if _CAMERA.match(path.name)]
    camera = min(
        (path.name for path in cameras), key=lambda name: (name != "image_2", name), default=""
    )
    return sorted(path for path in cameras if path.name == camera)


def _labels_of(images: Path) -> Path:
    return images.with_name(images.name.replace("image_", "label_"))


def _is_fiftyone_export(source: Path) -> bool:
    """Whether ``data`` has images, and ``labels`` lines of KITTI's columns."""
    if not (source / "data").is_dir() or not (source / "labels").is_dir():
        return False
    for path in find_files(source / "labels", {".txt"}):
        line = next((line for line in read_text(path).splitlines() if line.strip()), "")
        if line:
            name, numbers = _split_class(line.split())
            # With a sixteenth column they are predictions, which are refused line by line.
            counts = (_OBJECT_COLUMNS, _OBJECT_COLUMNS + 1)
            return not _is_number(name) and len(numbers) in counts
    return False


def _tracking_labels(source: Path) -> list[Path]:
    """Label files of the tracking layout, of the first camera that has some."""
    if not source.is_dir():
        return []
    files = [
        path
        for path in find_files(source, {".txt"})
        if re.fullmatch(r"label_\d\d", path.parent.name)
        and (path.parent.parent / path.parent.name.replace("label_", "image_")).is_dir()
    ]
    cameras = sorted(
        {path.parent.name for path in files}, key=lambda name: (name != "label_02", name)
    )
    return [path for path in files if path.parent.name == cameras[0]]


def _calibrated_drive(path: Path, camera: str, root: Path, problems: list[Quarantined]) -> Drive:
    if not path.is_file():
        return Drive(id=UNKNOWN)
    try:
        rows = dict(line.split(":", 1) for line in read_text(path).splitlines() if ":" in line)
        matrix = [float(word) for word in rows[f"P{camera}"].split()]
        fx, cx, fy, cy = matrix[0], matrix[2], matrix[5], matrix[6]
        if not all(map(math.isfinite, matrix)):
            raise ValueError("a number of the matrix is not finite")
    except UNREADABLE as error:
        detail = f"calibration cannot be read ({error!r}); the frame is kept without"
        problems.append(mislabelled(relative_name(path, root), detail))
        return Drive(id=UNKNOWN)
    name = f"calib-{digest.shorten(digest.of_json(matrix))}"
    calibration = Calibration(id=name, fx=fx, fy=fy, cx=cx, cy=cy)
    return Drive(id=name, calibration=calibration, sensor=f"image_{camera}")


def _object_box(words: list[str], detail: str) -> SourceBox:
    name, numbers = _split_class(words)
    if len(numbers) == _OBJECT_COLUMNS + 1:
        raise ValueError("sixteen columns: a model's output with its score, not a label")
    if len(numbers) != _OBJECT_COLUMNS:
        raise ValueError(f"{len(numbers) + 1} columns instead of KITTI's 15")
    truncated = parse_number(numbers[0], "truncation")
    occluded = parse_integer(numbers[1], "occlusion level")
    return SourceBox(
        name=name,
        corners=_corners(numbers[3:7]),
        detail=detail,
        occluded=_OCCLUSION.get(occluded),
        truncated=truncated if 0 <= truncated <= 1 else None,
    )


def _tracking_box(words: list[str], detail: str) -> SourceBox:
    name, numbers = _split_class(words[2:])
    if len(numbers) == _OBJECT_COLUMNS + 1:
        raise ValueError("eighteen columns: a model's output with its score, not a label")
    if len(numbers) != _OBJECT_COLUMNS:
        raise ValueError(f"{len(numbers) + 3} columns instead of the 17 of KITTI's tracking labels")
    track = parse_integer(words[1], "track")
    return SourceBox(
        name=name,
        corners=_corners(numbers[3:7]),
        detail=detail,
        occluded=_OCCLUSION.get(parse_integer(numbers[1], "occlusion level")),
        # A level here: 1 and 2 do not say how much is outside the image.
        truncated=0.0 if parse_number(numbers[0], "truncation") == 0 else None,
        track=None if track < 0 else str(track),
    )


def _split_class(words: list[str]) -> tuple[str, list[str]]:
    """The class, which may have several words ("traffic light"), and the columns behind it."""
    for count, word in enumerate(words):
        if count and _is_number(word):
            return " ".join(words[:count]), words[count:]
    return " ".join(words), []


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _corners(words: list[str]) -> tuple[float, float, float, float]:
    left, top, right, bottom = (parse_number(word, "coordinate") for word in words)
    return left, top, right, bottom
